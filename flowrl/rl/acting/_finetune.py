"""From offline to online: acting and learning in turn, on the learner, the data and the evaluation of offline runs.

A round, for k environments side by side and u updates per environment step:

1. an action is chosen in every environment, by the weights as they are;
2. the environments step, in their own processes, while u·k updates are made here on the rows of earlier rounds;
3. the rows whose n-step windows this step closed are inserted.

So a row is learned from in the round after it came in at the earliest, whatever the timing, and one environment at a
time (k = 1) obeys the same rule as many.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl._io import stops_wait
from flowrl._misc import check_count, check_number
from flowrl.rl.acting._collect import Collector, FinishedEpisode, PendingActions
from flowrl.rl.acting._policy import Agent, Policy
from flowrl.rl.data.replay import AbstractBuffer, Rows
from flowrl.rl.learning import AbstractAlgorithm, AbstractState, losses_of, refuse_failures, train
from flowrl.runs import RunDirectory

#: Folded into the state's key for the samples of a reference: a split of that key gives no such child.
_TAG = 0x726F7773

S = TypeVar("S", bound=AbstractState)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done in one round; it may change as data arrive.

    Attributes:
        algorithm: learns. Its budget is that of training.
        policy: collects; its budget is that of the collection.
        exploration: standard deviation >= 0 of normal noise on the collected actions.
    """

    algorithm: AbstractAlgorithm
    policy: Policy
    exploration: float = 0.0


@dataclasses.dataclass(frozen=True)
class Online:
    """How far a run has got; given to the callback after every interval.

    Attributes:
        done: environment steps so far.
        total: environment steps in all.
        steps_per_second: environment steps per second in the last interval; compilation counts.
        updates_per_second: updates per second in the last interval.
    """

    done: int
    total: int
    steps_per_second: float
    updates_per_second: float


