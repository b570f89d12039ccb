"""Pictures of a transport: particles and their paths over a target, value against budget, animations.

Each function draws on a matplotlib `Axes`, its argument `ax`, and returns it, so that pictures can be put together and
changed afterwards; with `ax=None` it makes a figure of its own, `returned.figure`. Nothing is shown, and the state of
pyplot is left alone: `ax.figure.savefig("picture.png")` writes a file, also where there is no display.

Particles may be any PyTree. Their coordinates are those of `jax.flatten_util.ravel_pytree`, and have names made of the
path and the index: `x[0]`, `x[1]` for an array, `mu`, `theta[0]`, `theta[1]` for `{"mu": (n,), "theta": (n, 2)}`.

Matplotlib is imported when a function is called: `pip install -e ".[plot]"` in a checkout.
"""

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from flowrl import _distribution
from flowrl._custom_types import Particles, Scalar
from flowrl._misc import check_particles, numbers_to_array, ravel
from flowrl._solution import Solution
from flowrl._target import AbstractTarget

Coordinates: TypeAlias = tuple[int | str, int | str]
"""Two coordinates of a particle, each by its number after ravelling or by its name."""

Limits: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
"""What a picture shows: from where to where, for each of the two coordinates."""

# Shares of the mass that the filled regions of a density hold.
_MASSES = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)
# Orange on blue: told apart by every kind of colour vision.
_MOVED, _FIXED = "#D55E00", "#2171B5"
# Points at which a target is evaluated at once.
_BATCH = 4096


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
    r"""Draw a target over two coordinates: the law $\propto \exp(U(x, α)/α)$, or samples.

    The filled regions are the smallest that hold 99, 90, 70, 50, 30 and 10 % of the mass within the limits, so they
    are the same for a density and any multiple of it. At α = 0 there is no law to draw, and the value V itself is
    drawn, in twelve even steps from its lowest to its highest. Where the target is NaN or infinite nothing is drawn. A
    target that knows only samples is drawn as points.

    Args:
        target: a target that knows its value, over two coordinates; or one that knows samples, over any number.
        limits: ((left, right), (bottom, top)); None for those of `ax`, or of the samples.
        coordinates: which coordinate is drawn to the right and which upward.
        temperature: α >= 0 of the law.
        like: particles of the kind that the target takes, leaves (n, ...), which give its points their structure and
            dtype; None for arrays.
        points: points of the grid on a side, >= 2.
        ax: a matplotlib `Axes`, or None.

    Returns:
        The `Axes`.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the target has no picture in two coordinates, or an argument is out of range.

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
    names = _names(like, 1)
    right, up = _chosen(coordinates, names)
    _refuse_unseen(target, len(names), temperature)
    if limits is None and ax is None:
        raise ValueError("density needs limits=((left, right), (bottom, top)), or an ax that has them.")
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a Python int >= 2, got {points!r}.")
    limits = _checked(limits) if limits is not None else (ax.get_xlim(), ax.get_ylim())
    sides = [np.linspace(*pair, points) for pair in limits]
    grid = np.empty((points, points, 2))
    grid[..., right], grid[..., up] = np.meshgrid(*sides)
    nodes = unravel(jnp.asarray(grid.reshape(-1, 2), start.dtype))
    potential = np.asarray(_potentials(target, nodes, jnp.asarray(temperature, start.dtype)), np.float64)
    potential = np.ma.masked_invalid(potential.reshape(points, points))
    if potential.count() == 0:
        raise ValueError(f"{type(target).__name__} is finite nowhere within the limits {limits}; give others.")
    ax = _axes(ax)
    if temperature == 0:
        heights, levels = potential, np.linspace(potential.min(), potential.max(), 13)
    else:
        heights = np.ma.filled(np.exp((potential - potential.max()) / temperature), 0)
        # The height above which the regions of highest density hold each share.
        falling = np.sort(heights, axis=None)[::-1]
        held = np.cumsum(falling) / falling.sum()
        # A little lower, since a region begins above its level, and a flat density has no height above its own.
        levels = np.append((1 - 1e-6) * falling[np.searchsorted(held, _MASSES)], 1.01)
    levels = np.unique(levels)
    levels = levels if levels.size > 1 else np.append(levels, np.nextafter(levels[0], np.inf))
    colors = _matplotlib().colormaps["Blues"](np.linspace(0.15, 0.75, levels.size - 1))
    ax.contourf(*sides, heights, levels=levels, colors=colors, zorder=0)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[right], ylabel=names[up])
    return ax


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
    """Draw particles in the plane of two coordinates, the paths that led them there, and the target below.

    The artists have the labels "particles", "paths", "start" and "samples", which `ax.legend()` shows.

    Args:
        solution: what `transport` returned for one set, or a set of particles.
        target: drawn below, see `density`; None for none. A target with a density over more than two coordinates has
            no picture in two of them, and is refused.
        coordinates: which coordinate is drawn to the right and which upward.
        limits: ((left, right), (bottom, top)); None for limits that show all particles, paths and samples, and what
            `ax` shows already.
        temperature: α >= 0 of the law that is drawn.
        paths: whether to draw where each particle came from; None for where a trajectory was saved.
        ax: a matplotlib `Axes`, or None.

    Returns:
        The `Axes`.

    Raises:
        ImportError: matplotlib is missing.
        TypeError: `solution` is neither.
        ValueError: no trajectory was saved, the solution holds many sets, particles have fewer than two coordinates, or
            the target has no picture in two coordinates.

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
        _one_set(solution)
        end, saved = solution.particles, solution.trajectory
        if paths:
            _trajectory(solution, 2)
    else:
        end, saved = jax.tree.map(jnp.asarray, solution), None
        if paths:
            raise ValueError("paths belong to a solution; give what transport(..., save=...) returned.")
    check_particles(end)
    names = _names(end, 1)
    chosen = _chosen(coordinates, names)
    ends = _matrix(end, 1)[:, chosen]
    lines = None if saved is None or paths is False else _matrix(saved, 2)[..., chosen]
    ax = _axes(ax)
    if limits is None:
        shown = [ends] if lines is None else [ends, lines.reshape(-1, 2)]
        if target is not None and target.knows == {"samples"}:
            shown.append(_matrix(target.samples(), 1)[:, chosen])
        if ax.has_data():
            shown.append(np.array([ax.get_xlim(), ax.get_ylim()]).T)
        limits = _around(shown)
    limits = _checked(limits)
    if target is not None:
        density(target, limits, coordinates=coordinates, temperature=temperature, like=end, ax=ax)
    size = _size()
    if lines is not None:
        segments = _matplotlib().collections.LineCollection(
            list(lines.swapaxes(0, 1)), colors="0.25", linewidths=0.6, alpha=0.4, label="paths", zorder=2
        )
        ax.add_collection(segments, autolim=False)
        ax.scatter(*lines[0].T, s=size, facecolors="white", edgecolors="0.25", linewidths=0.6, label="start", zorder=3)
    ax.scatter(*ends.T, s=size, color=_MOVED, edgecolors="white", linewidths=0.3, label="particles", zorder=4)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[chosen[0]], ylabel=names[chosen[1]])
    return ax


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
    middle 80 % of the sets' means. Values that are not finite are left out. Spent is the root mean square distance of
    the particles to their start, as in `stats["displacement_rms"]`, the largest so far; or the steps.

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
        ImportError: matplotlib is missing.
        TypeError: `solutions` are none, or the target knows no value.
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
    named = _named(solutions)
    if not isinstance(target, AbstractTarget) and len(named) > 1:
        raise ValueError("values in place of a target belong to one solution; draw several one after the other.")
    curves = {name: _curves(solution, target, steps, scale) for name, solution in named.items()}
    ax = _axes(ax)
    for name, (spent, mean, best, low, high) in curves.items():
        (line,) = ax.plot(spent, mean, label=name)
        ax.plot(spent, best, linestyle="--", color=line.get_color())
        ax.fill_between(spent, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    unit = "" if scale is None else ", in units of scale"
    ax.set(xlabel=f"RMS displacement{unit}" if steps is None else _clock(steps), ylabel="value: mean, best (dashed)")
    if isinstance(solutions, Mapping):
        ax.legend()
    return ax


def animate(
    solutions: Solution | Mapping[str, Solution],
    path: str | os.PathLike[str],
    target: AbstractTarget | None = None,
    *,
    coordinates: Coordinates = (0, 1),
    limits: Limits | None = None,
    temperature: float = 1.0,
    steps: Sequence[float] | None = None,
    scale: PyTree[ArrayLike] | None = None,
    tail: int = 6,
    fps: float = 20,
) -> Path:
    """Write the trajectory of particles as an animation, one frame for each set saved, and say what was spent.

    The file is written beside `path` and renamed when complete: a failure leaves no half file, and an older one as it
    was. `.gif` is written by Pillow, which comes with matplotlib, `.mp4` by the program ffmpeg.

    Args:
        solutions: what `transport(..., save=...)` returned for one set; or several, by name, to be shown side by side.
        path: the file, in a folder that exists; it ends in `.gif` or `.mp4`.
        target: drawn below, see `density`; None for none.
        coordinates: which coordinate is drawn to the right and which upward.
        limits: ((left, right), (bottom, top)) of all panels; None for limits that show all trajectories.
        temperature: α >= 0 of the law that is drawn.
        steps: the step counts (or times) that were given as `save`, to be told in the title; None to tell the root mean
            square displacement, for which the first set saved must be the start.
        scale: the `scale` of the budget, if it had one and `steps` is None.
        tail: how many saved steps a particle's tail is long, >= 0.
        fps: frames a second, > 0.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is missing.
        FileNotFoundError: the folder does not exist.
        RuntimeError: there is no ffmpeg to write `.mp4`.
        TypeError: `solutions` are none.
        ValueError: the path ends otherwise; no trajectory was saved, or several of different lengths; or an argument is
            out of range, as in `particles` and `value`.

    Example:
        ```python
        import pathlib
        import tempfile
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * x[0] ** 2 - 2 * (x[1] - x[0] ** 2) ** 2)
        start = jr.normal(jr.key(0), (30, 2))
        solution = flowrl.transport(target, start, flowrl.Budget(20, 0.05), save=(0, 5, 10, 15, 20))
        path = flowrl.plot.animate(solution, pathlib.Path(tempfile.gettempdir()) / "banana.gif", target)
        ```
    """
    path, named = Path(path), _named(solutions)
    if isinstance(tail, bool) or not isinstance(tail, int) or tail < 0:
        raise ValueError(f"tail must be a Python int >= 0, got {tail!r}.")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps must be a finite number > 0, got {fps!r}.")
    writer = _writer(path.suffix, fps)
    panels = []
    for name, solution in named.items():
        _one_set(solution)
        saved = _trajectory(solution, 2)
        chosen = _chosen(coordinates, _names(solution.particles, 1))
        spent = _spent(solution, steps, scale)
        panels.append((name, solution, saved[..., chosen], spent))
    lengths = {name: len(moves) for name, _, moves, _ in panels}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"trajectories shown side by side must have the same number of saved sets, got {lengths}.")
    limits = _around([moves.reshape(-1, 2) for _, _, moves, _ in panels]) if limits is None else limits

    figure = _figure((3.4 * len(panels), 3.8))
    artists = []
    for ax, (_, solution, _, _) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        particles(solution, target, coordinates=coordinates, limits=limits, temperature=temperature, paths=False, ax=ax)
        tails = _matplotlib().collections.LineCollection([], colors=_MOVED, linewidths=0.8, alpha=0.4, zorder=2)
        ax.add_collection(tails, autolim=False)
        dots = next(artist for artist in ax.collections if artist.get_label() == "particles")
        artists.append((ax, dots, tails))

    def show(frame: int) -> None:
        for (name, _, moves, spent), (ax, dots, tails) in zip(panels, artists, strict=True):
            dots.set_offsets(moves[frame])
            tails.set_segments(list(moves[max(0, frame - tail) : frame + 1].swapaxes(0, 1)))
            told = f"moved {spent[frame]:.2f}" if steps is None else f"{_clock(steps)} {spent[frame]:g}"
            ax.set_title(f"{name}\n{told}" if name else told)

    show(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or the axes would shift with the width of a label
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with writer.saving(figure, str(beside), figure.dpi):
            for frame in range(next(iter(lengths.values()))):
                show(frame)
                writer.grab_frame()
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _matplotlib() -> Any:
    try:
        # Never pyplot: the user's backend and figures stay as they are.
        import matplotlib.animation
        import matplotlib.collections
        import matplotlib.figure
    except ImportError as error:
        message = f"plots need matplotlib: {_distribution.install('plot')}"
        raise ImportError(message, name="matplotlib") from error
    return matplotlib


def _figure(size: tuple[float, float]) -> Any:
    return _matplotlib().figure.Figure(figsize=size, layout="constrained")


def _axes(ax: Any) -> Any:
    """Give the axes, or new ones whose lines are told apart by every kind of colour vision."""
    if ax is None:
        ax = _figure((5, 4)).subplots()
        ax.set_prop_cycle(color=_matplotlib().color_sequences["petroff10"])
    return ax


def _writer(suffix: str, fps: float) -> Any:
    animation = _matplotlib().animation
    if suffix == ".gif":
        return animation.PillowWriter(fps=fps)
    if suffix != ".mp4":
        raise ValueError(f"an animation ends in .gif or .mp4, got {suffix!r}.")
    if not animation.FFMpegWriter.isAvailable():
        raise RuntimeError("writing .mp4 needs the program ffmpeg, which was not found; install it, or write a .gif.")
    return animation.FFMpegWriter(fps=fps)


def _matrix(particles: Particles, axes: int) -> Float[np.ndarray, "... d"]:
    """Give particles with `axes` leading axes as a float64 array with one more: what `ravel` does to each."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(particles)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=-1)


def _names(particles: Particles, axes: int) -> list[str]:
    """Name every coordinate of a particle, in the order of `ravel`."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(particles):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        for index in np.ndindex(leaf.shape[axes:]):
            names.append(f"{name}[{','.join(map(str, index))}]" if index else name)
    return names


def _chosen(coordinates: Coordinates, names: list[str]) -> list[int]:
    """Give the numbers of two coordinates."""
    if len(names) < 2:
        raise ValueError(f"a picture in the plane needs particles of two coordinates or more, these have {names}.")
    numbers = []
    for coordinate in coordinates:
        if coordinate in names:
            numbers.append(names.index(coordinate))
        elif isinstance(coordinate, int) and 0 <= coordinate < len(names):
            numbers.append(coordinate)
        else:
            near = difflib.get_close_matches(str(coordinate), names, cutoff=0) or names
            raise ValueError(
                f"there is no coordinate {coordinate!r}; the {len(names)} are numbers from 0, or names such as {near}."
            )
    if len(numbers) != 2 or numbers[0] == numbers[1]:
        raise ValueError(f"coordinates must be two different ones, got {coordinates!r}.")
    return numbers


def _checked(limits: Limits | np.ndarray) -> Limits:
    array = np.asarray(limits, np.float64)
    if array.shape != (2, 2) or not np.isfinite(array).all() or (array[:, 0] >= array[:, 1]).any():
        raise ValueError(f"limits must be ((left, right), (bottom, top)), finite and increasing; got {limits}.")
    (left, right), (bottom, top) = array.tolist()
    return (left, right), (bottom, top)


def _around(sets: list[np.ndarray]) -> Limits:
    """Give limits with a margin around all finite points of some sets (n, 2)."""
    points = np.concatenate(sets)
    points = points[np.isfinite(points).all(axis=1)]
    if points.size == 0:
        raise ValueError("no particle is finite, so there are no limits to choose; give limits.")
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 0.5)
    return _checked(np.stack([low - margin, high + margin], axis=1))


