"""From tensors with the names and shapes of their files to the stacked arrays of a model."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.typing import DTypeLike

from flowrl.rlhf.models._transformer import TransformerConfig

_Model = TypeVar("_Model")

# What old checkpoints store although it follows from the configuration: causal masks and frequencies of rotations.
_BUFFERS = re.compile(r"(?:^|\.)(?:attn|attention|self_attn)\.(?:bias|masked_bias)$|(?:^|\.)rotary_emb\.inv_freq$")
_HINTS = {
    "score.weight": "it is the head of a reward model: load it with load_reward_model",
    "lm_head.weight": "it is the head of a language model: load it with load_language_model",
    "embed_out.weight": "it is the head of a language model: load it with load_language_model",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is needed; `shape` is as stored, `file` is for messages."""

    file: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of ours lies in a stored tensor: `stored` maps shapes, `cut` the tensor to our array."""

    stored: Callable[[tuple[int, ...]], tuple[int, ...]]
    cut: Callable[[np.ndarray, TransformerConfig], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array of ours is in the files of a family: the first of `names` that is there; `{}` is the layer."""

    names: tuple[str, ...]
    layout: Layout


def _third(part: int) -> Layout:
    """Queries, keys or values beside each other in the last axis, as in GPT-2."""
    return Layout(lambda shape: (*shape[:-1], 3 * shape[-1]), lambda stored, _: np.split(stored, 3, axis=-1)[part])


def _headwise(part: int) -> Layout:
    """Query, key and value of one head after those of another in the first axis, as in GPT-NeoX."""

    def cut(stored: np.ndarray, config: TransformerConfig) -> np.ndarray:
        heads = stored.reshape(config.heads, 3, config.head_size, *stored.shape[1:])[:, part]
        return heads.reshape(-1, *stored.shape[1:]).T

    return Layout(lambda shape: (3 * shape[-1], *shape[:-1]), cut)


SAME = Layout(lambda shape: shape, lambda stored, _: stored)
TRANSPOSED = Layout(lambda shape: shape[::-1], lambda stored, _: stored.T)
THIRDS = tuple(_third(part) for part in range(3))
HEADWISE = tuple(_headwise(part) for part in range(3))


def fill(
    skeleton: _Model,
    config: TransformerConfig,
    places: Mapping[str, Place],
    prefix: str,
    tensors: Mapping[str, Tensor],
    dtype: DTypeLike,
    file: str,
) -> _Model:
    """Fill a model of shapes with the arrays of its files, reading one tensor at a time."""
    target = np.dtype(dtype)
    if not jnp.issubdtype(target, jnp.floating):
        raise ValueError(f"dtype must be one of floating numbers, got {target}.")
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
    used: set[str] = set()

    def one(path: str, shape: tuple[int, ...], layer: int | None) -> np.ndarray:
        place = places[path]
        before = prefix if path.startswith("trunk.") else ""
        names = [before + (name if layer is None else name.format(layer)) for name in place.names]
        name = next((name for name in names if name in tensors), None)
        if name is None:
            raise ValueError(
                f"{file}: tensor {' or '.join(names)} is missing; {_found(tensors)}{_hints(sorted(tensors))}."
            )
        used.add(name)
        tensor, expected = tensors[name], place.layout.stored(shape)
        if tensor.shape != expected:
            raise ValueError(f"{tensor.file}: tensor {name} must have shape {expected}, got {tensor.shape}.")
        values = _read(name, tensor)
        with np.errstate(over="ignore"):
            values = np.asarray(place.layout.cut(values, config)).astype(target)
        if not np.isfinite(values).all():
            raise ValueError(f"{tensor.file}: tensor {name} has entries that are not finite numbers in {target}.")
        return values

    def array(keys: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        path = jtu.keystr(keys, simple=True, separator=".")
        if not path.startswith("trunk.blocks."):
            return jnp.asarray(one(path, leaf.shape, None))
        stacked = np.empty(leaf.shape, target)
        for layer in range(leaf.shape[0]):
            stacked[layer] = one(path, leaf.shape[1:], layer)
        return jnp.asarray(stacked)

    model = jtu.tree_map_with_path(array, skeleton)
    left = [name for name in sorted(tensors) if name not in used and not _BUFFERS.search(name)]
    if config.tied:
        embeddings = [prefix + name for name in places["trunk.embedding"].names]
        left = _without_copies(left, embeddings, places["head.weight"].names, tensors)
    if left:
        raise ValueError(f"{file}: no place in the model for tensor {_listed(left)}{_hints(left)}.")
    return model


def _hints(names: list[str]) -> str:
    """What some tensors say of the kind of the model, in brackets."""
    hints = [f"{name}: {_HINTS[name]}" for name in names if name in _HINTS]
    return f" ({'; '.join(hints)})" if hints else ""


def _without_copies(
    left: list[str], embeddings: list[str], heads: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> list[str]:
    """Drop a head that is stored although it is the embedding; one that differs is a contradiction."""
    copies = [name for name in left if name in heads]
    for name in copies:
        embedding = next(name for name in embeddings if name in tensors)
        head = tensors[name]
        if head.shape != tensors[embedding].shape or not np.array_equal(head.read(), tensors[embedding].read()):
            raise ValueError(
                f"{head.file}: tensor {name} differs from {embedding}, but the configuration says that they are one; "
                'set "tie_word_embeddings" to false in it if the file is right.'
            )
    return [name for name in left if name not in copies]


def _read(name: str, tensor: Tensor) -> np.ndarray:
    values = tensor.read()
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{tensor.file}: tensor {name} must hold floating numbers, got {values.dtype}.")
    return values


def _found(tensors: Iterable[str]) -> str:
    return f"found {_listed(sorted(tensors))}"


def _listed(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more
