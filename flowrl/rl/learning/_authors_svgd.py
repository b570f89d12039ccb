"""The velocity of the VGF authors' code, kept apart so that its numbers can be reproduced.

It differs from `flowrl.SVGD` in three ways: the bandwidth is median / (2 log(n + 1)) with the n zero self-distances
counted in the median, a small constant is added to it, and the repulsion is differentiated *through* the median. The
last one adds a force on the median pair that cancels the net repulsion: on N(0, I) the particles' variance collapses.
"""

from typing import ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowrl._custom_types import Mask, Positions
from flowrl._flow import AbstractFlow, TargetView, Traits
from flowrl._kernel._distance import squared_distances


class AuthorsSVGD(AbstractFlow):
    """SVGD as in the VGF authors' code, v = (1/n) (K ∇V + α G) with G = −∇_x Σ_ij k(x_i, x'_j), x' held constant.

    Their own step is v/α; under Adam the factor does not matter.

    Attributes:
        through_bandwidth: differentiate G through the median, as their code does.

    ??? cite "Source"
        github.com/ryanxhr/vgf at 3ec8f9b, described in tests/rl/vectors/README.md.
    """

    through_bandwidth: bool = eqx.field(static=True, default=True)
    traits: ClassVar[Traits] = Traits()

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give (1/n) (K ∇V + α G) at every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen; the bandwidth counts all, as the authors' code knows no others.
        """
        gradient, alive = view.gradient(positions, alive)
        weight = alive.astype(positions.dtype)
        constant = jax.lax.stop_gradient(positions)

        def summed(x: Positions) -> tuple[Array, Array]:
            kernel = self._kernel(x, constant) * (weight[:, None] * weight[None, :])
            return jnp.sum(kernel), kernel

        repulsion, kernel = jax.grad(summed, has_aux=True)(positions)
        velocity = kernel @ gradient - view.temperature * repulsion
        return weight[:, None] * velocity / jnp.maximum(jnp.sum(weight), 1), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "AuthorsSVGD":
        """Give the flow itself: nothing of it depends on data.

        Args:
            view: unused.
            positions: unused.
            alive: unused.
        """
        del view, positions, alive
        return self

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> NoReturn:
        """Refuse, as `flowrl.SVGD` does.

        Args:
            view: unused.
            positions: unused.
            alive: unused.

        Raises:
            TypeError: always.
        """
        del view, positions, alive
        raise TypeError("AuthorsSVGD has no energy on particles: KL(q|p) is infinite for an empirical measure.")

    def _kernel(self, x: Positions, y: Positions) -> Array:
        n = x.shape[0]
        squared = squared_distances(x, y)
        variance = jnp.maximum(jnp.median(squared) / (2 * jnp.log(jnp.asarray(n + 1, x.dtype))), 1e-12)
        if not self.through_bandwidth:
            variance = jax.lax.stop_gradient(variance)
        return jnp.exp(-squared / (1e-6 + 2 * variance))
