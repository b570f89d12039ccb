"""The noise of the reference's sampler as particles."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl.rlhf.models import LanguageModel, Prompt, Response, Sampler
from flowrl.rlhf.spaces._base import AbstractReferenceSpace, Table


class ReferenceSpace(AbstractReferenceSpace):
    r"""The noise from which the reference draws its text: every particle is decoded by the running reference.

    A response is a function of Gumbel noise g, (T, V): $y_t = \mathrm{argmax}_v \log μ(v \mid y_{<t}) + g_{tv}$. Moving
    the noise steers the text while each token still depends on those before. The reward model sees the tokens
    themselves; the pull-back is the straight-through one, ∂R/∂g = (∂R/∂e) Eᵀ. Each step costs a decoding.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.

    ??? cite "Source"
        Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic neurons*, 2013
        (straight-through). Liu et al., *BOLT*, ACL 2023, tune biases of the logits in the same way.
    """

    model: LanguageModel
    sampler: Sampler

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T V"]:
        del table, prompt, response
        return self.sampler.noise(self.model.trunk.config.vocabulary, key=key)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        decoded = jax.lax.stop_gradient(self.sampler.decode(self.model, prompt, jax.lax.stop_gradient(particle)))
        return _straight_through(particle, table, decoded.tokens), decoded.mask

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"], response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        del table, response, key
        decoded = self.sampler.decode(self.model, prompt, particle)
        return decoded.tokens, decoded.mask


# The tokens depend on the noise by a step function; backwards it is as if each embedding moved linearly with the noise.
@jax.custom_vjp
def _straight_through(noise: Float[Array, "T V"], table: Table, tokens: Int[Array, " T"]) -> Float[Array, "T d"]:
    """E[tokens]; backwards as if it were noise E."""
    del noise
    return table[tokens]


def _straight_forward(noise, table, tokens):
    return _straight_through(noise, table, tokens), (table, jnp.zeros((), noise.dtype))


def _straight_backward(kept, cotangent):
    table, like = kept
    return (cotangent @ table.T).astype(like.dtype), None, None


_straight_through.defvjp(_straight_forward, _straight_backward)
