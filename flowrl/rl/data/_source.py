"""What a source of offline data has to provide, so that `load` and `make_env` need not know any of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from flowrl.rl.data._schema import OfflineDataset

Progress = Callable[[int, int], object]
"""Called as `progress(done_episodes, total_episodes)`; the library itself never prints."""

Metric = Literal["success", "return"]
"""How a policy is scored in an environment: fraction of solved episodes, or undiscounted sum of rewards."""


@runtime_checkable
class Environment(Protocol):
    """The part of `gymnasium.Env` that flowrl uses (so that gymnasium itself stays an optional dependency)."""

    @property
    def observation_space(self) -> Any:
        """The `gymnasium.spaces.Box` of observations."""
        ...

    @property
    def action_space(self) -> Any:
        """The `gymnasium.spaces.Box` of actions."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: of the episode; None goes on from the environment's own random state.
            options: as the environment defines them.

        Returns:
            The first observation (obs,) and an information dictionary.
        """
        ...

    def step(self, action: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one step.

        Args:
            action: (act,), within `action_space`.

        Returns:
            The next observation (obs,), reward, terminated (a true end), truncated (a time limit), and an information
            dictionary.
        """
        ...

    def close(self) -> None:
        """Frees what the environment holds."""
        ...


@runtime_checkable
class GenerateFn(Protocol):
    """Makes a data set on this machine and returns the path of its npz."""

    def __call__(
        self,
        name: str,
        data_dir: Path,
        /,
        *,
        rows: int,
        val_rows: int,
        seed: int,
        workers: int | None,
        progress: Progress | None,
    ) -> Path: ...


@runtime_checkable
class LoadFn(Protocol):
    """Loads the data set behind an environment name, generating it first if it is missing."""

    def __call__(
        self,
        name: str,
        data_dir: Path,
        /,
        *,
        rows: int,
        val_rows: int,
        seed: int,
        workers: int | None,
        progress: Progress | None,
        dataset_path: Path | None,
    ) -> OfflineDataset: ...


@runtime_checkable
class MakeEnvFn(Protocol):
    """Makes the environment a policy is evaluated in."""

    def __call__(self, name: str, /, *, seed: int | None) -> Environment: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A family of data sets that are made, loaded and evaluated the same way.

    A module that adds a family exposes `SOURCES: dict[str, Source]` (key: the family's name); `_load.py` merges them.
    Names are checked by the registry before a source is called, so its functions may trust them.

    Attributes:
        env_names: every name `load` and `make_env` accept, such as "puzzle-3x3-play-singletask-task1-v0".
        dataset_names: every name `generate` accepts, such as "puzzle-3x3-play-v0".
        metric: how policies are scored in all these environments.
        generate: makes a data set on this machine; what `flowrl.rl.data.generate` calls.
        load: what `flowrl.rl.data.load` calls.
        make_env: what `flowrl.rl.data.make_env` calls.
    """

    env_names: tuple[str, ...]
    dataset_names: tuple[str, ...]
    metric: Metric
    generate: GenerateFn
    load: LoadFn
    make_env: MakeEnvFn
