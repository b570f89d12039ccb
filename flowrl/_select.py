"""Choose one particle of a set: pure functions over the particle axis.

The value that ranks may differ from the value that drove the flow. Particles with a non-finite value are never chosen;
if all values are non-finite, the first particle is, with its non-finite value.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from flowrl._custom_types import Key, Particle, Particles
from flowrl._misc import concrete


class Selected(eqx.Module):
    """One particle of a set.

    Attributes:
        particle: the particle, without the particle axis.
        value: its value `()`.
        index: its place in the set `()`.
    """

    particle: Particle
    value: Float[Array, ""]
    index: Int[Array, ""]


def best_of_n(particles: Particles, values: Float[Array, " n"]) -> Selected:
    """Choose the particle of the highest value.

    Over samples of the reference this is best-of-N, at a known cost in divergence: KL(chosen | reference) is at most
    log N − (N − 1)/N (`flowrl.bounds.best_of_n_kl`).

    Args:
        particles: leaves (n, ...).
        values: selection values (n,).

    Returns:
        The chosen particle bit for bit, its value and index. Ties go to the first.

    Raises:
        TypeError: particles are not arrays, or values not real numbers.
        ValueError: the shapes disagree.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        actions, values = jnp.array([[0.1], [0.7], [0.4]]), jnp.array([1.0, jnp.nan, 2.0])
        assert flowrl.best_of_n(actions, values).index == 2  # a NaN is never chosen; for many sets, jax.vmap
        ```
    """
    values = _check(particles, values)
    return _take(particles, values, jnp.argmax(jnp.where(jnp.isfinite(values), values, -jnp.inf)))


def softmax_select(
    particles: Particles, values: Float[Array, " n"], selection_temperature: ArrayLike, *, key: Key
) -> Selected:
    """Choose a particle with probability ∝ exp(value / selection_temperature).

    Args:
        particles: leaves (n, ...).
        values: selection values (n,).
        selection_temperature: > 0, in the units of the values. It is not the temperature α of a budget.
        key: randomness.

    Returns:
        The chosen particle bit for bit, its value and index.

    Raises:
        TypeError: particles are not arrays, or values not real numbers.
        ValueError: the shapes disagree, or a concrete temperature is not positive.
    """
    temperature = concrete(selection_temperature)
    if temperature is not None and not (temperature > 0).all():
        raise ValueError(f"selection_temperature must be > 0, got {temperature}; for the best particle use best_of_n.")
    values = _check(particles, values)
    logits = jnp.where(jnp.isfinite(values), values / jnp.asarray(selection_temperature, values.dtype), -jnp.inf)
    return _take(particles, values, _categorical(logits, key))


def uniform_select(particles: Particles, values: Float[Array, " n"], *, key: Key) -> Selected:
    """Choose a particle uniformly among those of finite value: the flow alone, without selection.

    Args:
        particles: leaves (n, ...).
        values: selection values (n,); only their finiteness matters.
        key: randomness.

    Returns:
        The chosen particle bit for bit, its value and index.
    """
    values = _check(particles, values)
    logits = jnp.where(jnp.isfinite(values), 0, -jnp.inf).astype(values.dtype)
    return _take(particles, values, _categorical(logits, key))


def _categorical(logits: Float[Array, " n"], key: Key) -> Int[Array, ""]:
    # With every entry at -inf, argmax gives index 0: the documented fallback.
    return jnp.argmax(logits + jr.gumbel(key, logits.shape, logits.dtype))


def _check(particles: Particles, values: Array) -> Float[Array, " n"]:
    values = jnp.asarray(values)
    if not any(jnp.issubdtype(values.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"values must be real numbers, got dtype {values.dtype}.")
    values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.result_type(float))
    leaves = jax.tree.leaves(particles)
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise TypeError(f"particles must be arrays (n, ...), got {leaf!r}.")
    sizes = {leaf.shape[:1] for leaf in leaves}
    if values.ndim != 1 or sizes != {values.shape}:
        raise ValueError(
            f"values must have shape (n,), one per particle; got {values.shape} for particles with leading axes "
            f"{sorted(sizes)}. For many sets, vmap the selection."
        )
    return values


def _take(particles: Particles, values: Float[Array, " n"], index: Int[Array, ""]) -> Selected:
    return Selected(jax.tree.map(lambda leaf: leaf[index], particles), values[index], index)
