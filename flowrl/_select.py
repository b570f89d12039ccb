"""Choose one particle of a set: pure functions over the particle axis.

The value that ranks may differ from the value that drove the flow. Particles with a non-finite value are never chosen,
nor are empty slots, those whose log weight is −∞; if no particle is left, the first is chosen, whatever its value.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from flowrl._custom_types import Key, Mask, Particle, Particles, PerParticle
from flowrl._misc import concrete, log_weights_array


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


def best_of_n(particles: Particles, values: Float[Array, " n"], *, log_weights: PerParticle | None = None) -> Selected:
    """Choose the particle of the highest value.

    Over samples of the reference this is best-of-N, at a known cost in divergence: KL(chosen | reference) is at most
    log N − (N − 1)/N (`flowrl.bounds.best_of_n_kl`).

    Args:
        particles: leaves (n, ...).
        values: selection values (n,).
        log_weights: log weights of the particles (n,), up to a constant, such as `Solution.log_weights`; they leave
            out empty slots (−∞), and change nothing else. None for equal weights.

    Returns:
        The chosen particle bit for bit, its value and index. Ties go to the first.

    Raises:
        TypeError: particles are not arrays, or values or log weights not real numbers.
        ValueError: the shapes disagree, or concrete log weights are NaN, +∞ or all −∞.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        actions, values = jnp.array([[0.1], [0.7], [0.4]]), jnp.array([1.0, jnp.nan, 2.0])
        assert flowrl.best_of_n(actions, values).index == 2  # a NaN is never chosen; for many sets, jax.vmap
        ```
    """
    values = _check(particles, values)
    allowed, _ = _weighed(values, log_weights)
    return _take(particles, values, jnp.argmax(jnp.where(allowed, values, -jnp.inf)))


def softmax_select(
    particles: Particles,
    values: Float[Array, " n"],
    selection_temperature: ArrayLike,
    *,
    key: Key,
    log_weights: PerParticle | None = None,
) -> Selected:
    """Choose a particle with probability ∝ weight × exp(value / selection_temperature).

    Args:
        particles: leaves (n, ...).
        values: selection values (n,).
        selection_temperature: > 0, in the units of the values. It is not the temperature α of a budget.
        key: randomness.
        log_weights: log weights of the particles (n,), up to a constant, such as `Solution.log_weights`; None for
            equal weights.

    Returns:
        The chosen particle bit for bit, its value and index.

    Raises:
        TypeError: particles are not arrays, or values or log weights not real numbers.
        ValueError: the shapes disagree, a concrete temperature is not positive, or concrete log weights are NaN, +∞ or
            all −∞.
    """
    temperature = concrete(selection_temperature)
    if temperature is not None and not (temperature > 0).all():
        raise ValueError(f"selection_temperature must be > 0, got {temperature}; for the best particle use best_of_n.")
    values = _check(particles, values)
    allowed, logs = _weighed(values, log_weights)
    logits = values / jnp.asarray(selection_temperature, values.dtype)
    logits = jnp.where(allowed, logits if logs is None else logits + logs, -jnp.inf)
    return _take(particles, values, _categorical(logits, key))


def uniform_select(
    particles: Particles, values: Float[Array, " n"], *, key: Key, log_weights: PerParticle | None = None
) -> Selected:
    """Choose a particle among those of finite value by its weight alone: the flow itself, without selection.

    Args:
        particles: leaves (n, ...).
        values: selection values (n,); only their finiteness matters.
        key: randomness.
        log_weights: log weights of the particles (n,), up to a constant, such as `Solution.log_weights`; None for
            equal weights, that is a uniform choice.

    Returns:
        The chosen particle bit for bit, its value and index.

    Raises:
        TypeError: particles are not arrays, or values or log weights not real numbers.
        ValueError: the shapes disagree, or concrete log weights are NaN, +∞ or all −∞.
    """
    values = _check(particles, values)
    allowed, logs = _weighed(values, log_weights)
    logits = jnp.where(allowed, 0 if logs is None else logs, -jnp.inf).astype(values.dtype)
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


def _weighed(values: Float[Array, " n"], log_weights: Any) -> tuple[Mask, PerParticle | None]:
    """Return which particles may be chosen, and their log weights in the dtype of the values, or None."""
    allowed = jnp.isfinite(values)
    if log_weights is None:
        return allowed, None
    logs = log_weights_array(log_weights, values.shape[0], values.dtype)
    allowed = allowed & (logs > -jnp.inf)
    # Only differences matter: without the largest, noise that is added to far larger numbers keeps its digits.
    return allowed, logs - jnp.max(jnp.where(allowed, logs, -jnp.inf))


def _take(particles: Particles, values: Float[Array, " n"], index: Int[Array, ""]) -> Selected:
    return Selected(jax.tree.map(lambda leaf: leaf[index], particles), values[index], index)
