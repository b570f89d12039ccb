"""Tiny models of texts, with weights that matter, and rewards with known gradients.

Weights are drawn by NumPy: making a model costs many small compilations.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowrl.rlhf import AbstractReward, LanguageModel, Prompt, RewardEnsemble, RewardModel, TransformerConfig

PAD, UNKNOWN, END = 0, 1, 2
V = 12


def config(**fields) -> TransformerConfig:
    """GPT-2 at its smallest."""
    small = {"vocabulary": V, "width": 8, "layers": 1, "heads": 2, "key_value_heads": 2, "head_size": 4, "hidden": 16}
    return TransformerConfig(**(small | fields))


def lively(make, seed: int, size: float = 0.5):
    """What `make` gives, with every weight `size` × a normal draw, around 1 for norms: biases count, logits differ."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        centre = 1.0 if "scale" in jax.tree_util.keystr(path[-1:]) else 0.0
        return jnp.asarray(centre + size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, eqx.filter_eval_shape(make))


def language_model(seed: int = 0, *, tokens=None, size=0.5, **fields) -> LanguageModel:
    return lively(lambda: LanguageModel(config(**fields), key=jax.random.key(0), tokens=tokens), seed, size)


def reward_model(seed: int = 0, *, pooling=None, tokens=None, size=0.5, **fields) -> RewardModel:
    shape = config(**fields)
    return lively(lambda: RewardModel(shape, key=jax.random.key(0), pooling=pooling, tokens=tokens), seed, size)


def reward_ensemble(seed: int = 0, *, count=3, size=0.5, fields=None, **options) -> RewardEnsemble:
    shape = config(**(fields or {}))
    return lively(lambda: RewardEnsemble(shape, count, key=jax.random.key(0), **options), seed, size)


def part(tree, *index):
    """Every array at an index, without a compilation for each; keys as they are indexed."""

    def one(leaf):
        if not eqx.is_array(leaf) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf[index] if eqx.is_array(leaf) else leaf
        return jnp.asarray(np.asarray(leaf)[index])

    return jax.tree.map(one, tree)


def words(seed: int, *shape: int) -> Array:
    """Tokens that are none of the special ones."""
    return jnp.asarray(np.random.default_rng(seed).integers(3, V, shape), jnp.int32)


def prompts(count: int = 3, length: int = 3, seed: int = 0) -> Prompt:
    """Prompts of 1 to `length` tokens, padded on the left."""
    mask = np.arange(length)[None, :] >= (np.arange(count) % length)[:, None]
    return Prompt(jnp.asarray(np.where(mask, words(seed, count, length), PAD)), jnp.asarray(mask))


class Linear(AbstractReward):
    """The sum over a text of ⟨embedding, direction⟩."""

    embedding: Float[Array, "V d"]
    direction: Float[Array, " d"]
    tokens: str | None = eqx.field(static=True, default=None)

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return jnp.sum(jnp.where(mask, embedded @ self.direction, 0))


class Curved(AbstractReward):
    """A reward whose gradient depends on all of the text, and at each place on that place."""

    embedding: Float[Array, "V d"]
    direction: Float[Array, " d"]
    tokens: str | None = eqx.field(static=True, default=None)

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        total = jnp.sum(jnp.where(mask, jnp.sin(embedded @ self.direction), 0))
        return total + 0.3 * total * total


def likes(token: int, size: int = V) -> Linear:
    """A reward that counts one token."""
    eye = np.eye(size, dtype=np.float32)
    return Linear(jnp.asarray(eye), jnp.asarray(eye[token]))


def curved(seed: int = 0, width: int = 5, tokens: str | None = None) -> Curved:
    rng = np.random.default_rng(seed)
    table, direction = rng.normal(size=(V, width)), rng.normal(size=width)
    return Curved(jnp.asarray(table, jnp.float32), jnp.asarray(direction, jnp.float32), tokens)
