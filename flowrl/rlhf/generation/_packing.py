"""Prompts of different lengths as arrays, and what a reward model reads around answers."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flowrl.rlhf.generation._text_models import Conversation, TextModel, TextReward
from flowrl.rlhf.models import Frame, Prompt

_ROUND = 8  # rows are padded to a multiple of it, so that other prompts find the program compiled


def pack(rows: Sequence[list[int]], model: TextModel, length: int) -> Prompt:
    """Pad prompts on the left to the longest of them.

    Args:
        rows: tokens of each.
        model: the model that reads them.
        length: tokens of the answers.

    Raises:
        ValueError: a prompt has no token, or does not fit into the model's context with its answer.
    """
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {i} has no token, so nothing can follow it: give it a word.")
    room = model.model.trunk.config.max_positions - length
    _check_room(rows, room, length, "the model", model.model.trunk.config.max_positions)
    tokens, mask = _padded(rows, min(_rounded(max(map(len, rows))), room), model.tokenizer.pad or 0, left=True)
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask))


@dataclasses.dataclass(frozen=True)
class Frames:
    """What a reward model reads around the answers to each prompt: tokens, and the table of their embeddings."""

    table: Float[Array, "V d"]
    before: Int[np.ndarray, "B P"]
    before_mask: Bool[np.ndarray, "B P"]
    after: Int[np.ndarray, "B A"]
    after_mask: Bool[np.ndarray, "B A"]
    hidden: tuple[int, ...]
    soft_ends: bool

    @property
    def length(self) -> int:
        """Tokens around an answer, padding included."""
        return self.before.shape[1] + self.after.shape[1]

    def around(self, prompts: Prompt, part: Int[np.ndarray, " n"]) -> Prompt:
        """Return some of the prompts with what is read around their answers.

        Args:
            prompts: all of them.
            part: which.
        """
        frame = Frame(
            self.table[self.before[part]],
            jnp.asarray(self.before_mask[part]),
            self.table[self.after[part]],
            jnp.asarray(self.after_mask[part]),
            self.hidden,
            self.soft_ends,
        )
        return Prompt(prompts.tokens[part], prompts.mask[part], frame)


def pack_frames(
    reward: TextReward, prompts: Sequence[Conversation], length: int, hidden: tuple[int, ...], *, soft_ends: bool
) -> Frames:
    """Pad what a reward model reads before answers on the left, and what it reads after them on the right.

    Args:
        reward: the reward model.
        prompts: what is answered.
        length: tokens of the answers.
        hidden: as in `Frame`.
        soft_ends: as in `Frame`.

    Raises:
        ValueError: a prompt does not fit into the reward model's context with its answer.
    """
    frames = [reward.frame(prompt) for prompt in prompts]
    most = reward.model.trunk.config.max_positions
    _check_room([[*before, *after] for before, after in frames], most - length, length, "the reward model", most)
    pad = reward.tokenizer.pad or 0
    afters = [after for _, after in frames]
    after, after_mask = _padded(afters, max(map(len, afters)), pad, left=False)
    befores = [before for before, _ in frames]
    size = max(max(map(len, befores)), min(_rounded(max(map(len, befores))), most - length - after.shape[1]))
    before, before_mask = _padded(befores, size, pad, left=True)
    return Frames(reward.model.embedding, before, before_mask, after, after_mask, hidden, soft_ends)


def parts_of(count: int, size: int) -> list[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " size"]]]:
    """Cut prompts into parts of one size: which are in each, and the same filled up by repetition."""
    rows = np.arange(count)
    cut = [rows[i : i + size] for i in range(0, count, size)]
    return [(part, np.resize(part, size)) for part in cut]


def _check_room(rows: Sequence[list[int]], room: int, length: int, who: str, most: int) -> None:
    sizes = [len(row) for row in rows]
    longest = int(np.argmax(sizes))
    if sizes[longest] > room:
        raise ValueError(
            f"prompt {longest} has {sizes[longest]} tokens, with {length} of the answer more than the {most} that "
            f"{who} knows (max_positions): shorten the prompt, or the answer (length)."
        )


def _rounded(size: int) -> int:
    return -(-size // _ROUND) * _ROUND


def _padded(rows: Sequence[list[int]], size: int, pad: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = np.full((len(rows), size), pad, np.int32), np.zeros((len(rows), size), bool)
    for i, row in enumerate(rows):
        places = slice(size - len(row), size) if left else slice(0, len(row))
        tokens[i, places], mask[i, places] = row, True
    return tokens, mask
