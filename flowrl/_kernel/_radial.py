"""Kernels of the distance with heavier tails, or less smoothness, than the Gaussian's.

For k = f(u), u = |x − y|², R = 2 f'(u) and ∇_x · ∇_y k = −d R − 2 u R'(u).
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, Positions
from flowrl._kernel._bandwidth import AbstractBandwidth, MedianBandwidth, check_rule, fixed_at, fixed_variance
from flowrl._kernel._base import Jet, Pairs
from flowrl._kernel._scalar import AbstractScalarKernel
from flowrl._misc import number

_SMOOTHNESS = (0.5, 1.5, 2.5)


class IMQ(AbstractScalarKernel):
    r"""The inverse multiquadric kernel, whose tails fall off like a power, so that far particles still interact.

    $$k(x, y) = \left(1 + \frac{|x - y|^2}{2 |β| σ^2}\right)^β$$

    σ is that of `RBF`: near the diagonal both are 1 − |x − y|²/2σ². The default β = −1/2 gives
    (1 + |x − y|²/σ²)^(−1/2), that is c = σ in the form (c² + |x − y|²)^β. For log-concave tails its kernel Stein
    discrepancy at a fixed σ detects non-convergence in any dimension, where a Gaussian's may not.

    Args:
        bandwidth: rule for σ²; the median by default.
        exponent: β in (−1, 0).

    Raises:
        TypeError: bandwidth is not a rule, or exponent not a number.
        ValueError: a concrete exponent is out of its range.

    ```python
    import flowrl

    flow = flowrl.SVGD(flowrl.IMQ(flowrl.FixedBandwidth(1.0), exponent=-0.5))
    ```

    ??? cite "Source"
        Gorham and Mackey, *Measuring Sample Quality with Kernels*, ICML 2017, theorem 8.
    """

    bandwidth: AbstractBandwidth
    exponent: Array

    def __init__(self, bandwidth: AbstractBandwidth = MedianBandwidth(), exponent: ArrayLike = -0.5):  # noqa: B008
        check_rule(bandwidth)
        self.bandwidth = bandwidth
        self.exponent = number("exponent", exponent, lambda value: -1 < value < 0, "in (-1, 0)")

    def fitted(self, positions: Positions, alive: Mask) -> "IMQ":
        return IMQ(fixed_at(self.bandwidth, positions, alive), self.exponent)

    def jet(self, pairs: Pairs) -> Jet:
        # With q = 1 + u/(2|β|σ²): k = q^β, R = −k/(qσ²), and the trace is −R (d − (1 − β) u / (|β|σ²q)).
        variance = fixed_variance(self.bandwidth, pairs.squared.dtype)
        power = -self.exponent.astype(pairs.squared.dtype)
        excess = pairs.squared / (2 * power * variance)
        value = jnp.exp(-power * jnp.log1p(excess))
        rate = 1 / ((1 + excess) * variance)
        trace = value * rate * (pairs.dimension - (1 + power) * pairs.squared * rate / power)
        return Jet(value, -value * rate, None, trace, None)


class Matern(AbstractScalarKernel):
    r"""Matérn's kernel of smoothness ν = 0.5, 1.5 or 2.5; r = |x − y|, a = √(2ν)/σ.

    $$k_{0.5} = e^{-ar}, \quad k_{1.5} = (1 + ar) e^{-ar}, \quad k_{2.5} = (1 + ar + a^2r^2/3) e^{-ar}$$

    ν = 0.5 is the Laplace kernel exp(−r/σ). At its kink, r = 0, the gradient is taken to be zero and ∇_x·∇_y k is
    infinite, so `stein_gram` and the discrepancies built on it refuse it; `SVGD` needs first derivatives only.

    Attributes:
        bandwidth: rule for σ²; the median by default.
        smoothness: ν, static.

    ```python
    import flowrl

    flow = flowrl.SVGD(flowrl.Matern(smoothness=2.5))
    ```

    ??? cite "Source"
        Rasmussen and Williams, *Gaussian Processes for Machine Learning*, MIT Press 2006, eq. 4.17.
    """

    bandwidth: AbstractBandwidth = MedianBandwidth()
    smoothness: float = eqx.field(static=True, default=1.5)

    def __check_init__(self):
        check_rule(self.bandwidth)
        if not isinstance(self.smoothness, float | int):
            raise TypeError(f"smoothness is static and so must be a Python float, got {self.smoothness!r}.")
        if self.smoothness not in _SMOOTHNESS:
            raise ValueError(f"smoothness must be one of {_SMOOTHNESS}, got {self.smoothness}.")

    def fitted(self, positions: Positions, alive: Mask) -> "Matern":
        return Matern(fixed_at(self.bandwidth, positions, alive), self.smoothness)

    def jet(self, pairs: Pairs) -> Jet:
        # R = k'(r)/r and the trace is −d R − r R'(r).
        sigma = jnp.sqrt(fixed_variance(self.bandwidth, pairs.squared.dtype))
        slope = math.sqrt(2 * self.smoothness) / sigma
        distance, apart = _distance(pairs)
        t = slope * distance
        decay = jnp.exp(-t)
        if self.smoothness == 0.5:
            radial = jnp.where(apart, -decay * slope / jnp.where(apart, distance, 1), 0)
            return Jet(decay, radial, None, None, None)  # the trace is infinite at r = 0
        if self.smoothness == 1.5:
            scaled = slope**2 * decay
            return Jet((1 + t) * decay, -scaled, None, scaled * (pairs.dimension - t), None)
        scaled = slope**2 / 3 * decay
        trace = scaled * (pairs.dimension * (1 + t) - t * t)
        return Jet((1 + t + t * t / 3) * decay, -scaled * (1 + t), None, trace, None)


def _distance(pairs: Pairs) -> tuple[Float[Array, "n m"], Array]:
    """Compute |x − y| with gradient zero at coincident pairs, and which pairs are apart."""
    # |x|² + |y|² − 2xy leaves a rounding error at coincident pairs; its root would be a distance with a direction.
    rounding = 8 * jnp.finfo(pairs.squared.dtype).eps * (pairs.squared_x + pairs.squared_y)
    apart = pairs.squared > rounding
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, pairs.squared, 1)), 0), apart
