"""Logits of the reference as particles."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import number_field
from flowrl.rlhf.models import LanguageModel, Prompt, Response, Sampler, response_logits
from flowrl.rlhf.spaces._base import AbstractReferenceSpace, Table, finish, running


class LogitSpace(AbstractReferenceSpace):
    """Mirror flow on token logits that start as the reference's own.

    A particle is a matrix y of logits, (T, V): at first the reference's logits given the sampled tokens before, with
    the sampled token raised to `margin` above the largest. The reward model sees the mean embeddings softmax(y) E. The
    pull-back is that of mirror ascent with the negative entropy: an Euler step multiplies probabilities by exp(ε
    ∂R/∂p), exponentiated gradient, and tokens that the reference finds impossible stay so.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.
        margin: lead >= 0 of the sampled token, in nats: how far a particle moves before a token flips.
        by: "argmax" of the logits; or "reference": the running reference decodes with the change of the logits as a
            bias and the sample's own noise, so that later tokens follow earlier ones.

    ??? cite "Source"
        Beck and Teboulle, *Mirror descent and nonlinear projected subgradient methods for convex optimization*,
        Operations Research Letters 31, 2003. Energies on the logits of a reference: Yuan et al., *Inference-time
        Alignment in Continuous Space*, NeurIPS 2025 (arXiv 2505.20081).
    """

    model: LanguageModel
    sampler: Sampler
    margin: ArrayLike = eqx.field(converter=number_field("margin", lambda margin: margin >= 0, ">= 0"), default=1.0)
    by: Literal["argmax", "reference"] = eqx.field(static=True, default="argmax")

    def __check_init__(self):
        if self.by not in ("argmax", "reference"):
            raise ValueError(f'by must be "argmax" or "reference", got {self.by!r}.')

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T V"]:
        del table, key
        logits = response_logits(self.model, prompt, response.tokens, response.mask)
        logits = jax.nn.log_softmax(self.sampler.allowed(logits))
        lead = jnp.max(logits, axis=-1) + jnp.asarray(self.margin, logits.dtype)
        # After its end a response is padding; that becomes text if the end token flips, text that nobody sampled.
        return jnp.put_along_axis(logits, response.tokens[:, None], lead[:, None], axis=1, inplace=False)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        del prompt
        return _mirror(particle, table), running(self.sampler, self.sampler.choose(particle))

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"], start: Float[Array, "T V"], key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        del table
        if self.by == "argmax":
            return finish(self.sampler, self.sampler.choose(particle))
        noise = self.sampler.noise(particle.shape[-1], key=key)
        moved = self.sampler.decode(self.model, prompt, noise + (particle - start))
        return moved.tokens, moved.mask


# `flowrl.Simplex` does the same to probabilities under `Ascent`; on logits, kernels see distances of logits.
@jax.custom_vjp
def _mirror(logits: Float[Array, "T V"], table: Table) -> Float[Array, "T d"]:
    """softmax(y) E; backwards, the centred gradient in the probabilities: the mirror map's own metric."""
    return jax.nn.softmax(logits).astype(table.dtype) @ table


def _mirror_forward(logits, table):
    return _mirror(logits, table), (table, jnp.zeros((), logits.dtype))


def _mirror_backward(kept, cotangent):
    table, like = kept
    gradient = (cotangent @ table.T).astype(like.dtype)
    return gradient - jnp.mean(gradient, axis=-1, keepdims=True), None


_mirror.defvjp(_mirror_forward, _mirror_backward)
