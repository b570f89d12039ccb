"""The linear kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from flowrl._kernel._base import AbstractKernel, Jet, Pairs
from flowrl._kernel._scalar import AbstractScalarKernel
from flowrl._misc import number


class Linear(AbstractScalarKernel):
    r"""The linear kernel, with x and y relative to the mean m of the particles.

    $$k(x, y) = c^2 + (x - m) \cdot (y - m)$$

    `SVGD` with it moves the set by affine maps alone. At rest the mean score is zero (for c > 0) and the covariance of
    particles and scores is −I, so on a normal target the particles have the exact mean and covariance, whatever their
    number beyond d; their shape is otherwise arbitrary. It is not bounded: to sample a distribution, add another
    kernel. The mean moves with the particles, so flows with an energy or a density estimate refuse it.

    Args:
        offset: c >= 0. With 0 the set never moves as a whole.

    Raises:
        TypeError: offset is not a number.
        ValueError: a concrete offset is negative or not finite.

    ```python
    import flowrl

    flow = flowrl.SVGD(flowrl.RBF() + 0.1 * flowrl.Linear())
    ```

    ??? cite "Source"
        Liu and Wang, *Stein Variational Gradient Descent as Moment Matching*, NeurIPS 2018, section 3.
    """

    offset: Array

    def __init__(self, offset: ArrayLike = 1.0):
        self.offset = number("offset", offset, lambda value: 0 <= value < float("inf"), ">= 0 and finite")

    def jet(self, pairs: Pairs) -> Jet:
        inner = pairs.inner
        value = self.offset.astype(inner.dtype) ** 2 + inner
        trace = jnp.full_like(inner, pairs.dimension)
        return Jet(value, jnp.zeros_like(inner), jnp.ones_like(inner), trace, jnp.zeros((), inner.dtype))


def refuse_linear(kernel: AbstractKernel, flow: str) -> None:
    """Raise a TypeError if the kernel contains `Linear`: its mean moves, so it has no fixed energy."""
    parts = jax.tree.leaves(kernel, is_leaf=lambda part: isinstance(part, Linear))
    if any(isinstance(part, Linear) for part in parts):
        raise TypeError(
            f"{flow} takes no Linear kernel: its origin is the mean of the particles, which moves; use another, "
            "or SVGD."
        )
