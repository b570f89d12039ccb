"""Stein variational gradient descent."""

from typing import ClassVar

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractKernel, centre


class SVGD(AbstractFlow):
    r"""Stein variational gradient descent, the kernelised gradient flow of the free energy −E[V] + α E[log q].

    $$v(x) = \frac{1}{n} \sum_j k(x_j, x) ∇V(x_j) + α ∇_{x_j} k(x_j, x)$$

    With weights of the particles the mean over j is the weighted one; a bandwidth rule counts each of them once. The
    first term climbs the value, the second keeps particles apart. α = 1 with `Density` is the textbook case; α = 0
    is the form of the VGF paper's experiments. The paper's own step ε φ with φ = k∇V/α + ∇k is `step_size = ε / α`.

    Attributes:
        kernel: k; `RBF()` with the median bandwidth by default.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 3) ** 2))  # N(3, I)
        start = jr.normal(jr.key(0), (50, 2))
        solution = flowrl.transport(target, start, flowrl.Budget(300, 0.5), flow=flowrl.SVGD())
        assert jnp.abs(solution.particles.mean(axis=0) - 3).max() < 0.05
        assert jnp.abs(solution.particles.var(axis=0) - 1).max() < 0.2
        ```

    ??? cite "Source"
        Liu and Wang, *Stein Variational Gradient Descent: A General Purpose Bayesian Inference Algorithm*, NeurIPS
        2016. Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, eq. 7.
    """

    kernel: AbstractKernel = RBF()
    traits: ClassVar[Traits] = Traits(weighs=True)

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractKernel):
            raise TypeError(f"kernel must be a kernel such as RBF(), got {self.kernel!r}.")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        gradient, alive = view.gradient(positions, alive)
        return self.kernel.stein(positions, gradient, alive, view.temperature, view.weights), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "SVGD":
        del view
        return SVGD(self.kernel.fitted(centre(positions, alive), alive))
