"""From a data set to an agent in one call."""

import contextlib
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax.random as jr

from flowrl._custom_types import Key
from flowrl._misc import check_count
from flowrl.rl.acting import Agent
from flowrl.rl.data.replay import Standardizer, make_replay
from flowrl.rl.data.schema import OfflineDataset, apply_protocol
from flowrl.rl.learning import AbstractAlgorithm, AbstractPretrained, Progress, fit, presets
from flowrl.runs import RunDirectory


def learn(
    dataset: OfflineDataset,
    algorithm: AbstractAlgorithm | None = None,
    *,
    key: Key,
    updates: int = 10_000,
    discount: float = 0.99,
    n_step: int | None = None,
    chunk: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Agent:
    """Train on a data set, and return what acts.

    Rewards that are as the environment gave them are brought to unit scale where returns are scored (`unit_std`);
    observations are standardised; then it is `make_replay` and `fit`, which take everything apart.

    Args:
        dataset: from `data.load`, `data.from_arrays` or `data.load_arrays`.
        algorithm: what learns; None is `presets.small` for the data's metric and the number of updates.
        key: randomness of the whole run.
        updates: of the algorithm, those of a pretraining not counted.
        discount: γ of one step of the environment.
        n_step: steps of the n-step return; None is 5, with chunks their length.
        chunk: actions taken at once; None is 5 where success is scored, 1 where returns are.
        out: directory of the run: metrics and a checkpoint after every interval. The same call goes on from there, and
            where the run is done returns its agent; another call is refused.
        progress: called as `progress(done, total)`, in updates, those of a pretraining counted.

    Returns:
        The agent: `agent(observation, key=key)` is its action, `evaluate` plays whole episodes with it.

    Raises:
        FloatingPointError: training diverged.
        TypeError: the data set or the algorithm is something else.
        ValueError: a number is out of range, all rewards are equal, or `out` is of another run.
    """
    if not isinstance(dataset, OfflineDataset):
        raise TypeError(
            f"dataset must be an OfflineDataset, got {type(dataset).__name__}: make one by data.from_arrays."
        )
    check_count("updates", updates)
    sparse = dataset.info.metric == "success"
    if dataset.info.reward_transform.protocol == "none" and not sparse:
        dataset = apply_protocol(dataset, rewards="unit_std")
    if chunk is None:
        chunk = 5 if sparse else 1  # a manipulator that decides at every step gets stuck
    if n_step is None:
        n_step = 5 if chunk == 1 else chunk
    if algorithm is None:
        algorithm = presets.small(dataset.info.metric, updates)
    pretraining = algorithm.pretraining if isinstance(algorithm, AbstractPretrained) else 0
    standardizer = Standardizer.fit(dataset.train.observations)
    replay = make_replay(dataset.train, standardizer, discount=discount, n_step=n_step, chunk=chunk)

    def show(now: Progress) -> None:
        if progress is not None:
            progress(now.done + (pretraining if now.phase == "main" else 0), pretraining + updates)

    interval = math.gcd(updates, pretraining, 1_000)  # updates per compiled call; a checkpoint follows each
    with contextlib.ExitStack() as stack:
        run = None
        if out is not None:
            identity = {"data": dataset.info.sha256, "algorithm": _named(algorithm), "updates": updates}
            identity |= {"discount": discount, "n_step": n_step, "chunk": chunk, "key": jr.key_data(key).tolist()}
            resume = (Path(out) / "config.json").exists()
            run = stack.enter_context(RunDirectory(out, identity, resume=resume))
        state = fit(algorithm, replay, updates=updates, interval=interval, key=key, run=run, progress=show)
    return Agent(algorithm, state, standardizer, chunk)


def _named(algorithm: AbstractAlgorithm) -> str:
    """Return the algorithm's name with a fingerprint of its fields, the same in every process."""
    fields = eqx.tree_pformat(algorithm, short_arrays=False)
    return f"{type(algorithm).__name__} {hashlib.sha256(fields.encode()).hexdigest()[:12]}"
