"""The Gaussian kernel."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._kernel._bandwidth import AbstractBandwidth, MedianBandwidth
from flowrl._kernel._base import AbstractKernel
from flowrl._kernel._distance import centre, squared_distances


class RBF(AbstractKernel):
    """The Gaussian kernel k(x, y) = exp(−|x − y|²/2σ²).

    Attributes:
        bandwidth: rule for σ²; the median by default.
        block: rows of the kernel matrix held at a time; memory is O(block · n).
    """

    bandwidth: AbstractBandwidth = MedianBandwidth()
    block: int = eqx.field(static=True, default=1024)

    def __check_init__(self):
        if not isinstance(self.bandwidth, AbstractBandwidth):
            raise TypeError(f"bandwidth must be a rule such as FixedBandwidth(0.5), got {self.bandwidth!r}.")
        if self.block < 1:
            raise ValueError(f"block must be >= 1, got {self.block}.")

    def gram(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Give the matrix exp(−|x_i − y_j|²/2σ²), with σ² from `x`.

        Args:
            x: (n, d).
            y: (m, d).
        """
        everyone = jnp.ones(x.shape[0], bool)
        shift = x.mean(axis=0, keepdims=True)
        variance = self.bandwidth(centre(x, everyone), everyone)
        return jnp.exp(-squared_distances(x - shift, y - shift) / (2 * variance))

    def stein(self, positions: Positions, gradient: Positions, alive: Mask, temperature: Scalar) -> Positions:
        r"""Give the Stein direction in closed form, by blocks of rows.

        With ∇_{x_j} k(x_j, x_i) = k(x_j, x_i) (x_i − x_j)/σ² the sum is two matrix products,
        $v_i = \frac{1}{n} ( \sum_j k_{ij} (g_j − \frac{α}{σ²} x_j) + \frac{α}{σ²} x_i \sum_j k_{ij} )$.

        Args:
            positions: x, (n, d).
            gradient: g, (n, d); finite.
            alive: particles that enter the sums; n counts them alone, and the others get v = 0.
            temperature: α >= 0.
        """
        x = centre(positions, alive)
        variance = self.bandwidth(x, alive)
        weight = alive.astype(x.dtype)
        count = jnp.maximum(jnp.sum(weight), 1)
        pull = temperature / variance
        sources = weight[:, None] * (gradient - pull * x)
        columns = jnp.concatenate([sources, weight[:, None]], axis=1)

        def rows(block: Float[Array, "b d"]) -> Float[Array, "b d"]:
            kernel = jnp.exp(-squared_distances(block, x) / (2 * variance))
            summed = kernel @ columns
            return summed[:, :-1] + pull * block * summed[:, -1:]

        n, d = x.shape
        if n <= self.block:
            v = rows(x)
        else:
            padding = -n % self.block
            blocks = jnp.concatenate([x, jnp.zeros((padding, d), x.dtype)]).reshape(-1, self.block, d)
            v = jax.lax.map(rows, blocks).reshape(-1, d)[:n]
        return weight[:, None] * v / count
