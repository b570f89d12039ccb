"""The doors of the diagnostics: sets become matrices, misuse is refused in words."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowrl._custom_types import Particles, PerParticle, Positions
from flowrl._misc import check_particles, ravel


def as_matrix(particles: Particles, name: str) -> Positions:
    """Give a set as a matrix (n, d).

    Args:
        particles: leaves (n, ...).
        name: what it is called in messages.

    Raises:
        TypeError: a leaf is not a floating array.
        ValueError: the set is empty, or its leaves disagree about n.
    """
    try:
        check_particles(particles)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must form a set as particles do, but {error}") from None
    return ravel(particles)[0]


def as_matrices(x: Particles, y: Particles, names: tuple[str, str] = ("x", "y")) -> tuple[Array, Array]:
    """Give two sets of the same kind of particle as matrices (n, d) and (m, d).

    Args:
        x: leaves (n, ...).
        y: leaves (m, ...).
        names: what they are called in messages.

    Raises:
        TypeError: one is no set, or their dtypes differ.
        ValueError: one is no set, or their particles differ in structure or shape.
    """
    one, other = as_matrix(x, names[0]), as_matrix(y, names[1])
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], points) for points in (x, y)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must hold particles of the same shape; one of {names[0]} has shape "
            f"{shapes[0]}, one of {names[1]} {shapes[1]}."
        )
    if one.dtype != other.dtype:
        raise TypeError(f"{names[0]} has dtype {one.dtype}, but {names[1]} has {other.dtype}; cast one of them.")
    return one, other


def with_scores(particles: Particles, scores: Particles) -> tuple[Positions, Positions]:
    """Give particles and their scores as matrices (n, d).

    Args:
        particles: leaves (n, ...).
        scores: ∇ log p at each of them, of the same structure and shapes.

    Raises:
        TypeError: see `as_matrices`.
        ValueError: see `as_matrices`; or their numbers differ.
    """
    x, s = as_matrices(particles, scores, ("particles", "scores"))
    if x.shape[0] != s.shape[0]:
        raise ValueError(
            f"there are {x.shape[0]} particles but {s.shape[0]} scores; scores(target, particles) gives one for each."
        )
    return x, s


def root(squared: Array) -> Array:
    """Give the square root, 0 (with gradient 0) where rounding left the square negative; NaN stays NaN.

    Args:
        squared: any shape.
    """
    return _safe(jnp.sqrt, squared)


def norms(x: Positions) -> PerParticle:
    """Give the Euclidean norm of each row, with gradient 0 at rows of zeros; of rows with NaN it is NaN.

    Args:
        x: (n, d).
    """
    return root(jnp.sum(x * x, axis=1))


def power_root(powers: Array, p: float) -> Array:
    """Give the p-th root of numbers >= 0, with gradient 0 at 0.

    Args:
        powers: any shape.
        p: p >= 1.
    """
    return _safe(lambda x: x ** (1 / p), powers)


def _safe(function: Callable[[Array], Array], x: Array) -> Array:
    nothing = x <= 0
    return jnp.where(nothing, 0, function(jnp.where(nothing, 1, x)))
