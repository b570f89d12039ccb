"""Equipartition: the spread of particles beside the pull of the density, coordinate by coordinate."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Particles, PerParticle
from flowrl.diagnostics._sets import emptied, log_shares, with_scores


class Equipartition(eqx.Module):
    r"""The result of `equipartition`.

    Attributes:
        values: $E[-(x_k - \bar x_k) s_k]$ of each coordinate, 1 for draws of the density, (d,).
        errors: standard errors of the values if the particles are independent draws, (d,).
    """

    values: Float[Array, " d"]
    errors: Float[Array, " d"]


def equipartition(particles: Particles, scores: Particles, *, log_weights: PerParticle | None = None) -> Equipartition:
    r"""Compute $E[-(x_k - \bar x_k) s_k]$ of each coordinate with the score s = ∇ log p, which is 1 for draws of p.

    Below 1 the particles are too narrow, above 1 too wide: of a normal distribution it is the variance of the particles
    over the true one. It costs O(nd) and needs no samples; it sees the collapse of `SVGD` in many dimensions, which the
    kernel Stein discrepancy hardly does. It is blind to the masses of separate modes.

    Args:
        particles: leaves (n, ...), n >= 2.
        scores: from `flowrl.diagnostics.scores`.
        log_weights: log weights (n,), such as `Solution.log_weights`; −∞ is an empty slot. None for equal weights.

    Returns:
        The `Equipartition`, coordinates in the order of `jax.flatten_util.ravel_pytree`.

    Raises:
        TypeError: not a set of particles, or scores of another kind.
        ValueError: the shapes disagree, or a set is empty.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        particles = 0.7 * jax.random.normal(jax.random.key(0), (1000, 3))
        measured = flowrl.diagnostics.equipartition(particles, flowrl.diagnostics.scores(target, particles))
        assert jnp.all(jnp.abs(measured.values - 0.49) < 0.1)
        ```

    ??? cite "Source"
        The virial theorem; as a measure of how far a set is from its density: Robnik and Seljak, *Fluctuation without
        dissipation: Microcanonical Langevin Monte Carlo*, 2023, arXiv:2303.18221.
    """
    x, s = with_scores(particles, scores)
    shares = log_shares(log_weights, x)
    x, s = emptied(shares, x, s)
    weights = (jnp.full(x.shape[0], 1 / x.shape[0], x.dtype) if shares is None else jnp.exp(shares))[:, None]
    terms = -(x - jnp.sum(weights * x, axis=0, keepdims=True)) * s
    values = jnp.sum(weights * terms, axis=0)
    # Of a weighted mean; for equal weights the deviation over √n.
    return Equipartition(values, jnp.sqrt(jnp.sum(weights**2 * (terms - values[None]) ** 2, axis=0)))
