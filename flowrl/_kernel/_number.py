"""Numbers that a user gives to a kernel: checked while concrete, then arrays, so that new ones never retrace."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowrl._misc import concrete


def number(name: str, x: Any, ok: Callable[[np.ndarray], Any], expected: str) -> Array:
    """Give the number as an array.

    Args:
        name: what it is called in the message.
        x: the number.
        ok: whether a concrete value is in its range.
        expected: the range in words.

    Raises:
        TypeError: x is no real number.
        ValueError: x is not one number, or a concrete one is out of its range.
    """
    try:
        array = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {x!r}.") from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got {x!r}.")
    if array.ndim != 0:
        raise ValueError(f"{name} must be one number, got shape {array.shape}.")
    value = concrete(x)
    if value is not None and not ok(value):
        raise ValueError(f"{name} must be {expected}, got {value}.")
    return array.astype(jnp.result_type(float))
