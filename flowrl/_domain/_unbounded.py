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
        return jnp.ones(jax.tree.leaves(particles)[0].shape[0], bool)

    def restrict(self, particles: Particles) -> Particles:
        return particles

    def forward(self, particle: Particle) -> Particle:
        return particle

    def inverse(self, particle: Particle) -> Particle:
        return particle

    def log_det_jacobian(self, particle: Particle) -> Scalar:
        return jnp.zeros((), jax.tree.leaves(particle)[0].dtype)
