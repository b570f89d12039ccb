"""How much memory answers take, before they are asked for."""

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from flowrl._io import available_memory
from flowrl.rlhf.models import RewardModel
from flowrl.rlhf.spaces import AbstractReferenceSpace

_MOST = 32  # prompts at once; more only fill the memory
_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Memory:
    """An estimate of the memory that answers take, and how the work is cut to fit.

    Attributes:
        weights: bytes of both models.
        prompt: bytes that all particles of one prompt take while they move.
        free: bytes that may be taken besides the weights; None if the system does not say.
        prompts: prompts that are worked on together.
        particles: particles of a prompt that are worked on together.
    """

    weights: int
    prompt: int
    free: int | None
    prompts: int
    particles: int


def plan(
    space: AbstractReferenceSpace,
    reward: RewardModel,
    asked: tuple[int, int],
    framed: int,
    length: int,
    particles: int,
    steps: int,
    *,
    splits: bool,
    given: int | None,
) -> Memory:
    """Estimate the memory, and cut the work so that it fits.

    Args:
        space: where particles live.
        reward: the reward model.
        asked: numbers of prompts and of their tokens.
        framed: tokens that the reward model reads around a response.
        length: tokens of a response.
        particles: of a prompt.
        steps: of the flow; 0 for none.
        splits: whether particles of one prompt may be moved apart from each other.
        given: bytes that may be taken; None for what is free.

    Raises:
        MemoryError: one prompt does not fit, nor does one particle where they may be moved apart.
    """
    count, tokens = asked
    one = _of_particle(space, reward, tokens, framed, length, steps)
    free = _free() if given is None else given
    weights = _bytes(space.model) + _bytes(reward)
    if free is None:
        return Memory(weights, particles * one, None, min(count, _MOST), particles)
    fits = [n for n in range(1, particles + 1) if particles % n == 0 and (splits or n == particles) and n * one <= free]
    if not fits:
        least = one if splits else particles * one
        more = "" if splits else ", a flow whose particles do not meet (Ascent)"
        raise MemoryError(
            f"{'one particle' if splits else f'a set of {particles} particles'} takes about {least / _GB:.2g} GB "
            f"besides the weights, {free / _GB:.2g} GB are free: shorter answers (length), fewer particles{more}, or "
            "dtype=jax.numpy.bfloat16 when the models are loaded."
        )
    together = max(fits)
    prompts = max(1, min(count, _MOST, free // (together * one)))
    return Memory(weights, particles * one, free, prompts, together)


def _of_particle(
    space: AbstractReferenceSpace, reward: RewardModel, tokens: int, framed: int, length: int, steps: int
) -> int:
    """Bytes of one particle, at the widest place of its way."""
    model, single = space.model.trunk.config, 4
    cache = 2 * 2 * model.layers * (tokens + length) * model.key_value_heads * model.head_size * _width(space.model)
    read = tokens * (model.vocabulary + 8 * model.width + model.hidden + model.heads * (tokens + length)) * single
    drawn = cache + read
    if steps == 0:
        return drawn
    vocabulary, width = reward.embedding.shape
    # Where it began and is, where it was saved, its velocity, the relaxation's softmax, its gradient, and noise; in
    # token space, distances to every token.
    numbers = length * vocabulary
    trunk = reward.trunk.config
    seen = framed + length
    kept = seen * (8 * trunk.width + 3 * trunk.hidden + 4 * trunk.heads * trunk.head_size + 3 * trunk.heads * seen)
    return drawn + 8 * numbers * single + trunk.layers * kept * single + 4 * seen * width * single


def _bytes(model: PyTree[Array]) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def _width(model: PyTree[Array]) -> int:
    return max(leaf.dtype.itemsize for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array)))


def _free() -> int | None:
    """Bytes that are free on the device, or in the machine if that is its own memory."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    free = available_memory()
    return None if free is None else int(0.9 * free)
