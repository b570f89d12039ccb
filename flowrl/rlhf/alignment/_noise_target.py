"""The reference tilted by a reward, as a density of the noise that texts are drawn with."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl import Density, Tilted
from flowrl.rlhf.models import AbstractReward, LanguageModel, Prompt, Sampler
from flowrl.rlhf.spaces import straight_through


def noise_target(model: LanguageModel, sampler: Sampler, reward: AbstractReward, prompt: Prompt) -> Tilted:
    r"""Return the aligned law of texts, ∝ μ(y) exp(r(y)/α), as a target over the noise that texts are drawn with.

    Under the reference the noise of a text is independent standard Gumbel, and the text is a function of it, so the
    density ∝ $\prod_{t,v} e^{-g_{tv} - e^{-g_{tv}}} \exp(r(y(g))/α)$ of the noise g, (T, V), has exactly that law of
    texts; `sampler.decode(model, prompt, noise)` reads them. The gradient of r is the straight-through one. It is the
    gradient of no function, which a proposal need not have: `flow=Langevin()` with `solver=Metropolis()` samples the
    law exactly, whatever the step. The reference is part of the target, so texts stay likely without a limit.

    Start from `sampler.noise` of the keys that `sample` returns. One evaluation decodes once.

    Args:
        model: the reference language model.
        sampler: how texts are drawn from it; with a temperature or a nucleus μ is what is then drawn.
        reward: the reward model, of the same tokens.
        prompt: (P,).
    """
    return Tilted(Density(_log_gumbel), _DecodedReward(model, sampler, reward, prompt))


class _DecodedReward(eqx.Module):
    """The reward of the text that belongs to some noise."""

    model: LanguageModel
    sampler: Sampler
    reward: AbstractReward
    prompt: Prompt

    def __call__(self, noise: Float[Array, "T V"]) -> Float[Array, ""]:
        read = self.sampler.decode(self.model, self.prompt, jax.lax.stop_gradient(noise))
        table = self.reward.embedding
        embedded = straight_through(noise, table, jax.lax.stop_gradient(read.tokens))
        whole = jnp.concatenate([table[self.prompt.tokens], embedded])
        return self.reward(whole, jnp.concatenate([self.prompt.mask, read.mask]))


def _log_gumbel(noise: Float[Array, "T V"]) -> Float[Array, ""]:
    return -jnp.sum(noise + jnp.exp(-noise))
