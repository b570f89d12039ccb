"""Sums, products and multiples of scalar kernels; made by `k1 + k2`, `k1 * k2` and `2.0 * k`."""

from typing import Any

from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, Positions
from flowrl._kernel._base import AbstractScalarKernel, Jet, Pairs
from flowrl._misc import number


class SumKernel(AbstractScalarKernel):
    """The kernel k1 + k2."""

    first: AbstractScalarKernel
    second: AbstractScalarKernel

    def __check_init__(self):
        _check_parts(self.first, self.second)

    def fitted(self, positions: Positions, alive: Mask) -> "SumKernel":
        return SumKernel(self.first.fitted(positions, alive), self.second.fitted(positions, alive))

    def jet(self, pairs: Pairs) -> Jet:
        one, two = self.first.jet(pairs), self.second.jet(pairs)
        trace = None if one.trace is None or two.trace is None else one.trace + two.trace
        return Jet(one.value + two.value, one.radial + two.radial, _plus(one.linear, two.linear), trace, None)


class ProductKernel(AbstractScalarKernel):
    """The kernel k1 k2."""

    first: AbstractScalarKernel
    second: AbstractScalarKernel

    def __check_init__(self):
        _check_parts(self.first, self.second)

    def fitted(self, positions: Positions, alive: Mask) -> "ProductKernel":
        return ProductKernel(self.first.fitted(positions, alive), self.second.fitted(positions, alive))

    def jet(self, pairs: Pairs) -> Jet:
        # The product rule. The trace is k1 t2 + k2 t1 + ∇_x k1·∇_y k2 + ∇_x k2·∇_y k1; the last two terms together are
        # (R1 L2 + R2 L1 − 2 R1 R2) |x − y|² + 2 L1 L2 x·y.
        one, two = self.first.jet(pairs), self.second.jet(pairs)
        radial = one.value * two.radial + two.value * one.radial
        linear = _plus(_times(one.value, two.linear), _times(two.value, one.linear))
        rate = None if one.rate is None or two.rate is None else one.rate + two.rate
        if one.trace is None or two.trace is None:
            return Jet(one.value * two.value, radial, linear, None, rate)
        mixed = -2 * one.radial * two.radial
        if two.linear is not None:
            mixed = mixed + one.radial * two.linear
        if one.linear is not None:
            mixed = mixed + two.radial * one.linear
        trace = one.value * two.trace + two.value * one.trace + mixed * pairs.squared
        if one.linear is not None and two.linear is not None:
            trace = trace + 2 * one.linear * two.linear * pairs.inner
        return Jet(one.value * two.value, radial, linear, trace, rate)


class ScaledKernel(AbstractScalarKernel):
    """The kernel c k, c > 0."""

    scale: Array
    kernel: AbstractScalarKernel

    def __init__(self, scale: ArrayLike, kernel: AbstractScalarKernel):
        _check_parts(kernel)
        self.scale = number("the multiple of a kernel", scale, lambda c: 0 < c < float("inf"), "> 0 and finite")
        self.kernel = kernel

    def fitted(self, positions: Positions, alive: Mask) -> "ScaledKernel":
        return ScaledKernel(self.scale, self.kernel.fitted(positions, alive))

    def jet(self, pairs: Pairs) -> Jet:
        jet = self.kernel.jet(pairs)
        c = self.scale.astype(jet.value.dtype)
        linear = None if jet.linear is None else c * jet.linear
        trace = None if jet.trace is None else c * jet.trace
        return Jet(c * jet.value, c * jet.radial, linear, trace, jet.rate)


def _check_parts(*parts: Any) -> None:
    for part in parts:
        if not isinstance(part, AbstractScalarKernel):
            raise TypeError(f"only scalar kernels such as RBF() can be added and multiplied, got {part!r}.")


def _plus(x: Float[Array, "n m"] | None, y: Float[Array, "n m"] | None) -> Float[Array, "n m"] | None:
    if x is None or y is None:
        return x if y is None else y
    return x + y


def _times(x: Float[Array, "n m"], y: Float[Array, "n m"] | None) -> Float[Array, "n m"] | None:
    return None if y is None else x * y
