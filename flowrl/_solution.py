"""What a transport returns: where the particles are, what was spent, and why it stopped."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowrl._custom_types import Particles


class RESULTS(diffrax.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]  (Equinox enumerations extend by subclassing)
    """How a transport ended. The text of each member is advice.

    Extends `diffrax.RESULTS`, so that results of diffrax, optimistix and lineax pass through unchanged.
    """

    nonfinite_score = (
        "The score (the gradient of the target), or the flow's velocity, was non-finite at every particle, so none is "
        "left to transport. "
        "Check the target at the starting particles, lower `step_size`, or use float64."
    )
    invalid_budget = (
        "A traced budget was invalid: a negative or non-finite number in it, or temperature 0 where it must be "
        "positive. Nothing was moved."
    )
    stationary = "The particles came to rest: their speed fell below the budget's `tolerance`."
    displacement_reached = "A particle reached `max_displacement`, and there the set stopped."
    mmd_reached = (
        "The particles reached `max_mmd`, the cap on their discrepancy to the start, and are where they last kept it. "
        "Allow more, or take smaller steps to come closer to the cap."
    )
    tempering_unfinished = (
        "The budget was spent before the last temperature, so the particles are those of a flatter distribution. Allow "
        "more steps, or fewer moves per temperature."
    )
    outside_domain = (
        "A particle started outside the domain, or the domain is empty (a lower face not below its upper one). Nothing "
        "was moved. Project the particles first, or widen the domain."
    )


def is_okay(result: Any) -> Array:
    """Return whether a transport did what its budget asked: ran all its steps, came to rest, or reached a cap.

    Args:
        result: a member of `flowrl.RESULTS`.
    """
    codes: Any = RESULTS
    good = (codes.successful, codes.event_occurred, codes.stationary, codes.mmd_reached, codes.displacement_reached)
    return jnp.any(jnp.stack([jnp.asarray(result == code) for code in good]), axis=0)


class Solution(eqx.Module):
    """The result of `flowrl.transport`. `print(solution)` gives a verdict on one screen.

    Attributes:
        particles: the transported set, same structure, shapes and dtype as the input.
        values: value of each transported particle `(n,)`: V for `Boltzmann`, log p for `Density`; NaN where it is not
            finite or the particle was frozen. None for targets that only know a gradient.
        result: a member of `flowrl.RESULTS`.
        stats: what was spent, arrays without a particle axis: `steps`; `time` (the sum of the step sizes);
            `displacement_max` and `displacement_rms` over particles (Euclidean, in the unit of the budget's `scale`);
            `path_length` (mean over particles of the length travelled; NaN from `Diffrax`, which does not measure it);
            `fraction_at_cap`; `fraction_clipped` (particle-steps that the domain stopped); `nonfinite` (particles
            frozen because their value or score was not finite).
        log_weights: log weights of the particles `(n,)`, whose weights sum to 1; −inf for frozen particles and empty
            slots.
        trajectory: particles at the step counts asked for by `save`, leaves `(len(save), n, ...)`, or None.
        extras: what the method learned, by name: its adapted step size, the share of accepted moves, the log evidence.
        notes: what to know about the distribution of these particles.
    """

    particles: Particles
    values: Array | None
    result: Any
    stats: dict[str, Array]
    trajectory: Particles | None = None
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    log_weights: Array | None = None
    extras: dict[str, Any] = eqx.field(default_factory=dict)

    def __str__(self) -> str:
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self)):
            return repr(self)
        return _verdict(self)


def _ending(result: Any) -> str:
    """Return every way in which the sets ended, with counts; one Solution may hold many sets."""
    known = (
        RESULTS.stationary,
        RESULTS.mmd_reached,
        RESULTS.displacement_reached,
        RESULTS.nonfinite_score,
        RESULTS.invalid_budget,
        RESULTS.outside_domain,
        RESULTS.tempering_unfinished,
        RESULTS.max_steps_reached,
    )
    texts = {"ran all its steps": RESULTS.successful} | {RESULTS[member]: member for member in known}
    counts = {text: int(np.sum(np.asarray(result == member))) for text, member in texts.items()}
    counts = {text: count for text, count in counts.items() if count}
    total = int(np.asarray(result == RESULTS.successful).size)
    if total == 0:
        return "-"
    if not counts:
        return RESULTS[result]
    return (
        next(iter(counts)) if total == 1 else "; ".join(f"{count} of {total}: {text}" for text, count in counts.items())
    )


def _span(value: np.ndarray) -> str:
    if value.size == 0:
        return "-"
    low, high = value.min(), value.max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _verdict(solution: Solution) -> str:
    stats = {name: np.asarray(value) for name, value in solution.stats.items()}
    batch = stats["steps"].shape
    count = jax.tree.leaves(solution.particles)[0].shape[len(batch)]
    sets = "one set" if not batch else f"{int(np.prod(batch))} sets"

    def span(name: str) -> str:
        return _span(stats[name])

    unmeasured = np.isnan(stats["path_length"]).any()
    path = "" if unmeasured else f", mean path {span('path_length')}"
    lines = [
        f"Transport of {sets} of {count} particles",
        f"  spent    {span('steps')} steps, time {span('time')}",
        f"  moved    at most {span('displacement_max')}, RMS {span('displacement_rms')}" + path,
    ]
    if solution.values is not None and np.asarray(solution.values).size:
        values = np.asarray(solution.values)
        if np.isfinite(values).any():
            lines.append(f"  value    mean {np.nanmean(values):.4g}, best {np.nanmax(values):.4g}")
    numbers = {name: np.asarray(x) for name, x in solution.extras.items() if eqx.is_array(x)}
    learned = [f"{name} {_span(x)}" for name, x in numbers.items() if x.shape == batch]
    if learned:
        lines.append(f"  learned  {', '.join(learned)}")
    lines.append(f"  ended    {_ending(solution.result)}")
    if stats["fraction_at_cap"].size and stats["fraction_at_cap"].max() > 0.5:
        lines.append("  try      most particles ended at max_displacement: the cap, not the steps, is the budget here")
    if stats["fraction_clipped"].size and stats["fraction_clipped"].max() > 0.5:
        lines.append("  try      the domain stopped most moves: a smaller step_size, or start further inside")
    if stats["nonfinite"].size and stats["nonfinite"].max() > 0:
        lines.append(
            f"  warning  {int(stats['nonfinite'].sum())} particles were frozen: their value or score was not "
            "finite (outside the support? then give a domain)"
        )
    lines += [f"  note     {note}" for note in solution.notes]
    return "\n".join(lines)
