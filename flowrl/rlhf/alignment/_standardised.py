"""Rewards in units of their spread."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl.rlhf.alignment._align import score
from flowrl.rlhf.models import AbstractReward, Prompt, Response


class Standardised(AbstractReward):
    """A reward less its mean, in units of its standard deviation.

    Attributes:
        reward: the reward model.
        mean: what is taken away.
        spread: the unit, > 0.
    """

    reward: AbstractReward
    mean: Float[Array, ""]
    spread: Float[Array, ""]

    def __init__(self, reward: AbstractReward, mean: ArrayLike, spread: ArrayLike):
        """Create a reward with another zero and another unit.

        Args:
            reward: the reward model.
            mean: what is taken away.
            spread: the unit, > 0.
        """
        self.reward, self.mean, self.spread = reward, jnp.asarray(mean), jnp.asarray(spread)

    @classmethod
    def of(cls, reward: AbstractReward, rewards: Float[ArrayLike, "..."]) -> "Standardised":
        """Take zero and unit from rewards of texts.

        Args:
            reward: the reward model.
            rewards: its rewards of samples; the more, the surer the unit.

        Raises:
            FloatingPointError: one is not finite.
            ValueError: all are the same.
        """
        rewards = jnp.asarray(rewards)
        wrong = int(jnp.sum(~jnp.isfinite(rewards)))
        if wrong:
            raise FloatingPointError(f"the reward model gives no finite number for {wrong} of {rewards.size} samples.")
        mean, spread = jnp.mean(rewards), jnp.std(rewards)
        if not spread > 0:
            raise ValueError(
                f"the rewards of {rewards.size} samples have the standard deviation {float(spread):g}, which is no "
                "unit of a step; draw more samples, or see whether the reward model reads these texts at all."
            )
        return cls(reward, mean, spread)

    def restored(self, rewards: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return rewards in the reward model's own unit.

        Args:
            rewards: in this one.
        """
        return rewards * self.spread.astype(rewards.dtype) + self.mean.astype(rewards.dtype)

    @property
    def tokens(self) -> str | None:
        """Fingerprint of the reward model's tokenizer."""
        return self.reward.tokens

    @property
    def embedding(self) -> Float[Array, "V d"]:
        """The reward model's token embeddings."""
        return self.reward.embedding

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return self._in_units(self.reward(embedded, mask))

    def of_tokens(self, tokens: Int[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return self._in_units(self.reward.of_tokens(tokens, mask))

    def _in_units(self, reward: Float[Array, ""]) -> Float[Array, ""]:
        return (reward - self.mean.astype(reward.dtype)) / self.spread.astype(reward.dtype)


def standardised(reward: AbstractReward, prompts: Prompt, responses: Response) -> Standardised:
    """Return a reward in standard deviations above the mean of the reference's samples.

    A reward model knows its unit no more than its zero, so a step size or a temperature in units of the reward means
    something else for each; in this unit one budget goes about as far with any of them.

    Args:
        reward: the reward model.
        prompts: (B, P).
        responses: (B, N, T), drawn from the reference; the more, the surer the unit.

    Raises:
        FloatingPointError: the reward of a sample is not finite.
        ValueError: all samples have the same reward.
    """
    return Standardised.of(reward, score(reward, prompts, responses.tokens, responses.mask))
