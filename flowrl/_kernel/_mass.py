"""What each particle counts in a sum over the set."""

import jax.numpy as jnp
from jaxtyping import DTypeLike

from flowrl._custom_types import Mask, PerParticle, Scalar


def mass_of(alive: Mask, weights: PerParticle | None, dtype: DTypeLike) -> PerParticle:
    """Return the weight of every living particle, one without weights, and zero for the others."""
    mass = alive.astype(dtype)
    return mass if weights is None else jnp.where(alive, weights.astype(dtype), 0)


def total_of(mass: PerParticle) -> Scalar:
    """Return the sum by which a weighted mean over the set is divided: positive also where nothing counts."""
    # Not the greater of the sum and one: where the heavy particles are frozen, the others together weigh less.
    return jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
