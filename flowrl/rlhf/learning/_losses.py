"""Losses on texts and on pairs of texts: supervised fine-tuning, Bradley-Terry, direct preference optimisation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import number_field
from flowrl.rlhf.models import LanguageModel, Prompt, RewardEnsemble, RewardModel, log_probs


class Texts(eqx.Module):
    """Rows of texts: a prompt and a response.

    Attributes:
        prompt: (rows, P).
        tokens: responses, (rows, T).
        mask: False at padding, (rows, T).
    """

    prompt: Prompt
    tokens: Int[Array, "rows T"]
    mask: Bool[Array, "rows T"]


class Pairs(eqx.Module):
    """Rows of preferences: two responses to one prompt.

    Attributes:
        prompt: (rows, P).
        chosen: (rows, T).
        chosen_mask: False at padding.
        rejected: (rows, T).
        rejected_mask: False at padding.
    """

    prompt: Prompt
    chosen: Int[Array, "rows T"]
    chosen_mask: Bool[Array, "rows T"]
    rejected: Int[Array, "rows T"]
    rejected_mask: Bool[Array, "rows T"]


class ReferencePairs(eqx.Module):
    """Preferences with the log-probabilities under the reference, which DPO needs in every update.

    Attributes:
        pairs: the preferences.
        chosen: log μ(chosen), (rows,).
        rejected: log μ(rejected), (rows,).
    """

    pairs: Pairs
    chosen: Float[Array, " rows"]
    rejected: Float[Array, " rows"]


def sft_loss(model: LanguageModel, batch: Texts, key: Key | None) -> Float[Array, ""]:
    """Return the mean negative log-likelihood of a response's token.

    Args:
        model: the language model.
        batch: texts.
        key: unused.
    """
    del key
    terms = jax.vmap(lambda prompt, tokens, mask: log_probs(model, prompt, tokens, mask))(
        batch.prompt, batch.tokens, batch.mask
    )
    return -jnp.sum(terms) / jnp.maximum(jnp.sum(batch.mask.astype(terms.dtype)), 1)


class BradleyTerry(eqx.Module):
    r"""The negative log-likelihood of preferences, $-\log σ(r(x, y_w) - r(x, y_l))$, the mean over members and rows.

    Words are dropped at random, alike in no two texts: each is hidden from the reward model with probability `dropout`.
    Without it a small reward model learns its pairs by heart.

    Attributes:
        dropout: share of words that are hidden, in [0, 1).

    ??? cite "Source"
        Bradley and Terry, *Rank analysis of incomplete block designs*, Biometrika 39, 1952. Ouyang et al., *Training
        language models to follow instructions with human feedback*, NeurIPS 2022, eq. 1.
    """

    dropout: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}.")

    def __call__(self, reward: RewardModel | RewardEnsemble, batch: Pairs, key: Key | None) -> Float[Array, ""]:
        """Return the loss; without a key nothing is dropped."""
        chosen_key, rejected_key = (None, None) if key is None else jr.split(key)
        better = self._rewards(reward, batch.prompt, batch.chosen, batch.chosen_mask, chosen_key)
        worse = self._rewards(reward, batch.prompt, batch.rejected, batch.rejected_mask, rejected_key)
        return -jnp.mean(jax.nn.log_sigmoid(better - worse))

    def _rewards(
        self, reward: RewardModel | RewardEnsemble, prompts: Prompt, tokens: Array, mask: Array, key: Key | None
    ) -> Float[Array, "rows members"]:
        whole = jnp.concatenate([prompts.tokens, tokens], axis=1)
        seen = jnp.concatenate([prompts.mask, mask], axis=1)
        members = reward.members if isinstance(reward, RewardEnsemble) else jax.tree.map(_lift, reward)
        count = jax.tree.leaves(eqx.filter(members, eqx.is_array))[0].shape[0]
        shape = (whole.shape[0], count, whole.shape[1])
        kept = jnp.broadcast_to(seen[:, None], shape)
        if key is not None and self.dropout:
            kept = kept & ~jr.bernoulli(key, self.dropout, shape)

        def one(tokens: Array, kept: Bool[Array, "members T"]) -> Array:
            embedded = reward.embedding[tokens]
            return eqx.filter_vmap(lambda member, mask: member(embedded, mask))(members, kept)

        return jax.vmap(one)(whole, kept)


class DPO(eqx.Module):
    r"""Direct preference optimisation: $-\log σ(β [\log π/μ(y_w) - \log π/μ(y_l)])$.

    Attributes:
        beta: β > 0, the weight of the divergence from the reference.

    ??? cite "Source"
        Rafailov et al., *Direct Preference Optimization: Your Language Model is Secretly a Reward Model*, NeurIPS 2023,
        eq. 7.
    """

    beta: ArrayLike = eqx.field(converter=number_field("beta", lambda beta: beta > 0, "> 0"), default=0.1)

    def __call__(self, model: LanguageModel, batch: ReferencePairs, key: Key | None) -> Float[Array, ""]:
        """Return the loss of the policy π, which starts as the reference."""
        del key
        chosen, rejected = pair_log_probs(model, batch.pairs)
        margin = (chosen - batch.chosen) - (rejected - batch.rejected)
        return -jnp.mean(jax.nn.log_sigmoid(jnp.asarray(self.beta, margin.dtype) * margin))


def pair_log_probs(model: LanguageModel, pairs: Pairs) -> tuple[Float[Array, " rows"], Float[Array, " rows"]]:
    """Return log p(chosen) and log p(rejected), (rows,).

    Args:
        model: the language model.
        pairs: preferences.
    """

    def one(prompt: Prompt, tokens: Array, mask: Array) -> Array:
        return jnp.sum(log_probs(model, prompt, tokens, mask))

    chosen = jax.vmap(one)(pairs.prompt, pairs.chosen, pairs.chosen_mask)
    return chosen, jax.vmap(one)(pairs.prompt, pairs.rejected, pairs.rejected_mask)


@eqx.filter_jit
def with_reference(model: LanguageModel, pairs: Pairs, at_once: int = 64) -> ReferencePairs:
    """Return preferences with the log-probabilities under a reference.

    Args:
        model: the reference μ.
        pairs: preferences.
        at_once: rows that are worked on together.
    """

    def one(row: Pairs) -> tuple[Array, Array]:
        batch = jax.tree.map(lambda leaf: leaf[None], row)
        chosen, rejected = pair_log_probs(model, batch)
        return chosen[0], rejected[0]

    chosen, rejected = jax.lax.map(one, pairs, batch_size=at_once)
    return ReferencePairs(pairs, chosen, rejected)


@eqx.filter_jit
def preference_accuracy(reward: RewardModel | RewardEnsemble, pairs: Pairs, at_once: int = 64) -> Float[Array, ""]:
    """Return the share of pairs whose chosen response has the higher reward.

    Args:
        reward: the reward model.
        pairs: preferences.
        at_once: rows that are worked on together.
    """

    def margin(row: Pairs) -> Array:
        def of(tokens: Array, mask: Array) -> Array:
            whole = jnp.concatenate([row.prompt.tokens, tokens])
            return reward.of_tokens(whole, jnp.concatenate([row.prompt.mask, mask]))

        return of(row.chosen, row.chosen_mask) - of(row.rejected, row.rejected_mask)

    margins = jax.lax.map(margin, pairs, batch_size=at_once)
    return jnp.mean((margins > 0).astype(margins.dtype))


def _lift(leaf: Array) -> Array:
    """One model as an ensemble of one."""
    return leaf[None] if eqx.is_array(leaf) else leaf
