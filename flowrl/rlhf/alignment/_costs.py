"""What an answer costs: passes of the reference over prompt and response.

Let S, R and E be the weights that one token meets in the reference, in the reward model, and in its token table. A
token of the reference costs S, one of the reward R, and as much again on the way back, which ends at the embeddings and
not at the weights; a soft token E each way. The prompt is read once for all particles by the reference, and by the
reward model for each of them. Where moves are kept only if the reward rose, it is read at the start, after each step
and once more of the particles that are handed back.
"""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax

from flowrl.rlhf.models import AbstractReward, LanguageModel, RewardEnsemble
from flowrl.rlhf.spaces import AbstractSpace, LogitSpace, ReferenceSpace, TokenSpace


def name_of(space: AbstractSpace) -> str:
    """Return the name by which `Costs.flow` knows a space."""
    if isinstance(space, ReferenceSpace):
        return "reference"
    if isinstance(space, LogitSpace):
        return "logit" if space.by == "argmax" else "logit-reference"
    if isinstance(space, TokenSpace):
        return "token" if space.by == "nearest" else "token-prior"
    raise TypeError(f"what a step in {type(space).__name__} costs is not known.")


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs in passes of the reference over one prompt and one response."""

    sampled: float
    rewarded: float
    table: float
    prompt: int
    response: int

    @classmethod
    def of(cls, model: LanguageModel, reward: AbstractReward, prompt: int, response: int) -> "Costs":
        """Count the weights, for prompts and responses of these numbers of tokens."""

        def weights(trunk: Any) -> float:
            return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(trunk.blocks, eqx.is_array)))

        vocabulary, width = reward.embedding.shape
        trunk = reward.members.trunk if isinstance(reward, RewardEnsemble) else reward.trunk  # pyright: ignore
        # The members of an ensemble are stacked, so that all are counted.
        sampled = weights(model.trunk) + float(model.trunk.embedding.size)
        return cls(sampled, weights(trunk), float(vocabulary * width), prompt, response)

    def samples(self, count: int) -> float:
        """Return the cost of drawing some responses to one prompt."""
        return (self.prompt + count * self.response) * self.sampled / self._unit

    def best_of(self, count: int) -> float:
        """Return the cost of drawing and ranking them."""
        return self.samples(count) + count * (self.prompt + self.response) * self.rewarded / self._unit

    def flow(self, space: str, count: int, steps: int, *, rising: bool) -> float:
        """Return the cost of drawing, transporting, decoding and ranking them.

        Args:
            space: as named by `--space`.
            count: particles.
            steps: of the flow.
            rising: whether only moves that raise the reward are kept.
        """
        if steps == 0:
            return self.best_of(count)
        read = (self.prompt + self.response) * self.rewarded
        table = self.response * self.table
        # Forward the tokens of these are looked up; in token space the nearest one is searched.
        soft = 0.0 if space == "reference" else table
        back = 0.0 if space.startswith("token") else table
        gradients = steps * (2 * read + soft + back) + (steps + 2) * rising * (read + soft)
        # Encodings and decodings: the reference space decodes the noise that a step has moved.
        passes = {"reference": steps, "logit": 1, "logit-reference": 2, "token": 0, "token-prior": 1}[space]
        return self.best_of(count) + passes * self.samples(count) + count * gradients / self._unit

    def with_reading(self, length: int) -> "Costs":
        """Return the costs where the reward model reads so many tokens, prompt and response together."""
        return dataclasses.replace(self, rewarded=self.rewarded * length / (self.prompt + self.response))

    def matched(self, cost: float) -> int:
        """Return the N whose best-of-N costs as much."""
        least, each = self.best_of(0), self.best_of(1) - self.best_of(0)
        return max(math.ceil((cost - least) / each), 1)

    @property
    def _unit(self) -> float:
        return (self.prompt + self.response) * self.sampled
