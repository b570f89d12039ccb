"""A scalar kernel in whitened coordinates, mapped back: a matrix-valued kernel.

With covariance Σ = A Aᵀ (A lower triangular) and z = A⁻¹ x, the Stein direction and the Stein kernel of
K(x, y) = Σ k(A⁻¹x, A⁻¹y) are those of k at z with the gradients Aᵀg, mapped back by A. Any other root of Σ gives the
same for kernels that rotations leave alone, and so do all of this library.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._kernel._base import AbstractKernel
from flowrl._kernel._distance import centre, relative_to_mean
from flowrl._kernel._rbf import RBF
from flowrl._kernel._scalar import AbstractScalarKernel
from flowrl._misc import concrete

_FEW = 31  # coordinates; OpenBLAS solves systems with fewer than about a thousand unknowns on one thread
_MANY = 128  # coordinates; beyond them inverting by halves takes seconds to compile


class Preconditioned(AbstractKernel):
    r"""A matrix-valued kernel for targets whose directions differ much in width.

    $$K(x, y) = Σ\, k(A^{-1} x, A^{-1} y), \qquad Σ = A A^\top$$

    `SVGD` with it runs in whitened coordinates, so a normal target of any conditioning is as easy as N(0, I). Step
    sizes are in units of whitened coordinates, where 0.1 to 1 suits. At particles s times as wide as the target in some
    direction, and with their own covariance, the gradient flow is s² times as stiff. So where a start may be too wide,
    let the steps grow, `Budget(steps, flowrl.ramp(0.3, steps))`, or take `solver=flowrl.Adaptive()`, which allows steps
    up to 1 from there.

    The particles' covariance is a constant for outer autodiff, and regularised where it is singular (n <= d, coincident
    particles). With n <= d the particles hardly leave the plane that they span.

    Args:
        kernel: k, a scalar kernel, applied to whitened coordinates, in which its bandwidth is fitted too.
        covariance: Σ, a symmetric positive definite matrix (d, d) in the coordinates that the flow runs in, or None for
            the covariance of the living particles at each step.

    Raises:
        TypeError: kernel is not a scalar kernel.
        ValueError: covariance is not a square matrix, or a concrete one is not symmetric positive definite.

    ```python
    import flowrl

    flow = flowrl.SVGD(flowrl.Preconditioned())
    ```

    ??? cite "Source"
        Wang, Tang, Bajaj and Liu, *Stein Variational Gradient Descent with Matrix-Valued Kernels*, NeurIPS 2019:
        their constant preconditioner Q is Σ⁻¹.
    """

    kernel: AbstractScalarKernel
    factor: Array | None  # A, or None for that of the living particles at each step

    def __init__(self, kernel: AbstractScalarKernel = RBF(), covariance: ArrayLike | None = None):  # noqa: B008
        if not isinstance(kernel, AbstractScalarKernel):
            raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {kernel!r}.")
        self.kernel = kernel
        self.factor = None if covariance is None else _given(covariance)

    def fitted(self, positions: Positions, alive: Mask) -> "Preconditioned":
        x = centre(positions, alive)
        factor = self._root(x, alive)
        inner = self.kernel.fitted(_whiten(factor, x), alive)
        parts = lambda kernel: (kernel.kernel, kernel.factor)
        return eqx.tree_at(parts, self, (inner, factor), is_leaf=lambda leaf: leaf is None)

    def stein(
        self,
        positions: Positions,
        gradient: Positions,
        alive: Mask,
        temperature: Scalar,
        weights: PerParticle | None = None,
    ) -> Positions:
        x = centre(positions, alive)
        factor = self._root(x, alive)
        z, wide = _whiten(factor, x), factor.dtype
        v = self.kernel.stein(z, gradient.astype(wide) @ factor, alive, temperature.astype(wide), weights)
        return (v @ factor.T).astype(positions.dtype)

    def stein_gram(
        self,
        x: Float[Array, "n d"],
        score_x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        score_y: Float[Array, "m d"],
    ) -> Float[Array, "n m"]:
        x, y = relative_to_mean(x, y)
        factor = self._root(x, jnp.ones(x.shape[0], bool))
        wide = factor.dtype
        score_x, score_y = score_x.astype(wide) @ factor, score_y.astype(wide) @ factor
        gram = self.kernel.stein_gram(_whiten(factor, x), score_x, _whiten(factor, y), score_y)
        return gram.astype(x.dtype)

    def _root(self, x: Positions, alive: Mask) -> Float[Array, "d d"]:
        """Return A for centred particles, in at least single precision: there is no half-precision Cholesky."""
        d, wide = x.shape[1], x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32
        if self.factor is None:
            return jax.lax.stop_gradient(_factor_of(x.astype(wide), alive))
        if self.factor.shape != (d, d):
            raise ValueError(f"covariance has shape {self.factor.shape}, but one particle has {d} coordinates.")
        return self.factor.astype(wide)


def _given(covariance: ArrayLike) -> Array:
    if jnp.ndim(covariance) != 2 or jnp.shape(covariance)[0] != jnp.shape(covariance)[1]:
        raise ValueError(f"covariance must be a square matrix (d, d), got shape {jnp.shape(covariance)}.")
    value = concrete(covariance)
    if value is None:
        return jnp.linalg.cholesky(jnp.asarray(covariance, jnp.result_type(float)))
    value = value.astype(np.float64)  # concrete, so double precision costs nothing
    size = np.sqrt(np.abs(np.outer(np.diag(value), np.diag(value))))
    if not np.all(np.abs(value - value.T) <= 1e-5 * size):
        raise ValueError("covariance must be finite and symmetric; (C + C.T) / 2 is.")
    try:
        root = np.linalg.cholesky((value + value.T) / 2)
    except np.linalg.LinAlgError as error:
        least = np.linalg.eigvalsh((value + value.T) / 2)[0]
        raise ValueError(
            f"covariance must be positive definite, but its least eigenvalue is {least:.3g}; add a small multiple of "
            "the identity."
        ) from error
    return jnp.asarray(root, jnp.result_type(float))


def _factor_of(x: Positions, alive: Mask) -> Float[Array, "d d"]:
    """Compute the Cholesky factor of the covariance of centred particles; never singular, always finite."""
    d = x.shape[1]
    x = jnp.where(alive[:, None], x, 0)
    count = jnp.maximum(jnp.sum(alive.astype(x.dtype)) - 1, 1)
    variance = jnp.sum(x * x, axis=0) / count
    spread = variance > jnp.finfo(x.dtype).tiny
    width = jnp.sqrt(jnp.where(spread, variance, 1))
    typical = jnp.sum(jnp.where(spread, width, 0)) / jnp.maximum(jnp.sum(spread.astype(x.dtype)), 1)
    # A coordinate that all particles share counts as being as wide as the others on average.
    width = jnp.where(spread, width, jnp.where(typical > 0, typical, 1))
    # Of the correlations, so that the units of the coordinates do not matter.
    scaled = x / width[None, :]
    correlation = jnp.matmul(scaled.T, scaled, precision="highest") / count
    identity = jnp.eye(d, dtype=x.dtype)
    # A little on the diagonal, so that n <= d or coincident particles leave it invertible.
    correlation = jnp.where(identity > 0, 1 + 10 * d * jnp.finfo(x.dtype).eps, correlation)
    root = jnp.linalg.cholesky(correlation)
    root = jnp.where(jnp.all(jnp.isfinite(root)), root, identity)  # rounding can exceed what was added
    return width[:, None] * root


def _whiten(factor: Float[Array, "d d"], x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    x = x.astype(factor.dtype)
    if factor.shape[0] > _MANY:
        return solve_triangular(factor, x.T, lower=True).T
    return jnp.matmul(x, _inverse(factor).T, precision="highest")


def _inverse(factor: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Invert a lower triangular matrix by halves."""
    # Each system is too small for LAPACK's threads, which wait for each other as soon as another process has a core: a
    # system of 50 coordinates and 100 particles can take a hundred times as long on two cores as on one.
    d = factor.shape[0]
    identity = jnp.eye(d, dtype=factor.dtype)
    if d <= _FEW:
        return solve_triangular(factor, identity, lower=True)
    half = d // 2
    upper, lower = _inverse(factor[:half, :half]), _inverse(factor[half:, half:])
    corner = jnp.matmul(jnp.matmul(lower, factor[half:, :half], precision="highest"), upper, precision="highest")
    return identity.at[:half, :half].set(upper).at[half:, half:].set(lower).at[half:, :half].set(-corner)
