"""Test-time alignment: transport samples of a language model toward higher reward, decode, and choose."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowrl import (
    AbstractFlow,
    AbstractSolver,
    AbstractTarget,
    Ascent,
    Boltzmann,
    Budget,
    Monotone,
    Transport,
    ValueGradient,
    best_of_n,
)
from flowrl._custom_types import Keys, Particle
from flowrl.rlhf.models import AbstractReward, Prompt, Response
from flowrl.rlhf.spaces import AbstractSpace


class Aligned(eqx.Module):
    """Texts after each number of steps asked for.

    Attributes:
        tokens: (K, B, N, T): steps asked for, prompts, particles, tokens.
        mask: False where a response is over, likewise.
        rewards: reward of each decoded text, (K, B, N); what selection ranks by.
        chosen: best particle of each set by `rewards`, (K, B).
        displacement: root mean square over particles of the distance travelled, in the space's coordinates, (K, B).
        nonfinite: particles that were frozen, (B,).
    """

    tokens: Int[Array, "K B N T"]
    mask: Bool[Array, "K B N T"]
    rewards: Float[Array, "K B N"]
    chosen: Int[Array, "K B"]
    displacement: Float[Array, "K B"]
    nonfinite: Int[Array, " B"]

    def best(self, k: int) -> tuple[Int[Array, "B T"], Bool[Array, "B T"]]:
        """Return the tokens and mask of the chosen texts.

        Args:
            k: index of the number of steps.
        """
        rows = jnp.arange(self.tokens.shape[1])
        return self.tokens[k, rows, self.chosen[k]], self.mask[k, rows, self.chosen[k]]


def relaxed_reward(space: AbstractSpace, reward: AbstractReward, prompt: Prompt, particle: Particle) -> Array:
    """Return the reward of a particle's relaxation: the value that drives the flow.

    Args:
        space: where the particle lives.
        reward: the reward model.
        prompt: (P,).
        particle: one particle.
    """
    embedded, mask = space.relax(reward.embedding, prompt, particle)
    return reward(*prompt.around(reward.embedding, embedded, mask))


def target(space: AbstractSpace, reward: AbstractReward, prompt: Prompt) -> Boltzmann:
    """Return the distribution ∝ exp(reward/α) on a space as a target of `flowrl.transport`.

    Give `transport` the space's own domain too, `space.domain(prompt)`.

    Args:
        space: where the particles live.
        reward: the reward model.
        prompt: (P,); it travels as an argument, so a new prompt does not recompile.
    """
    return Boltzmann(relaxed_reward, space, reward, prompt)


def check_tokens(space: AbstractSpace, reward: AbstractReward) -> None:
    """Refuse a reward model that reads other tokens than the space decodes to.

    Args:
        space: where particles live.
        reward: the reward model.

    Raises:
        ValueError: their tokenizers, or the lengths of their token tables, differ.
    """
    if space.tokens is not None and reward.tokens is not None and space.tokens != reward.tokens:
        raise ValueError(
            f"{type(space).__name__} decodes to tokens of one tokenizer ({space.tokens[:12]}…), the reward model reads "
            f"those of another ({reward.tokens[:12]}…): a gradient in the embeddings of the one means nothing to the "
            "other. Use a reward model with the policy's tokenizer, or LatentSpace with a decoder to the reward "
            "model's tokens."
        )
    rows, decodes = reward.embedding.shape[0], space.vocabulary
    if decodes is not None and rows != decodes:
        raise ValueError(
            f"{type(space).__name__} decodes to {decodes} tokens, the reward model has embeddings of {rows}. One "
            "tokenizer may come with tables padded to different lengths: cut or pad the reward model's embedding to "
            "the policy's, and name what is padding in Sampler(forbidden=...)."
        )


@eqx.filter_jit
def score(
    reward: AbstractReward, prompts: Prompt, tokens: Int[Array, "B N T"], mask: Bool[Array, "B N T"], at_once: int = 32
) -> Float[Array, "B N"]:
    """Return the rewards of texts, in batches of prompts that bound the memory.

    Args:
        reward: the reward model.
        prompts: (B, P).
        tokens: (B, N, T).
        mask: False where a response is over.
        at_once: prompts that are worked on together.
    """

    def one(inputs: tuple[Prompt, Array, Array]) -> Array:
        prompt, tokens, mask = inputs
        return jax.vmap(lambda t, m: _of_text(reward, prompt, t, m))(tokens, mask)

    return jax.lax.map(one, (prompts, tokens, mask), batch_size=at_once)


@eqx.filter_jit
def align(
    space: AbstractSpace,
    reward: AbstractReward,
    prompts: Prompt,
    responses: Response,
    keys: Keys,
    budget: Budget,
    *,
    flow: AbstractFlow = Ascent(),  # noqa: B008  (immutable module instances)
    solver: AbstractSolver = Monotone(),  # noqa: B008
    save: tuple[int, ...] | None = None,
    at_once: int = 8,
) -> Aligned:
    """Transport sets of sampled responses toward higher reward, one set per prompt, and decode them.

    With `save=(0, ...)` the first entry is best-of-N over the samples themselves, token for token.

    Args:
        space: where the particles live.
        reward: drives the flow by its gradient, and ranks the decoded texts.
        prompts: (B, P).
        responses: (B, N, T), from `sample`.
        keys: their keys (B, N), from `sample`.
        budget: how far particles may travel; the regulariser. A step of size ε moves a particle by ε times the gradient
            of the reward, so ε and the temperature are in units of the reward as it is given: `standardised(reward,
            prompts, responses)` has the unit in which one budget means the same for every reward model.
        flow: the velocity field, deterministic. `SVGD()` shares the gradients of one prompt's texts.
        solver: a step solver. By default a particle keeps a move only if the reward of its relaxation rose, which in
            `ReferenceSpace` is that of its text: no text gets worse.
        save: numbers of steps at which to decode, increasing; None for those of the budget.
        at_once: prompts that are worked on together, which bounds the memory.

    Raises:
        ValueError: reward model and space have different tokenizers, or the parts do not go together.
    """
    check_tokens(space, reward)
    steps = budget.bound
    save = (steps,) if save is None else save
    if not save or list(save) != sorted(set(save)) or not 0 <= save[0] <= save[-1] <= steps:
        raise ValueError(f"save must be increasing numbers of steps in [0, {steps}], got {save}.")
    table = reward.embedding

    def one(inputs: tuple[Prompt, Response, Keys]) -> tuple[Array, ...]:
        prompt, response, own = inputs
        particles = jax.vmap(lambda r, k: space.encode(table, prompt, r, k))(response, own)
        aim = target(space, reward, prompt)
        if "value" not in flow.traits.needs | solver.needs.target:  # then nobody asks for the relaxation's reward
            aim = ValueGradient(_slope, aim)
        # A set that fails is left where it was and counted; it is no reason to stop the others.
        method = Transport(flow, solver, space.domain(prompt))
        solution = method(aim, particles, budget, save=save, throw=False)
        path = solution.trajectory

        def texts(step: int, moved: Particle) -> tuple[Array, Array]:
            if step == 0:
                return response.tokens, response.mask
            return jax.vmap(lambda x, s, k: space.decode(table, prompt, x, s, k))(moved, particles, own)

        decoded = [texts(s, jax.tree.map(lambda x, i=i: x[i], path)) for i, s in enumerate(save)]
        tokens, mask = (jnp.stack(part) for part in zip(*decoded, strict=True))
        rewards = jax.vmap(jax.vmap(lambda t, m: _of_text(reward, prompt, t, m)))(tokens, mask)
        chosen = jax.vmap(lambda r: best_of_n(r, r).index)(rewards)
        moved = jnp.stack([_distance(particles, jax.tree.map(lambda x, i=i: x[i], path)) for i in range(len(save))])
        return tokens, mask, rewards, chosen, moved, solution.stats["nonfinite"]

    *by_prompt, nonfinite = jax.lax.map(one, (prompts, responses, keys), batch_size=at_once)
    tokens, mask, rewards, chosen, moved = (jnp.moveaxis(x, 1, 0) for x in by_prompt)
    return Aligned(tokens, mask, rewards, chosen, moved, nonfinite)


def _slope(target: AbstractTarget, particle: Particle) -> Particle:
    return target.gradient(particle, jnp.ones(()), key=None)


def _distance(start: Particle, end: Particle) -> Array:
    """Root mean square over particles of their distances."""
    squares = [jnp.sum((b - a) ** 2) / a.shape[0] for a, b in zip(*map(jax.tree.leaves, (start, end)), strict=True)]
    return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def _of_text(reward: AbstractReward, prompt: Prompt, tokens: Array, mask: Array) -> Array:
    if prompt.frame is not None:
        return reward(*prompt.around(reward.embedding, reward.embedding[tokens], mask))
    # With 64-bit types a user's prompts may be of another integer type than sampled tokens.
    whole = jnp.concatenate([prompt.tokens.astype(tokens.dtype), tokens])
    return reward.of_tokens(whole, jnp.concatenate([prompt.mask, mask]))
