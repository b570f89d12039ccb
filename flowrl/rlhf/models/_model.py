"""Language models and reward models: a transformer and a head."""

import abc
import dataclasses
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_count, row_norm
from flowrl.nn import stack
from flowrl.rlhf.models._transformer import Cache, Dense, Transformer, TransformerConfig


class LanguageModel(eqx.Module):
    """A causal language model p(token | tokens before it).

    Everything is for one sequence; batches are `jax.vmap`.

    Attributes:
        trunk: the transformer.
        head: hidden states to logits, or None where the token embedding is used for both.
        tokens: fingerprint of the tokenizer, so that models with different tokens are not mixed; None if unknown.
    """

    trunk: Transformer
    head: Dense | None
    tokens: str | None = eqx.field(static=True)

    def __init__(self, config: TransformerConfig, *, key: Key, tokens: str | None = None):
        """Draw random weights.

        Args:
            config: the shape; causal.
            key: randomness of the weights.
            tokens: fingerprint of the tokenizer.

        Raises:
            ValueError: the configuration is not causal.
        """
        if not config.causal:
            raise ValueError("a language model must not see what it predicts; its config must have causal=True.")
        trunk_key, head_key = jr.split(key)
        self.trunk = Transformer(config, key=trunk_key)
        self.head = None if config.tied else Dense(config.width, config.vocabulary, bias=False, key=head_key)
        self.tokens = tokens

    def logits(self, hidden: Float[Array, "*batch d"]) -> Float[Array, "*batch V"]:
        """Return the logits of the next token.

        Args:
            hidden: hidden states (..., d).
        """
        return hidden @ self.trunk.embedding.T if self.head is None else self.head(hidden)

    def from_embedded(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, "T V"]:
        """Return the logits after each position of a sequence of embeddings.

        Args:
            embedded: token embeddings, or any points of their space.
            mask: False at padding.
        """
        return self.logits(self.trunk(embedded, mask))

    def from_soft(self, weights: Float[Array, "T V"], mask: Bool[Array, " T"]) -> Float[Array, "T V"]:
        """Return the logits after each position of a sequence of soft tokens.

        Args:
            weights: rows of weights over the vocabulary; their embeddings are means of token embeddings.
            mask: False at padding.
        """
        return self.from_embedded(weights @ self.trunk.embedding, mask)

    def __call__(self, tokens: Int[Array, " T"], mask: Bool[Array, " T"] | None = None) -> Float[Array, "T V"]:
        """Return the logits after each token; a mask is False at padding."""
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        return self.from_embedded(self.trunk.embed(tokens), mask)

    def extend(
        self, cache: Cache, tokens: Int[Array, " T"], mask: Bool[Array, " T"]
    ) -> tuple[Float[Array, "T V"], Cache]:
        """Read more tokens after those in a cache.

        Args:
            cache: from `trunk.empty(room)` or an earlier call.
            tokens: the next tokens.
            mask: False at padding.

        Returns:
            The logits after each of them, and the longer cache.
        """
        hidden, cache = self.trunk.extend(cache, self.trunk.embed(tokens), mask)
        return self.logits(hidden), cache


