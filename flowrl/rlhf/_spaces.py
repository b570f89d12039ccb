r"""Spaces: where the particles of a text live, how a reward model reads them, and how they become tokens again.

A space says four things about one response: how it is encoded as a particle, what the reward model sees of a particle
(its *relaxation*, embeddings of shape (T, d)), how the gradient of the reward comes back from there (the *pull-back*),
and how a particle is decoded to tokens. The reward of a relaxation is not the reward of the decoded text, so what is
chosen among particles is chosen by the rewards of their texts.

Of all spaces, zero steps of transport leave the response as it was sampled; `align` then decodes nothing.

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, which flows in "a continuous proxy space":
    the token-embedding matrix or the latent of a flow-based language model. Its text rules were not published; those
    here are this library's.
"""

import abc
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl._custom_types import Key, Particle
from flowrl._misc import concrete
from flowrl.rlhf._model import LanguageModel
from flowrl.rlhf._sample import Prompt, Response, Sampler, response_logits

Table = Float[Array, "V d"]


class AbstractSpace(eqx.Module):
    """Where particles of texts live."""

    @property
    @abc.abstractmethod
    def tokens(self) -> str | None:
        """Fingerprint of the tokenizer whose tokens it decodes to, or None if unknown."""

    @property
    @abc.abstractmethod
    def vocabulary(self) -> int | None:
        """How many tokens it decodes to, or None if that is not known before it decodes."""

    @abc.abstractmethod
    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Particle:
        """Give the particle of a sampled response.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            response: (T,), drawn from the reference.
            key: the key that it was drawn with.
        """

    @abc.abstractmethod
    def relax(self, table: Table, prompt: Prompt, particle: Particle) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Give what the reward model sees of a particle; its derivative is the pull-back.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            particle: one particle.

        Returns:
            Embeddings (T, d), and False where the response is over.
        """

    @abc.abstractmethod
    def decode(
        self, table: Table, prompt: Prompt, particle: Particle, response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Give the tokens of a particle.

        Args:
            table: token embeddings E of the reward model.
            prompt: (P,).
            particle: one particle.
            response: what the particle was encoded from.
            key: the key that it was drawn with.

        Returns:
            Tokens (T,), and False where the response is over.
        """


class LogitSpace(AbstractSpace):
    r"""Mirror flow on token logits that start as the reference's own.

    A particle is a matrix y of logits, (T, V): at first the reference's logits given the sampled tokens before, with
    the sampled token raised to `margin` above the largest. The reward model sees the mean embeddings softmax(y) E. The
    pull-back is that of mirror ascent with the negative entropy, ∂R/∂p centred over the vocabulary: an Euler step
    multiplies probabilities by exp(ε ∂R/∂p), exponentiated gradient, and tokens that the reference finds impossible
    stay so. `flowrl.Simplex` does the same to probabilities under `Ascent`; on logits, kernels see distances of logits.

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
    margin: ArrayLike = 1.0
    by: Literal["argmax", "reference"] = eqx.field(static=True, default="argmax")

    def __check_init__(self):
        margin = concrete(self.margin)
        if margin is not None and not margin >= 0:
            raise ValueError(f"margin must be >= 0, got {margin}.")
        if self.by not in ("argmax", "reference"):
            raise ValueError(f'by must be "argmax" or "reference", got {self.by!r}.')

    @property
    def tokens(self) -> str | None:
        """Fingerprint of the reference's tokenizer."""
        return self.model.tokens

    @property
    def vocabulary(self) -> int:
        """The reference's number of tokens."""
        return self.model.trunk.config.vocabulary

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T V"]:
        """Give the reference's logits at the sampled tokens.

        Args:
            table: unused.
            prompt: (P,).
            response: (T,).
            key: unused.
        """
        del table, key
        logits = response_logits(self.model, prompt, response.tokens, response.mask)
        logits = jax.nn.log_softmax(self.sampler.allowed(logits))
        lead = jnp.max(logits, axis=-1) + jnp.asarray(self.margin, logits.dtype)
        # After its end a response is padding; that becomes text if the end token flips, text that nobody sampled.
        return jnp.put_along_axis(logits, response.tokens[:, None], lead[:, None], axis=1, inplace=False)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Give softmax(y) E, with the pull-back of mirror ascent.

        Args:
            table: token embeddings E.
            prompt: unused.
            particle: logits y.
        """
        del prompt
        return _mirror(particle, table), _running(self.sampler, self.sampler.choose(particle))

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"], response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Give the most likely tokens, or what the running reference makes of the change.

        Args:
            table: unused by "argmax".
            prompt: (P,).
            particle: logits y.
            response: the sample.
            key: the sample's key.
        """
        if self.by == "argmax":
            return _text(self.sampler, self.sampler.choose(particle))
        change = particle - self.encode(table, prompt, response, key)
        noise = self.sampler.noise(particle.shape[-1], key=key)
        moved = self.sampler.decode(self.model, prompt, noise + change)
        return moved.tokens, moved.mask


