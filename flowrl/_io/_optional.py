"""Optional packages, and what to say when they are missing."""

import importlib

from flowrl import _distribution


def require(*modules: str, room: str, extra: str) -> None:
    """Make sure that optional packages can be imported.

    Args:
        modules: names, such as "ogbench".
        room: who needs them, such as "flowrl.rl.data".
        extra: the extra of the distribution that brings them.

    Raises:
        ImportError: naming the module and the extra.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"{room} needs {module} here, which could not be imported ({error}): {_distribution.install(extra)}",
                name=module,
            ) from error
