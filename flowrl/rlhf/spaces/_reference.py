"""The noise of the reference's sampler as particles."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowrl import AbstractDomain
from flowrl._custom_types import Key, Particle, Scalar
from flowrl.rlhf.models import LanguageModel, Prompt, Response, Sampler
from flowrl.rlhf.spaces._base import AbstractReferenceSpace, Table, running

# Tokens are kept as numbers so small that no distance between particles knows of them; a power of two, so exactly.
_TOKEN = 2.0**-24


class Written(NamedTuple):
    """Noise, and the text that the reference makes of it.

    Attributes:
        noise: (T, V).
        text: the tokens (T,) times 2⁻²⁴.
    """

    noise: Float[Array, "*n T V"]
    text: Float[Array, "*n T"]


class ReferenceSpace(AbstractReferenceSpace):
    r"""The noise from which the reference draws its text, with that text: every move is read by the running reference.

    A response is a function of Gumbel noise g, (T, V): $y_t = \mathrm{argmax}_v \log μ(v \mid y_{<t}) + g_{tv}$. Moving
    the noise steers the text while each token still depends on those before. The reward model sees the tokens
    themselves; the pull-back is the straight-through one, ∂R/∂g = (∂R/∂e) Eᵀ, taken at the text as it is. After each
    step the reference decodes the moved noise, once, which is what the space's domain does; the gradient, the value and
    the text of a particle cost it nothing more. With `flowrl.Monotone` a particle takes its new text only if its reward
    rose.

    `noise_target` is the same without the text, for samplers.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.

    ??? cite "Source"
        Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic neurons*, 2013
        (straight-through). Liu et al., *BOLT*, ACL 2023, tune biases of the logits in the same way.
    """

    model: LanguageModel
    sampler: Sampler

    def domain(self, prompt: Prompt) -> AbstractDomain:
        return Decoded(self.model, self.sampler, prompt)

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Written:
        del table, prompt
        return Written(self.sampler.noise(self.vocabulary, key=key), _text(response.tokens))

    def relax(self, table: Table, prompt: Prompt, particle: Written) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        del prompt
        tokens = _tokens(particle.text)
        return straight_through(particle.noise, table, tokens), running(self.sampler, tokens)

    def decode(
        self, table: Table, prompt: Prompt, particle: Written, start: Written, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        del table, prompt, start, key
        tokens = _tokens(particle.text)
        return tokens, running(self.sampler, tokens)


class Decoded(AbstractDomain):
    """Noise beside the text that the reference makes of it: a particle whose noise has moved gets its text anew.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.
        prompt: (P,).
    """

    model: LanguageModel
    sampler: Sampler
    prompt: Prompt
    restricts: ClassVar[bool] = True
    maps: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False

    def contains(self, particles: Written) -> Bool[Array, " n"]:
        """Return True: a particle begins with the text that was drawn, and it would cost a decoding to see that."""
        return jnp.ones(particles.text.shape[0], bool)

    def restrict(self, particles: Written) -> Written:
        read = lambda noise: self.sampler.decode(self.model, self.prompt, noise).tokens
        return Written(particles.noise, _text(jax.vmap(read)(particles.noise)).astype(particles.text.dtype))

    def forward(self, particle: Particle) -> Particle:
        return particle

    def inverse(self, particle: Particle) -> Particle:
        return particle

    def log_det_jacobian(self, particle: Written) -> Scalar:
        return jnp.zeros((), particle.text.dtype)


def _text(tokens: Int[Array, "*n T"]) -> Float[Array, "*n T"]:
    return jnp.asarray(tokens, jnp.float32) * _TOKEN


def _tokens(text: Float[Array, "*n T"]) -> Int[Array, "*n T"]:
    return jnp.round(jax.lax.stop_gradient(text) / _TOKEN).astype(jnp.int32)


# The tokens depend on the noise by a step function; backwards it is as if each embedding moved linearly with the noise.
@jax.custom_vjp
def straight_through(noise: Float[Array, "T V"], table: Table, tokens: Int[Array, " T"]) -> Float[Array, "T d"]:
    """E[tokens]; backwards as if it were noise E."""
    del noise
    return table[tokens]


def _straight_forward(noise, table, tokens):
    return straight_through(noise, table, tokens), (table, jnp.zeros((), noise.dtype))


def _straight_backward(kept, cotangent):
    table, like = kept
    return (cotangent @ table.T).astype(like.dtype), None, None


straight_through.defvjp(_straight_forward, _straight_backward)
