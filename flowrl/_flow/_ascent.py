"""Gradient ascent of the value, each particle for itself."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow, Traits
from flowrl._flow._target_view import TargetView


class Ascent(AbstractFlow):
    """Every particle climbs the value by itself, v = ∇V: the flow of the energy −mean V, without entropy.

    It is the α → 0 limit of the free energy, and what amortised VGF does.

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

    traits: ClassVar[Traits] = Traits(temperature="none", entropic=False, energy_needs=frozenset({"value"}))

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give ∇V at every particle.

        Args:
            view: the target.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        return view.gradient(positions, alive)

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "Ascent":
        """Give the flow itself: nothing of it depends on data.

        Args:
            view: unused.
            positions: unused.
            alive: unused.
        """
        del view, positions, alive
        return self

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Give −mean V over the living particles.

        Args:
            view: the target.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        log_density, alive = view.scaled_log_density(positions, alive)
        weight = alive.astype(positions.dtype)
        return -jnp.sum(weight * log_density) / jnp.maximum(jnp.sum(weight), 1)
