"""The optional packages of this room, and what to say when they are missing."""

import importlib


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
