"""Scalar kernels, defined by their jets, and their sums, products and multiples: `k1 + k2`, `k1 * k2`, `2.0 * k`."""

import abc
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._kernel._base import AbstractKernel, Jet, Pairs
from flowrl._kernel._blocks import by_tiles
from flowrl._kernel._distance import centre, inner_products, relative_to_mean
from flowrl._kernel._mass import mass_of, total_of
from flowrl._misc import number


class AbstractScalarKernel(AbstractKernel):
    """A scalar kernel k(x, y). `k1 + k2`, `k1 * k2` and `2.0 * k` are kernels too.

    Methods fit a kernel that depends on data to their first argument. Outer autodiff treats that fit and the particles'
    mean as constants, and differentiates everything else.
    """

    __array_ufunc__: ClassVar[None] = None  # so that NumPy's numbers leave `number * kernel` to the kernel

    def fitted(self, positions: Positions, alive: Mask) -> "AbstractScalarKernel":
        del positions, alive  # of a kernel without a bandwidth nothing depends on data
        return self

    @abc.abstractmethod
    def jet(self, pairs: Pairs) -> Jet:
        """Compute the kernel and its derivatives at all pairs; called on fitted kernels only.

        Args:
            pairs: distances and products.
        """

    def __add__(self, other: "AbstractScalarKernel") -> "AbstractScalarKernel":
        return SumKernel(self, other) if isinstance(other, AbstractScalarKernel) else NotImplemented

    def __mul__(self, other: Any) -> "AbstractScalarKernel":
        if isinstance(other, AbstractScalarKernel):
            return ProductKernel(self, other)
        return (
            ScaledKernel(other, self)
            if isinstance(other, float | int | np.number | np.ndarray | Array)
            else NotImplemented
        )

    def __rmul__(self, other: Any) -> "AbstractScalarKernel":
        return self * other

    def gram(self, x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Compute the matrix k(x_i, y_j).

        Args:
            x: (n, d).
            y: (m, d).
        """
        kernel, x, y = self._ready(x, y)
        return kernel.jet(_pairs(x, y)).value

    def apply(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"], weights: Float[Array, "m p"]
    ) -> Float[Array, "n p"]:
        r"""Compute $\sum_j k(x_i, y_j) w_j$, by tiles.

        Args:
            x: (n, d).
            y: (m, d).
            weights: w, (m, p).
        """
        kernel, x, y = self._ready(x, y)
        return by_tiles(lambda rows, tile: kernel.jet(_pairs(rows, tile[0])).value @ tile[1], x, (y, weights))

    def gradient(self, x: Float[Array, "n d"], y: Float[Array, "m d"], weights: Float[Array, " m"]) -> Positions:
        r"""Compute $\sum_j w_j ∇_x k(x_i, y_j)$, by tiles.

        Args:
            x: (n, d).
            y: (m, d).
            weights: w, (m,).
        """
        kernel, x, y = self._ready(x, y)
        columns = jnp.concatenate([weights[:, None] * y, weights[:, None]], axis=1)

        def summed(rows: Float[Array, "b d"], tile: tuple[Array, Array]) -> Float[Array, "b d"]:
            jet = kernel.jet(_pairs(rows, tile[0]))
            sums = jet.radial @ tile[1]
            pull = rows * sums[:, -1:] - sums[:, :-1]
            return pull if jet.linear is None else pull + jet.linear @ tile[1][:, :-1]

        return by_tiles(summed, x, (y, columns))

    def stein(
        self,
        positions: Positions,
        gradient: Positions,
        alive: Mask,
        temperature: Scalar,
        weights: PerParticle | None = None,
    ) -> Positions:
        x, mass = centre(positions, alive, weights), mass_of(alive, weights, positions.dtype)
        v = self.fitted(x, alive).stein_sum(x, x, gradient, mass, temperature)
        return alive.astype(x.dtype)[:, None] * v / total_of(mass)

    def stein_sum(
        self,
        x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        gradient: Float[Array, "m d"],
        weight: Float[Array, " m"],
        temperature: Scalar,
    ) -> Float[Array, "n d"]:
        r"""Compute $\sum_j w_j [k(y_j, x_i) g_j + α ∇_{y_j} k(y_j, x_i)]$, by tiles; called on fitted kernels only.

        Args:
            x: (n, d), relative to the mean of the particles, as y is.
            y: (m, d); zero where the weight is zero.
            gradient: g, (m, d); finite.
            weight: w, (m,).
            temperature: α >= 0.
        """

        def summed(rows: Float[Array, "b d"], tile: tuple[Array, Array, Array]) -> Float[Array, "b d"]:
            there, gradient, weight = tile
            jet = self.jet(_pairs(rows, there))
            if jet.rate is None:
                # With ∇_{y_j} k(y_j, x_i) = R_ij (y_j − x_i) + L_ij x_i: two matrix products.
                push = jet.radial @ jnp.concatenate([weight * there, weight], axis=1)
                v = jet.value @ (weight * gradient) + temperature * (push[:, :-1] - rows * push[:, -1:])
            else:
                # R is a multiple of k, as for a Gaussian: one matrix product.
                rate = temperature * jet.rate
                sums = jet.value @ jnp.concatenate([weight * (gradient + rate * there), weight], axis=1)
                v = sums[:, :-1] - rate * rows * sums[:, -1:]
            return v if jet.linear is None else v + temperature * rows * (jet.linear @ weight)

        return by_tiles(summed, x, (y, gradient, weight[:, None]))

    def stein_gram(
        self,
        x: Float[Array, "n d"],
        score_x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        score_y: Float[Array, "m d"],
    ) -> Float[Array, "n m"]:
        kernel, x, y = self._ready(x, y)
        jet = kernel.jet(_pairs(x, y))
        if jet.trace is None:
            raise TypeError(
                f"{self!r} has no Stein kernel (which the kernel Stein discrepancy is made of): its ∇_x·∇_y k is "
                "infinite at coincident points. Use a smoother one: Matern(smoothness=1.5) or 2.5, IMQ(), RBF()."
            )
        own_x, own_y = jnp.sum(score_x * x, axis=1)[:, None], jnp.sum(score_y * y, axis=1)[None, :]
        # s_x·(x − y) and s_y·(x − y) at all pairs.
        along_x, along_y = own_x - inner_products(score_x, y), inner_products(x, score_y) - own_y
        gram = inner_products(score_x, score_y) * jet.value + jet.radial * (along_y - along_x) + jet.trace
        return gram if jet.linear is None else gram + jet.linear * (own_x + own_y)

    def _ready(
        self, x: Float[Array, "n d"], y: Float[Array, "m d"]
    ) -> tuple["AbstractScalarKernel", Float[Array, "n d"], Float[Array, "m d"]]:
        """Fit to x, and subtract its mean from both sets."""
        x, y = relative_to_mean(x, y)
        return self.fitted(jax.lax.stop_gradient(x), jnp.ones(x.shape[0], bool)), x, y


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


def _pairs(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Pairs:
    squared_x, squared_y = jnp.sum(x * x, axis=1)[:, None], jnp.sum(y * y, axis=1)[None, :]
    inner = inner_products(x, y)
    return Pairs(jnp.maximum(squared_x + squared_y - 2 * inner, 0), inner, squared_x, squared_y, x.shape[1])
