"""The Gaussian kernel."""

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions
from flowrl._kernel._bandwidth import AbstractBandwidth, MedianBandwidth, check_rule, fixed_at, fixed_variance
from flowrl._kernel._base import Jet, Pairs
from flowrl._kernel._scalar import AbstractScalarKernel


class RBF(AbstractScalarKernel):
    """The Gaussian kernel k(x, y) = exp(−|x − y|²/2σ²).

    Attributes:
        bandwidth: rule for σ²; the median by default.

    Example:
        ```python
        import flowrl

        default = flowrl.SVGD(flowrl.RBF())  # the median rule
        narrow = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(0.5)))  # σ = 0.5
        mixed = flowrl.SVGD(flowrl.RBF() + 0.1 * flowrl.IMQ())
        ```
    """

    bandwidth: AbstractBandwidth = MedianBandwidth()

    def __check_init__(self):
        check_rule(self.bandwidth)

    def fitted(self, positions: Positions, alive: Mask) -> "RBF":
        return RBF(fixed_at(self.bandwidth, positions, alive))

    def jet(self, pairs: Pairs) -> Jet:
        variance = fixed_variance(self.bandwidth, pairs.squared.dtype)
        value = jnp.exp(-pairs.squared / (2 * variance))
        trace = value * (pairs.dimension - pairs.squared / variance) / variance
        return Jet(value, -value / variance, None, trace, -1 / variance)
