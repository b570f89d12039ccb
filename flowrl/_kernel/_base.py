"""The interface of kernels: contracted primitives in closed form, so that no n × n × d tensor is ever formed.

Every scalar kernel here depends on x and y through u = |x − y|² and w = x·y. With R = 2 ∂k/∂u and L = ∂k/∂w its
gradients are ∇_x k = R (x − y) + L y and ∇_y k = −R (x − y) + L x, so every sum that a flow needs is a few matrix
products of the matrices k, R, L and tr ∇_x∇_yᵀ k: the kernel's `Jet`. A scalar kernel defines `jet`, nothing else.
"""

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar


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

        Each living particle counts the same, whatever it weighs.

        Args:
            positions: (n, d).
            alive: particles that count.
        """

    @abc.abstractmethod
    def stein(
        self,
        positions: Positions,
        gradient: Positions,
        alive: Mask,
        temperature: Scalar,
        weights: PerParticle | None = None,
    ) -> Positions:
        r"""Compute the Stein direction of every particle.

        $$v_i = \frac{1}{\sum_j w_j} \sum_j w_j \left[k(x_j, x_i) g_j + α ∇_{x_j} k(x_j, x_i)\right]$$

        What is fitted to the particles, a bandwidth or a covariance, is that of the living ones, each counted once
        whatever it weighs.

        Args:
            positions: x, (n, d).
            gradient: g, (n, d); finite.
            alive: particles that enter the sums; the others get v = 0.
            temperature: α >= 0.
            weights: w >= 0 (n,), one on average over the living, though any multiple gives the same; None if all weigh
                the same. A living particle of weight zero moves, and moves no other.
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
