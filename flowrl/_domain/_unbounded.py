"""All of space."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowrl._custom_types import Particle, Particles, Scalar
from flowrl._domain._base import AbstractDomain


class Unbounded(AbstractDomain):
    """All of space: nothing is restricted."""

    restricts: ClassVar[bool] = False
    maps: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False

    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        """Every particle is inside.

        Args:
            particles: leaves `(n, ...)`.
        """
        return jnp.ones(jax.tree.leaves(particles)[0].shape[0], bool)

    def restrict(self, particles: Particles) -> Particles:
        """Leave particles as they are.

        Args:
            particles: leaves `(n, ...)`.
        """
        return particles

    def forward(self, particle: Particle) -> Particle:
        """Leave the particle as it is.

        Args:
            particle: one particle.
        """
        return particle

    def inverse(self, particle: Particle) -> Particle:
        """Leave the particle as it is.

        Args:
            particle: one particle.
        """
        return particle

    def log_det_jacobian(self, particle: Particle) -> Scalar:
        """Zero: volumes do not change.

        Args:
            particle: one particle.
        """
        return jnp.zeros((), jax.tree.leaves(particle)[0].dtype)
