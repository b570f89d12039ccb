"""Boxes."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, PyTree

from flowrl._custom_types import Particle, Particles, Scalar
from flowrl._domain._base import AbstractDomain
from flowrl._misc import concrete, numbers_to_array


class Box(AbstractDomain):
    """The box low <= x <= high, by projection: coordinates beyond a face are set on it after each step.

    Projection is the rule of the VGF paper for actions in [-1, 1]. Mass can gather on the faces.
    """

    low: PyTree[Array]
    high: PyTree[Array]
    restricts: ClassVar[bool] = True
    maps: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False

    def __init__(self, low: PyTree[ArrayLike], high: PyTree[ArrayLike]):
        """Make a box.

        Args:
            low: lower faces: a number, an array that broadcasts against one particle, or a PyTree of such with the
                structure of a particle.
            high: upper faces, likewise; > `low`. Infinite faces are allowed.

        Raises:
            ValueError: a concrete `low` is not below `high`, a face is NaN, or the faces differ in structure.
        """
        low, high = numbers_to_array(low), numbers_to_array(high)
        self.low = jax.tree.map(jnp.asarray, low)
        self.high = jax.tree.map(jnp.asarray, high)
        if jax.tree.structure(self.low) != jax.tree.structure(self.high):
            raise ValueError(
                f"the faces of Box need the same structure, got {jax.tree.structure(self.low)} for low and "
                f"{jax.tree.structure(self.high)} for high."
            )
        for a, b in zip(jax.tree.leaves(low), jax.tree.leaves(high), strict=True):
            below, above = concrete(a), concrete(b)
            if below is not None and above is not None and not np.all(below < above):
                raise ValueError(f"Box needs low < high in every coordinate, got low={np.asarray(a)}, high={b}.")

    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        """Say which particles have low <= x <= high in every coordinate.

        Args:
            particles: leaves `(n, ...)`.
        """

        def inside(leaf: Array, low: Array, high: Array) -> Array:
            return jnp.all((leaf >= low) & (leaf <= high), axis=tuple(range(1, leaf.ndim)))

        return jnp.all(jnp.stack(jax.tree.leaves(self._map(inside, particles))), axis=0)

    def restrict(self, particles: Particles) -> Particles:
        """Project on the box.

        Args:
            particles: leaves `(n, ...)`.
        """
        return self._map(jnp.clip, particles)

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

    def _map(self, function, particles: Particles) -> PyTree:
        def at(leaf: Array, low: Array, high: Array) -> Array:
            # Faces take the rank of the leaf, so that nothing depends on implicit rank promotion.
            faces = (jnp.broadcast_to(face.astype(leaf.dtype), leaf.shape[1:])[None] for face in (low, high))
            return function(leaf, *faces)

        try:
            low, high = (jax.tree.broadcast(face, particles) for face in (self.low, self.high))
            return jax.tree.map(at, particles, low, high)
        except ValueError as error:
            shapes = [jax.tree.map(jnp.shape, face) for face in (self.low, self.high)]
            one = jax.tree.map(lambda leaf: leaf.shape[1:], particles)
            raise ValueError(
                f"the faces of Box, of shapes {shapes[0]} and {shapes[1]}, do not broadcast against a particle of "
                f"shape {one}."
            ) from error
