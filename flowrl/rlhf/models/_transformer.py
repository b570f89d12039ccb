"""One transformer for every family of language models: what differs between them is a field of its configuration."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl.nn import stack

_INIT = 0.02  # standard deviation of GPT-2's initial weights


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The shape of a transformer. GPT-2, GPT-NeoX, Llama, Qwen2 and Qwen3 are settings of it.

    Attributes:
        vocabulary: number of tokens V.
        width: size d of the residual stream.
        layers: number of blocks.
        heads: query heads.
        key_value_heads: heads of keys and values, a divisor of `heads`.
        head_size: size of one head.
        hidden: width of the feed-forward layer.
        norm: layer norm, or root-mean-square norm.
        norm_epsilon: added to the variance.
        positions: rotations of queries and keys, or one learned vector per position.
        rotary_base: base of the rotations' frequencies.
        rotary_fraction: share of each head that is rotated.
        rotary_scaling: Llama 3's stretching of the frequencies: factor, low and high frequency factor, original number
            of positions; None for none.
        max_positions: longest sequence; rotations have no end of their own, but beyond what a model was trained on its
            text falls apart without a word.
        activation: of the feed-forward layer; "gelu" is the exact one.
        gated: the activation multiplies a second projection, as in SwiGLU.
        parallel: attention and feed-forward layer read the same residual, as in GPT-NeoX.
        query_key_norm: norms of each head's query and key, as in Qwen3.
        bias: biases of the feed-forward layers and, unless `output_bias` says otherwise, of the attention's output.
        query_bias: biases of queries, keys and values.
        output_bias: bias of the attention's output; None means as `bias` says.
        tied: the logits come from the token embedding.
        causal: a token sees none after it; False for encoders.

    Raises:
        ValueError: the numbers do not go together.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    hidden: int
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0
    rotary_scaling: tuple[float, float, float, float] | None = None
    max_positions: int = 2048
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu"
    gated: bool = False
    parallel: bool = False
    query_key_norm: bool = False
    bias: bool = True
    query_bias: bool = True
    output_bias: bool | None = None
    tied: bool = True
    causal: bool = True

    def __post_init__(self):
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads must be a multiple of key_value_heads, got {self.heads} and {self.key_value_heads}."
            )
        if self.positions == "rotary" and self.rotary % 2:
            raise ValueError(f"rotations act on pairs: head_size × rotary_fraction must be even, got {self.rotary}.")

    @property
    def rotary(self) -> int:
        """Number of entries of a head that are rotated."""
        return int(self.head_size * self.rotary_fraction)


class Dense(eqx.Module):
    """An affine or linear map of the last axis.

    Attributes:
        weight: (inputs, outputs).
        bias: (outputs,), or None.
    """

    weight: Float[Array, "*layers inputs outputs"]
    bias: Float[Array, "*layers outputs"] | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool, key: Key, scale: float = _INIT):
        """Draw normal weights of standard deviation `scale`.

        Args:
            inputs: size of the last axis of the input.
            outputs: size of the last axis of the output.
            bias: whether there is a bias; zero at the start.
            key: randomness of the weights.
            scale: standard deviation of the weights.
        """
        self.weight = scale * jr.normal(key, (inputs, outputs), jnp.float32)
        self.bias = jnp.zeros(outputs, jnp.float32) if bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        y = x @ self.weight
        return y if self.bias is None else y + jnp.broadcast_to(self.bias, y.shape)


class Norm(eqx.Module):
    """A layer norm, or a root-mean-square norm, of the last axis; computed in float32.

    Attributes:
        scale: (width,).
        shift: (width,), or None for the root-mean-square norm.
        epsilon: added to the variance.
    """

    scale: Float[Array, "*layers width"]
    shift: Float[Array, "*layers width"] | None
    epsilon: float = eqx.field(static=True)

    def __init__(self, width: int, kind: Literal["layer", "rms"], epsilon: float):
        """Start from scale 1 and shift 0.

        Args:
            width: size of the axis.
            kind: layer or root mean square.
            epsilon: added to the variance.
        """
        self.scale = jnp.ones(width, jnp.float32)
        self.shift = jnp.zeros(width, jnp.float32) if kind == "layer" else None
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        wide = x.astype(jnp.float32)
        if self.shift is not None:
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        normal = wide.astype(x.dtype) * jnp.broadcast_to(self.scale, x.shape)
        return normal if self.shift is None else normal + jnp.broadcast_to(self.shift, x.shape)


class Block(eqx.Module):
    """One layer: attention and a feed-forward network, each on a normalised residual.

    Attributes:
        attention_norm: before the attention.
        query: d to heads × head_size.
        key: d to key_value_heads × head_size.
        value: likewise.
        query_norm: of each head's query, or None.
        key_norm: of each head's key, or None.
        output: heads × head_size to d.
        mlp_norm: before the feed-forward network.
        gate: d to hidden, or None.
        up: d to hidden.
        down: hidden to d.
    """

    attention_norm: Norm
    query: Dense
    key: Dense
    value: Dense
    query_norm: Norm | None
    key_norm: Norm | None
    output: Dense
    mlp_norm: Norm
    gate: Dense | None
    up: Dense
    down: Dense

    def __init__(self, config: TransformerConfig, *, key: Key):
        """Draw random weights.

        Args:
            config: the shape.
            key: randomness of the weights.
        """
        c, keys = config, jr.split(key, 7)
        queries, others = c.heads * c.head_size, c.key_value_heads * c.head_size
        # GPT-2 keeps the variance of the residual stream independent of the depth.
        deep = _INIT / (2 * c.layers) ** 0.5
        self.attention_norm = Norm(c.width, c.norm, c.norm_epsilon)
        self.query = Dense(c.width, queries, bias=c.query_bias, key=keys[0])
        self.key = Dense(c.width, others, bias=c.query_bias, key=keys[1])
        self.value = Dense(c.width, others, bias=c.query_bias, key=keys[2])
        self.query_norm = Norm(c.head_size, c.norm, c.norm_epsilon) if c.query_key_norm else None
        self.key_norm = Norm(c.head_size, c.norm, c.norm_epsilon) if c.query_key_norm else None
        output_bias = c.bias if c.output_bias is None else c.output_bias
        self.output = Dense(queries, c.width, bias=output_bias, key=keys[3], scale=deep)
        self.mlp_norm = Norm(c.width, c.norm, c.norm_epsilon)
        self.gate = Dense(c.width, c.hidden, bias=c.bias, key=keys[4]) if c.gated else None
        self.up = Dense(c.width, c.hidden, bias=c.bias, key=keys[5])
        self.down = Dense(c.hidden, c.width, bias=c.bias, key=keys[6], scale=deep)


class Cache(eqx.Module):
    """Keys and values of the tokens seen so far, and room for more.

    Attributes:
        keys: (layers, S, key_value_heads, head_size).
        values: likewise.
        valid: which of the S places hold a token (not padding).
        filled: how many places are taken, padding included `()`.
        position: place of the next token in the text, padding not counted `()`.
    """

    keys: Float[Array, "layers S heads size"]
    values: Float[Array, "layers S heads size"]
    valid: Bool[Array, " S"]
    filled: Int[Array, ""]
    position: Int[Array, ""]


class Transformer(eqx.Module):
    """A trunk: token embeddings in, hidden states out.

    Everything is for one sequence; batches are `jax.vmap`. Sequences may be padded anywhere: padding is seen by no
    token and has no position.

    Attributes:
        config: the shape.
        embedding: token embeddings E, (V, d).
        position_embedding: (max_positions, d), or None.
        blocks: the layers, stacked along the leading axis of every array, so that they are one scan.
        norm: after the last layer.
    """

    config: TransformerConfig = eqx.field(static=True)
    embedding: Float[Array, "V d"]
    position_embedding: Float[Array, "P d"] | None
    blocks: Block
    norm: Norm

    def __init__(self, config: TransformerConfig, *, key: Key):
        """Draw random weights.

        Args:
            config: the shape.
            key: randomness of the weights.
        """
        tokens_key, positions_key, blocks_key = jr.split(key, 3)
        self.config = config
        self.embedding = _INIT * jr.normal(tokens_key, (config.vocabulary, config.width), jnp.float32)
        learned = config.positions == "learned"
        table = (config.max_positions, config.width)
        self.position_embedding = _INIT * jr.normal(positions_key, table, jnp.float32) if learned else None
        self.blocks = stack(lambda k: Block(config, key=k), config.layers, key=blocks_key)
        self.norm = Norm(config.width, config.norm, config.norm_epsilon)

    def embed(self, tokens: Int[Array, " T"]) -> Float[Array, "T d"]:
        """Look up token embeddings (T, d).

        Args:
            tokens: (T,).
        """
        return self.embedding[tokens]

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, "T d"]:
        """Return the hidden states of a sequence of embeddings.

        Args:
            embedded: token embeddings, or any points of their space, (T, d).
            mask: False at padding.
        """
        return self.extend(self.empty(mask.shape[0]), embedded, mask)[0]

    def empty(self, room: int) -> Cache:
        """Return a cache that holds nothing.

        Args:
            room: places S for tokens.

        Raises:
            ValueError: more places than `max_positions`.
        """
        c = self.config
        if room > c.max_positions:
            raise ValueError(
                f"the model knows {c.max_positions} positions (max_positions), so a sequence of {room} tokens is too "
                "long for it, prompt, response and padding together: shorten the prompts or the responses."
            )
        shape = (c.layers, room, c.key_value_heads, c.head_size)
        zeros, zero = jnp.zeros(shape, self.embedding.dtype), jnp.zeros((), jnp.int32)
        return Cache(zeros, zeros, jnp.zeros(room, bool), zero, zero)

    def extend(
        self, cache: Cache, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]
    ) -> tuple[Float[Array, "T d"], Cache]:
        """Read T more tokens after those in a cache.

        Args:
            cache: with room for T more.
            embedded: their embeddings, (T, d).
            mask: False at padding.

        Returns:
            Their hidden states (T, d), and the cache with their keys and values.
        """
        c, count = self.config, mask.shape[0]
        positions = jnp.maximum(cache.position + jnp.cumsum(mask, dtype=jnp.int32) - 1, 0)
        valid = jax.lax.dynamic_update_slice(cache.valid, mask, (cache.filled,))
        places = jnp.arange(valid.shape[0], dtype=jnp.int32)
        seen = jnp.broadcast_to(valid, (count, valid.shape[0]))
        if c.causal:
            seen = seen & (places[None, :] <= cache.filled + jnp.arange(count, dtype=jnp.int32)[:, None])
        x = embedded
        if self.position_embedding is not None:
            x = x + self.position_embedding[positions]
        start = (cache.filled, *(jnp.zeros_like(cache.filled),) * 2)
        rotation = _rotation(c, positions) if c.positions == "rotary" else None

        def layer(x: Array, block_and_cache: tuple[Block, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            block, keys, values = block_and_cache
            normal = block.attention_norm(x)
            query = block.query(normal).reshape(count, c.heads, c.head_size)
            key = block.key(normal).reshape(count, c.key_value_heads, c.head_size)
            value = block.value(normal).reshape(count, c.key_value_heads, c.head_size)
            if block.query_norm is not None and block.key_norm is not None:
                query, key = block.query_norm(query), block.key_norm(key)
            if rotation is not None:
                query, key = _rotate(query, rotation), _rotate(key, rotation)
            keys = jax.lax.dynamic_update_slice(keys, key, start)
            values = jax.lax.dynamic_update_slice(values, value, start)
            attended = block.output(_attend(query, keys, values, seen))
            if c.parallel:
                return x + attended + _feed_forward(c, block, block.mlp_norm(x)), (keys, values)
            x = x + attended
            return x + _feed_forward(c, block, block.mlp_norm(x)), (keys, values)

        x, (keys, values) = jax.lax.scan(layer, x, (self.blocks, cache.keys, cache.values))
        position = cache.position + jnp.sum(mask, dtype=jnp.int32)
        return self.norm(x), Cache(keys, values, valid, cache.filled + count, position)


def _attend(
    query: Float[Array, "T heads size"],
    keys: Float[Array, "S groups size"],
    values: Float[Array, "S groups size"],
    seen: Bool[Array, "T S"],
) -> Float[Array, "T out"]:
    count, heads, size = query.shape
    grouped = query.reshape(count, keys.shape[1], heads // keys.shape[1], size)
    scores = jnp.einsum("tghd,sgd->ghts", grouped, keys) / size**0.5
    # Padding sees nothing; a finite floor gives it a harmless mean instead of NaN.
    scores = jnp.where(seen, scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
    return jnp.einsum("ghts,sgd->tghd", weights, values).reshape(count, heads * size)


def _feed_forward(config: TransformerConfig, block: Block, x: Float[Array, "T d"]) -> Float[Array, "T d"]:
    up = block.up(x)
    hidden = _activate(config, up) if block.gate is None else _activate(config, block.gate(x)) * up
    return block.down(hidden)


def _activate(config: TransformerConfig, x: Array) -> Array:
    if config.activation == "silu":
        return jax.nn.silu(x)
    if config.activation == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=config.activation == "gelu_tanh")


def _rotation(config: TransformerConfig, positions: Int[Array, " T"]) -> tuple[Array, Array]:
    """Cosines and sines (T, 1, rotary / 2)."""
    half = config.rotary // 2
    frequency = config.rotary_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rotary_scaling is not None:
        factor, low, high, original = config.rotary_scaling
        turns = original * frequency / (2 * jnp.pi)
        kept = jnp.clip((turns - low) / (high - low), 0, 1)
        frequency = kept * frequency + (1 - kept) * frequency / factor
    angle = positions.astype(jnp.float32)[:, None, None] * frequency[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x: Float[Array, "T heads size"], rotation: tuple[Array, Array]) -> Float[Array, "T heads size"]:
    """Rotate pairs (i, i + rotary / 2) of each head; the rest of the head stays."""
    cosine, sine = (part.astype(x.dtype) for part in rotation)
    cosine, sine = (jnp.broadcast_to(part, (*x.shape[:2], part.shape[-1])) for part in (cosine, sine))
    half = cosine.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)
