"""Terms of proximal policy optimisation: advantages, a surrogate and an error that are clipped."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
    rewards: Float[Array, " T"], values: Float[Array, " T"], mask: Bool[Array, " T"], gae_lambda: float
) -> Float[Array, " T"]:
    r"""Return the advantages $A_t = \sum_k λ^k δ_{t+k}$ with $δ_t = r_t + V_{t+1} - V_t$; 0 at padding.

    Schulman et al., *High-Dimensional Continuous Control Using Generalized Advantage Estimation*, ICLR 2016, eq. 16,
    without discount.
    """

    def back(carry: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        advantage, following = carry
        reward, value, valid = now
        advantage = jnp.where(valid, reward + following - value + gae_lambda * advantage, 0)
        return (advantage, jnp.where(valid, value, 0)), advantage

    end = jnp.zeros((), values.dtype)
    return jax.lax.scan(back, (end, end), (rewards, values, mask), reverse=True)[1]


def clipped_surrogate(
    log_probs: Float[Array, "*batch"], old: Float[Array, "*batch"], advantages: Float[Array, "*batch"], clip: float
) -> Float[Array, "*batch"]:
    r"""Return $\min(ρA, \mathrm{clip}(ρ, 1 ± ε)A)$ of each token, ρ its ratio to the policy that drew it."""
    ratio = jnp.exp(log_probs - old)
    return jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)


def clipped_error(
    values: Float[Array, "*batch"], old: Float[Array, "*batch"], returns: Float[Array, "*batch"], clip: float
) -> Float[Array, "*batch"]:
    """Return half the squared error of each value, or that of the value moved no further than the clip if larger."""
    near = old + jnp.clip(values - old, -clip, clip)
    return 0.5 * jnp.maximum((values - returns) ** 2, (near - returns) ** 2)


def masked_mean(terms: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Return the mean over tokens that are not padding."""
    return jnp.sum(jnp.where(mask, terms, 0)) / jnp.maximum(jnp.sum(mask.astype(terms.dtype)), 1)


def whiten(terms: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Shift and scale to mean 0 and variance 1 over the tokens that are not padding; 0 at padding."""
    centred = terms - masked_mean(terms, mask)
    return jnp.where(mask, centred * jax.lax.rsqrt(masked_mean(centred**2, mask) + 1e-8), 0)
