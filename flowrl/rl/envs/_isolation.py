"""Keeps the simulators' side effects (NumPy's global generator, warnings, log files) away from the caller."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

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
    """Drops two remarks that say nothing about the data, and that every user would see.

    Gymnasium's, at every environment made, that float64 limits become float32; and the window library's, which MuJoCo
    brings in, that there is no display.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing", category=UserWarning)
        yield


@contextlib.contextmanager
def simulator_log_off() -> Iterator[None]:
    """Keeps MuJoCo's log off the terminal, and `MUJOCO_LOG.TXT` out of the user's working directory.

    MuJoCo >= 4 remarks that gymnasium's walker models use a deprecated attribute. It says nothing about the results.
    """
    config: Any = None  # older versions have no such settings, and no such remark
    with contextlib.suppress(ImportError):
        import mujoco

        config = getattr(mujoco, "MjLogConfig", None)
    if config is None:
        yield
        return
    before, silent = config.get(), config.get()
    silent.logto_console = silent.logto_file = False
    silent.set()
    try:
        yield
    finally:
        before.set()
