"""Keeps the simulators' side effects (NumPy's global generator, one warning) away from the caller."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def own_global_state() -> Iterator[None]:
    """Gives NumPy's global generator back as it was; OGBench draws from it."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops gymnasium's remark, at every environment made, that float64 limits become float32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        yield
