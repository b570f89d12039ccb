"""Text from a language model: one compiled loop over the tokens, with keys and values kept."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from flowrl._custom_types import Key, Keys
from flowrl._misc import check_count, number_field
from flowrl.rlhf.models._model import LanguageModel
from flowrl.rlhf.models._prompt import Prompt
from flowrl.rlhf.models._stop import Stop

_NEVER = -1e4
_TEMPERATURE = number_field("temperature", lambda t: t > 0, "> 0 (the most likely text is `greedy`)")


class Response(eqx.Module):
    """A response of tokens; batches have leading axes on all arrays.

    Attributes:
        tokens: (T,); after the end token, padding.
        mask: False at padding, (T,).
        log_probs: log p of each token under the model that was sampled from, at temperature 1 and without nucleus; 0 at
            padding, (T,).
    """

    tokens: Int[Array, "*batch T"]
    mask: Bool[Array, "*batch T"]
    log_probs: Float[Array, "*batch T"]


class Sampler(eqx.Module):
    """The way in which text is drawn from a language model.

    Attributes:
        length: tokens T of a response, at most.
        end: token after which a response is over, or several such tokens, or None.
        pad: token that fills up the rest.
        temperature: `sampling_temperature` > 0 that divides the logits; it is not the α of a budget.
        top_p: only the most likely tokens whose probabilities sum to this are drawn from, in (0, 1]; static.
        forbidden: tokens that are never drawn: padding, unknown words, rows that pad the vocabulary.
        stop: strings after which a response is over, or None.
    """

    length: int = eqx.field(static=True)
    end: int | tuple[int, ...] | None = eqx.field(static=True, default=None)
    pad: int = eqx.field(static=True, default=0)
    temperature: ArrayLike = eqx.field(converter=_TEMPERATURE, default=1.0)
    top_p: float = eqx.field(static=True, default=1.0)
    forbidden: tuple[int, ...] = eqx.field(static=True, default=())
    stop: Stop | None = None

    def __check_init__(self):
        check_count("length", self.length)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}.")

    def allowed(self, logits: Float[Array, "*batch V"]) -> Float[Array, "*batch V"]:
        """Return logits with the forbidden tokens out of reach; finite, so that distances of logits are too.

        Args:
            logits: (..., V).
        """
        if not self.forbidden:
            return logits
        return logits.at[..., jnp.asarray(self.forbidden)].set(_NEVER)

    def choose(self, scores: Float[Array, "*batch V"]) -> Int[Array, "*batch"]:
        """Return the token of the highest score; never a forbidden one, however high its score.

        Args:
            scores: (..., V).
        """
        if self.forbidden:
            scores = scores.at[..., jnp.asarray(self.forbidden)].set(-jnp.inf)
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)

    def ends(self, tokens: Int[Array, "*batch"]) -> Bool[Array, "*batch"]:
        """Mark the tokens after which a response is over.

        Args:
            tokens: of any shape.
        """
        ends = () if self.end is None else (self.end,) if isinstance(self.end, int) else self.end
        return jnp.isin(tokens, jnp.asarray(ends, tokens.dtype))

    def running(self, tokens: Int[Array, " T"]) -> Bool[Array, " T"]:
        """Mark the tokens of a response: those up to and with the one that ends it.

        Args:
            tokens: (T,).
        """
        last = self.ends(tokens)
        if self.stop is not None:
            last = last | self.stop.found(tokens)
        after = jnp.cumsum(last, dtype=jnp.int32) - last.astype(jnp.int32)
        return after == 0

    def noise(self, vocabulary: int, *, key: Key) -> Float[Array, "T V"]:
        """Return the Gumbel noise that a key stands for: `sample` with the key is `decode` of this noise.

        Args:
            vocabulary: number of tokens V.
            key: randomness of one response.
        """
        return jax.vmap(lambda t: _gumbel(key, t, vocabulary))(jnp.arange(self.length))

    def sample(self, model: LanguageModel, prompt: Prompt, *, key: Key) -> Response:
        """Draw one response.

        Args:
            model: the language model.
            prompt: (P,).
            key: randomness.
        """
        vocabulary = model.trunk.config.vocabulary
        return self._run(model, prompt, lambda t, logits: self._shape(logits) + _gumbel(key, t, vocabulary))

    def decode(self, model: LanguageModel, prompt: Prompt, noise: Float[Array, "T V"]) -> Response:
        """Return the response that belongs to some noise: argmax of shaped logits + noise, token by token.

        With Gumbel noise this is a sample; moved noise gives text that the running model still has a say in.

        Args:
            model: the language model.
            prompt: (P,).
            noise: added to the logits of each token.
        """
        return self._run(model, prompt, lambda t, logits: self._shape(logits) + noise[t])

    def greedy(self, model: LanguageModel, prompt: Prompt, bias: Callable[[Array], Array] | None = None) -> Response:
        """Return the most likely token at each place, of logits to which a bias may be added.

        Args:
            model: the language model.
            prompt: (P,).
            bias: place t to an addition (V,) to the log-probabilities.
        """

        def score(t: Array, logits: Array) -> Array:
            logits = self.allowed(logits)
            return logits if bias is None else jax.nn.log_softmax(logits) + bias(t)

        return self._run(model, prompt, score)

    def _shape(self, logits: Float[Array, " V"]) -> Float[Array, " V"]:
        """Logits at this temperature, −∞ outside the nucleus."""
        logits = self.allowed(logits / jnp.asarray(self.temperature, logits.dtype))
        if self.top_p < 1:
            falling = -jnp.sort(-jax.nn.softmax(logits))
            before = jnp.cumsum(falling) - falling
            least = jnp.min(jnp.where(before < self.top_p, falling, jnp.inf))
            logits = jnp.where(jax.nn.softmax(logits) >= least, logits, -jnp.inf)
        return logits

    def _run(self, model: LanguageModel, prompt: Prompt, score: Callable[[Array, Array], Array]) -> Response:
        """Choose the token of the highest score at each place, until the response is over."""
        cache = model.trunk.empty(prompt.tokens.shape[0] + self.length)
        logits, cache = model.extend(cache, prompt.tokens, prompt.mask)
        last = jnp.max(jnp.where(prompt.mask, jnp.arange(prompt.mask.shape[0]), 0))
        wide = lambda logits: logits.astype(jnp.float32)  # whatever the model's precision

        def step(carry):
            t, cache, logits, running, read, response = carry
            token = jnp.where(running, self.choose(score(t, logits)), self.pad).astype(jnp.int32)
            log_prob = jnp.where(running, jax.nn.log_softmax(logits)[token], 0)
            new, cache = model.extend(cache, token[None], running[None])
            still = running & ~self.ends(token)
            if self.stop is not None:
                read = self.stop.read(read, token)
                still = still & ~self.stop.is_found(read)
            response = Response(
                response.tokens.at[t].set(token),
                response.mask.at[t].set(running),
                response.log_probs.at[t].set(log_prob),
            )
            return t + 1, cache, wide(new[0]), still, read, response

        blank = jnp.full(self.length, self.pad, jnp.int32)
        empty = Response(blank, jnp.zeros(self.length, bool), jnp.zeros(self.length, jnp.float32))
        zero = jnp.zeros((), jnp.int32)
        start = (zero, cache, wide(logits[last]), jnp.ones((), bool), zero, empty)
        return jax.lax.while_loop(lambda carry: (carry[0] < self.length) & _any(carry[3]), step, start)[-1]


@jax.custom_batching.custom_vmap
def _any(running: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether any response of a batch still runs: one answer for all, or each step would copy every cache."""
    return running


