"""Maps and folds of single coordinates, low < x < high, where each face may be infinite.

All functions are elementwise and take faces of the shape and dtype of the coordinates; `mirror` maps one finite face by
exp in place of softplus. Faces may be traced and finite
in some coordinates only, so every case is computed on numbers that are safe for it and the right one is selected:
neither values nor gradients of the other cases can spread NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def fold(x: Array, low: Array, high: Array) -> Array:
    """Reflect at the faces, as often as needed: a triangle wave of x between two faces, |x − low| above one."""
    below, above, both, a, b, width = _safe(low, high)
    wave = a + width - jnp.abs(width - jnp.mod(x - a, 2 * width))
    once = jnp.where(below, a + jnp.abs(x - a), jnp.where(above, b - jnp.abs(b - x), x))
    folded = jnp.where(both, wave, once)
    # A width or an overshoot that overflows leaves nothing to fold by; rounding may end a hair beyond a face.
    folded = jnp.clip(jnp.where(jnp.isfinite(folded), folded, x), low, high)
    return jnp.where((x >= low) & (x <= high), x, folded)


def unconstrain(x: Array, low: Array, high: Array, *, mirror: bool) -> Array:
    """Compute y = T⁻¹(x), finite also on the faces, which count as the nearest number inside."""
    below, above, both, a, b, _ = _safe(low, high)
    tiny = jnp.finfo(x.dtype).tiny
    x = jnp.clip(x, *_interior(low, high))
    up = jnp.where(below, jnp.maximum(x - a, tiny), 1)
    down = jnp.where(above, jnp.maximum(b - x, tiny), 1)

    def half(u: Array) -> Array:
        return jnp.log(u) if mirror else u + jnp.log(jnp.maximum(-jnp.expm1(-u), tiny))

    one = jnp.where(below, half(up), jnp.where(above, -half(down), x))
    return jnp.where(both, jnp.log(up) - jnp.log(down), one)


def constrain(y: Array, low: Array, high: Array, *, mirror: bool) -> Array:
    """Compute x = T(y), increasing in y: logistic between two faces, softplus (`mirror`: exp) from one, else y."""
    below, above, both, a, b, width = _safe(low, high)
    top = float(np.log(float(jnp.finfo(y.dtype).max))) - 1

    def half(y: Array) -> Array:
        return jnp.exp(jnp.minimum(y, top)) if mirror else jax.nn.softplus(y)

    # From the nearer face, so that the distance to it is exact in float arithmetic.
    logistic = jnp.where(y < 0, a + width * jax.nn.sigmoid(y), b - width * jax.nn.sigmoid(-y))
    one = jnp.where(below, a + half(y), jnp.where(above, b - half(-y), y))
    return jnp.clip(jnp.where(both, logistic, one), *_interior(low, high))


def log_slope(y: Array, low: Array, high: Array, *, mirror: bool) -> Array:
    """Compute log dx/dy of `constrain`."""
    below, above, both, _, _, width = _safe(low, high)
    half = (lambda y: y) if mirror else jax.nn.log_sigmoid
    one = jnp.where(below, half(y), jnp.where(above, half(-y), 0))
    return jnp.where(both, jnp.log(width) + jax.nn.log_sigmoid(y) + jax.nn.log_sigmoid(-y), one)


def _safe(low: Array, high: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return which faces are finite, and finite faces and a finite width to compute with where they are not."""
    below, above = jnp.isfinite(low), jnp.isfinite(high)
    both = below & above
    a, b = jnp.where(below, low, 0), jnp.where(above, high, 0)
    return below, above, both, a, b, jnp.where(both, b - a, 1)


def _interior(low: Array, high: Array) -> tuple[Array, Array]:
    """Return the least and the greatest finite number inside."""
    low, high = jax.lax.stop_gradient(low), jax.lax.stop_gradient(high)
    info = jnp.finfo(low.dtype)
    # Next to zero a normal number, since smaller ones may be flushed to zero.
    up = jnp.where(jnp.abs(low) < info.tiny, info.tiny, jnp.nextafter(low, jnp.full_like(low, jnp.inf)))
    down = jnp.where(jnp.abs(high) < info.tiny, -info.tiny, jnp.nextafter(high, jnp.full_like(high, -jnp.inf)))
    return jnp.where(jnp.isfinite(low), up, info.min), jnp.where(jnp.isfinite(high), down, info.max)
