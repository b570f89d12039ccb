"""Optional packages, and the message when they are missing."""

import importlib

from flowrl import _distribution


def require(*modules: str, extra: str) -> None:
    """Raise an ImportError that names the module and the pip command, unless all can be imported.

    Args:
        modules: names such as "ogbench".
        extra: the extra of the distribution that brings them, such as "rl"; several as "rl,examples".
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"{module} is needed here and could not be imported ({error}): {_distribution.install(extra)}",
                name=module,
            ) from error
