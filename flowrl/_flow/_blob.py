"""The blob method: the free energy with the density of the particles smoothed by a kernel."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractScalarKernel, LogNBandwidth, centre, refuse_linear, total_of


class Blob(AbstractFlow):
    r"""The blob method for diffusion: a deterministic flow of the regularised free energy −E[V] + α E[log (k ∗ q)].

    $$v_i = ∇U(x_i) - α \sum_j ∇_{x_i} k(x_i, x_j) \left(\frac{1}{ρ_i} + \frac{1}{ρ_j}\right),
      \qquad ρ_i = \sum_l k(x_i, x_l)$$

    It is a gradient flow on particles, so its energy falls and it comes to rest, but at the minimiser of a biased
    energy: the kernel spreads the density already, so the particles come to rest
    [too close together](../concepts/flows.md#how-far-blob-can-be-trusted).

    Attributes:
        kernel: k > 0; `RBF(LogNBandwidth())` by default, narrower than SVGD's. The energy holds the bandwidth fixed;
            with a rule that depends on the particles it is another functional at every step.

    ??? cite "Source"
        Carrillo, Craig and Patacchini, *A blob method for diffusion*, Calculus of Variations and Partial Differential
        Equations 58, 2019.
    """

    kernel: AbstractScalarKernel = RBF(LogNBandwidth())
    traits: ClassVar[Traits] = Traits(energy_needs=frozenset({"value"}), weighs=True)

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractScalarKernel):
            raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {self.kernel!r}.")
        refuse_linear(self.kernel, "Blob")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        gradient, alive = view.gradient(positions, alive)
        x = centre(positions, alive)
        kernel, mass = self.kernel.fitted(x, alive), view.mass(alive)
        density = _density(kernel, x, alive, mass)
        # Moving x_i changes Σ_l log ρ_l through its own term, by Σ_j ∇k(x_i, x_j)/ρ_i, and through all terms, by
        # Σ_j ∇k(x_i, x_j)/ρ_j.
        push = kernel.gradient(x, x, mass) / density[:, None] + kernel.gradient(x, x, mass / density)
        return jnp.where(alive[:, None], gradient - view.temperature * push, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "Blob":
        del view
        return Blob(self.kernel.fitted(centre(positions, alive), alive))

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        log_density, alive = view.scaled_log_density(positions, alive)
        x = centre(positions, alive)
        mass = view.mass(alive)
        count = total_of(mass)
        smoothed = jnp.log(_density(self.kernel.fitted(x, alive), x, alive, mass) / count)
        return jnp.sum(mass * (view.temperature * smoothed - log_density)) / count


def _density(kernel: AbstractScalarKernel, x: Positions, alive: Mask, mass: PerParticle) -> PerParticle:
    """Return ρ_i = Σ_j k(x_i, x_j) over living j; 1 where it is zero, as at the others and far from all that weighs."""
    density = kernel.apply(x, x, mass[:, None])[:, 0]
    return jnp.where(alive & (density > 0), density, 1)
