"""Ranking and moving the texts of many prompts, in parts that fit the memory."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from flowrl import AbstractFlow, Budget
from flowrl._custom_types import Keys
from flowrl.rlhf.alignment import Standardised, align, score
from flowrl.rlhf.generation._memory import Memory
from flowrl.rlhf.generation._packing import Frames, parts_of
from flowrl.rlhf.generation._text_models import TextModel
from flowrl.rlhf.models import AbstractReward, Prompt, Response
from flowrl.rlhf.spaces import AbstractReferenceSpace

Stream = Callable[[int, str, float], None]


@dataclasses.dataclass(frozen=True)
class RankedTexts:
    """Texts of some prompts, and their rewards."""

    tokens: Int[np.ndarray, "B N T"]
    mask: Bool[np.ndarray, "B N T"]
    scores: Float[np.ndarray, "B N"]

    @classmethod
    def of(cls, tokens: jax.Array, mask: jax.Array, scores: jax.Array, count: int) -> "RankedTexts":
        """Keep the first prompts; the others only fill a part up."""
        return cls(np.asarray(tokens)[:count], np.asarray(mask)[:count], np.asarray(scores, np.float64)[:count])

    @property
    def best(self) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Tokens and mask of the text of the highest reward of each prompt."""
        rows, chosen = np.arange(len(self.scores)), _best(self.scores)
        return self.tokens[rows, chosen], self.mask[rows, chosen]

    @property
    def best_scores(self) -> Float[np.ndarray, " B"]:
        """Its reward."""
        return np.take_along_axis(self.scores, _best(self.scores)[:, None], axis=1)[:, 0]

    def written(self, model: TextModel) -> list[str]:
        """Return it as text."""
        return [model.decode(row[seen]) for row, seen in zip(*self.best, strict=True)]

    def all_written(self, model: TextModel) -> tuple[tuple[str, ...], ...]:
        """Return all texts of each prompt."""
        sets = zip(self.tokens, self.mask, strict=True)
        return tuple(tuple(model.decode(row[seen]) for row, seen in zip(*one, strict=True)) for one in sets)


def _best(scores: Float[np.ndarray, "B N"]) -> Int[np.ndarray, " B"]:
    return np.argmax(np.where(np.isfinite(scores), scores, -np.inf), axis=1)


def _joined(sets: Sequence[RankedTexts], axis: int = 0) -> RankedTexts:
    names = [field.name for field in dataclasses.fields(RankedTexts)]
    return RankedTexts(*(np.concatenate([getattr(one, name) for one in sets], axis) for name in names))


@dataclasses.dataclass(frozen=True)
class Work:
    """What every part of the prompts is worked on with."""

    model: TextModel
    space: AbstractReferenceSpace
    reward: AbstractReward
    prompts: Prompt
    frames: Frames
    planned: Memory
    stream: Stream | None

    def ranked(self, drawn: Response) -> RankedTexts:
        """Return the samples with their rewards.

        Args:
            drawn: leaves (B, N, T).
        """
        found = []
        for rows, part in self._parts():
            tokens, mask = drawn.tokens[part], drawn.mask[part]
            scores = score(self.reward, self.frames.around(self.prompts, part), tokens, mask, self.planned.prompts)
            found.append(self._told(rows, RankedTexts.of(tokens, mask, scores, len(rows))))
        return _joined(found)

    def moved(
        self, drawn: Response, keys: Keys, reward: Standardised, budget: Budget, flow: AbstractFlow
    ) -> tuple[RankedTexts, int]:
        """Return the samples transported, and the number of particles that stood still.

        Args:
            drawn: leaves (B, N, T).
            keys: of the samples, (B, N).
            reward: with a unit.
            budget: in that unit.
            flow: the velocity field.
        """
        found, frozen, size = [], 0, self.planned.particles
        for rows, part in self._parts():
            around, sets = self.frames.around(self.prompts, part), []
            for i in range(0, keys.shape[1], size):
                some, own = jax.tree.map(lambda x: x[part, i : i + size], (drawn, keys))  # noqa: B023
                save = (budget.bound,)
                done = align(
                    self.space, reward, around, some, own, budget, flow=flow, save=save,
                    at_once=self.planned.prompts,
                )  # fmt: skip
                frozen += int(jnp.sum(done.nonfinite[: len(rows)]))
                scores = reward.restored(done.rewards[0])
                sets.append(RankedTexts.of(done.tokens[0], done.mask[0], scores, len(rows)))
            found.append(self._told(rows, _joined(sets, axis=1)))
        return _joined(found), frozen

    def _parts(self) -> list[tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " size"]]]:
        return parts_of(self.prompts.tokens.shape[0], self.planned.prompts)

    def _told(self, rows: Int[np.ndarray, " rows"], texts: RankedTexts) -> RankedTexts:
        if self.stream is not None:
            for i, text, rate in zip(rows, texts.written(self.model), texts.best_scores, strict=True):
                self.stream(int(i), text, float(rate))
        return texts