def finetune(
    plan: Callable[[int], Plan],
    state: S,
    buffer: AbstractBuffer,
    collector: Collector,
    *,
    steps: int,
    interval: int,
    updates_per_step: float = 1.0,
    startup: int = 0,
    run: RunDirectory | None = None,
    evaluate: Callable[[S, int], dict[str, Any]] | None = None,
    evaluate_at: tuple[int, ...] = (),
    progress: Callable[[Online], object] | None = None,
    log: Callable[[dict[str, Any], int], object] | None = None,
) -> S:
    """Act and learn until `steps` environment steps were made, or go on with a run that did not get that far.

    After every interval the metrics are added to `run.rows`, and networks, optimisers, keys, the ring of the buffer and
    the open episodes are saved. Started again on the same run, the loop ends with the same bits (same machine, same
    versions), provided that an environment is determined by its seed and the actions. SIGINT and SIGTERM, where Python
    handles them, wait until a round is done and saved; a second one does not.

    Args:
        plan: called as `plan(step)` before every round, with the environment steps so far; plans that differ in the
            numbers of their budgets alone (a cap, a step size) compile nothing again.
        state: of the algorithm, after its offline training and `prepare`.
        buffer: the data of that training, prepared, with a ring.
        collector: acts.
        steps: environment steps over all lanes, a multiple of `interval`.
        interval: environment steps between two rows of metrics, a multiple of the lanes.
        updates_per_step: updates per environment step; times the lanes it is a whole number >= 1.
        startup: environment steps before the first update, < `steps`.
        run: where to save; None trains in memory only.
        evaluate: called as `evaluate(state, step)` at the steps of `evaluate_at`; what it returns joins the metrics.
        evaluate_at: environment steps, multiples of `interval`; 0 is before the first.
        progress: called after every interval.
        log: called as `log(row, step)` with every row of metrics.

    Returns:
        The state at the end.

    Raises:
        FloatingPointError: training diverged; the checkpoint before is kept.
        RuntimeError: an environment failed, of the collection or of the evaluation, or gave what cannot be learned
            from. A checkpoint is written from which the run goes on exactly where it stopped.
        ValueError: numbers that do not fit together.
    """
    lanes = collector.lanes.size
    check_number("updates_per_step", updates_per_step, lambda x: 0 < x < float("inf"), "finite and > 0")
    for name, count, least in (("interval", interval, 1), ("steps", steps, 1), ("startup", startup, 0)):
        check_count(name, count, least)
    updates = round(updates_per_step * lanes)
    if updates < 1 or abs(updates - updates_per_step * lanes) > 1e-6:
        raise ValueError(f"updates_per_step times lanes must be a whole number >= 1, got {updates_per_step} x {lanes}.")
    if interval % lanes or steps % interval:
        raise ValueError(
            f"steps ({steps}) must be a positive multiple of interval ({interval}), and that of lanes ({lanes})."
        )
    if any(step % interval or not 0 <= step <= steps for step in evaluate_at):
        raise ValueError(f"evaluate_at must be multiples of {interval} up to {steps}, got {evaluate_at}.")
    if startup >= steps:
        raise ValueError(f"startup ({startup}) leaves nothing of {steps} steps to learn in.")
    if buffer.capacity < collector.most_rows:
        raise ValueError(
            f"a ring of {buffer.capacity} rows is too small: one step of {lanes} environments may give "
            f"{collector.most_rows}."
        )
    record, learned, begun = _IntervalRecord(), False, False
    if run is not None:
        loaded = run.load(state)
        if loaded is not None:
            if "online/learned" not in run.arrays:
                raise ValueError(f"{run.checkpoint} is not a checkpoint of a finetuning.")
            # A round that learned and then lost its environments does not learn again.
            state, learned, begun = loaded, bool(run.arrays["online/learned"]), True
            buffer, record = buffer.restored(run.arrays), _IntervalRecord.restored(run.arrays)
            collector.restore(run.arrays)
            run.arrays = {}
    if not begun and evaluate is not None and 0 in evaluate_at:
        _record({"phase": "online", "step": 0, **evaluate(state, 0)}, run, log)

    def save() -> None:
        if run is not None:
            arrays = {**buffer.ring(), **collector.arrays(), **record.arrays(), "online/learned": np.asarray(learned)}
            run.save(state, arrays)

    def save_unfinished() -> None:
        # A checkpoint of networks that diverged would take the place of a good one.
        refuse_failures("online", collector.steps, record.means(), state)
        save()

    @contextlib.contextmanager
    def saved_if_it_fails(*errors: type[BaseException]) -> Iterator[None]:
        try:
            yield
        except errors:
            save_unfinished()
            raise

    while collector.steps < steps or record.rounds:
        clock, made, first = _Clock(), 0, collector.steps
        while record.rounds < interval // lanes:
            with stops_wait() as stop:
                now = plan(collector.steps)
                clock.lap("other")
                with saved_if_it_fails(RuntimeError):
                    agent = Agent(now.algorithm, state, collector.standardizer)
                    taken = collector.start(agent, now.policy, now.exploration)
                clock.lap("acting")
                if collector.steps >= startup and not learned:
                    state, metrics = train(now.algorithm, state, buffer, updates)
                    record.add_metrics(jax.device_get(metrics))
                    made, learned = made + updates, True
                clock.lap("updates")
                with saved_if_it_fails(RuntimeError):
                    rows, finished = collector.finish()
                clock.lap("waiting for environments")
                learned = False
                record.add_step(taken, finished)
                if rows is not None:
                    buffer = buffer.insert(_completed(now.algorithm, state, rows, buffer, collector.steps))
                clock.lap("inserting")
                if stop():
                    save_unfinished()
        means = record.means()
        refuse_failures("online", collector.steps, means, state)
        row = {"phase": "online", "step": collector.steps, "updates": int(state.step), **record.episodes(), **means}
        clock.lap("other")
        if evaluate is not None and collector.steps in evaluate_at:
            with saved_if_it_fails(RuntimeError, KeyboardInterrupt):
                row |= evaluate(state, collector.steps)
        clock.lap("evaluating")
        _record(row, run, log)
        record = _IntervalRecord()
        save()
        clock.lap("saving")
        done, seconds = collector.steps - first, clock.total()
        if progress is not None:
            progress(Online(collector.steps, steps, done / seconds, made / seconds))
        if run is not None:
            more = {f"seconds_{name.replace(' ', '_')}": clock.seconds.get(name, 0.0) for name in PHASES}
            more |= losses_of(means)
            run.append_timing(phase="online", step=collector.steps, steps=done, updates=made, seconds=seconds, **more)
    return state


# The parts of a round's time. On the CPU a training call returns when it is done; elsewhere it is waited for, so that
# the times say the same everywhere: the environments step meanwhile in their own processes.
PHASES = ("acting", "updates", "waiting for environments", "inserting", "evaluating", "saving", "other")


