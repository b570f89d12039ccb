"""Particles and their paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl._custom_types import Particles
from flowrl._misc import check_particles
from flowrl._solution import Solution
from flowrl._target import AbstractTarget
from flowrl.plot._canvas import MOVED, axes_or_new, dot_area, matplotlib_parts
from flowrl.plot._density import density
from flowrl.plot._plane import Coordinates, Limits, checked, chosen_two, coordinate_names, limits_around, matrix
from flowrl.plot._saved import check_one_set, trajectory_of


def particles(
    solution: Solution | Particles,
    target: AbstractTarget | None = None,
    *,
    coordinates: Coordinates = (0, 1),
    limits: Limits | None = None,
    temperature: float = 1.0,
    paths: bool | None = None,
    ax: Any = None,
) -> Any:
    """Draw particles in the plane of two coordinates, with their paths and the target below.

    The artists have the labels "particles", "paths", "start" and "samples", which `ax.legend()` shows.

    Args:
        solution: what `transport` returned for one set, or a set of particles.
        target: drawn below, see `density`; a density over more than two coordinates cannot be drawn.
        coordinates: which coordinate is drawn to the right and which upward.
        limits: ((left, right), (bottom, top)); None for limits that show all particles, paths and samples, and what
            `ax` shows already.
        temperature: α >= 0 of the density that is drawn.
        paths: whether to draw where each particle came from; None for where a trajectory was saved.
        ax: a matplotlib `Axes`, or None.

    Returns:
        The `Axes`.

    Raises:
        TypeError: `solution` is not a solution or a set of particles.
        ValueError: no trajectory was saved, the solution holds many sets, particles have fewer than two coordinates, or
            the target cannot be drawn over two coordinates.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * x[0] ** 2 - 2 * (x[1] - x[0] ** 2) ** 2)
        start = jr.normal(jr.key(0), (30, 2))
        solution = flowrl.transport(target, start, flowrl.Budget(20, 0.05), save=range(21))
        ax = flowrl.plot.particles(solution, target)
        ```
    """
    if isinstance(solution, Solution):
        check_one_set(solution)
        end, saved = solution.particles, solution.trajectory
        if paths:
            trajectory_of(solution, 2)
    else:
        end, saved = jax.tree.map(jnp.asarray, solution), None
        if paths:
            raise ValueError("paths belong to a solution; give what transport(..., save=...) returned.")
    check_particles(end)
    names = coordinate_names(end, 1)
    chosen = chosen_two(coordinates, names)
    ends = matrix(end, 1)[:, chosen]
    lines = None if saved is None or paths is False else matrix(saved, 2)[..., chosen]
    ax = axes_or_new(ax)
    if limits is None:
        shown = [ends] if lines is None else [ends, lines.reshape(-1, 2)]
        if target is not None and target.knows == {"samples"}:
            shown.append(matrix(target.samples(), 1)[:, chosen])
        if ax.has_data():
            shown.append(np.array([ax.get_xlim(), ax.get_ylim()]).T)
        limits = limits_around(shown)
    limits = checked(limits)
    if target is not None:
        density(target, limits, coordinates=coordinates, temperature=temperature, like=end, ax=ax)
    size = dot_area()
    if lines is not None:
        segments = matplotlib_parts().collections.LineCollection(
            list(lines.swapaxes(0, 1)), colors="0.25", linewidths=0.6, alpha=0.4, label="paths", zorder=2
        )
        ax.add_collection(segments, autolim=False)
        ax.scatter(*lines[0].T, s=size, facecolors="white", edgecolors="0.25", linewidths=0.6, label="start", zorder=3)
    ax.scatter(*ends.T, s=size, color=MOVED, edgecolors="white", linewidths=0.3, label="particles", zorder=4)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[chosen[0]], ylabel=names[chosen[1]])
    return ax
