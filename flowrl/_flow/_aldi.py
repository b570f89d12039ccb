"""Affine-invariant interacting Langevin dynamics."""

from typing import ClassVar

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractStochasticFlow
from flowrl._flow._covariance import correction, covariance_noise, deviations
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits


class ALDI(AbstractStochasticFlow):
    r"""Affine-invariant interacting Langevin dynamics: Langevin preconditioned by the particles' own covariance.

    With the mean m and the covariance $C = \frac{1}{n} \sum_i (x_i - m)(x_i - m)^\top$ of the particles,

    $$dx_i = C ∇U(x_i)\,dt + α \frac{d + 1}{n} (x_i - m)\,dt + \sqrt{2α}\,C^{1/2}\,dW_i$$

    in the sense of Itô. The second term makes the stationary distribution exact for every n > d + 1. The dynamics is
    the same in all affine coordinates, so the shape of a Gaussian target has no part in its speed. Take it with
    `solver=flowrl.Adaptive()` and steps of at most 0.1/α: from a start that is far or wide plain Euler steps of that
    size explode, and a [ramp](../concepts/flows.md#steps-of-aldi) of them is enough for targets near a Gaussian only.

    The particles must be spread out at the start: they never leave their affine hull, so n <= d of them sample the
    target restricted to it, and several in one place do not move. A step costs O(nd²) beyond the gradients. Reverse
    mode is not defined for n <= d, or for particles in a hyperplane.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] ** 2 + 1e4 * (x[1] - x[0]) ** 2))  # a narrow ridge
        start = jr.uniform(jr.key(0), (200, 2), minval=-2, maxval=2)
        solution = flowrl.transport(
            target, start, flowrl.Budget(300), flow=flowrl.ALDI(), solver=flowrl.Adaptive(), key=jr.key(1)
        )
        assert jnp.abs(solution.particles.std(axis=0) - 1).max() < 0.2
        assert jnp.abs((solution.particles[:, 1] - solution.particles[:, 0]).std() - 0.01) < 0.002
        ```

    ??? cite "Source"
        Garbuno-Inigo, Nüsken and Reich, *Affine Invariant Interacting Langevin Dynamics for Bayesian Inference*,
        SIAM Journal on Applied Dynamical Systems 19(3), 2020. There the factor is (d + 1)/n for n <= d, too.
    """

    traits: ClassVar[Traits] = Traits(diffuses=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        gradient, alive = view.gradient(positions, alive)
        x, count = deviations(positions, alive)
        n, d = x.shape
        # The product of three matrices in the cheaper order: through d × d or through n × n.
        drift = gradient @ (x.T @ x) if d <= n else (gradient @ x.T) @ x
        return drift / count + view.temperature * correction(d, count) * x, alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        return covariance_noise(view, positions, alive, white)
