"""Latents of a decoder of texts as particles."""

from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key, Particle
from flowrl.rlhf.models import Prompt, Response, Sampler
from flowrl.rlhf.spaces._base import AbstractSpace, Table, finish, running


class LatentSpace(AbstractSpace):
    """The latent z of any differentiable decoder: an autoencoder, a flow or a diffusion model of texts.

    The reward model sees the mean embeddings softmax(decoder(prompt, z)) E. The decoder may have other tokens than the
    policy, if the reward model has the decoder's.

    Attributes:
        encoder: function of (prompt, response) that gives z, a PyTree of floating arrays.
        decoder: function of (prompt, z) that gives logits (T, V); an Equinox module, so that its weights are arrays.
        sampler: of which `end` and `pad` say where a response is over, and `forbidden` what is in none.
        fingerprint: of the decoder's tokenizer, or None if unknown.
    """

    encoder: Callable[[Prompt, Response], Particle]
    decoder: Callable[[Prompt, Particle], Float[Array, "T V"]]
    sampler: Sampler
    fingerprint: str | None = eqx.field(static=True, default=None)

    @property
    def tokens(self) -> str | None:
        return self.fingerprint

    @property
    def vocabulary(self) -> None:
        """Return None: the decoder may be any function."""
        return None

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Particle:
        del table, key
        return self.encoder(prompt, response)

    def relax(self, table: Table, prompt: Prompt, particle: Particle) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        logits = self.decoder(prompt, particle)
        weights = jax.nn.softmax(logits).astype(table.dtype)
        return weights @ table, running(self.sampler, self.sampler.choose(logits))

    def decode(
        self, table: Table, prompt: Prompt, particle: Particle, start: Particle, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        del table, start, key
        return finish(self.sampler, self.sampler.choose(self.decoder(prompt, particle)))
