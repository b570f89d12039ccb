r"""Spaces: where the particles of a text live, how a reward model reads them, and how they become tokens again.

A space says four things about one response: how it is encoded as a particle, what the reward model sees of a particle
(its *relaxation*, embeddings of shape (T, d)), how the gradient of the reward comes back from there (the *pull-back*),
and how a particle is decoded to tokens. The reward of a relaxation is in general not the reward of the decoded text, so
what is chosen among particles is chosen by the rewards of their texts. Where a particle has parts that must agree, the
space's *domain* makes them agree after each step.

Of all spaces, zero steps of transport leave the response as it was sampled; `align` then decodes nothing.

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, which flows in "a continuous proxy space":
    the token-embedding matrix or the latent of a flow-based language model. Its text rules were not published; those
    here are this library's.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowrl import AbstractDomain, Unbounded
from flowrl._custom_types import Key, Particle
from flowrl.rlhf.models import LanguageModel, Prompt, Response, Sampler

Table = Float[Array, "V d"]


class AbstractSpace(eqx.Module):
    """A space in which particles of texts live."""

    @property
    @abc.abstractmethod
    def tokens(self) -> str | None:
        """Fingerprint of the tokenizer whose tokens it decodes to, or None if unknown."""

    @property
    @abc.abstractmethod
    def vocabulary(self) -> int | None:
        """Number of tokens it decodes to, or None if that is not known before it decodes."""

    def domain(self, prompt: Prompt) -> AbstractDomain:
        """Return where particles of a prompt live; everywhere by default.

        Args:
            prompt: (P,).
        """
        del prompt
        return Unbounded()

    @abc.abstractmethod
    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Particle:
        """Return the particle of a sampled response.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            response: (T,), drawn from the reference.
            key: the key that it was drawn with.
        """

    @abc.abstractmethod
    def relax(self, table: Table, prompt: Prompt, particle: Particle) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Return what the reward model sees of a particle: embeddings (T, d), and False where the response is over.

        The derivative is the pull-back.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            particle: one particle.
        """

    @abc.abstractmethod
    def decode(
        self, table: Table, prompt: Prompt, particle: Particle, start: Particle, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Return the tokens (T,) of a particle, and False where the response is over.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            particle: one particle.
            start: what `encode` gave: where the particle began.
            key: the key that its response was drawn with.
        """


class AbstractReferenceSpace(AbstractSpace):
    """A space whose texts have the tokens of the reference language model.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.
    """

    model: eqx.AbstractVar[LanguageModel]
    sampler: eqx.AbstractVar[Sampler]

    @property
    def tokens(self) -> str | None:
        return self.model.tokens

    @property
    def vocabulary(self) -> int:
        return self.model.trunk.config.vocabulary


def running(sampler: Sampler, tokens: Int[Array, " T"]) -> Bool[Array, " T"]:
    """Mark the tokens up to and with the one that ends the response."""
    return sampler.running(tokens)


def finish(sampler: Sampler, tokens: Int[Array, " T"]) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
    """Return tokens with padding after the end, and the mask of the others."""
    mask = running(sampler, tokens)
    return jnp.where(mask, tokens, sampler.pad).astype(jnp.int32), mask
