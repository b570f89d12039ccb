"""A target over two coordinates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl._custom_types import Particles, Scalar
from flowrl._misc import ravel
from flowrl._target import AbstractTarget
from flowrl.plot._canvas import BATCH, FIXED, axes_or_new, dot_area, matplotlib_parts
from flowrl.plot._plane import Coordinates, Limits, checked, chosen_two, coordinate_names, limits_around, matrix

# Shares of the mass that the filled regions of a density hold.
_MASSES = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)


def density(
    target: AbstractTarget,
    limits: Limits | None = None,
    *,
    coordinates: Coordinates = (0, 1),
    temperature: float = 1.0,
    like: Particles | None = None,
    points: int = 200,
    ax: Any = None,
) -> Any:
    r"""Draw a target over two coordinates: the density $\propto \exp(U(x, α)/α)$, or samples.

    The filled regions are the smallest that hold 99, 90, 70, 50, 30 and 10 % of the mass within the limits, so they
    are the same for a density and any multiple of it. At α = 0 there is no density, and the value V itself is
    drawn, in twelve even steps from its lowest to its highest. Where the target is NaN or infinite nothing is drawn. A
    target that knows only samples is drawn as points.

    Args:
        target: a target that knows its value, over two coordinates; or one that knows samples, over any number.
        limits: ((left, right), (bottom, top)); None for those of `ax`, or of the samples.
        coordinates: which coordinate is drawn to the right and which upward.
        temperature: α >= 0 of the density.
        like: particles of the kind that the target takes, leaves (n, ...), which give its points their structure and
            dtype; None for arrays.
        points: points of the grid on a side, >= 2.
        ax: a matplotlib `Axes`, or None.

    Returns:
        The `Axes`.

    Raises:
        ValueError: the target is not a density over two coordinates, or an argument is out of range.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * x[0] ** 2 - 2 * (x[1] - x[0] ** 2) ** 2)
        ax = flowrl.plot.density(target, limits=((-3, 3), (-2, 6)))
        ```

    ??? cite "Source"
        Hyndman, *Computing and Graphing Highest Density Regions*, The American Statistician 50, 1996: the regions.
    """
    if "value" not in target.knows and "samples" in target.knows:
        return _draw_samples(target, limits, coordinates, ax)
    like = jnp.zeros((1, 2)) if like is None else jax.tree.map(jnp.asarray, like)
    start, unravel = ravel(like)
    names = coordinate_names(like, 1)
    right, up = chosen_two(coordinates, names)
    _check_drawable(target, len(names), temperature)
    if limits is None and ax is None:
        raise ValueError("density needs limits=((left, right), (bottom, top)), or an ax that has them.")
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a Python int >= 2, got {points!r}.")
    limits = checked(limits) if limits is not None else (ax.get_xlim(), ax.get_ylim())
    sides = [np.linspace(*pair, points) for pair in limits]
    grid = np.empty((points, points, 2))
    grid[..., right], grid[..., up] = np.meshgrid(*sides)
    nodes = unravel(jnp.asarray(grid.reshape(-1, 2), start.dtype))
    log_density = np.asarray(_scaled_log_densities(target, nodes, jnp.asarray(temperature, start.dtype)), np.float64)
    log_density = np.ma.masked_invalid(log_density.reshape(points, points))
    if log_density.count() == 0:
        raise ValueError(f"{type(target).__name__} is finite nowhere within the limits {limits}; give others.")
    ax = axes_or_new(ax)
    if temperature == 0:
        heights, levels = log_density, np.linspace(log_density.min(), log_density.max(), 13)
    else:
        heights = np.ma.filled(np.exp((log_density - log_density.max()) / temperature), 0)
        # The height above which the regions of highest density hold each share.
        falling = np.sort(heights, axis=None)[::-1]
        held = np.cumsum(falling) / falling.sum()
        # A little lower, since a region begins above its level, and a flat density has no height above its own.
        levels = np.append((1 - 1e-6) * falling[np.searchsorted(held, _MASSES)], 1.01)
    levels = np.unique(levels)
    levels = levels if levels.size > 1 else np.append(levels, np.nextafter(levels[0], np.inf))
    colors = matplotlib_parts().colormaps["Blues"](np.linspace(0.15, 0.75, levels.size - 1))
    ax.contourf(*sides, heights, levels=levels, colors=colors, zorder=0)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[right], ylabel=names[up])
    return ax


def _check_drawable(target: AbstractTarget, dimension: int, temperature: float) -> None:
    """Raise a ValueError for a target whose density has no picture over two coordinates."""
    name = type(target).__name__
    if "value" not in target.knows:
        raise ValueError(f"{name} knows only its gradient, which does not give a density; draw without the target.")
    if dimension != 2:
        raise ValueError(
            f"{name} is a density over {dimension} coordinates, which has no picture in two of them; draw without the "
            "target."
        )
    if target.stochastic:
        raise ValueError(f"{name} is estimated from a batch; draw the same target with all data (batch_size=None).")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and >= 0, got {temperature}.")
    if temperature == 0 and target.needs_positive_temperature:
        raise ValueError(f"{name} has no value to draw at temperature 0; give a positive one.")


def _draw_samples(target: AbstractTarget, limits: Limits | None, coordinates: Coordinates, ax: Any) -> Any:
    names = coordinate_names(target.samples(), 1)
    chosen = chosen_two(coordinates, names)
    points = matrix(target.samples(), 1)[:, chosen]
    limits = limits_around([points]) if limits is None else checked(limits)
    ax = axes_or_new(ax)
    ax.scatter(*points.T, s=dot_area(), color=FIXED, alpha=0.35, linewidths=0, label="samples", zorder=1)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[chosen[0]], ylabel=names[chosen[1]])
    return ax


@eqx.filter_jit
def _scaled_log_densities(target: AbstractTarget, nodes: Particles, temperature: Scalar) -> Float[Array, " n"]:
    return jax.lax.map(lambda x: target.scaled_log_density(x, temperature, key=None), nodes, batch_size=BATCH)
