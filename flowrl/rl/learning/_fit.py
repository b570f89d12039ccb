"""The training loop: pretraining, preparation and updates, in intervals that are one compiled call each."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from flowrl._custom_types import Key
from flowrl._io import stops_wait
from flowrl._misc import check_count, check_one_key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning._algorithm import AbstractAlgorithm, AbstractPretrained, S
from flowrl.rl.learning._train import Phase, train
from flowrl.runs import RunDirectory

# A metric beyond it is a network on its way to infinity: the state is not saved, though it is still finite.
_LIMIT = 1e15


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far training has got; given to the callback after every interval.

    Attributes:
        phase: "reference", the updates of the reference alone, or "main".
        done: updates of this phase so far.
        total: updates of this phase.
        rate: updates per second in the last interval; compilation counts in the first.
    """

    phase: Phase
    done: int
    total: int
    rate: float


def fit(
    algorithm: AbstractAlgorithm[S],
    replay: Replay,
    *,
    updates: int,
    interval: int,
    key: Key,
    run: RunDirectory | None = None,
    evaluate: Callable[[S, int], dict[str, Any]] | None = None,
    evaluate_at: tuple[int, ...] = (),
    progress: Callable[[Progress], object] | None = None,
    log: Callable[[dict[str, Any], int], object] | None = None,
) -> S:
    """Train, or go on training, until the algorithm has had `updates` updates.

    After every interval the metrics are added to `run.rows` and the state is saved. Started again on the same run, the
    loop goes on from the last checkpoint and ends with the same bits (same machine, same versions). SIGINT and SIGTERM,
    where Python handles them, wait until the interval is saved, unless an evaluation follows it; a second one does not.

    Args:
        algorithm: the algorithm.
        replay: the data.
        updates: updates, a multiple of `interval`; those of a pretraining are not counted.
        interval: updates per compiled call.
        key: randomness of the whole run.
        run: where to save; None trains in memory only.
        evaluate: called as `evaluate(state, step)` at the steps of `evaluate_at`; what it returns joins the metrics.
            Its state lives until it returns: the next interval takes over the buffers.
        evaluate_at: steps, multiples of `interval`.
        progress: called after every interval.
        log: called as `log(row, step)` with every row of metrics and the updates so far over both phases, such as
            `flowrl.runs.Tracker.log`.

    Returns:
        The state at the end.

    Raises:
        FloatingPointError: training diverged or transports failed; the checkpoint before is kept.
        TypeError: `algorithm` is no algorithm, or `replay` no `Replay`.
        ValueError: numbers that do not fit together.
    """
    if not isinstance(algorithm, AbstractAlgorithm):
        made = f"; did you mean {algorithm.__name__}(...)?" if isinstance(algorithm, type) else "."
        raise TypeError(f"algorithm must be one such as presets.default(), got {algorithm!r}{made}")
    if not isinstance(replay, Replay):
        raise TypeError(f"replay must be a Replay, got {type(replay).__name__}: make one of a data set by make_replay.")
    check_count("updates", updates)
    check_count("interval", interval)
    check_one_key(key)
    pretraining = algorithm.pretraining if isinstance(algorithm, AbstractPretrained) else 0
    if updates % interval:
        raise ValueError(f"updates must be a positive multiple of interval, got {updates} and {interval}.")
    if pretraining % interval:
        raise ValueError(f"updates of the reference ({pretraining}) must be a multiple of interval ({interval}).")
    if any(step % interval or not 0 < step <= updates for step in evaluate_at):
        raise ValueError(f"evaluate_at must be multiples of {interval} up to {updates}, got {evaluate_at}.")
    init_key, prepare_key = jr.split(key)
    state = algorithm.init(replay.observations.shape[1], replay.actions.shape[1], key=init_key)
    if run is not None:
        state = run.load(state) or state

    def done_in(phase: Phase, state: S) -> int:
        if phase == "reference" and isinstance(algorithm, AbstractPretrained):
            return int(algorithm.pretrained(state))
        return int(state.step)

    def advance(state: S, replay: Replay, phase: Phase, total: int) -> S:
        evaluated = evaluate is not None and phase == "main" and int(state.step) + interval in evaluate_at
        # A compiled call cannot be stopped half-way: what it made is kept. An evaluation may take minutes more.
        with contextlib.nullcontext() if run is None or evaluated else stops_wait():
            return one_interval(state, replay, phase, total)

    def one_interval(state: S, replay: Replay, phase: Phase, total: int) -> S:
        started = time.perf_counter()
        state, metrics = train(algorithm, state, replay, interval, phase)
        metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - started
        done = done_in(phase, state)
        refuse_failures(phase, done, metrics, state)
        if progress is not None:
            progress(Progress(phase, done, total, interval / seconds))
        row: dict[str, Any] = {"phase": phase, "step": done, **metrics}
        evaluating = 0.0
        if evaluate is not None and phase == "main" and done in evaluate_at:
            begun = time.perf_counter()
            row |= evaluate(state, done)
            evaluating = time.perf_counter() - begun
        if log is not None:
            log(row, done if phase == "reference" else pretraining + done)
        if run is not None:
            run.rows.append(row)
            rate, losses = interval / seconds, losses_of(metrics)
            times = {"seconds": seconds, "updates_per_second": rate, "seconds_evaluating": evaluating}
            run.append_timing(phase=phase, step=done, **times, **losses)
            run.save(state)
        return state

    if isinstance(algorithm, AbstractPretrained):
        while int(algorithm.pretrained(state)) < pretraining:
            state = advance(state, replay, "reference", pretraining)
        # What it caches is drawn again after a restart, from the same key: cheaper to recompute than to store.
        state, replay = algorithm.prepare(state, replay, key=prepare_key)
    while int(state.step) < updates:
        state = advance(state, replay, "main", updates)
    return state


def losses_of(metrics: dict[str, float]) -> dict[str, float]:
    """Return the losses among metrics, as timing.csv has them beside the seconds."""
    return {name: x for name, x in metrics.items() if name.endswith("loss")}


def refuse_failures(phase: str, done: int, metrics: dict[str, float], state: Any) -> None:
    """Raise where training diverged: a metric or the state is not finite, or a metric is beyond the limit."""
    when = f"{'environment step' if phase == 'online' else 'update'} {done}"
    broken = [f"{name} is {x:.3g}" for name, x in metrics.items() if not abs(x) < _LIMIT]
    if not broken:
        # The loss of an update is that of the parameters before its step, so that the last step of an interval can
        # ruin the state while every metric is finite.
        named = jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_inexact_array))
        finite = jax.device_get(_finite([leaf for _, leaf in named]))
        names = [jax.tree_util.keystr(path) for (path, _), good in zip(named, finite, strict=True) if not good]
        more = f" and {len(names) - 1} more" if names[1:] else ""
        broken = [f"state{names[0]}{more} {'are' if more else 'is'} not finite"] if names else []
    if broken:
        raise FloatingPointError(
            f"training ({phase} phase) diverged before {when}: {', '.join(broken)}. The last good checkpoint is kept. "
            "Lower the learning rate, the discount or the training budget."
        )
    if metrics.get("failed"):
        raise FloatingPointError(
            f"{metrics['failed']:.3g} transports per update failed before {when}: the reference's samples lie "
            "outside the transport's domain, or no score was finite. The last good checkpoint is kept."
        )


@eqx.filter_jit
def _finite(leaves: list[Array]) -> list[Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
