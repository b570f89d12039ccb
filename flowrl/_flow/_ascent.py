"""Gradient ascent of the value, each particle for itself."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow, Traits
from flowrl._flow._field import Field


class Ascent(AbstractFlow):
    """Every particle climbs the value by itself, v = ∇V: the flow of the energy −mean V, without entropy.

    It is the α → 0 limit of the free energy, and what amortised VGF does.

    ??? cite "Source"
        Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026.
    """

    traits: ClassVar[Traits] = Traits(temperature="none", entropic=False, energy_needs=frozenset({"value"}))

    def velocity(self, field: Field, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give ∇V at every particle.

        Args:
            field: the target.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        return field.gradient(positions, alive)

    def fitted(self, field: Field, positions: Positions, alive: Mask) -> "Ascent":
        """Give the flow itself: nothing of it depends on data.

        Args:
            field: unused.
            positions: unused.
            alive: unused.
        """
        del field, positions, alive
        return self

    def energy(self, field: Field, positions: Positions, alive: Mask) -> Scalar:
        """Give −mean V over the living particles.

        Args:
            field: the target.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        potential, alive = field.potential(positions, alive)
        weight = alive.astype(positions.dtype)
        return -jnp.sum(weight * potential) / jnp.maximum(jnp.sum(weight), 1)
