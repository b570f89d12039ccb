"""The interface of kernels: contracted primitives in closed form, so that no n × n × d tensor is ever formed.

Every scalar kernel here depends on x and y through u = |x − y|² and w = x·y. With R = 2 ∂k/∂u and L = ∂k/∂w its
gradients are ∇_x k = R (x − y) + L y and ∇_y k = −R (x − y) + L x, so every sum that a flow needs is a few matrix
products of the matrices k, R, L and tr ∇_x∇_yᵀ k: the kernel's `Jet`. A scalar kernel defines `jet`, nothing else.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._kernel._blocks import by_tiles
from flowrl._kernel._distance import centre, inner_products, relative_to_mean


class Pairs(NamedTuple):
    """The quantities of all pairs (x_i, y_j) that a kernel may depend on; x and y are relative to the particles' mean.

    Attributes:
        squared: |x_i − y_j|², (n, m).
        inner: x_i · y_j, (n, m).
        squared_x: |x_i|², (n, 1).
        squared_y: |y_j|², (1, m).
        dimension: d.
    """

    squared: Float[Array, "n m"]
    inner: Float[Array, "n m"]
    squared_x: Float[Array, "n 1"]
    squared_y: Float[Array, "1 m"]
    dimension: int


class Jet(NamedTuple):
    """A kernel and its derivatives at all pairs: ∇_x k = R (x − y) + L y, ∇_y k = −R (x − y) + L x.

    Attributes:
        value: k, (n, m).
        radial: R = 2 ∂k/∂|x − y|², (n, m).
        linear: L = ∂k/∂(x·y), (n, m), or None for zero.
        trace: ∇_x · ∇_y k, (n, m), or None where it is infinite on the diagonal, so that there is no Stein kernel.
        rate: R / k where that is one number, as for a Gaussian, else None; saves a matrix product.
    """

    value: Float[Array, "n m"]
    radial: Float[Array, "n m"]
    linear: Float[Array, "n m"] | None
    trace: Float[Array, "n m"] | None
    rate: Scalar | None


class AbstractKernel(eqx.Module):
    """A positive definite kernel, scalar or matrix-valued, defined by its Stein operator."""

    @abc.abstractmethod
    def fitted(self, positions: Positions, alive: Mask) -> "AbstractKernel":
        """Return the same kernel with everything that depends on data fixed at these particles.

        Args:
            positions: (n, d).
            alive: particles that count.
        """

    @abc.abstractmethod
    def stein(self, positions: Positions, gradient: Positions, alive: Mask, temperature: Scalar) -> Positions:
        r"""Compute the Stein direction $v_i = \frac{1}{n} \sum_j k(x_j, x_i) g_j + α ∇_{x_j} k(x_j, x_i)$.

        Args:
            positions: x, (n, d).
            gradient: g, (n, d); finite.
            alive: particles that enter the sums; n counts them alone, and the others get v = 0.
            temperature: α >= 0.
        """

    @abc.abstractmethod
    def stein_gram(
        self,
        x: Float[Array, "n d"],
        score_x: Float[Array, "n d"],
        y: Float[Array, "m d"],
        score_y: Float[Array, "m d"],
    ) -> Float[Array, "n m"]:
        """Compute the Stein kernel $s_x·s_y k + s_x·∇_y k + s_y·∇_x k + ∇_x·∇_y k$ at all pairs.

        Its mean over pairs of particles is the squared kernel Stein discrepancy.

        Args:
            x: (n, d); what depends on data is fitted to it.
            score_x: s = ∇ log p at x, (n, d).
            y: (m, d).
            score_y: s at y, (m, d).

        Raises:
            TypeError: ∇_x·∇_y k is infinite at coincident points, so there is no Stein kernel.

        ??? cite "Source"
            Liu, Lee and Jordan, *A kernelized Stein discrepancy for goodness-of-fit tests*, ICML 2016, eq. 10.
        """


class AbstractScalarKernel(AbstractKernel):
    """A scalar kernel k(x, y). `k1 + k2`, `k1 * k2` and `2.0 * k` are kernels too.

    Methods fit a kernel that depends on data to their first argument. Outer autodiff treats that fit and the particles'
    mean as constants, and differentiates everything else.
    """

    __array_ufunc__: ClassVar[None] = None  # so that NumPy's numbers leave `number * kernel` to the kernel

    @abc.abstractmethod
    def fitted(self, positions: Positions, alive: Mask) -> "AbstractScalarKernel": ...

    @abc.abstractmethod
    def jet(self, pairs: Pairs) -> Jet:
        """Compute the kernel and its derivatives at all pairs; called on fitted kernels only.

        Args:
            pairs: distances and products.
        """

    def __add__(self, other: "AbstractScalarKernel") -> "AbstractScalarKernel":
        from flowrl._kernel._algebra import SumKernel

        return SumKernel(self, other) if isinstance(other, AbstractScalarKernel) else NotImplemented

    def __mul__(self, other: Any) -> "AbstractScalarKernel":
        from flowrl._kernel._algebra import ProductKernel, ScaledKernel

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

    def stein(self, positions: Positions, gradient: Positions, alive: Mask, temperature: Scalar) -> Positions:
        x = centre(positions, alive)
        weight = alive.astype(x.dtype)
        v = self.fitted(x, alive).stein_sum(x, x, gradient, weight, temperature)
        return weight[:, None] * v / jnp.maximum(jnp.sum(weight), 1)

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


def _pairs(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Pairs:
    squared_x, squared_y = jnp.sum(x * x, axis=1)[:, None], jnp.sum(y * y, axis=1)[None, :]
    inner = inner_products(x, y)
    return Pairs(jnp.maximum(squared_x + squared_y - 2 * inner, 0), inner, squared_x, squared_y, x.shape[1])
