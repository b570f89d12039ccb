"""Affine-invariant interacting Langevin dynamics."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractStochasticFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import centre


class ALDI(AbstractStochasticFlow):
    r"""Affine-invariant interacting Langevin dynamics: Langevin preconditioned by the particles' own covariance.

    With the mean m and the covariance $C = \frac{1}{n} \sum_i (x_i - m)(x_i - m)^\top$ of the particles,

    $$dx_i = C ∇U(x_i)\,dt + α \frac{d + 1}{n} (x_i - m)\,dt + \sqrt{2α}\,C^{1/2}\,dW_i$$

    in the sense of Itô. The second term makes the stationary distribution exact for every n > d + 1. The dynamics is
    the same in all affine coordinates, so the shape of a Gaussian target has no part in its speed; on step sizes see
    [Choosing a flow](../concepts/flows.md#steps-of-aldi).

    The particles must be spread out at the start: they never leave their affine hull, so n <= d of them sample the
    target restricted to it, and several in one place do not move. A step costs O(nd²) beyond the gradients. Reverse
    mode is not defined for n <= d, or for particles in a hyperplane.

    ??? cite "Source"
        Garbuno-Inigo, Nüsken and Reich, *Affine Invariant Interacting Langevin Dynamics for Bayesian Inference*,
        SIAM Journal on Applied Dynamical Systems 19(3), 2020. There the factor is (d + 1)/n for n <= d, too.
    """

    traits: ClassVar[Traits] = Traits(diffuses=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        gradient, alive = view.gradient(positions, alive)
        x, count = _deviations(positions, alive)
        n, d = x.shape
        # The diffusion of the whole set Z has the matrix D(Z) = diag(C(Z), ..., C(Z)). It keeps the product of n
        # targets if its drift is D ∇ log π + ∇·D. From ∂C_ab/∂z_ic = (δ_ac (z_i − m)_b + δ_bc (z_i − m)_a)/n, the
        # mean's own share vanishing, block i of ∇·D is Σ_b ∂C_ab/∂z_ib = (d + 1)(z_i − m)_a/n. A set of n <= d
        # particles never leaves its affine hull, where the same holds with n − 1 in the place of d, hence
        # min(d + 1, n)/n.
        correction = jnp.minimum((d + 1) / count, 1)
        # The product of three matrices in the cheaper order: through d × d or through n × n.
        drift = gradient @ (x.T @ x) if d <= n else (gradient @ x.T) @ x
        return drift / count + view.temperature * correction * x, alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        x, count = _deviations(positions, alive)
        # Not Cholesky's: forming C would square the condition number, and C is singular where particles coincide.
        root = jnp.linalg.qr(x / jnp.sqrt(count), mode="r")
        # A QR is unique but for signs, which depend on the order of the particles.
        root = root * jnp.where(jnp.diagonal(root) < 0, -1, 1).astype(root.dtype)[:, None]
        # With n < d the root has n rows, so only the first n columns of the noise are used.
        shaped = white[:, : root.shape[0]] @ root
        return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * shaped, 0)


def _deviations(positions: Positions, alive: Mask) -> tuple[Positions, Scalar]:
    """Return z − m, zero for the frozen, and the number of the living, at least 1."""
    x = centre(positions, alive)
    count = jnp.maximum(jnp.sum(alive.astype(x.dtype)), 1)
    # `centre` takes the mean for a constant; here the mean moves with the particles under autodiff.
    return jnp.where(alive[:, None], x - x.sum(axis=0, keepdims=True) / count, 0), count
