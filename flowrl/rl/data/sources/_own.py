"""A user's own environments, "gym:ID" and "factory:module:function", and files of theirs for them."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowrl.rl.data.schema import AbstractSource, OfflineDataset, ReferenceScores, Request
from flowrl.rl.data.sources._arrays import EnvironmentForm, dataset_from_file, read_file
from flowrl.rl.envs import Environment, adapt, check_registered, drawing, make, render_mode

EnvFactory = Callable[[], Any]
"""Makes a gymnasium environment; defined at the top level of a module, so that worker processes can import it."""

_GYM, _FACTORY = "gym:", "factory:"


class Own(AbstractSource):
    """Environments by "gym:ID" and "factory:module:function"."""

    prefixes = (_GYM, _FACTORY)

    def load(self, name: str, request: Request) -> OfflineDataset:
        path = request.dataset_path
        if path is None:
            raise ValueError(f"{name}: no one has published data for it; give the path of yours as dataset_path.")
        arrays, held_out = read_file(path, request.validation)
        form = EnvironmentForm.of(self.make_env(name, seed=None, render=False), name)
        return dataset_from_file(path, arrays, form, held_out, seed=request.seed)

    def check_env(self, name: str) -> None:
        if name.startswith(_GYM):
            check_registered(name.removeprefix(_GYM))
        else:
            _factory(name)

    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        if name.startswith(_GYM):
            return make(name.removeprefix(_GYM), seed=seed, **render_mode(render))
        return drawing(adapt(_factory(name)(), name, seed=seed), name, render=render)

    def reference_scores(self, name: str) -> ReferenceScores | None:  # noqa: ARG002
        return None


def name_of(env: str | EnvFactory) -> str:
    """Return the name by which another process can make an environment too.

    Args:
        env: a name, returned as it is, or a function at the top level of a module.

    Raises:
        ValueError: the function cannot be imported by name.
    """
    if isinstance(env, str):
        return env
    module, function = getattr(env, "__module__", None) or "", getattr(env, "__qualname__", "")
    if module == "__main__":
        # A script is a module too, whose guard `if __name__ == "__main__"` keeps it from running once more.
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec else Path(getattr(main, "__file__", None) or "").stem
    if not (module and function.isidentifier()):
        raise ValueError(
            f"{env!r} cannot be made by another process: give a function at the top level of a module or script "
            '(guarded by `if __name__ == "__main__"`), or register the environment and give "gym:ID".'
        )
    return f"{_FACTORY}{module}:{function}"


def _factory(name: str) -> EnvFactory:
    """Return the function behind "factory:module:function"."""
    module, _, function = name.removeprefix(_FACTORY).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: there is no such function ({error}); expected factory:module:function.") from error
    if not callable(found):
        raise ValueError(f"{name}: {function} is not a function.")
    return found
