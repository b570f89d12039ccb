"""The flow of the squared kernel Stein discrepancy."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractKernel, by_rows, centre, refuse_linear


class KSDDescent(AbstractFlow):
    r"""Kernel Stein discrepancy descent: the gradient flow of half the squared discrepancy to the target.

    $$E = \frac{1}{2n^2} \sum_{ij} k_p(x_i, x_j), \qquad
      k_p(x, y) = s(x)·s(y) k + s(x)·∇_y k + s(y)·∇_x k + ∇_x·∇_y k, \qquad s = ∇U / α$$

    It needs no samples and no normalising constant, and its energy is finite on particles, so it can be minimised by
    any optimiser. A step costs one Hessian-vector product per particle. It is quadratic in the score, so a minibatch of
    a `Posterior` biases it, and steps must be small where the score is steep.

    Particles can come to rest where there is no mass: with modes 3 apart of deviation 0.5, ten particles that start
    between them stay there, while SVGD takes them to the modes. Start near the target, or at a higher temperature.

    Attributes:
        kernel: k, scalar or matrix-valued; `RBF()` with the median bandwidth by default. The energy holds the bandwidth
            fixed; with a rule that depends on the particles it is another functional at every step.

    ??? cite "Source"
        Korba, Aubin-Frankowski, Majewski and Ablin, *Kernel Stein Discrepancy Descent*, ICML 2021.
    """

    kernel: AbstractKernel = RBF()
    traits: ClassVar[Traits] = Traits(temperature="positive", energy_needs=frozenset({"gradient"}))

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractKernel):
            raise TypeError(f"kernel must be a kernel such as RBF(), got {self.kernel!r}.")
        refuse_linear(self.kernel, "KSDDescent")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        score, pull_back, alive = jax.vjp(lambda z: _score(view, z, alive), positions, has_aux=True)
        x = centre(positions, alive)
        kernel, weight = self.kernel.fitted(x, alive), alive.astype(x.dtype)

        def rows(block: tuple[Positions, Positions]) -> tuple[Positions, Positions]:
            return jax.grad(lambda b: jnp.sum(_columns(kernel, x, score, weight, b)))(block)

        # With s_i = s(x_i), E = (1/2n²) Σ_ij κ(x_i, s_i; x_j, s_j). By the symmetry of the Stein kernel κ,
        # n ∇_{x_i} E = (1/n) Σ_j [∂κ/∂x_i + (∂s/∂x_i)ᵀ ∂κ/∂s_i] with one pair of arguments differentiated alone.
        direct, through_score = by_rows(rows, (x, score), x.shape[0])
        # Rows of the pull-back belong to one particle each: what is not finite stays in its own.
        (pulled,) = pull_back(jnp.where(alive[:, None], through_score, 0))
        velocity = -(direct + pulled) / jnp.maximum(jnp.sum(weight), 1)
        alive = alive & jnp.all(jnp.isfinite(velocity), axis=1)
        return jnp.where(alive[:, None], velocity, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "KSDDescent":
        del view
        return KSDDescent(self.kernel.fitted(centre(positions, alive), alive))

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        score, alive = _score(view, positions, alive)
        x = centre(positions, alive)
        kernel, weight = self.kernel.fitted(x, alive), alive.astype(x.dtype)
        summed = by_rows(lambda block: _columns(kernel, x, score, weight, block), (x, score), x.shape[0])
        return 0.5 * jnp.sum(weight * summed) / jnp.maximum(jnp.sum(weight), 1) ** 2


def _score(view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
    gradient, alive = view.gradient(positions, alive)
    return gradient / view.temperature, alive


def _columns(
    kernel: AbstractKernel, x: Positions, score: Positions, weight: Float[Array, " n"], block: tuple[Array, Array]
) -> Float[Array, " b"]:
    """Return Σ_i w_i κ(x_i, y_j) for a block of y and their scores."""
    # The block comes second, since a kernel counts positions from the mean of its first argument.
    return weight @ kernel.stein_gram(x, score, *block)
