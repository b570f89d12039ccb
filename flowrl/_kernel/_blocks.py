"""Matrices with one row per particle, by blocks of rows: memory is O(block · n), forward and in reverse mode."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowrl._misc import varying_as

ENTRIES = 2**21
"""About how many entries of an n × m matrix are held at a time on a CPU (8 MB in float32)."""

ON_ACCELERATORS = 32
"""Times as many on accelerators (256 MB): caches play no part, and each tile is a few launches."""


def _entries() -> int:
    return ENTRIES if jax.default_backend() == "cpu" else ENTRIES * ON_ACCELERATORS


def by_rows(function: Callable[..., Any], rows: Any, columns: int) -> Any:
    """Apply `function` to blocks of rows, leaves (n, ...); its matrices have `columns` entries per row."""
    block = max(1, _entries() // max(columns, 1))
    return function(rows) if _length(rows) <= block else _mapped(function, rows, block)


def by_tiles(function: Callable[..., Any], rows: Any, columns: Any) -> Any:
    """Sum `function(rows, columns)` over tiles of columns, leaves (m, ...); columns of zeros add nothing."""
    if _length(rows) * _length(columns) <= _entries():
        return function(rows, columns)
    height, width = _side(_length(rows)), _side(_length(columns))
    tiles = jax.tree.map(lambda x: _cut(x, width, jnp.zeros_like(x[-1:])), columns)

    def summed(block: Any) -> Any:
        def add(total: Any, tile: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, function(block, tile)), None

        shapes = jax.eval_shape(function, block, jax.tree.map(lambda x: x[0], tiles))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(jax.checkpoint(add), varying_as(zeros, block, tiles), tiles)[0]

    return summed(rows) if _length(rows) <= height else _mapped(summed, rows, height)


def _mapped(function: Callable[..., Any], rows: Any, block: int) -> Any:
    # Padding repeats the last row: zeros could be where the function is not finite.
    blocks = jax.tree.map(lambda x: _cut(x, block, x[-1:]), rows)
    # Recomputed in reverse mode, since the saved matrices of all blocks together would be the n × m matrix.
    out = jax.lax.map(jax.checkpoint(function), blocks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: _length(rows)], out)


def _cut(x: Array, block: int, padding: Array) -> Array:
    x = jnp.concatenate([x, jnp.broadcast_to(padding, (-x.shape[0] % block, *x.shape[1:]))])
    return x.reshape(-1, block, *x.shape[1:])


def _side(length: int) -> int:
    # A tile has half of the entries: large enough for matrix products, small enough to stay in a cache.
    most = max(1, math.isqrt(_entries() // 2))
    # Evenly, so that little is padded.
    return -(-length // -(-length // most))


def _length(rows: Any) -> int:
    return jax.tree.leaves(rows)[0].shape[0]
