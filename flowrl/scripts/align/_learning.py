"""What is learned before the first answer: preferences, reward models; and how it is kept."""

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowrl._io import load_meta
from flowrl.rlhf import (
    AbstractReward,
    BradleyTerry,
    Fit,
    Pairs,
    Response,
    RewardEnsemble,
    Standardised,
    fit,
    preference_accuracy,
    sample,
    standardised,
)
from flowrl.runs import DamagedError, RunDirectory, load_checkpoint, save_checkpoint
from flowrl.scripts.align._options import Config, key_of
from flowrl.scripts.align._task import Report, Task, small_shape

_SHARPNESS = 3.0  # of the labels: P(a preferred to b) = σ(3 (gold(a) − gold(b))), nine in ten agree with the gold


def stored(path: Path, template: Any, of: dict[str, Any]) -> tuple[Any, float] | None:
    """The value in a file and the seconds that it took; None if there is none made with the same options."""
    if not path.exists():
        return None
    try:
        # A directory may hold the remains of another run. First: arrays of other options do not fit the template.
        if load_meta(path).get("of") != of:
            return None
        value, meta = load_checkpoint(path, template)
    except DamagedError as error:
        aside = path.with_name(f"{path.name}.damaged")
        os.replace(path, aside)
        warnings.warn(f"{error} It is put aside as {aside.name}, and made again.", stacklevel=2)
        return None
    return value, meta["seconds"]


def kept(
    run: RunDirectory, name: str, template: Any, make: Callable[[], tuple[Any, float]], of: dict[str, Any]
) -> tuple[Any, float]:
    """The value stored under a name in the run's directory, made if it is not there, and the seconds that it took."""
    path = run.path / f"{name}.npz"
    found = stored(path, template, of)
    if found is None:
        found = make()
        save_checkpoint(path, found[0], {"of": of, "seconds": found[1]})
    return found


def fitted(
    run: RunDirectory,
    name: str,
    model: Any,
    loss: Any,
    plan: Fit,
    key: Any,
    rows: Any,
    held: Any,
    show: Report,
    of: Any,
) -> tuple[Any, float]:
    """A fitted model, and the seconds that it took; a run that was cut goes on from the last interval."""
    half = run.path / f"{name}.part.npz"

    def make() -> tuple[Any, float]:
        fresh = plan.start(model, key=key)
        found = stored(half, fresh, of)
        state, before = (fresh, 0.0) if found is None else found
        begun = time.perf_counter() - before

        def report(state: Any, row: dict[str, float]) -> None:
            save_checkpoint(half, state, {"of": of, "seconds": time.perf_counter() - begun})
            show(name, int(row["step"]), plan.steps)

        return fit(loss, plan, state, rows, held, report=report), time.perf_counter() - begun

    whole = kept(run, name, model, make, of)
    half.unlink(missing_ok=True)
    return whole


def preferences(config: Config, task: Task, run: RunDirectory) -> dict[str, Pairs]:
    """Pairs of the reference's samples, labelled by the gold score with noise, split in training and validation."""
    assert task.gold is not None
    assert task.judge is not None
    rng = np.random.default_rng([config.seed, 2])
    asked = rng.integers(0, len(task.train.texts), config.learning.pairs // 2 + 1)
    some = task.train.take(asked)
    zeros = jnp.zeros((len(some.texts), 4, config.inputs.length))
    template = Response(zeros.astype(jnp.int32), zeros.astype(bool), zeros.astype(jnp.float32))

    def draw() -> tuple[Response, float]:
        begun, key = time.perf_counter(), key_of(config, "preferences")
        drawn = sample(task.sampler, task.model, some.prompt, count=4, key=key)[0]
        return jax.block_until_ready(drawn), time.perf_counter() - begun

    drawn, _ = kept(run, "preferences", template, draw, config.learned_from())
    flat = lambda x: np.asarray(x).reshape(-1, config.inputs.length)
    texts = task.decode(flat(drawn.tokens), flat(drawn.mask))
    gold = task.gold(texts, task.judge.log_probs([t for t in some.texts for _ in range(4)], texts)).reshape(-1, 4)
    halves = []
    for i, j in ((0, 1), (2, 3)):
        first = rng.random(len(gold)) < 1 / (1 + np.exp(-_SHARPNESS * (gold[:, i] - gold[:, j])))
        best, worst = np.where(first, i, j), np.where(first, j, i)
        at = np.arange(len(gold))
        sides = (drawn.tokens[at, best], drawn.mask[at, best], drawn.tokens[at, worst], drawn.mask[at, worst])
        halves.append(Pairs(some.prompt, *sides))
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: config.learning.pairs], *halves)
    held = held_out(np.concatenate([asked, asked])[: config.learning.pairs], rng)
    part = lambda which: jax.tree.map(lambda leaf: leaf[jnp.asarray(np.flatnonzero(which))], both)
    return {"train": part(~held), "validation": part(held)}


def held_out(asked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mark the pairs of a tenth of the prompts, (pairs,): all pairs of one prompt are in one part."""
    prompts = rng.permutation(np.unique(asked))
    return np.isin(asked, prompts[: max(len(prompts) // 10, 1)])


def reward_models(
    config: Config, task: Task, pairs: dict[str, Pairs], run: RunDirectory, show: Report
) -> tuple[RewardEnsemble, float, float]:
    """Reward models over the reference's own token embeddings, their accuracy, and the seconds that they took."""
    vocabulary, width = task.model.trunk.embedding.shape
    shape = small_shape(width, vocabulary, layers=1, causal=False)
    reward = RewardEnsemble(
        shape,
        config.learning.members,
        key=key_of(config, "reward models"),
        aggregate=config.learning.aggregate,
        tokens=task.model.tokens,
    )
    reward = eqx.tree_at(lambda r: r.embedding, reward, jnp.asarray(task.model.trunk.embedding, jnp.float32))
    plan = Fit(config.learning.reward_steps, 64, 1e-3, weight_decay=0.1, interval=50, patience=4)
    loss = BradleyTerry(dropout=config.learning.dropout)
    key = key_of(config, "fit of the reward models")
    reward, seconds = fitted(
        run, "reward", reward, loss, plan, key, pairs["train"], pairs["validation"], show, config.learned_from()
    )
    return reward, float(preference_accuracy(reward, pairs["validation"])), seconds


def in_spreads(config: Config, task: Task, reward: AbstractReward) -> Standardised:
    """The reward in standard deviations over the reference's samples: the unit of step sizes and temperatures."""
    drawn, _ = sample(task.sampler, task.model, task.validation.prompt, count=8, key=key_of(config, "unit of reward"))
    return standardised(reward, task.validation.prompt, drawn)
