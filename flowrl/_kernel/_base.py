"""What a kernel is: contracted primitives, so that no n × n × d tensor is ever formed."""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions, Scalar


class AbstractKernel(eqx.Module):
    """A positive definite kernel k(x, y), known by the sums that flows need."""

    @abc.abstractmethod
    def gram(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Give the matrix k(x_i, y_j); a data-driven bandwidth is taken from `x`.

        Args:
            x: (n, d).
            y: (m, d).
        """

    @abc.abstractmethod
    def stein(self, positions: Positions, gradient: Positions, alive: Mask, temperature: Scalar) -> Positions:
        r"""Give the Stein direction $v_i = \frac{1}{n} \sum_j k(x_j, x_i) g_j + α ∇_{x_j} k(x_j, x_i)$.

        Args:
            positions: x, (n, d).
            gradient: g, (n, d); finite.
            alive: particles that enter the sums; n counts them alone, and the others get v = 0.
            temperature: α >= 0.
        """
