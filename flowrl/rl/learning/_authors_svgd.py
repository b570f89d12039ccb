"""The velocity of the VGF authors' code, kept apart so that its numbers can be reproduced.

It differs from `flowrl.SVGD` in three ways: the bandwidth is median / (2 log(n + 1)) with the n zero self-distances
counted in the median, a small constant is added to it, and the repulsion is differentiated *through* the median. The
last one adds a force on the median pair that cancels the net repulsion: on N(0, I) the particles' variance collapses.
"""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowrl._custom_types import Mask, Positions
from flowrl._flow import AbstractFlow, TargetView, Traits
from flowrl._kernel import squared_distances


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
        gradient, alive = view.gradient(positions, alive)
        # The bandwidth counts all particles, also frozen ones, which the authors' code does not know.
        weight = alive.astype(positions.dtype)
        constant = jax.lax.stop_gradient(positions)

        def summed(x: Positions) -> tuple[Array, Array]:
            kernel = self._kernel(x, constant) * (weight[:, None] * weight[None, :])
            return jnp.sum(kernel), kernel

        repulsion, kernel = jax.grad(summed, has_aux=True)(positions)
        velocity = kernel @ gradient - view.temperature * repulsion
        return weight[:, None] * velocity / jnp.maximum(jnp.sum(weight), 1), alive

    def _kernel(self, x: Positions, y: Positions) -> Array:
        n = x.shape[0]
        squared = squared_distances(x, y)
        variance = jnp.maximum(jnp.median(squared) / (2 * jnp.log(jnp.asarray(n + 1, x.dtype))), 1e-12)
        if not self.through_bandwidth:
            variance = jax.lax.stop_gradient(variance)
        return jnp.exp(-squared / (1e-6 + 2 * variance))
