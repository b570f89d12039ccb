"""Squared distances by one matrix product, safe in float32, and the exact median."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowrl._custom_types import Mask, PerParticle, Positions
from flowrl._kernel._mass import mass_of, total_of
from flowrl._misc import varying_as


def centre(positions: Positions, alive: Mask, weights: PerParticle | None = None) -> Positions:
    """Subtract the mean of the living particles, weighted if they have weights, and set the others to zero."""
    # |x|² + |y|² − 2xy cancels badly far from the origin: at an offset of 1000 float32 keeps no digit of a unit
    # distance.
    kept = jnp.where(alive[:, None], positions, 0)  # so that nothing non-finite enters a matrix product
    # The first living particle is subtracted before averaging: the mean itself then loses no digits either.
    # It is picked by a sum, since indexing would gather particles that are divided over devices.
    chosen = alive & (jnp.arange(alive.shape[0]) == jnp.argmax(alive))
    first = jnp.sum(jnp.where(chosen[:, None], kept, 0), axis=0)
    kept = jnp.where(alive[:, None], kept - jax.lax.stop_gradient(first)[None], 0)
    mass = mass_of(alive, weights, kept.dtype)
    weighted = kept if weights is None else mass[:, None] * kept
    mean = jax.lax.stop_gradient(weighted.sum(axis=0, keepdims=True) / total_of(mass))
    return jnp.where(alive[:, None], kept - mean, 0)


def relative_to_mean(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> tuple[Float[Array, "n d"], Float[Array, "m d"]]:
    """Subtract the mean of x, a constant for autodiff, from both sets."""
    shift = jax.lax.stop_gradient(x[:1] + jnp.mean(x - x[:1], axis=0, keepdims=True))
    return x - shift, y - shift


def squared_distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Compute |x_i − y_j|², clamped at 0, of centred points."""
    squared_x, squared_y = jnp.sum(x * x, axis=1), jnp.sum(y * y, axis=1)
    return jnp.maximum(squared_x[:, None] + squared_y[None, :] - 2 * inner_products(x, y), 0)


def inner_products(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Compute x_i·y_j with all digits of the dtype, whatever the default precision of products."""
    # What is left of |x|² + |y|² − 2xy between near points is the difference of large numbers: rounded to the 10 bits
    # of TF32, in which GPUs multiply, points that coincide would be apart.
    return jnp.matmul(x, y.T, precision="highest")


def pair_distances(x: Float[Array, "n d"], alive: Mask) -> tuple[Float[Array, "m n"], Bool[Array, "m n"]]:
    """Compute |x_i − x_j|² of every pair i < j once, with a mask of the entries that are pairs of living particles."""
    # The upper triangle is folded: row n − 1 − i fills what row i leaves free, so that half the matrix is kept.
    n = x.shape[0]
    half = (n + 1) // 2
    i, j = jnp.arange(half)[:, None], jnp.arange(n)[None, :]

    def fold(matrix: Array) -> Array:
        return jnp.where(j > i, matrix[:half], matrix[::-1, ::-1][:half])

    # The middle row of an odd number is its own partner.
    own = (j > i) | ((j < i) & (2 * i != n - 1))
    return fold(squared_distances(x, x)), own & fold(alive[:, None] & alive[None, :])


def masked_median(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """Compute the exact median of the non-negative entries under the mask, 0 if there are none."""
    wide = values if values.dtype == jnp.float64 else values.astype(jnp.float32)
    kept = jnp.where(mask, wide, jnp.asarray(jnp.inf, wide.dtype))
    total = jnp.sum(mask.astype(jnp.int32))
    # XLA's sort is slow on CPUs, and worse under vmap; a GPU sorts faster than it counts.
    lower, upper = jax.lax.platform_dependent(kept, total, cpu=_middle_by_counting, default=_middle_by_sorting)
    return jnp.where(total > 0, 0.5 * (lower + upper), 0).astype(values.dtype)


def _middle_by_counting(kept: Array, total: Array) -> tuple[Array, Array]:
    """Find both middle order statistics of the `total` finite entries, by bisecting bits."""
    # Non-negative floats are ordered as their bit patterns, so the lower one is found by 31 (float32) or 63 counts.
    # They are summed in float32, which CPUs do faster than in integers; they are exact up to 2²⁴ along the first axis.
    bits, word = (63, jnp.uint64) if kept.dtype == jnp.float64 else (31, jnp.uint32)
    infinity = jnp.asarray(jnp.inf, kept.dtype)
    top = jax.lax.bitcast_convert_type(infinity, word)

    def number(code: Array) -> Array:
        return jax.lax.bitcast_convert_type(code, kept.dtype)

    def below(bound: Array) -> Array:
        return jnp.sum(jnp.sum((kept < bound).astype(jnp.float32), axis=0).astype(jnp.int32))

    def refine(i: int | Array, low: Array) -> Array:
        # Invariant: at most `rank` entries lie below `low`, and the answer has `low` as its leading bits.
        trial = low | (jnp.ones((), word) << jnp.asarray(bits - 1 - i, word))
        return jnp.where((trial <= top) & (below(number(trial)) <= (total - 1) // 2), trial, low)

    def next_one(low: Array) -> Array:
        lower = number(low)
        repeated = below(jnp.nextafter(lower, infinity)) > total // 2
        return jnp.where(repeated, lower, jnp.min(jnp.where(kept > lower, kept, infinity)))

    def turn(i: int | Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        low, upper = found
        # The upper value in a last turn of the same loop: after it XLA may compute the entries again and round them
        # otherwise, and then the lower value is found twice.
        return jax.lax.cond(i < bits, lambda: (refine(i, low), upper), lambda: (low, next_one(low)))

    start = varying_as((jnp.zeros((), word), jnp.zeros((), kept.dtype)), kept)
    low, upper = jax.lax.fori_loop(0, bits + 1, turn, start)
    return number(low), upper


def _middle_by_sorting(kept: Array, total: Array) -> tuple[Array, Array]:
    """Find the same by sorting."""
    ordered = jnp.sort(kept.ravel())
    return ordered[jnp.maximum(total - 1, 0) // 2], ordered[total // 2]