@_any.def_vmap
def _any_of_batch(_size: int, batched: list[bool], running: Array) -> tuple[Array, bool]:
    return _any(jnp.any(running) if batched[0] else running), False


@eqx.filter_jit
def sample(
    sampler: Sampler, model: LanguageModel, prompts: Prompt, *, count: int, key: Key, at_once: int = 32
) -> tuple[Response, Keys]:
    """Draw several responses to each of many prompts; the first ones are the same if more are drawn.

    Returns the responses, leaves (B, N, T), and the key of each, (B, N): `sampler.noise` gives its noise back.

    Args:
        sampler: how text is drawn.
        model: the language model.
        prompts: (B, P).
        count: responses N per prompt; static.
        key: randomness.
        at_once: prompts that are worked on together, which bounds the memory; static.
    """
    # Folded in, not split: a sample is the same whatever the numbers of samples and of later prompts are.
    each = lambda keys, n: jax.vmap(lambda k: jax.vmap(lambda i: jr.fold_in(k, i))(jnp.arange(n)))(keys)
    keys = each(each(key[None], prompts.tokens.shape[0])[0], count)

    def one(inputs: tuple[Prompt, Keys]) -> Response:
        prompt, own = inputs
        return jax.vmap(lambda k: sampler.sample(model, prompt, key=k))(own)

    return jax.lax.map(one, (prompts, keys), batch_size=at_once), keys


def log_probs(
    model: LanguageModel, prompt: Prompt, tokens: Int[Array, " T"], mask: Bool[Array, " T"]
) -> Float[Array, " T"]:
    """Return log p of each token of a response; 0 at padding.

    Args:
        model: the language model.
        prompt: (P,).
        tokens: the response.
        mask: False at padding.
    """
    logits = response_logits(model, prompt, tokens, mask)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, None], axis=1)[:, 0]
    return jnp.where(mask, chosen, 0)


def response_logits(
    model: LanguageModel, prompt: Prompt, tokens: Int[Array, " T"], mask: Bool[Array, " T"]
) -> Float[Array, "T V"]:
    """Return the logits of each token of a response before it is seen, in float32.

    Args:
        model: the language model.
        prompt: (P,); at least one token.
        tokens: the response.
        mask: False at padding.
    """
    # The last token of the prompt may be anywhere (padding on the right), so the response is read after it by a cache.
    room = prompt.tokens.shape[0] + tokens.shape[0]
    first, cache = model.extend(model.trunk.empty(room), prompt.tokens, prompt.mask)
    last = jnp.max(jnp.where(prompt.mask, jnp.arange(prompt.mask.shape[0]), 0))
    rest, _ = model.extend(cache, tokens, mask)
    return jnp.concatenate([first[last][None], rest[:-1]]).astype(jnp.float32)


def _gumbel(key: Key, place: Array, vocabulary: int) -> Float[Array, " V"]:
    return jr.gumbel(jr.fold_in(key, place), (vocabulary,), jnp.float32)
