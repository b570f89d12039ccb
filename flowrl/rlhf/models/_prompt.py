"""Prompts, and what a reward model reads around a response in their place."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Frame(eqx.Module):
    """What a reward model reads around a response where it is not the prompt that the policy read.

    Batches have leading axes on all arrays.

    Attributes:
        before: embeddings of what is in front of the response, in the reward model's own table, (P, d).
        before_mask: False at padding, (P,).
        after: embeddings of what comes after it, (A, d).
        after_mask: False at padding, (A,).
        hidden: tokens that end a response and that the reward model does not read, as `after` has its own; static.
        soft_ends: where a relaxation is not made of tokens, its last place is such an end if the response is shorter
            than it may be; static. Not so with stop strings, which are text.
    """

    before: Float[Array, "*batch P d"]
    before_mask: Bool[Array, "*batch P"]
    after: Float[Array, "*batch A d"]
    after_mask: Bool[Array, "*batch A"]
    hidden: tuple[int, ...] = eqx.field(static=True, default=())
    soft_ends: bool = eqx.field(static=True, default=True)


class Prompt(eqx.Module):
    """A prompt of tokens; batches have leading axes on all arrays.

    Attributes:
        tokens: (P,).
        mask: False at padding, (P,).
        frame: what the reward model reads around the response; None if it reads the prompt, and nothing after.
    """

    tokens: Int[Array, "*batch P"]
    mask: Bool[Array, "*batch P"]
    frame: Frame | None = None

    def around(
        self, table: Float[Array, "V d"], embedded: Float[Array, "T d"], mask: Bool[Array, " T"]
    ) -> tuple[Float[Array, "S d"], Bool[Array, " S"]]:
        """Return what a reward model reads of a response to this prompt, and False at padding.

        Args:
            table: token embeddings E of the reward model.
            embedded: embeddings of the response, or of its relaxation.
            mask: False where it is over.
        """
        frame = self.frame
        if frame is None:
            return jnp.concatenate([table[self.tokens], embedded]), jnp.concatenate([self.mask, mask])
        shown = mask
        for token in frame.hidden:
            shown = shown & ~jnp.all(embedded == table[token][None], axis=-1)
        if frame.hidden and frame.soft_ends:
            is_known = mask[-1] | jnp.any(shown != mask)
            shown = jnp.where(is_known, shown, jnp.append(mask[1:], False))
        whole = jnp.concatenate([frame.before, embedded, frame.after])
        return whole, jnp.concatenate([frame.before_mask, shown, frame.after_mask])
