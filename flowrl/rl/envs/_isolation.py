"""Keeps the simulators' side effects (NumPy's global generator, warnings, log files) away from the caller."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowrl._distribution import require


@contextlib.contextmanager
def own_global_state() -> Iterator[None]:
    """Restore NumPy's global generator afterwards; OGBench draws from it."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop two warnings that every user would see and that say nothing about the data."""
    with warnings.catch_warnings():
        # Gymnasium's, at every environment made, and that of the window library which MuJoCo brings in.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing", category=UserWarning)
        yield


@contextlib.contextmanager
def simulator_log_off() -> Iterator[None]:
    """Keep MuJoCo's log off the terminal, and `MUJOCO_LOG.TXT` out of the user's working directory."""
    # MuJoCo >= 4 remarks that gymnasium's walker models use a deprecated attribute; it does not change the results.
    config: Any = None  # older versions have no such setting and no such remark
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


def robotics() -> Any:
    """Import gymnasium-robotics, without the notice that it prints about environments that are not used here."""
    with contextlib.redirect_stderr(io.StringIO()):
        require("gymnasium_robotics", extra="rl")
    return importlib.import_module("gymnasium_robotics")
