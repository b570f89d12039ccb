"""Gradient ascent of the value, each particle for itself."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import total_of


class Ascent(AbstractFlow):
    """Every particle climbs the value by itself, v = ∇V: the flow of the energy −mean V, without entropy.

    It is the α → 0 limit of the free energy, and what amortized VGF does.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Boltzmann(lambda x: -jnp.sum((x - 1) ** 2))
        start, budget = jnp.zeros((4, 2)), flowrl.Budget(10, 0.05)
        end = flowrl.transport(target, start, budget, flow=flowrl.Ascent()).particles
        assert jnp.allclose(end, 1 - 0.9**10)  # each step goes a tenth of the way
        ```

    ??? cite "Source"
        Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026.
    """

    traits: ClassVar[Traits] = Traits(
        temperature="none", entropic=False, energy_needs=frozenset({"value"}), weighs=True
    )

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        return view.gradient(positions, alive)

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        log_density, alive = view.scaled_log_density(positions, alive)
        mass = view.mass(alive)
        return -jnp.sum(mass * log_density) / total_of(mass)
