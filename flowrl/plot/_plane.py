"""The plane of a plot: two coordinates of a particle, and their limits."""

import difflib
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from flowrl._custom_types import Particles

Coordinates: TypeAlias = tuple[int | str, int | str]
"""Two coordinates of a particle, each by its number after ravelling or by its name."""

Limits: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
"""((left, right), (bottom, top)): the lower and upper limit of each of the two coordinates."""


def matrix(particles: Particles, axes: int) -> Float[np.ndarray, "... d"]:
    """Return particles with `axes` leading axes as a float64 array with one more: what `ravel` does to each."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(particles)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=-1)


def coordinate_names(particles: Particles, axes: int) -> list[str]:
    """Name every coordinate of a particle, in the order of `ravel`."""
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(particles):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        for index in np.ndindex(leaf.shape[axes:]):
            names.append(f"{name}[{','.join(map(str, index))}]" if index else name)
    return names


def chosen_two(coordinates: Coordinates, names: list[str]) -> list[int]:
    """Return the indices of two coordinates."""
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


def checked(limits: Limits | np.ndarray) -> Limits:
    """Return limits as numbers, or raise a ValueError."""
    array = np.asarray(limits, np.float64)
    if array.shape != (2, 2) or not np.isfinite(array).all() or (array[:, 0] >= array[:, 1]).any():
        raise ValueError(f"limits must be ((left, right), (bottom, top)), finite and increasing; got {limits}.")
    (left, right), (bottom, top) = array.tolist()
    return (left, right), (bottom, top)


def limits_around(sets: list[np.ndarray]) -> Limits:
    """Compute limits with a margin around all finite points of some sets (n, 2)."""
    points = np.concatenate(sets)
    points = points[np.isfinite(points).all(axis=1)]
    if points.size == 0:
        raise ValueError("no particle is finite, so there are no limits to choose; give limits.")
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 0.5)
    return checked(np.stack([low - margin, high + margin], axis=1))