class TokenSpace(AbstractSpace):
    r"""Points of the reward model's token-embedding space, one a token: the paper read literally.

    A particle is u, (T, d), at first the embeddings of the sampled tokens. Decoded to the nearest token, a point that
    moves less than half the distance to its neighbours changes nothing, and one that moves further need not come to
    text: `decode` "prior" weighs the reference in, token by token,
    $\mathrm{argmax}_v \log μ(v \mid y_{<t}) - |E_v - u_t|^2 / τ$.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.
        by: "nearest" or "prior".
        width: τ > 0 of "prior", in squared units of the embeddings.
    """

    model: LanguageModel
    sampler: Sampler
    by: Literal["nearest", "prior"] = eqx.field(static=True, default="nearest")
    width: ArrayLike = 0.1

    def __check_init__(self):
        if self.by not in ("nearest", "prior"):
            raise ValueError(f'by must be "nearest" or "prior", got {self.by!r}.')
        width = concrete(self.width)
        if width is not None and not width > 0:
            raise ValueError(f"width must be > 0, got {width}.")

    @property
    def tokens(self) -> str | None:
        """Fingerprint of the reference's tokenizer."""
        return self.model.tokens

    @property
    def vocabulary(self) -> int:
        """The reference's number of tokens."""
        return self.model.trunk.config.vocabulary

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T d"]:
        """Give the embeddings of the sampled tokens.

        Args:
            table: token embeddings E.
            prompt: unused.
            response: (T,).
            key: unused.
        """
        del prompt, key
        return table[response.tokens].astype(jnp.float32)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T d"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Give the particle itself, in the precision of the reward model.

        Args:
            table: token embeddings E.
            prompt: unused.
            particle: embeddings u.
        """
        del prompt
        running = _running(self.sampler, self._nearest(table, jax.lax.stop_gradient(particle)))
        return particle.astype(table.dtype), running

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T d"], response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Give the nearest tokens, or those that are near and likely.

        Args:
            table: token embeddings E.
            prompt: (P,).
            particle: embeddings u.
            response: unused.
            key: unused.
        """
        del response, key
        if self.by == "nearest":
            return _text(self.sampler, self._nearest(table, particle))
        width = jnp.asarray(self.width, particle.dtype)
        chosen = self.sampler.greedy(self.model, prompt, lambda t: -_distances(table, particle[t][None])[0] / width)
        return chosen.tokens, chosen.mask

    def _nearest(self, table: Table, points: Float[Array, "T d"]) -> Int[Array, " T"]:
        return self.sampler.choose(-_distances(table, points))


