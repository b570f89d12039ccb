"""The training loop: reference, cache, critic, in intervals that are one compiled call each."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.random as jr

from flowrl._custom_types import Key
from flowrl.rl._replay import Replay
from flowrl.rl._run import RunDirectory
from flowrl.rl._vgf import VGF, VGFState, cache_particles, init, train_critic, train_reference


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far training has got; given to the callback after every interval.

    Attributes:
        phase: what is being trained.
        done: updates of this phase so far.
        total: updates of this phase.
        rate: updates a second in the last interval; compilation counts in the first.
    """

    phase: Literal["reference", "critic"]
    done: int
    total: int
    rate: float


def fit(
    vgf: VGF,
    replay: Replay,
    *,
    updates: int,
    interval: int,
    key: Key,
    run: RunDirectory | None = None,
    evaluate: Callable[[VGFState, int], dict[str, Any]] | None = None,
    evaluate_at: tuple[int, ...] = (),
    progress: Callable[[Progress], object] | None = None,
) -> VGFState:
    """Train, or go on training, until the critic has had `updates` updates.

    After every interval the metrics are added to `run.rows` and the state is saved. Started again on the same run, the
    loop goes on from the last checkpoint and ends with the same bits (same machine, same versions).

    Args:
        vgf: the algorithm.
        replay: the data.
        updates: updates of the critic, a multiple of `interval`.
        interval: updates a compiled call.
        key: randomness of the whole run.
        run: where to save; None trains in memory only.
        evaluate: called as `evaluate(state, step)` at the steps of `evaluate_at`; what it returns joins the metrics.
            Its state lives until it returns: the next interval takes over the buffers.
        evaluate_at: steps of the critic, multiples of `interval`.
        progress: called after every interval.

    Returns:
        The state at the end.

    Raises:
        FloatingPointError: the critic diverged or transports failed; the checkpoint before is kept.
        ValueError: numbers that do not fit together.
    """
    if interval < 1 or updates < 1 or updates % interval:
        raise ValueError(f"updates must be a positive multiple of interval, got {updates} and {interval}.")
    if vgf.frozen_reference and vgf.reference_updates % interval:
        raise ValueError(f"reference_updates ({vgf.reference_updates}) must be a multiple of interval ({interval}).")
    if any(step % interval or not 0 < step <= updates for step in evaluate_at):
        raise ValueError(f"evaluate_at must be multiples of {interval} up to {updates}, got {evaluate_at}.")
    init_key, cache_key = jr.split(key)
    state = init(vgf, replay.observations.shape[1], replay.actions.shape[1], key=init_key)
    if run is not None:
        state = run.load(state) or state
    if vgf.frozen_reference:
        while int(state.reference_step) < vgf.reference_updates:
            state = _interval(train_reference, "reference", vgf, state, replay, interval, run, progress)
        # Drawn again after a restart, from the same key: cheaper to recompute than to store.
        replay, state = cache_particles(vgf, state, replay, key=cache_key)
    while (done := int(state.step)) < updates:
        due = done + interval in evaluate_at
        state = _interval(
            train_critic, "critic", vgf, state, replay, interval, run, progress, evaluate if due else None, updates
        )
    return state


def _interval(
    train: Callable[..., tuple[VGFState, dict]],
    phase: Literal["reference", "critic"],
    vgf: VGF,
    state: VGFState,
    replay: Replay,
    interval: int,
    run: RunDirectory | None,
    progress: Callable[[Progress], object] | None,
    evaluate: Callable[[VGFState, int], dict[str, Any]] | None = None,
    total: int | None = None,
) -> VGFState:
    started = time.perf_counter()
    state, metrics = train(vgf, state, replay, interval)
    metrics = {name: float(x) for name, x in jax.device_get(metrics).items()}
    seconds = time.perf_counter() - started
    done = int(state.reference_step if phase == "reference" else state.step)
    broken = [name for name, x in metrics.items() if x != x or abs(x) == float("inf")]
    if broken:
        raise FloatingPointError(
            f"{phase} diverged before update {done}: {', '.join(broken)} is not finite. The last good checkpoint is "
            "kept. Lower the learning rate, the discount or the training budget."
        )
    if metrics.get("failed"):
        raise FloatingPointError(
            f"{metrics['failed']:.3g} transports an update failed before critic update {done}: the reference's samples "
            "lie outside the transport's domain, or no score was finite. The last good checkpoint is kept."
        )
    if progress is not None:
        progress(Progress(phase, done, total or vgf.reference_updates, interval / seconds))
    row: dict[str, Any] = {"phase": phase, "step": done, **metrics}
    if evaluate is not None:
        row |= evaluate(state, done)
    if run is not None:
        run.rows.append(row)
        run.append_timing(phase=phase, step=done, seconds=seconds, updates_per_second=interval / seconds)
        run.save(state)
    return state