def _record(row: dict[str, Any], run: RunDirectory | None, log: Callable[[dict[str, Any], int], object] | None) -> None:
    if log is not None:
        log(row, row["step"])
    if run is not None:
        run.rows.append(row)


def _completed(
    algorithm: AbstractAlgorithm, state: AbstractState, rows: Rows, buffer: AbstractBuffer, step: int
) -> Rows:
    """Draw the reference's samples that a frozen reference keeps for every row."""
    if not buffer.samples:
        return rows
    key = jr.fold_in(jr.fold_in(state.key, _TAG), step)
    particles = _propose(algorithm, state, rows.next_observations, buffer.samples, key)
    return eqx.tree_at(lambda r: r.particles, rows, particles, is_leaf=lambda x: x is None)


@eqx.filter_jit
def _propose(
    algorithm: AbstractAlgorithm, state: AbstractState, observations: Float[Array, "rows obs"], samples: int, key: Key
) -> Float[Array, "rows samples act"]:
    keys = jr.split(key, (observations.shape[0], samples))
    return jax.vmap(lambda s, ks: jax.vmap(lambda k: algorithm.propose(state, s, k))(ks))(observations, keys)


class _IntervalRecord:
    """The rounds of an interval so far; a checkpoint in the middle of it holds them."""

    def __init__(self) -> None:
        self._metrics: list[dict[str, np.ndarray]] = []
        self._taken: list[PendingActions] = []
        self._finished: list[FinishedEpisode] = []

    @classmethod
    def restored(cls, arrays: dict[str, np.ndarray]) -> "_IntervalRecord":
        """Read what `arrays` returned."""
        record, prefix = cls(), "tally/metric/"
        metrics = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
        record._metrics = [dict(zip(metrics, row, strict=True)) for row in zip(*metrics.values(), strict=True)]
        moved, steps = arrays.get("tally/displacement", ()), arrays.get("tally/steps", ())
        # The actions were taken; their number is all that is left to be known of them.
        record._taken = [
            PendingActions(np.zeros((x.size, 0), np.float32), x, n) for x, n in zip(moved, steps, strict=True)
        ]
        record._finished = [FinishedEpisode(float(a), float(b), int(c)) for a, b, c in arrays.get("tally/finished", ())]
        return record

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint must hold."""
        if not self._metrics and not self._taken:
            return {}
        names = self._metrics[0] if self._metrics else ()
        columns = {f"tally/metric/{name}": np.stack([row[name] for row in self._metrics]) for name in names}
        if self._taken:
            columns["tally/displacement"] = np.stack([step.displacement for step in self._taken])
            columns["tally/steps"] = np.stack([step.steps for step in self._taken])
        if self._finished:
            columns["tally/finished"] = np.asarray([[x.return_, x.success, x.length] for x in self._finished])
        return columns

    @property
    def rounds(self) -> int:
        """Rounds so far."""
        return len(self._taken)

    def add_metrics(self, metrics: dict[str, np.ndarray]) -> None:
        """Add the metrics of a round's updates."""
        self._metrics.append(metrics)

    def add_step(self, taken: PendingActions, finished: list[FinishedEpisode]) -> None:
        """Add a step of all environments."""
        self._taken.append(taken)
        self._finished += finished

    def means(self) -> dict[str, float]:
        """Return the means of the learner's metrics."""
        names = self._metrics[0] if self._metrics else ()
        return {name: float(np.mean([row[name] for row in self._metrics], dtype=np.float64)) for name in names}

    def episodes(self) -> dict[str, float]:
        """Return how the collection went; without an episode that ended, its columns stay empty."""
        moved = np.concatenate([step.displacement for step in self._taken]).astype(np.float64)
        row = {
            "episodes": len(self._finished),
            "collected/displacement": float(np.sqrt(np.mean(moved**2))),
            "collected/steps": float(np.mean([step.steps for step in self._taken])),
        }
        if self._finished:
            row["collected/return"] = float(np.mean([x.return_ for x in self._finished]))
            row["collected/success"] = float(np.mean([x.success for x in self._finished]))
            row["collected/length"] = float(np.mean([x.length for x in self._finished]))
        return row


class _Clock:
    """Seconds per part of a round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._begun = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the last call for `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._begun
