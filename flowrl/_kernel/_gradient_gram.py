"""Inner products of kernel gradients: the normal equations of a velocity that is the gradient of a kernel sum."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, PerParticle, Positions
from flowrl._kernel._distance import inner_products
from flowrl._kernel._scalar import AbstractScalarKernel, _pairs


def gradient_gram(kernel: AbstractScalarKernel, x: Positions, mass: PerParticle, alive: Mask) -> Float[Array, "n n"]:
    r"""Compute $M_{ij} = \sum_k w_k ∇_x k(x_k, x_i) \cdot ∇_x k(x_k, x_j)$ of a fitted kernel; zero for the frozen.

    Args:
        kernel: k, fitted.
        x: relative to the mean of the particles, (n, d); zero for the frozen.
        mass: w, (n,); zero for the frozen.
        alive: particles that are not frozen.
    """
    pairs = _pairs(x, x)
    jet = kernel.jet(pairs)
    # ∇_x k(x_k, x_i) = R_ki x_k + B_ki x_i with B = L − R, so all that is needed are the products x_k·x_i.
    own, other = jet.radial, -jet.radial if jet.linear is None else jet.linear - jet.radial
    weight = mass[:, None]
    # What is left of near points is a difference of large numbers, so all digits are kept, on every device.
    product = lambda a, b: jnp.matmul(a.T, b, precision="highest")
    mixed = product(own, weight * other * pairs.inner)
    gram = product(own, weight * pairs.squared_x * own) + mixed + mixed.T
    gram = gram + product(other, weight * other) * inner_products(x, x)
    return jnp.where(alive[:, None] & alive[None, :], gram, 0)
