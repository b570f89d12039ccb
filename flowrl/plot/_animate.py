"""Trajectories as an animation."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import ArrayLike, PyTree

from flowrl._solution import Solution
from flowrl._target import AbstractTarget
from flowrl.plot._canvas import MOVED, frame_writer, matplotlib_parts, new_figure
from flowrl.plot._particles import particles
from flowrl.plot._plane import Coordinates, Limits, chosen_two, coordinate_names, limits_around
from flowrl.plot._saved import by_name, check_one_set, spent_at, step_label, trajectory_of


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
    """Write the trajectory of particles as an animation, one frame per saved set, with the budget spent as title.

    The file is written beside `path` and renamed when complete: a failure leaves no half file, and an older one as it
    was. `.gif` is written by Pillow, which comes with matplotlib, `.mp4` by the program ffmpeg.

    Args:
        solutions: what `transport(..., save=...)` returned for one set; or several, by name, to be shown side by side.
        path: the file, in a folder that exists; it ends in `.gif` or `.mp4`.
        target: drawn below, see `density`.
        coordinates: which coordinate is drawn to the right and which upward.
        limits: ((left, right), (bottom, top)) of all panels; None for limits that show all trajectories.
        temperature: α >= 0 of the density that is drawn.
        steps: the step counts (or times) that were given as `save`, for the title; None for the root mean square
            displacement, for which the first set saved must be the start.
        scale: the `scale` of the budget, if it had one and `steps` is None.
        tail: length of a particle's tail in saved steps, >= 0.
        fps: frames per second, > 0.

    Returns:
        The path.

    Raises:
        FileNotFoundError: the folder does not exist.
        RuntimeError: there is no ffmpeg to write `.mp4`.
        TypeError: `solutions` are not solutions.
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
    path, named = Path(path), by_name(solutions)
    if isinstance(tail, bool) or not isinstance(tail, int) or tail < 0:
        raise ValueError(f"tail must be a Python int >= 0, got {tail!r}.")
    if not 0 < fps < float("inf"):
        raise ValueError(f"fps must be a finite number > 0, got {fps!r}.")
    writer = frame_writer(path.suffix, fps)
    panels = []
    for name, solution in named.items():
        check_one_set(solution)
        saved = trajectory_of(solution, 2)
        chosen = chosen_two(coordinates, coordinate_names(solution.particles, 1))
        spent = spent_at(solution, steps, scale)
        panels.append((name, solution, saved[..., chosen], spent))
    lengths = {name: len(moves) for name, _, moves, _ in panels}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"trajectories shown side by side must have the same number of saved sets, got {lengths}.")
    limits = limits_around([moves.reshape(-1, 2) for _, _, moves, _ in panels]) if limits is None else limits

    figure = new_figure((3.4 * len(panels), 3.8))
    artists = []
    for ax, (_, solution, _, _) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        particles(solution, target, coordinates=coordinates, limits=limits, temperature=temperature, paths=False, ax=ax)
        tails = matplotlib_parts().collections.LineCollection([], colors=MOVED, linewidths=0.8, alpha=0.4, zorder=2)
        ax.add_collection(tails, autolim=False)
        dots = next(artist for artist in ax.collections if artist.get_label() == "particles")
        artists.append((ax, dots, tails))

    def show(frame: int) -> None:
        for (name, _, moves, spent), (ax, dots, tails) in zip(panels, artists, strict=True):
            dots.set_offsets(moves[frame])
            tails.set_segments(list(moves[max(0, frame - tail) : frame + 1].swapaxes(0, 1)))
            spent_so_far = f"moved {spent[frame]:.2f}" if steps is None else f"{step_label(steps)} {spent[frame]:g}"
            ax.set_title(f"{name}\n{spent_so_far}" if name else spent_so_far)

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