def _refuse_unseen(target: AbstractTarget, dimension: int, temperature: float) -> None:
    """Refuse a target whose density has no picture over two coordinates."""
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
    if temperature == 0 and target.vanishes_when_cold:
        raise ValueError(f"{name} has no value to draw at temperature 0; draw its law at any other.")


def _draw_samples(target: AbstractTarget, limits: Limits | None, coordinates: Coordinates, ax: Any) -> Any:
    names = _names(target.samples(), 1)
    chosen = _chosen(coordinates, names)
    points = _matrix(target.samples(), 1)[:, chosen]
    limits = _around([points]) if limits is None else _checked(limits)
    ax = _axes(ax)
    ax.scatter(*points.T, s=_size(), color=_FIXED, alpha=0.35, linewidths=0, label="samples", zorder=1)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=names[chosen[0]], ylabel=names[chosen[1]])
    return ax


def _size() -> float:
    """Give the area of a particle's dot: half as wide as matplotlib's, and following its setting."""
    return (_matplotlib().rcParams["lines.markersize"] / 2) ** 2


def _named(solutions: Solution | Mapping[str, Solution]) -> dict[str, Solution]:
    named = dict(solutions) if isinstance(solutions, Mapping) else {"": solutions}
    for name, solution in named.items():
        if not isinstance(solution, Solution):
            what = f"{name!r} is" if name else "it is"
            raise TypeError(
                f"expected what transport(..., save=...) returned, or several of these by name; {what} "
                f"{type(solution).__name__}."
            )
    if not named:
        raise ValueError("there is no solution to draw.")
    return named


