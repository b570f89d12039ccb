"""Access to matplotlib: the parts that plots need, new axes, writers of frames."""

from typing import Any

from flowrl._distribution import require

# Orange on blue can be told apart by every kind of colour vision.
MOVED, FIXED = "#D55E00", "#2171B5"
# Points at which a target is evaluated at once.
BATCH = 4096


def matplotlib_parts() -> Any:
    """Import matplotlib with the parts that plots need, or raise an ImportError that says how to install it."""
    # Never pyplot: the user's backend and figures stay as they are.
    require("matplotlib.animation", "matplotlib.collections", "matplotlib.figure", extra="plot")
    import matplotlib

    return matplotlib


def new_figure(size: tuple[float, float]) -> Any:
    """Make a figure of this size in inches that pyplot does not know of."""
    return matplotlib_parts().figure.Figure(figsize=size, layout="constrained")


def axes_or_new(ax: Any) -> Any:
    """Return the axes, or new ones with a colour cycle that every kind of colour vision can tell apart."""
    if ax is None:
        ax = new_figure((5, 4)).subplots()
        ax.set_prop_cycle(color=matplotlib_parts().color_sequences["petroff10"])
    return ax


def frame_writer(suffix: str, fps: float) -> Any:
    """Return the writer of frames for a file with this suffix."""
    animation = matplotlib_parts().animation
    if suffix == ".gif":
        return animation.PillowWriter(fps=fps)
    if suffix != ".mp4":
        raise ValueError(f"an animation ends in .gif or .mp4, got {suffix!r}.")
    if not animation.FFMpegWriter.isAvailable():
        raise RuntimeError("writing .mp4 needs the program ffmpeg, which was not found; install it, or write a .gif.")
    return animation.FFMpegWriter(fps=fps)


def dot_area() -> float:
    """Return the area of a particle's dot: half as wide as matplotlib's, and following its setting."""
    return (matplotlib_parts().rcParams["lines.markersize"] / 2) ** 2
