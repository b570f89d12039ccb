"""What an answer costs: passes of the reference over prompt and response, and seconds without compilation.

Let S, R and E be the weights that one token meets in the reference, in the reward model, and in its token table. A
token of the reference costs S, one of the reward R, and as much again on the way back, which ends at the embeddings and
not at the weights; a soft token E each way. The prompt is read once for all particles by the reference, and by the
reward model for each of them. Where moves are kept only if the reward rose, it is read at the start, after each step
and once more of the particles that are handed back.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowrl.rlhf import AbstractReward, LanguageModel, RewardEnsemble
from flowrl.scripts.align._task import Batch

_PART = 50  # prompts of one program


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

    def matched(self, cost: float) -> int:
        """Return the N whose best-of-N costs as much."""
        least, each = self.best_of(0), self.best_of(1) - self.best_of(0)
        return max(math.ceil((cost - least) / each), 1)

    @property
    def _unit(self) -> float:
        return (self.prompt + self.response) * self.sampled


class Parts:
    """Run programs on some prompts at a time, so that validation and test share one, and time them when compiled."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def __call__(self, name: Any, batch: Batch, program: Callable[[Any, int], Any]) -> tuple[Any, float]:
        """Run a program on all prompts; return its leaves joined along the prompts, and seconds without compilation."""
        # Programs of one name are compiled once. `program` takes some prompts and the number of their part.
        size, rows = min(_PART, len(batch.texts)), np.arange(len(batch.texts))
        parts = [np.resize(rows[i : i + size], size) for i in range(0, len(rows), size)]
        if (name, size) not in self._known:
            jax.block_until_ready(program(batch.take(parts[0]).prompt, 0))
            self._known.add((name, size))
        begun = time.perf_counter()
        done = [program(batch.take(part).prompt, i) for i, part in enumerate(parts)]
        leaves = jax.tree.map(lambda *xs: np.asarray(jnp.concatenate(xs))[: len(rows)], *done)
        return leaves, time.perf_counter() - begun
