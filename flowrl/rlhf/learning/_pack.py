"""From texts to arrays: prompts padded on the left, responses on the right."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from flowrl._misc import check_count
from flowrl.rlhf.data import AbstractTokenizer, Preference
from flowrl.rlhf.learning._losses import Pairs, Texts
from flowrl.rlhf.models import Prompt


def pack_prompts(tokenizer: AbstractTokenizer, prompts: Sequence[str], length: int) -> Prompt:
    """Pack prompts as one batch; of longer ones the last `length` tokens are kept.

    Args:
        tokenizer: cuts texts into tokens.
        prompts: texts; each must have a token, or a ValueError names it.
        length: P, tokens of every row.
    """
    check_count("length", length)
    rows = [tokenizer.encode(text)[-length:] for text in prompts]
    empty = [i for i, row in enumerate(rows) if not row]
    if empty:
        raise ValueError(f"prompt {empty[0]} ({prompts[empty[0]]!r}) has no token, so nothing can follow it.")
    tokens, mask = _blank(len(rows), length, tokenizer)
    for i, row in enumerate(rows):
        tokens[i, length - len(row) :], mask[i, length - len(row) :] = row, True
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask))


def pack_texts(
    tokenizer: AbstractTokenizer, prompts: Sequence[str], responses: Sequence[str], prompt_length: int, length: int
) -> Texts:
    """Pack prompts and responses as rows for `sft_loss`.

    A response that fits ends with the tokenizer's end token, if it has one; of a longer one the first `length` tokens
    are kept, without an end.

    Args:
        tokenizer: cuts texts into tokens.
        prompts: texts; each must have a token.
        responses: one per prompt.
        prompt_length: P.
        length: T.
    """
    tokens, mask = _responses(tokenizer, prompts, responses, length)
    return Texts(pack_prompts(tokenizer, prompts, prompt_length), tokens, mask)


def pack_pairs(
    tokenizer: AbstractTokenizer, preferences: Sequence[Preference], prompt_length: int, length: int
) -> Pairs:
    """Pack preferences as rows for `BradleyTerry` and `DPO`.

    Args:
        tokenizer: cuts texts into tokens.
        preferences: pairs of responses.
        prompt_length: P.
        length: T.

    Raises:
        ValueError: a text without a token, or two responses that are the same within T tokens.
    """
    check_count("length", length)
    prompts = [pair.prompt for pair in preferences]
    for i, pair in enumerate(preferences):
        cut = [tokenizer.encode(text)[:length] for text in (pair.chosen, pair.rejected)]
        if not all(cut):
            raise ValueError(f"pair {i} has a response without any token: {pair!r}.")
        if cut[0] == cut[1]:
            raise ValueError(f"pair {i} has two responses that are the same within {length} tokens.")
    chosen = _responses(tokenizer, prompts, [pair.chosen for pair in preferences], length)
    rejected = _responses(tokenizer, prompts, [pair.rejected for pair in preferences], length)
    return Pairs(pack_prompts(tokenizer, prompts, prompt_length), *chosen, *rejected)


def _responses(tokenizer: AbstractTokenizer, prompts: Sequence[str], responses: Sequence[str], length: int):
    check_count("length", length)
    if len(prompts) != len(responses):
        raise ValueError(f"one response to each prompt, got {len(responses)} responses to {len(prompts)} prompts.")
    tokens, mask = _blank(len(responses), length, tokenizer)
    for i, text in enumerate(responses):
        row = tokenizer.encode(text)
        row = (row if tokenizer.end is None else [*row, tokenizer.end])[:length]
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    return jnp.asarray(tokens), jnp.asarray(mask)


def _blank(rows: int, length: int, tokenizer: AbstractTokenizer) -> tuple[np.ndarray, np.ndarray]:
    pad = 0 if tokenizer.pad is None else tokenizer.pad
    return np.full((rows, length), pad, np.int32), np.zeros((rows, length), bool)
