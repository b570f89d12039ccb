"""Squared distances by one matrix product, safe in float32, and the exact median without a sort."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowrl._custom_types import Mask, Positions


def centre(positions: Positions, alive: Mask) -> Positions:
    """Subtract the mean of the living particles.

    |x|² + |y|² − 2xy cancels badly far from the origin: at an offset of 1000 float32 keeps no digit of a unit distance.

    Args:
        positions: (n, d).
        alive: particles that count; the others are set to zero, so that nothing non-finite enters a matrix product.
    """
    kept = jnp.where(alive[:, None], positions, 0)
    # The first living particle is subtracted before averaging: the mean itself then loses no digits either.
    # It is picked by a sum, since indexing would gather particles that are divided over devices.
    chosen = alive & (jnp.arange(alive.shape[0]) == jnp.argmax(alive))
    first = jnp.sum(jnp.where(chosen[:, None], kept, 0), axis=0)
    kept = jnp.where(alive[:, None], kept - jax.lax.stop_gradient(first)[None], 0)
    count = jnp.maximum(jnp.sum(alive.astype(kept.dtype)), 1)
    mean = jax.lax.stop_gradient(kept.sum(axis=0, keepdims=True) / count)
    return jnp.where(alive[:, None], kept - mean, 0)


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Give |x_i − y_j|², clamped at 0, for centred points.

    Args:
        x: (n, d).
        y: (m, d).
    """
    squared_x, squared_y = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
    return jnp.maximum(squared_x[:, None] + squared_y[None, :] - 2 * (x @ y.T), 0)


def pairs(alive: Mask) -> Bool[Array, "n n"]:
    """Mark the ordered pairs of different living particles.

    Args:
        alive: (n,).
    """
    return alive[:, None] & alive[None, :] & ~jnp.eye(alive.shape[0], dtype=bool)


def masked_median(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Give the exact median of the non-negative entries under the mask, 0 if there is none.

    Non-negative floats are ordered as their bit patterns, so the two middle order statistics are found by bisecting the
    bits: 31 (float32) or 63 counts instead of a sort, which is slow in XLA and worse under vmap.

    Args:
        values: non-negative, any shape.
        mask: same shape; entries that count.
    """
    bits, word = (63, jnp.uint64) if values.dtype == jnp.float64 else (31, jnp.uint32)
    wide = values if values.dtype == jnp.float64 else values.astype(jnp.float32)
    codes = jax.lax.bitcast_convert_type(wide, word)
    total = jnp.sum(mask.astype(jnp.int32))
    ranks = jnp.stack([(total - 1) // 2, total // 2])

    def refine(i: int | Array, low: Array) -> Array:
        # Invariant: fewer than or exactly `rank` entries lie below `low`, the answer has `low` as its leading bits.
        trial = low | (jnp.ones((), word) << jnp.asarray(bits - 1 - i, word))
        below = jax.vmap(lambda t: jnp.sum(((codes < t) & mask).astype(jnp.int32)))(trial)
        return jnp.where(below <= ranks, trial, low)

    found = jax.lax.fori_loop(0, bits, refine, jnp.zeros(2, word))
    middle = jax.lax.bitcast_convert_type(found, wide.dtype)
    return jnp.where(total > 0, 0.5 * (middle[0] + middle[1]), 0).astype(values.dtype)
