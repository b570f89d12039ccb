"""Saved trajectories, and the budget spent at each saved set."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from flowrl._custom_types import Particles
from flowrl._misc import numbers_to_array
from flowrl._solution import Solution
from flowrl.plot._plane import matrix


def by_name(solutions: Solution | Mapping[str, Solution]) -> dict[str, Solution]:
    """Return solutions by name; a single one has the empty name."""
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


def check_one_set(solution: Solution) -> None:
    """Raise a ValueError for a batch of sets."""
    batch = np.shape(solution.stats["steps"])
    if batch:
        raise ValueError(
            f"the solution holds a batch of sets of shape {batch}; take one of them: "
            "jax.tree.map(lambda leaf: leaf[0], solution)."
        )


def trajectory_of(solution: Solution, axes: int) -> np.ndarray:
    """Return the saved sets as an array with `axes` leading axes and one of coordinates."""
    if solution.trajectory is None:
        raise ValueError("no trajectory was saved; call transport with save=(0, ...): step counts, or times.")
    return matrix(solution.trajectory, axes)


def spent_at(solution: Solution, steps: Sequence[float] | None, scale: PyTree[ArrayLike] | None) -> np.ndarray:
    """Return the steps, or the root mean square displacement, of every set saved; the mean over a batch."""
    batch = len(np.shape(solution.stats["steps"]))
    saved = trajectory_of(solution, batch + 2)
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
    end = matrix(solution.particles, batch + 1)[..., None, :, :]
    told = np.asarray(solution.stats["displacement_rms"], np.float64)
    rounding = 10 * float(jnp.finfo(jax.tree.leaves(solution.particles)[0].dtype).eps) * np.nanmax(np.abs(end / unit))
    if not np.allclose(_rms((end - start) / unit)[..., 0], told, rtol=0.01, atol=rounding, equal_nan=True):
        raise ValueError(
            f"the particles moved {_rms((end - start) / unit)[..., 0]} from the first set saved, but {told} from their "
            "start, in the unit of the budget: save the start too, save=(0, ...), and give the scale of the budget if "
            "it has one; or give steps."
        )
    return moved.reshape(-1, moved.shape[-1]).mean(axis=0)


def step_label(steps: Sequence[float]) -> str:
    """Return what saved numbers count: "step" or "time"."""
    return "step" if np.issubdtype(np.asarray(steps).dtype, np.integer) else "time"


def _unit(particles: Particles, scale: PyTree[ArrayLike] | None, axes: int) -> np.ndarray:
    """Return a budget's scale as one number for each coordinate (d,)."""
    if scale is None:
        return np.ones(1)
    one = jax.tree.map(lambda leaf: np.zeros(leaf.shape[axes:]), particles)
    spread = jax.tree.map(
        lambda s, leaf: np.broadcast_to(s, leaf.shape), jax.tree.broadcast(numbers_to_array(scale), one), one
    )
    return matrix(spread, 0)


def _rms(moves: np.ndarray) -> np.ndarray:
    """Compute the root mean square length over the particles of (..., n, d)."""
    return np.sqrt(np.mean(np.sum(moves**2, axis=-1), axis=-1))
