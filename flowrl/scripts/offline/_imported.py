"""The user's own parts by their import path, MODULE:CLASS, and critics by name."""

import difflib
import importlib
import inspect
import os
from typing import Any

from flowrl.rl import AbstractCriticModel, Histogram, ScalarCritic
from flowrl.scripts._cli import search_here


def imported(option: str, path: str, base: type) -> type[Any]:
    """Import a class of the user's; modules of the current directory can be named.

    Raises:
        ValueError: there is none, it cannot be imported, or it is not a whole class derived from `base`.
    """
    module_name, _, name = path.partition(":")
    search_here()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{option} {path}: {module_name} needs {error.name}, which is not installed.") from error
        raise ValueError(
            f"{option} {path}: there is no module {error.name}, neither installed nor in {os.getcwd()}."
        ) from error
    except Exception as error:
        raise ValueError(f"{option} {path}: {module_name} fails: {type(error).__name__}: {error}") from error
    kind = getattr(module, name, None)
    if kind is None:
        near = difflib.get_close_matches(name, vars(module), n=3)
        raise ValueError(
            f"{option} {path}: {module_name} has no {name or 'empty name'}"
            + (f"; did you mean {', '.join(near)}?" if near else "; name a class that it defines.")
        )
    if not (inspect.isclass(kind) and issubclass(kind, base)):
        raise ValueError(f"{option} {path}: {name} is not a class derived from flowrl.rl.{base.__name__}.")
    lacking = sorted(kind.__abstractmethods__ | getattr(kind, "__abstractvars__", frozenset()))  # pyright: ignore
    if lacking:
        raise ValueError(f"{option} {path}: {name} lacks {', '.join(lacking)} of {base.__name__}; define them.")
    return kind


def names_code(critic: str) -> bool:
    """Whether a critic of this name is imported."""
    return ":" in critic and not critic.startswith("histogram:")


def critic_model(text: str) -> AbstractCriticModel:
    """Return the critic of a name on the command line: scalar, histogram:LOW:HIGH, or the user's MODULE:CLASS.

    Raises:
        ValueError: it is none of these.
    """
    if names_code(text):
        try:
            return imported("--critic", text, AbstractCriticModel)()
        except TypeError as error:
            raise ValueError(f"--critic {text} is created without arguments: give its fields defaults.") from error
    if text == "scalar":
        return ScalarCritic()
    try:
        _, low, high = text.split(":")
        return Histogram(float(low), float(high))
    except ValueError as error:
        raise ValueError(
            f"--critic {text}: scalar, histogram:LOW:HIGH with the range of returns, such as histogram:-100:0, or "
            "MODULE:CLASS of your own."
        ) from error
