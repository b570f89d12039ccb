"""Sets of particles as matrices, and the checks of arguments that all diagnostics share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowrl._custom_types import Mask, Particles, PerParticle, Positions, Scalar
from flowrl._misc import check_particles, log_weights_array, ravel


def as_matrix(particles: Particles, name: str) -> Positions:
    """Return a set as a matrix (n, d), or raise the error of `check_particles` with the name of the argument."""
    try:
        check_particles(particles)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must form a set as particles do, but {error}") from None
    return ravel(particles)[0]


def as_matrices(x: Particles, y: Particles, names: tuple[str, str] = ("x", "y")) -> tuple[Array, Array]:
    """Return two sets of the same kind of particle as matrices (n, d) and (m, d), or raise an error by name."""
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
    """Return particles and their scores as matrices (n, d), or raise an error by name."""
    x, s = as_matrices(particles, scores, ("particles", "scores"))
    if x.shape[0] != s.shape[0]:
        raise ValueError(
            f"there are {x.shape[0]} particles but {s.shape[0]} scores; scores(target, particles) gives one for each."
        )
    return x, s


def log_shares(log_weights: Any, x: Positions) -> PerParticle | None:
    """Return log weights (n,) whose weights sum to one, or None for equal ones; refuse what are none.

    Raises:
        TypeError: they are not real numbers.
        ValueError: their shape is not (n,), or concrete ones are NaN, +∞ or all −∞.
    """
    if log_weights is None:
        return None
    logs = log_weights_array(log_weights, x.shape[0], x.dtype)
    return logs - jax.nn.logsumexp(logs)


def present(log_shares: PerParticle | None, x: Positions) -> Mask:
    """Return which points are in the set (n,): all but the empty slots, whose log weight is −∞."""
    return jnp.ones(x.shape[0], bool) if log_shares is None else log_shares > -jnp.inf


def emptied(log_shares: PerParticle | None, *matrices: Positions) -> tuple[Positions, ...]:
    """Return matrices (n, d) with zeros in the empty slots, where anything may stand."""
    if log_shares is None:
        return matrices
    return tuple(jnp.where((log_shares > -jnp.inf)[:, None], matrix, 0) for matrix in matrices)


def distinct(shares: PerParticle) -> Scalar:
    """Return 1 − Σ w², the weight of all pairs of two different points; (n − 1)/n for equal weights."""
    return jnp.sum(shares * (1 - shares))


def root(squared: Array) -> Array:
    """Compute the square root, 0 (with gradient 0) where rounding left the square negative; NaN stays NaN."""
    return _safe(jnp.sqrt, squared)


def norms(x: Positions) -> PerParticle:
    """Compute the Euclidean norm of each row, with gradient 0 at rows of zeros; of rows with NaN it is NaN."""
    return root(jnp.sum(x * x, axis=1))


def power_root(powers: Array, p: float) -> Array:
    """Compute the p-th root of numbers >= 0, with gradient 0 at 0."""
    return _safe(lambda x: x ** (1 / p), powers)


def _safe(function: Callable[[Array], Array], x: Array) -> Array:
    nothing = x <= 0
    return jnp.where(nothing, 0, function(jnp.where(nothing, 1, x)))