class AbstractReward(eqx.Module):
    """A reward r(prompt, response) that is read from token embeddings, so that it has a gradient in them.

    Attributes:
        tokens: fingerprint of the tokenizer, or None if unknown.
        embedding: the token embeddings E that `__call__` expects points of, (V, d).
    """

    tokens: eqx.AbstractVar[str | None]
    embedding: eqx.AbstractVar[Float[Array, "V d"]]

    @abc.abstractmethod
    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        """Return the reward of one text.

        Args:
            embedded: embeddings of prompt and response, (T, d).
            mask: False at padding.
        """

    def of_tokens(self, tokens: Int[Array, " T"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        """Return the reward of one text of tokens.

        Args:
            tokens: prompt and response.
            mask: False at padding.
        """
        return self(self.embedding[tokens], mask)


class RewardModel(AbstractReward):
    """A transformer with one number as its output.

    Attributes:
        trunk: the transformer, causal or not.
        score: hidden state to reward.
        pooling: the hidden state of the last token, or the mean over all.
        tokens: fingerprint of the tokenizer, or None if unknown.
    """

    trunk: Transformer
    score: Dense
    pooling: Literal["last", "mean"] = eqx.field(static=True)
    tokens: str | None = eqx.field(static=True)

    def __init__(
        self,
        config: TransformerConfig,
        *,
        key: Key,
        pooling: Literal["last", "mean"] | None = None,
        tokens: str | None = None,
    ):
        """Draw random weights.

        Args:
            config: the shape.
            key: randomness of the weights.
            pooling: None means the last token for causal trunks and the mean for others.
            tokens: fingerprint of the tokenizer.
        """
        trunk_key, score_key = jr.split(key)
        self.trunk = Transformer(config, key=trunk_key)
        self.score = Dense(config.width, 1, bias=False, key=score_key)
        self.pooling = pooling or ("last" if config.causal else "mean")
        self.tokens = tokens

    @property
    def embedding(self) -> Float[Array, "V d"]:
        """The token embeddings."""
        return self.trunk.embedding

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return self.read(self.trunk(embedded, mask), mask)

    def read(self, hidden: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        """Return the reward from hidden states.

        Args:
            hidden: (T, d).
            mask: False at padding.
        """
        places = jnp.arange(mask.shape[0])
        if self.pooling == "last":
            pooled = hidden[jnp.max(jnp.where(mask, places, 0))]
        else:
            weights = mask.astype(hidden.dtype)
            pooled = weights @ hidden / jnp.maximum(jnp.sum(weights), 1)
        return self.score(pooled)[0]


class RewardEnsemble(AbstractReward):
    """Several reward models over the same token embeddings, as one: their mean, minimum, or mean − κ · deviation.

    Attributes:
        embedding: token embeddings that all members share, (V, d).
        members: reward models without embeddings of their own, stacked along a leading axis of every array.
        aggregate: how they become one number.
        caution: κ >= 0 of "lower".
        tokens: fingerprint of the tokenizer, or None if unknown.
    """

    embedding: Float[Array, "V d"]
    members: RewardModel
    aggregate: Literal["mean", "min", "lower"] = eqx.field(static=True)
    caution: float = eqx.field(static=True)
    tokens: str | None = eqx.field(static=True)

    def __init__(
        self,
        config: TransformerConfig,
        count: int,
        *,
        key: Key,
        aggregate: Literal["mean", "min", "lower"] = "mean",
        caution: float = 1.0,
        pooling: Literal["last", "mean"] | None = None,
        tokens: str | None = None,
    ):
        """Draw random weights.

        Args:
            config: the shape of each member.
            count: how many members, >= 1.
            key: randomness of the weights.
            aggregate: mean, minimum, or mean − `caution` · standard deviation over the members.
            caution: κ >= 0.
            pooling: as in `RewardModel`.
            tokens: fingerprint of the tokenizer.
        """
        check_count("count", count)
        if not caution >= 0:
            raise ValueError(f"caution must be >= 0, got {caution}.")
        embedding_key, members_key = jr.split(key)
        self.embedding = Transformer(config, key=embedding_key).embedding
        bare = dataclasses.replace(config, vocabulary=0)
        self.members = stack(lambda k: RewardModel(bare, key=k, pooling=pooling, tokens=tokens), count, key=members_key)
        self.aggregate, self.caution, self.tokens = aggregate, caution, tokens

    def each(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, " members"]:
        """Return every member's reward.

        Args:
            embedded: embeddings of prompt and response, (T, d).
            mask: False at padding.
        """
        return eqx.filter_vmap(lambda member: member(embedded, mask))(self.members)

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        rewards = self.each(embedded, mask)
        if self.aggregate == "min":
            return jnp.min(rewards)
        if self.aggregate == "lower":
            # A norm rather than a standard deviation, whose gradient is not finite where all members agree.
            deviation = row_norm((rewards - jnp.mean(rewards))[None])[0] / rewards.shape[0] ** 0.5
            return jnp.mean(rewards) - self.caution * deviation
        return jnp.mean(rewards)
