"""The covariance of the particles as a preconditioner, without forming it: what `ALDI`, `EKS` and `EKI` share."""

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._target_view import TargetView
from flowrl._kernel import centre


def deviations(positions: Positions, alive: Mask) -> tuple[Positions, Scalar]:
    """Return z − m, zero for the frozen, and the number of the living, at least 1."""
    x = centre(positions, alive)
    count = jnp.maximum(jnp.sum(alive.astype(x.dtype)), 1)
    # `centre` takes the mean for a constant; here the mean moves with the particles under autodiff.
    return jnp.where(alive[:, None], x - x.sum(axis=0, keepdims=True) / count, 0), count


def correction(dimension: int, count: Scalar) -> Scalar:
    """Return the factor of z − m in the drift by which a finite set keeps the product of its targets.

    The diffusion of the whole set Z has the matrix D(Z) = diag(C(Z), ..., C(Z)). It keeps the product of n targets if
    its drift is D ∇ log π + ∇·D. From ∂C_ab/∂z_ic = (δ_ac (z_i − m)_b + δ_bc (z_i − m)_a)/n, the mean's own share
    vanishing, block i of ∇·D is Σ_b ∂C_ab/∂z_ib = (d + 1)(z_i − m)_a/n. A set of n <= d particles never leaves its
    affine hull, where the same holds with n − 1 in the place of d, hence min(d + 1, n)/n.
    """
    return jnp.minimum((dimension + 1) / count, 1)


def covariance_noise(view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
    """Return √(2α) C^(1/2) applied to white noise, C = Σ_i (z_i − m)(z_i − m)ᵀ/n; zero for the frozen."""
    x, count = deviations(positions, alive)
    # Not Cholesky's: forming C would square the condition number, and C is singular where particles coincide.
    root = jnp.linalg.qr(x / jnp.sqrt(count), mode="r")
    # A QR is unique but for signs, which depend on the order of the particles.
    root = root * jnp.where(jnp.diagonal(root) < 0, -1, 1).astype(root.dtype)[:, None]
    # With n < d the root has n rows, so only the first n columns of the noise are used.
    shaped = white[:, : root.shape[0]] @ root
    return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * shaped, 0)
