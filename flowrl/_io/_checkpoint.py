"""Checkpoints: the arrays of a training state as one npz, data and never code.

Every array is stored under its path in the state, so a file can be read without flowrl, and a mismatch names the field.
Random keys are stored as their raw bits.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl._io._files import DamagedError, atomic_write, parse_json, read_npz, write_npz

SCHEMA = 1
_META = "__meta__"
#: Prefix of arrays that are not part of the state; the names of the state's begin with a dot or a bracket.
_ARRAY = "array:"
T = TypeVar("T")


def save_checkpoint(path: Path, state: Any, meta: dict[str, Any]) -> None:
    """Write a state; `path` is replaced once the new file is whole.

    Args:
        path: the npz.
        state: PyTree of arrays and static parts; only arrays are stored.
        meta: JSON values stored with it, and NumPy arrays of any shape.

    Raises:
        OSError: the disk is full or the directory is gone; an earlier checkpoint stays as it was.
        ValueError: an array lies on devices of several processes, so that none has it whole.
    """
    for name, leaf in _named(state):
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            raise ValueError(
                f"{path}: {name} is divided over processes, so this one does not have it whole. Gather it in all of "
                "them by jax.experimental.multihost_utils.process_allgather(state, tiled=True), and save in one."
            )
    arrays = {name: _bits(leaf) for name, leaf in _named(state)}
    arrays |= {_ARRAY + name: value for name, value in meta.items() if isinstance(value, np.ndarray)}
    values = {name: value for name, value in meta.items() if not isinstance(value, np.ndarray)}
    text = json.dumps({"schema": SCHEMA, **values})  # in the order given: rows of metrics keep their columns
    arrays[_META] = np.frombuffer(text.encode(), np.uint8)
    write_npz(path, arrays, compress=False)


def load_checkpoint(path: Path, template: T) -> tuple[T, dict[str, Any]]:
    """Read a state.

    Args:
        path: the npz.
        template: a state of the same structure; its values are not used.

    Returns:
        The state, and the JSON values and arrays stored with it.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: (a ValueError) the file is truncated, changed, or not a checkpoint.
        ValueError: it is of another schema, or does not fit the template; the message names file, field, and what was
            expected.
    """
    stored = read_npz(path, required=(_META,))
    meta = _described(path, stored.pop(_META))
    meta |= {name.removeprefix(_ARRAY): stored.pop(name) for name in list(stored) if name.startswith(_ARRAY)}
    named = _named(template)
    names = {name for name, _ in named}
    if names != set(stored):
        missing, extra = sorted(names - set(stored)), sorted(set(stored) - names)
        raise ValueError(
            f"{path}: does not fit this configuration; missing {missing[:3] or 'nothing'}, unexpected "
            f"{extra[:3] or 'nothing'}."
        )
    leaves = []
    for name, leaf in named:
        expected, got = _bits_like(leaf), stored[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise ValueError(
                f"{path}: {name} is {got.dtype}{list(got.shape)}, expected {expected.dtype}{list(expected.shape)}; the "
                "run was made with another configuration."
            )
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        leaves.append(jr.wrap_key_data(jnp.asarray(got), impl=jr.key_impl(leaf)) if key else jnp.asarray(got))
    dynamic, static = eqx.partition(template, eqx.is_array)
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static), meta


def load_meta(path: Path) -> dict[str, Any]:
    """Read the JSON values stored with a state, without the state; damage to its arrays may go unnoticed."""
    return _described(path, read_npz(path, required=(_META,), only=(_META,))[_META])


def write_text(path: Path, text: str) -> None:
    """Write a text file; `path` is replaced once the new file is whole."""
    with atomic_write(path) as file:
        file.write(text.encode())


def _described(path: Path, text: np.ndarray) -> dict[str, Any]:
    try:
        meta = parse_json(text.tobytes().decode())
        schema = meta.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{path}: its description is unreadable ({error}); it is damaged or foreign.") from error
    if schema != SCHEMA:
        raise ValueError(f"{path}: checkpoint schema {schema}, this version of flowrl reads schema {SCHEMA}.")
    return meta


def _named(state: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_array))
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _bits(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def _bits_like(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jr.key_data, leaf) if key else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
