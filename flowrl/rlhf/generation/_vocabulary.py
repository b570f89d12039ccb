"""Reward models in the tokens of another model."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowrl.rlhf.generation._text_models import TextModel, TextReward
from flowrl.rlhf.models import AbstractReward


class _InOtherTokens(AbstractReward):
    """A reward model whose token embeddings stand in another order."""

    reward: AbstractReward
    embedding: Float[Array, "V d"]
    tokens: str | None = eqx.field(static=True)

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return self.reward(embedded, mask)


def align_vocabulary(reward: TextReward, model: TextModel) -> tuple[AbstractReward, tuple[int, ...]]:
    """Return a reward model that reads a language model's tokens, and the tokens that it cannot read.

    Two vocabularies that were learned as one often differ by what was added later, marks of turns for instance, and by
    rows that pad a table. Every token that was not added must have the same id in both; added ones are found by name,
    and those the reward model lacks have embeddings of zeros and must not be drawn.

    Args:
        reward: the reward model.
        model: the language model.

    Raises:
        ValueError: the vocabularies differ by more than that.
    """
    mine, theirs = model.tokenizer, reward.tokenizer
    rows, known = model.model.trunk.config.vocabulary, reward.model.embedding.shape[0]
    added = mine.added | theirs.added
    for index in range(max(mine.size, theirs.size)):
        one, other = (words.tokens[index] if index < words.size else "" for words in (mine, theirs))
        if one != other and index not in added:
            raise ValueError(
                f"the reward model has another vocabulary: token {index} is {other!r} there and {one!r} in the "
                "language model, so a gradient in the one's embeddings means nothing to the other; take a reward model "
                "that was trained from a model of this family."
            )
    if mine.tokens == theirs.tokens and rows == known and reward.model.tokens == model.model.tokens:
        return reward.model, ()
    place = {token: index for index, token in enumerate(theirs.tokens) if token and index < known}
    places = np.array([place.get(mine.tokens[i], -1) if i < mine.size else -1 for i in range(rows)])
    table = reward.model.embedding
    rows_there = jnp.where((places >= 0)[:, None], table[np.maximum(places, 0)], jnp.zeros((), table.dtype))
    unknown = tuple(int(i) for i in np.flatnonzero(places < 0) if i < mine.size)
    return _InOtherTokens(reward=reward.model, embedding=rows_there, tokens=model.model.tokens), unknown
