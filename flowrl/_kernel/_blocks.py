"""Matrices with one row a particle, by blocks of rows: memory is O(block · n), forward and in reverse mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ENTRIES = 2**21
"""About how many entries of an n × m matrix are held at a time (8 MB in float32)."""


def by_rows(function: Callable[..., Any], rows: Any, columns: int) -> Any:
    """Apply a function of some rows to all of them, a block at a time.

    Args:
        function: maps a PyTree of blocks (b, ...) to one of results (b, ...); row i of the result depends on row i.
        rows: PyTree of arrays (n, ...).
        columns: m, how many entries one row of the function's matrices has.
    """
    n = jax.tree.leaves(rows)[0].shape[0]
    block = max(1, ENTRIES // max(columns, 1))
    if n <= block:
        return function(rows)
    padding = -n % block

    def cut(x):
        # Padding repeats the last row: zeros could be where the function is not finite.
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))])
        return x.reshape(-1, block, *x.shape[1:])

    # Recomputed in reverse mode, since the saved matrices of all blocks together would be the n × m matrix.
    out = jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, rows))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)
