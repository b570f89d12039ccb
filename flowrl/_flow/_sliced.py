"""Stein variational gradient descent along the axes of a random rotation."""

import sys
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Mask, PerParticle, Positions
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractKernel, MedianBandwidth, by_rows, centre


class SlicedSVGD(AbstractFlow):
    r"""Sliced Stein variational gradient descent: a kernel of one dimension along each axis of a random rotation.

    $$v(x) = \sum_c q_c\, \frac{1}{n} \sum_j \left[s_c(x_j)\, k(x_{jc}, x_c) + α ∂_{x_{jc}} k(x_{jc}, x_c)\right]$$

    with the columns $q_c$ of a random rotation that is drawn at each step, $x_c = q_c^\top x$ and $s_c = q_c^\top ∇U$.
    In many dimensions all particles are equally far from each other, so that a kernel of the distance sees no
    neighbours and `SVGD` comes to rest with too little variance. Along one axis there are neighbours in any number of
    dimensions, and each axis alone would leave the target at rest.

    The price is randomness: the particles never come to rest, but stay as far from it as a step takes them. A step
    costs O(n² d) for the kernels, whose bandwidths are fitted to each axis, and O(d³ + n d²) for the rotation.

    Attributes:
        kernel: k, on the real line; by default `RBF` with the median bandwidth, on each axis that of at most 128
            particles.

    Raises:
        TypeError: kernel is not a kernel.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))  # N(0, I) in 50 dimensions
        start, budget = jr.normal(jr.key(0), (50, 50)), flowrl.Budget(100, 0.3)
        solution = flowrl.transport(target, start, budget, flow=flowrl.SlicedSVGD(), key=jr.key(1))
        assert abs(float(solution.particles.var()) - 1) < 0.15  # under SVGD 0.71
        ```

    ??? cite "Source"
        Gong, Li and Hernández-Lobato, *Sliced Kernelized Stein Discrepancy*, ICLR 2021: their sliced SVGD learns the
        directions, here they are random and orthogonal.
    """

    # The median of each axis at each step: that of many particles would cost as much as the kernel.
    kernel: AbstractKernel = RBF(MedianBandwidth(128))
    traits: ClassVar[Traits] = Traits(random=True, weighs=True)

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractKernel):
            raise TypeError(f"kernel must be a kernel such as RBF(), got {self.kernel!r}.")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        gradient, alive = view.gradient(positions, alive)
        n, d = positions.shape
        rotation = _rotation(view.flow_key, d, positions)

        def along(axes: tuple[Float[Array, "b n"], Float[Array, "b n"]]) -> Float[Array, "b n"]:
            return jax.vmap(one)(*axes)

        def one(x: PerParticle, score: PerParticle) -> PerParticle:
            return self.kernel.stein(x[:, None], score[:, None], alive, view.temperature, view.weights)[:, 0]

        # Centred first, so that the rotation rounds no digit of an offset into the distances.
        axes = tuple(jnp.matmul(x, rotation, precision="highest").T for x in (centre(positions, alive), gradient))
        # On CPUs XLA multiplies small matrices in a batch up to fifteen times as slowly as one after the other.
        together = sys.maxsize if jax.default_backend() == "cpu" else n * n
        velocity = by_rows(along, axes, together).T
        return jnp.where(alive[:, None], jnp.matmul(velocity, rotation.T, precision="highest"), 0), alive


def _rotation(key: Key, d: int, like: Positions) -> Float[Array, "d d"]:
    """Draw an orthogonal matrix uniformly but for the signs of its columns, in the dtype of other numbers."""
    return jnp.linalg.qr(jr.normal(key, (d, d), like.dtype))[0]
