"""The linear kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from flowrl._custom_types import Mask, Positions
from flowrl._kernel._base import AbstractKernel, AbstractScalarKernel, Jet, Pairs
from flowrl._misc import number


class Linear(AbstractScalarKernel):
    r"""The linear kernel, with x and y counted from the mean m of the particles.

    $$k(x, y) = c^2 + (x - m) \cdot (y - m)$$

    `SVGD` with it moves the set by affine maps alone. At rest the mean score is zero (for c > 0) and the covariance of
    particles and scores is −I, so on a normal target the particles have the exact mean and covariance, whatever their
    number beyond d; it says nothing of the shape otherwise. It is not bounded: to sample a law, add another kernel.
    The mean moves with the particles, so flows with an energy or a density estimate refuse it.

    Attributes:
        offset: c, an array `()`.

    ```python
    import flowrl

    flow = flowrl.SVGD(flowrl.RBF() + 0.1 * flowrl.Linear())
    ```

    ??? cite "Source"
        Liu and Wang, *Stein Variational Gradient Descent as Moment Matching*, NeurIPS 2018, section 3.
    """

    offset: Array

    def __init__(self, offset: ArrayLike = 1.0):
        """Make the kernel.

        Args:
            offset: c >= 0. With 0 the set never moves as a whole.

        Raises:
            TypeError: offset is no number.
            ValueError: a concrete offset is negative or not finite.
        """
        self.offset = number("offset", offset, lambda value: 0 <= value < float("inf"), ">= 0 and finite")

    def fitted(self, positions: Positions, alive: Mask) -> "Linear":
        """Give the kernel itself: the mean is taken where pairs are made.

        Args:
            positions: unused.
            alive: unused.
        """
        del positions, alive
        return self

    def jet(self, pairs: Pairs) -> Jet:
        """Give k = c² + x·y, R = 0, L = 1 and the trace d.

        Args:
            pairs: distances and products.
        """
        inner = pairs.inner
        value = self.offset.astype(inner.dtype) ** 2 + inner
        trace = jnp.full_like(inner, pairs.dimension)
        return Jet(value, jnp.zeros_like(inner), jnp.ones_like(inner), trace, jnp.zeros((), inner.dtype))


def refuse_linear(kernel: AbstractKernel, flow: str) -> None:
    """Refuse a kernel that counts from the mean of the particles, which moves: its energy is no one function.

    Args:
        kernel: any kernel.
        flow: who asks.

    Raises:
        TypeError: `Linear` is in it.
    """
    parts = jax.tree.leaves(kernel, is_leaf=lambda part: isinstance(part, Linear))
    if any(isinstance(part, Linear) for part in parts):
        raise TypeError(
            f"{flow} takes no Linear kernel, which counts from the mean of the particles, and that moves; use another, "
            "or SVGD."
        )
