"""Programs run on some prompts at a time, and timed without compilation."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowrl.scripts.align._task import Batch

_PART = 50  # prompts of one program


class Parts:
    """Run programs on some prompts at a time, so that validation and test share one, and time them when compiled."""

    def __init__(self) -> None:
        self._known: set[Any] = set()

    def __call__(self, name: Any, batch: Batch, program: Callable[[Any, int], Any]) -> tuple[Any, float]:
        """Run a program on all prompts; return its leaves joined along the prompts, and seconds without compilation."""
        # Programs of one name are compiled once. `program` takes some prompts and the number of their part.
        size, rows = min(_PART, len(batch.texts)), np.arange(len(batch.texts))
        parts = [np.resize(rows[i : i + size], size) for i in range(0, len(rows), size)]
        if (name, size) not in self._known:
            jax.block_until_ready(program(batch.take(parts[0]).prompt, 0))
            self._known.add((name, size))
        begun = time.perf_counter()
        done = [program(batch.take(part).prompt, i) for i, part in enumerate(parts)]
        leaves = jax.tree.map(lambda *xs: np.asarray(jnp.concatenate(xs))[: len(rows)], *done)
        return leaves, time.perf_counter() - begun