class ReferenceSpace(AbstractSpace):
    r"""The noise from which the reference draws its text: every particle is decoded by the running reference.

    A response is a function of Gumbel noise g, (T, V): $y_t = \mathrm{argmax}_v \log μ(v \mid y_{<t}) + g_{tv}$. The
    noise is the particle, the latent of this sampler. Moving it steers the text while each token still depends on those
    before. The reward model sees the tokens themselves. Their dependence on g is a step function, so the pull-back is
    the straight-through one, ∂R/∂g = (∂R/∂e) Eᵀ: along the token's embedding, as if e moved linearly with g. Each step
    costs a decoding.

    Attributes:
        model: the reference language model.
        sampler: how the responses were drawn.

    ??? cite "Source"
        Bengio, Léonard and Courville, *Estimating or propagating gradients through stochastic neurons*, 2013
        (straight-through). Liu et al., *BOLT*, ACL 2023, tune biases of the logits in the same way.
    """

    model: LanguageModel
    sampler: Sampler

    @property
    def tokens(self) -> str | None:
        """Fingerprint of the reference's tokenizer."""
        return self.model.tokens

    @property
    def vocabulary(self) -> int:
        """The reference's number of tokens."""
        return self.model.trunk.config.vocabulary

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Float[Array, "T V"]:
        """Give the noise that the response was drawn with.

        Args:
            table: unused.
            prompt: unused.
            response: unused.
            key: the key that it was drawn with.
        """
        del table, prompt, response
        return self.sampler.noise(self.model.trunk.config.vocabulary, key=key)

    def relax(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"]
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Give the embeddings of the decoded tokens, with the straight-through pull-back.

        Args:
            table: token embeddings E.
            prompt: (P,).
            particle: noise g.
        """
        decoded = jax.lax.stop_gradient(self.sampler.decode(self.model, prompt, jax.lax.stop_gradient(particle)))
        return _straight_through(particle, table, decoded.tokens), decoded.mask

    def decode(
        self, table: Table, prompt: Prompt, particle: Float[Array, "T V"], response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Let the reference decode the moved noise.

        Args:
            table: unused.
            prompt: (P,).
            particle: noise g.
            response: unused.
            key: unused.
        """
        del table, response, key
        decoded = self.sampler.decode(self.model, prompt, particle)
        return decoded.tokens, decoded.mask


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
        """Fingerprint of the decoder's tokenizer."""
        return self.fingerprint

    @property
    def vocabulary(self) -> None:
        """Unknown: the decoder may be any function."""
        return None

    def encode(self, table: Table, prompt: Prompt, response: Response, key: Key) -> Particle:
        """Give z.

        Args:
            table: unused.
            prompt: (P,).
            response: (T,).
            key: unused.
        """
        del table, key
        return self.encoder(prompt, response)

    def relax(self, table: Table, prompt: Prompt, particle: Particle) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """Give softmax(logits) E.

        Args:
            table: token embeddings E.
            prompt: (P,).
            particle: z.
        """
        logits = self.decoder(prompt, particle)
        weights = jax.nn.softmax(logits).astype(table.dtype)
        return weights @ table, _running(self.sampler, self.sampler.choose(logits))

    def decode(
        self, table: Table, prompt: Prompt, particle: Particle, response: Response, key: Key
    ) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
        """Give the most likely tokens.

        Args:
            table: unused.
            prompt: (P,).
            particle: z.
            response: unused.
            key: unused.
        """
        del table, response, key
        return _text(self.sampler, self.sampler.choose(self.decoder(prompt, particle)))


def _running(sampler: Sampler, tokens: Int[Array, " T"]) -> Bool[Array, " T"]:
    """True up to and with the first end token."""
    if sampler.end is None:
        return jnp.ones(tokens.shape, bool)
    ended = jnp.cumsum(tokens == sampler.end, dtype=jnp.int32)
    return (ended == 0) | ((ended == 1) & (tokens == sampler.end))


def _text(sampler: Sampler, tokens: Int[Array, " T"]) -> tuple[Int[Array, " T"], Bool[Array, " T"]]:
    """Tokens with padding after the end, and where it begins."""
    mask = _running(sampler, tokens)
    return jnp.where(mask, tokens, sampler.pad).astype(jnp.int32), mask


def _distances(table: Table, points: Float[Array, "T d"]) -> Float[Array, "T V"]:
    """Squared distances, as one matrix product. The table is centred, so that an offset costs no digits."""
    table = table.astype(points.dtype)
    centre = jnp.mean(table, axis=0, keepdims=True)
    table, points = table - centre, points - centre
    squares = jnp.sum(points**2, axis=1, keepdims=True) + jnp.sum(table**2, axis=1)[None, :]
    return jnp.maximum(squares - 2 * points @ table.T, 0)


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
