"""The optional packages of this room, and what to say when they are missing."""

import contextlib
import importlib
import io
from typing import Any


def require(*modules: str) -> None:
    """Makes sure that optional packages can be imported.

    Args:
        modules: names, such as "ogbench".

    Raises:
        ImportError: naming the module and the extra that brings it.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"flowrl.rl.data needs {module} here, which could not be imported ({error}): "
                'pip install "flowrl-transport[rl]"',
                name=module,
            ) from error


def robotics() -> Any:
    """Imports gymnasium-robotics, without the notice that it prints about environments which are not used here."""
    with contextlib.redirect_stderr(io.StringIO()):
        require("gymnasium_robotics")
    return importlib.import_module("gymnasium_robotics")
