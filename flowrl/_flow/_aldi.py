r"""Affine-invariant interacting Langevin dynamics.

The diffusion of the whole set Z = (z_1, ..., z_n) has the block-diagonal matrix D(Z) = diag(C(Z), ..., C(Z)). It keeps
the product of n targets if its drift is D ∇ log π + ∇·D. From ∂C_ab/∂z_ic = (δ_ac (z_i − m)_b + δ_bc (z_i − m)_a)/n,
the mean's own share vanishing, block i of ∇·D is Σ_b ∂C_ab/∂z_ib = (d + 1)(z_i − m)_a/n. A set of n <= d particles
never leaves its affine hull, and the same holds there with n − 1 in the place of d, hence min(d + 1, n)/n.
"""

from typing import ClassVar, NoReturn

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractStochasticFlow, Traits
from flowrl._flow._target_view import TargetView
from flowrl._kernel._distance import centre


class ALDI(AbstractStochasticFlow):
    r"""Affine-invariant interacting Langevin dynamics: Langevin preconditioned by the particles' own covariance.

    With the mean m and the covariance $C = \frac{1}{n} \sum_i (x_i - m)(x_i - m)^\top$ of the particles,

    $$dx_i = C ∇U(x_i)\,dt + α \frac{d + 1}{n} (x_i - m)\,dt + \sqrt{2α}\,C^{1/2}\,dW_i$$

    in the sense of Itô. The second term makes the law at rest the exact one for every n > d + 1, not for n → ∞ alone.
    The dynamics is the same in all affine coordinates, so the shape of a Gaussian target has no part in its speed:
    near the target the particles mix in time 1/α, and steps of about ε = 0.1/α suit every condition number. Euler's
    step must stay below 2/λ, λ the largest eigenvalue of −C∇²U: a start k times too wide in some direction asks for
    steps k² times smaller until the set has contracted. As C falls like 1/2t, steps that grow in geometric progression
    up to 0.1/α do.

    The particles must be spread out at the start. They never leave their affine hull: n > d + 1 of them sample the
    target, n <= d only its restriction to that hull (with min(d + 1, n)/n as the factor), and one alone, or several in
    one place, do not move. The cost of a step is O(nd²) beyond the gradients. Reverse mode has no meaning for
    n <= d, or for particles in a hyperplane.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] ** 2 + 1e4 * x[1] ** 2))
        start = jax.random.normal(jax.random.key(0), (200, 2)) * jnp.array([[1.0, 0.02]])
        budget = flowrl.Budget(steps=100, step_size=0.1)
        solution = flowrl.transport(target, start, budget, flow=flowrl.ALDI(), key=jax.random.key(1))
        ```

    ??? cite "Source"
        Garbuno-Inigo, Nüsken and Reich, *Affine Invariant Interacting Langevin Dynamics for Bayesian Inference*,
        SIAM Journal on Applied Dynamical Systems 19(3), 2020. There the factor is (d + 1)/n for n <= d, too.
    """

    traits: ClassVar[Traits] = Traits(diffuses=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give the drift at every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        gradient, alive = view.gradient(positions, alive)
        x, count = _deviations(positions, alive)
        n, d = x.shape
        correction = jnp.minimum((d + 1) / count, 1)
        # The product of three matrices in the cheaper order: through d × d or through n × n.
        drift = gradient @ (x.T @ x) if d <= n else (gradient @ x.T) @ x
        return drift / count + view.temperature * correction * x, alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        """Give √(2α) C^{1/2} times the white noise, where C^{1/2} is the triangular root.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            white: independent standard normal numbers, (n, d); with n < d the first n columns are used.
        """
        x, count = _deviations(positions, alive)
        # Not Cholesky's: forming C would square the condition number, and C is singular where particles coincide.
        root = jnp.linalg.qr(x / jnp.sqrt(count), mode="r")
        # A QR is unique but for signs, which depend on the order of the particles.
        root = root * jnp.where(jnp.diagonal(root) < 0, -1, 1).astype(root.dtype)[:, None]
        shaped = white[:, : root.shape[0]] @ root
        return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * shaped, 0)

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "ALDI":
        """Give the flow itself: nothing of it depends on data.

        Args:
            view: unused.
            positions: unused.
            alive: unused.
        """
        del view, positions, alive
        return self

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> NoReturn:
        """Refuse: the dynamics descends KL(q | p), which is infinite for every finite set of particles.

        Args:
            view: unused.
            positions: unused.
            alive: unused.

        Raises:
            TypeError: always.
        """
        del view, positions, alive
        raise TypeError(
            "ALDI has no energy on particles: it descends KL(q|p), which is infinite for an empirical measure. Use a "
            "flow with an energy (Blob, KSDDescent), or follow the value and the variance of its particles."
        )


def _deviations(positions: Positions, alive: Mask) -> tuple[Positions, Scalar]:
    """Give z − m, zero for the frozen, and the number of the living, at least 1."""
    x = centre(positions, alive)
    count = jnp.maximum(jnp.sum(alive.astype(x.dtype)), 1)
    # `centre` takes the mean for a constant; here the mean moves with the particles under autodiff.
    return jnp.where(alive[:, None], x - x.sum(axis=0, keepdims=True) / count, 0), count
