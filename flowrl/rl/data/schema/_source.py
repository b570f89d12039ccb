"""What a source of offline data provides, so that `load` and `make_env` need not know any of them."""

import abc
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

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


@dataclasses.dataclass(frozen=True)
class Request:
    """What the caller of `load`, `generate` or `download` asked for, checked; the defaults of the data stand here."""

    data_dir: Path
    origin: Origin | None = None
    dataset_path: Path | None = None
    validation: float | None = None
    rows: int = 100_000
    val_rows: int = 10_000
    seed: int = 0
    workers: int | None = None
    mirrors: tuple[str, ...] = ()
    progress: Progress | None = None

    def __post_init__(self) -> None:
        lowest = {"rows": (self.rows, 1), "val_rows": (self.val_rows, 1), "seed": (self.seed, 0)}
        if self.workers is not None:
            lowest["workers"] = (self.workers, 1)
        for name, (value, least) in lowest.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}, expected an integer.")
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}.")
        check_origin(self.origin)
        if self.origin is not None and self.dataset_path is not None:
            raise ValueError(
                f"origin is {self.origin!r} and dataset_path is {str(self.dataset_path)!r}; give only one of the two."
            )
        if self.validation is not None and not (math.isfinite(self.validation) and 0 <= self.validation < 1):
            raise ValueError(f"validation is {self.validation}, expected a share of the trajectories in [0, 1).")


def check_origin(origin: Origin | None) -> None:
    """Raise a ValueError for a value that is not a valid origin."""
    if origin not in (None, "local", "published"):
        raise ValueError(f'origin is {origin!r}, expected "local" or "published".')


class AbstractSource(abc.ABC):
    """A family of data sets that are loaded and evaluated the same way.

    Names are checked by the registry before a source is called, so methods may trust a name of `env_names`; names that
    only begin with one of the prefixes they check themselves.
    """

    #: Every name that `load` and `make_env` accept, such as "puzzle-3x3-play-singletask-task1-v0".
    env_names: ClassVar[tuple[str, ...]] = ()
    #: Beginnings of names that are accepted without a list, such as "minari:".
    prefixes: ClassVar[tuple[str, ...]] = ()
    #: How policies are scored in all these environments.
    metric: ClassVar[Metric] = "return"

    @abc.abstractmethod
    def load(self, name: str, request: Request) -> OfflineDataset:
        """Load the data of an environment, making or downloading them first if that was asked for."""

    def check_env(self, name: str) -> None:  # noqa: B027  (most names are known from a list)
        """Refuse a name that only begins as it should, where that can be seen without making the environment."""

    @abc.abstractmethod
    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        """Make the environment in which policies are evaluated."""

    @abc.abstractmethod
    def reference_scores(self, name: str) -> ReferenceScores | None:
        """Return the reference scores of an environment, None where no one has published any."""


class AbstractLocalSource(AbstractSource):
    """A source whose data can be made on this machine."""

    #: Every name that `generate` accepts, such as "puzzle-3x3-play-v0".
    dataset_names: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def generate(self, name: str, request: Request) -> Path:
        """Make a data set unless it is there already; return the path of its npz."""


class AbstractPublishedSource(AbstractSource):
    """A source whose data others have published."""

    #: Every name that `download` accepts, beside those with a prefix.
    published_names: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def download(self, name: str, request: Request) -> Path:
        """Download a data set unless it is there already; return the path of its training file, or of its folder."""
