"""A finished run, read again: its options, its algorithm, its agent."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax.random as jr

from flowrl._io import read_json_object
from flowrl.rl import VGF, AbstractAlgorithm, Agent, Standardizer
from flowrl.runs import load_checkpoint
from flowrl.scripts.offline._imported import names_code
from flowrl.scripts.offline._options import Config, from_flat, is_auto
from flowrl.scripts.offline._program import AGENT_FILE, with_chosen_budget


def load_agent(run: str | os.PathLike[str], *, trust_code: bool = False) -> Agent:
    """Load the agent of a finished run of `flowrl offline`, to act, to evaluate, to measure.

    Args:
        run: directory of the run.
        trust_code: run code that the run's config.json names: an environment of a module, an algorithm of one's own.

    Returns:
        The agent; `agent(observation, key=key)` acts once.

    Raises:
        FileNotFoundError: the directory is no such run.
        ValueError: the run is not finished, is of another version, or names code that is not trusted.
    """
    path = Path(run)
    missing = [name for name in ("config.json", "checkpoint.npz", AGENT_FILE) if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} is not a run of `flowrl offline` that this version has finished: {', '.join(missing)} missing. "
            "`flowrl offline ... --resume` writes what a run of an older version lacks."
        )
    config = from_flat(options_of(path / "config.json", trusted=trust_code), path / "config.json")
    constants = read_json_object(path / AGENT_FILE)
    mean, std = (jnp.asarray(constants[name], jnp.float32) for name in ("mean", "std"))
    learner, training = trained_learner(config, path), config.training
    template = learner.init(mean.shape[0], int(constants["action_size"]), key=jr.key(training.seed))
    state, _ = load_checkpoint(path / "checkpoint.npz", template)
    if int(state.step) != training.steps:
        raise ValueError(f"{path} has made {int(state.step)} of {training.steps} updates; finish it first.")
    return Agent(learner, state, Standardizer(mean, std), training.chunk)


def trained_learner(config: Config, run: Path) -> AbstractAlgorithm:
    """Return the algorithm of a run, with the training budget that it chose if it did."""
    learner = config.learner()
    if is_auto(config):
        assert isinstance(learner, VGF)
        learner = with_chosen_budget(learner, read_json_object(run / "training_budget.json"))
    return learner


def options_of(path: Path, *, trusted: bool) -> dict[str, Any]:
    """Read the options of a run; code that they name is imported later, which a file alone must not bring about."""
    options = read_json_object(path)
    algorithm, env = str(options.get("algorithm", "")), str(options.get("env", ""))
    critic = str(options.get("critic", ""))
    named = [f"algorithm {algorithm!r}"] * (":" in algorithm) + [f"env {env!r}"] * _imports(env)
    named += [f"critic {critic!r}"] * names_code(critic)
    if named and not trusted:
        raise ValueError(
            f"{path} names code, {' and '.join(named)}, which runs with your rights; if you trust it, add --trust-code."
        )
    return options


def _imports(env: str) -> bool:
    """Whether the name of an environment imports a module of its choice."""
    kind, _, rest = env.partition(":")
    if kind in ("d4rl", "minari"):  # names of data, which import what they always do
        return False
    return ":" in rest if kind == "gym" else bool(rest)
