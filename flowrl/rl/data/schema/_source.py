"""What a source of offline data has to provide, so that `load` and `make_env` need not know any of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from flowrl.rl.data.schema._schema import OfflineDataset
from flowrl.rl.data.schema._scores import ReferenceScores
from flowrl.rl.envs import Environment

Progress = Callable[[int, int], object]
"""Called as `progress(done, total)`: episodes while data are made, bytes while a file is downloaded (`total` is 0 if
the server does not say). The library itself never prints."""

Origin = Literal["local", "published"]
"""Where data come from: made on this machine, or the files that a benchmark's authors have published."""

Metric = Literal["success", "return"]
"""How a policy is scored in an environment: fraction of solved episodes, or undiscounted sum of rewards."""


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


@dataclasses.dataclass(frozen=True)
class Request:
    """What `load` was asked for, beside the name.

    Attributes:
        data_dir: the folder of all data sets.
        origin: which data; None leaves it to the source, which never downloads unasked.
        dataset_path: a file of the user's, to be loaded instead.
        validation: share of the trajectories to hold out, where the data have no validation split of their own; None
            means the default.
        rows: training transitions to generate.
        val_rows: validation transitions to generate.
        seed: of what is generated, and of the choice of what is held out.
        workers: processes; None means one per core.
        progress: told how far it is.
    """

    data_dir: Path
    origin: Origin | None = None
    dataset_path: Path | None = None
    validation: float | None = None
    rows: int = 100_000
    val_rows: int = 10_000
    seed: int = 0
    workers: int | None = None
    progress: Progress | None = None


@runtime_checkable
class LoadFn(Protocol):
    """Loads the data set behind an environment name, generating or downloading it first if that was asked for."""

    def __call__(self, name: str, request: Request, /) -> OfflineDataset: ...


@runtime_checkable
class DownloadFn(Protocol):
    """Downloads a published data set and returns the path of its training file, or of its folder."""

    def __call__(
        self, name: str, data_dir: Path, /, *, mirrors: tuple[str, ...], progress: Progress | None
    ) -> Path: ...


@runtime_checkable
class ReferenceScoresFn(Protocol):
    """Gives the reference scores of an environment name, if there are any."""

    def __call__(self, name: str, /) -> ReferenceScores | None: ...


def no_reference(name: str, /) -> ReferenceScores | None:  # noqa: ARG001
    """No one has published reference scores for these environments."""
    return None


@runtime_checkable
class MakeEnvFn(Protocol):
    """Makes the environment a policy is evaluated in."""

    def __call__(self, name: str, /, *, seed: int | None, render: bool) -> Environment: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """A family of data sets that are made, loaded and evaluated the same way.

    A module that adds a family exposes `SOURCES: dict[str, Source]` (key: the family's name); `_load.py` merges them.
    Names are checked by the registry before a source is called, so its functions may trust them; names that only begin
    with one of the prefixes they check themselves.

    Attributes:
        env_names: every name `load` and `make_env` accept, such as "puzzle-3x3-play-singletask-task1-v0".
        metric: how policies are scored in all these environments.
        load: what `flowrl.rl.data.load` calls.
        make_env: what `flowrl.rl.data.make_env` calls.
        prefixes: beginnings of names that this source accepts without a list, such as "minari:".
        dataset_names: every name `generate` accepts, such as "puzzle-3x3-play-v0".
        generate: makes a data set on this machine; what `flowrl.rl.data.generate` calls.
        published_names: every name `download` accepts, beside those with a prefix.
        download: what `flowrl.rl.data.download` calls.
        reference: what `flowrl.rl.data.reference` calls.
    """

    env_names: tuple[str, ...]
    metric: Metric
    load: LoadFn
    make_env: MakeEnvFn
    prefixes: tuple[str, ...] = ()
    dataset_names: tuple[str, ...] = ()
    generate: GenerateFn | None = None
    published_names: tuple[str, ...] = ()
    download: DownloadFn | None = None
    reference: ReferenceScoresFn = no_reference
