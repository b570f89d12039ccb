r"""The flow of the squared kernel Stein discrepancy.

E = ½ KSD² = (1/2n²) Σ_ij κ(x_i, s_i; x_j, s_j) with the Stein kernel κ and the scores s_i = s(x_i). By its symmetry
n ∇_{x_i} E = (1/n) Σ_j [∂κ/∂x_i + (∂s/∂x_i)ᵀ ∂κ/∂s_i] with the first pair of arguments differentiated alone.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow, Traits
from flowrl._flow._target_view import TargetView
from flowrl._kernel import RBF, AbstractKernel
from flowrl._kernel._blocks import by_rows
from flowrl._kernel._distance import centre
from flowrl._kernel._linear import refuse_linear


class KSDDescent(AbstractFlow):
    r"""Kernel Stein discrepancy descent: the gradient flow of half the squared discrepancy to the target.

    $$E = \frac{1}{2n^2} \sum_{ij} k_p(x_i, x_j), \qquad
      k_p(x, y) = s(x)·s(y) k + s(x)·∇_y k + s(y)·∇_x k + ∇_x·∇_y k, \qquad s = ∇U / α$$

    It needs no samples and no normalising constant, its energy is finite on particles, and so it can be followed and
    minimised by any optimiser. It differentiates the score: a step costs a Hessian-vector product a particle. It is
    quadratic in the score, so a minibatch of a `Posterior` biases it.

    Particles can come to rest where there is no mass: with modes 3 apart of deviation 0.5, ten particles that start
    between them gather there, and stay, while SVGD takes them to the modes. Start near the target, for example where
    another flow has led, or at a higher temperature. Small steps are needed where the score is steep.

    Attributes:
        kernel: k, scalar or matrix-valued; `RBF()` with the median bandwidth by default. The energy holds the bandwidth
            fixed; with a rule that depends on the particles it is another functional at every step.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        start, flow = 1 + jr.normal(jr.key(0), (30, 2)), flowrl.KSDDescent()
        solution = flowrl.transport(target, start, flowrl.Budget(20, 1.0), flow=flow, solver=flowrl.JKO())
        assert jnp.abs(solution.particles.mean(axis=0)).max() < 0.1
        ```

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
        """Give the direction of steepest descent of the discrepancy at every particle.

        Args:
            view: the target at this step's temperature; its gradient is differentiated.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        score, pull_back, alive = jax.vjp(lambda z: _score(view, z, alive), positions, has_aux=True)
        x = centre(positions, alive)
        kernel, weight = self.kernel.fitted(x, alive), alive.astype(x.dtype)

        def rows(block: tuple[Positions, Positions]) -> tuple[Positions, Positions]:
            return jax.grad(lambda b: jnp.sum(_columns(kernel, x, score, weight, b)))(block)

        direct, through_score = by_rows(rows, (x, score), x.shape[0])
        # Rows of the pull-back belong to one particle each: what is not finite stays in its own.
        (pulled,) = pull_back(jnp.where(alive[:, None], through_score, 0))
        velocity = -(direct + pulled) / jnp.maximum(jnp.sum(weight), 1)
        alive = alive & jnp.all(jnp.isfinite(velocity), axis=1)
        return jnp.where(alive[:, None], velocity, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "KSDDescent":
        """Give the flow with the kernel fixed at these particles.

        Args:
            view: unused.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        del view
        return KSDDescent(self.kernel.fitted(centre(positions, alive), alive))

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Give ½ KSD² of the living particles, all pairs counted.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
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
    """Give Σ_i w_i κ(x_i, y_j) for a block of y and their scores.

    The block comes second, since a kernel counts positions from the mean of its first argument.
    """
    return weight @ kernel.stein_gram(x, score, *block)
