"""Value against budget."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowrl._custom_types import Particles
from flowrl._solution import Solution
from flowrl._target import AbstractTarget
from flowrl.plot._canvas import BATCH, axes_or_new
from flowrl.plot._saved import by_name, spent_at, step_label, trajectory_of


def value(
    solutions: Solution | Mapping[str, Solution],
    target: AbstractTarget | Array | np.ndarray,
    *,
    steps: Sequence[float] | None = None,
    scale: PyTree[ArrayLike] | None = None,
    ax: Any = None,
) -> Any:
    """Draw the value gained against the budget spent, along saved trajectories.

    For one set: the mean value over its particles (line), the best (dashed), and a band that holds the middle 80 % of
    the particles. For a batch of sets under `jax.vmap`: the means over sets of these two, and a band that holds the
    middle 80 % of the sets' means. Values that are not finite are left out. The budget spent is the root mean square
    distance of the particles to their start, as in `stats["displacement_rms"]`, the largest so far; or the steps.

    Args:
        solutions: what `transport(..., save=(0, ...))` returned, for one set or a batch; or several, by name.
        target: whose value is drawn; it need not be the one that the particles moved toward. For one solution it may be
            the values themselves (..., saved, n), as where each set of a batch has a target of its own.
        steps: the step counts (or times) that were given as `save`, to draw against these; None to draw against the
            displacement, for which the first set saved must be the start.
        scale: the `scale` of the budget, if it had one and `steps` is None.
        ax: a matplotlib `Axes`, or None.

    Returns:
        The `Axes`. For each solution it has gained two lines and a band.

    Raises:
        TypeError: `solutions` are not solutions, or the target knows no value.
        ValueError: no trajectory was saved; `steps` or values do not fit it; or it does not begin at the start, or the
            budget had another scale.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Boltzmann(lambda x: -0.5 * jnp.sum(x**2))
        start = 3 + jr.normal(jr.key(0), (30, 2))
        move = lambda flow: flowrl.transport(target, start, flowrl.Budget(20, 0.1), flow=flow, save=range(21))
        ax = flowrl.plot.value({"Ascent": move(flowrl.Ascent()), "SVGD": move(flowrl.SVGD())}, target)
        ```
    """
    named = by_name(solutions)
    if not isinstance(target, AbstractTarget) and len(named) > 1:
        raise ValueError("values in place of a target belong to one solution; draw several one after the other.")
    curves = {name: _curves(solution, target, steps, scale) for name, solution in named.items()}
    ax = axes_or_new(ax)
    for name, (spent, mean, best, low, high) in curves.items():
        (line,) = ax.plot(spent, mean, label=name)
        ax.plot(spent, best, linestyle="--", color=line.get_color())
        ax.fill_between(spent, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    unit = "" if scale is None else ", in units of scale"
    xlabel = f"RMS displacement{unit}" if steps is None else step_label(steps)
    ax.set(xlabel=xlabel, ylabel="value: mean, best (dashed)")
    if isinstance(solutions, Mapping):
        ax.legend()
    return ax


@eqx.filter_jit
def _values(target: AbstractTarget, nodes: Particles) -> Float[Array, " n"]:
    return jax.lax.map(target.value, nodes, batch_size=BATCH)


def _curves(
    solution: Solution,
    target: AbstractTarget | Array | np.ndarray,
    steps: Sequence[float] | None,
    scale: PyTree[ArrayLike] | None,
) -> tuple[np.ndarray, ...]:
    """Compute the budget spent, the mean, the best, and the lower and upper end of the band, each (saved,)."""
    batch = np.shape(solution.stats["steps"])
    axes = len(batch) + 2
    shape = trajectory_of(solution, axes).shape[:-1]
    if isinstance(target, AbstractTarget):
        if "value" not in target.knows:
            raise TypeError(f"{type(target).__name__} knows no value; give a target that does, to judge by.")
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), solution.trajectory)
        values = np.asarray(_values(target, flat), np.float64).reshape(shape)
    else:
        values = np.asarray(target, np.float64)
        if values.shape != shape:
            raise ValueError(f"values must have the shape of the trajectory, {shape}, got {values.shape}.")
    spent = spent_at(solution, steps, scale)
    values = np.where(np.isfinite(values), values, np.nan).reshape(-1, *shape[-2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where a set has no finite value: a gap in the line
        means, best = np.nanmean(values, axis=2), np.nanmax(values, axis=2)
        low, high = np.nanquantile(means if batch else values[0].T, (0.1, 0.9), axis=0)
        # The budget spent never falls, though a diffusion's particles may come nearer to their start again.
        return np.maximum.accumulate(spent), np.nanmean(means, axis=0), np.nanmean(best, axis=0), low, high