def _one_set(solution: Solution) -> None:
    batch = np.shape(solution.stats["steps"])
    if batch:
        raise ValueError(
            f"the solution holds a batch of sets of shape {batch}; take one of them: "
            "jax.tree.map(lambda leaf: leaf[0], solution)."
        )


def _trajectory(solution: Solution, axes: int) -> np.ndarray:
    if solution.trajectory is None:
        raise ValueError("no trajectory was saved; call transport with save=(0, ...): step counts, or times.")
    return _matrix(solution.trajectory, axes)


@eqx.filter_jit
def _potentials(target: AbstractTarget, nodes: Particles, temperature: Scalar) -> Float[Array, " n"]:
    return jax.lax.map(lambda x: target.potential(x, temperature, key=None), nodes, batch_size=_BATCH)


@eqx.filter_jit
def _values(target: AbstractTarget, nodes: Particles) -> Float[Array, " n"]:
    return jax.lax.map(target.value, nodes, batch_size=_BATCH)


def _curves(
    solution: Solution,
    target: AbstractTarget | Array | np.ndarray,
    steps: Sequence[float] | None,
    scale: PyTree[ArrayLike] | None,
) -> tuple[np.ndarray, ...]:
    """Give what was spent, the mean, the best, and the lower and upper end of the band, each (saved,)."""
    batch = np.shape(solution.stats["steps"])
    axes = len(batch) + 2
    shape = _trajectory(solution, axes).shape[:-1]
    if isinstance(target, AbstractTarget):
        if "value" not in target.knows:
            raise TypeError(f"{type(target).__name__} knows no value; give a target that does, to judge by.")
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[axes:]), solution.trajectory)
        values = np.asarray(_values(target, flat), np.float64).reshape(shape)
    else:
        values = np.asarray(target, np.float64)
        if values.shape != shape:
            raise ValueError(f"values must have the shape of the trajectory, {shape}, got {values.shape}.")
    spent = _spent(solution, steps, scale)
    values = np.where(np.isfinite(values), values, np.nan).reshape(-1, *shape[-2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where a set has no finite value: a gap in the line
        means, best = np.nanmean(values, axis=2), np.nanmax(values, axis=2)
        low, high = np.nanquantile(means if batch else values[0].T, (0.1, 0.9), axis=0)
        # What has been spent is not given back, though a diffusion's particles may come nearer again.
        return np.maximum.accumulate(spent), np.nanmean(means, axis=0), np.nanmean(best, axis=0), low, high


def _spent(solution: Solution, steps: Sequence[float] | None, scale: PyTree[ArrayLike] | None) -> np.ndarray:
    """Give the steps, or the root mean square displacement of every set saved, the mean over the sets of a batch."""
    batch = len(np.shape(solution.stats["steps"]))
    saved = _trajectory(solution, batch + 2)
    if steps is not None:
        if scale is not None:
            raise ValueError("scale is a unit of displacement; with steps leave it out.")
        if np.shape(steps) != saved.shape[batch : batch + 1]:
            raise ValueError(
                f"steps must be the {saved.shape[batch]} counts that were saved, got the shape {np.shape(steps)}."
            )
        return np.asarray(steps)
    start, unit = saved[..., :1, :, :], _unit(solution.particles, scale, batch + 1)
    moved = _rms((saved - start) / unit)
    # What the transport itself measured tells whether this is the same start and the same unit.
    end = _matrix(solution.particles, batch + 1)[..., None, :, :]
    told = np.asarray(solution.stats["displacement_rms"], np.float64)
    rounding = 10 * float(jnp.finfo(jax.tree.leaves(solution.particles)[0].dtype).eps) * np.nanmax(np.abs(end / unit))
    if not np.allclose(_rms((end - start) / unit)[..., 0], told, rtol=0.01, atol=rounding, equal_nan=True):
        raise ValueError(
            f"the particles moved {_rms((end - start) / unit)[..., 0]} from the first set saved, but {told} from their "
            "start, in the unit of the budget: save the start too, save=(0, ...), and give the scale of the budget if "
            "it has one; or give steps."
        )
    return moved.reshape(-1, moved.shape[-1]).mean(axis=0)


def _clock(steps: Sequence[float]) -> str:
    return "step" if np.issubdtype(np.asarray(steps).dtype, np.integer) else "time"


def _unit(particles: Particles, scale: PyTree[ArrayLike] | None, axes: int) -> np.ndarray:
    """Give a budget's scale as one number for each coordinate (d,)."""
    if scale is None:
        return np.ones(1)
    one = jax.tree.map(lambda leaf: np.zeros(leaf.shape[axes:]), particles)
    spread = jax.tree.map(
        lambda s, leaf: np.broadcast_to(s, leaf.shape), jax.tree.broadcast(numbers_to_array(scale), one), one
    )
    return _matrix(spread, 0)


def _rms(moves: np.ndarray) -> np.ndarray:
    """Give the root mean square length over the particles of (..., n, d)."""
    return np.sqrt(np.mean(np.sum(moves**2, axis=-1), axis=-1))
