"""Makes OGBench data sets on this machine: seeded, in parallel, and resumable.

The episodes are independent (see `_episode.py`); how they become the two npz files that OGBench's loader reads is said
in `_local.py`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._io import _files
from flowrl.rl.data.generators._local import build, run_episodes
from flowrl.rl.data.generators._ogbench_episode import Collector
from flowrl.rl.data.generators._ogbench_recipes import RECIPES, Recipe
from flowrl.rl.data.schema import Progress

_SUCCESS_NOTE = "decided by the loader's environment; OGBench >= 1.2.0: 'pre', reward r(s)"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One episode to collect."""

    split: str
    index: int
    steps: int

    @property
    def shard(self) -> str:
        """The file name of the finished episode."""
        return f"{self.split}-{self.index:06d}-{self.steps}.npz"


def generate(
    name: str,
    data_dir: Path,
    /,
    *,
    rows: int,
    val_rows: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> Path:
    """Makes a data set unless it is there already; the arguments are those of `flowrl.rl.data.generate`."""
    return generate_recipe(
        name, RECIPES[name], data_dir, rows=rows, val_rows=val_rows, seed=seed, workers=workers, progress=progress
    )


def generate_recipe(
    name: str,
    recipe: Recipe,
    data_dir: Path,
    *,
    rows: int,
    val_rows: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> Path:
    """As `generate`, with the recipe given (tests shorten its episodes).

    Returns:
        The path of the training npz; the validation npz and the manifest are beside it.

    Raises:
        ImportError: if ogbench is missing and the data are not there yet.
        OSError: if the directory cannot be written to, or lacks the space.
        RuntimeError: if a worker died.
        ValueError: if the files there are damaged or were made by another recipe.
    """
    parameters = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del parameters["bytes_per_row"]  # an estimate; it does not shape the data

    def collect(shards: Path) -> Mapping[str, Iterable[dict[str, np.ndarray]]]:
        splits = {"train": _jobs("train", rows, recipe.steps), "val": _jobs("val", val_rows, recipe.steps)}
        jobs = [job for split in splits.values() for job in split]
        missing = [job for job in jobs if not (shards / job.shard).exists()]
        # The missing shards, and then the joined files beside all of them.
        needed = sum(job.steps + 1 for job in missing) + sum(job.steps + 1 for job in jobs)
        _files.check_space(shards.parent, needed * recipe.bytes_per_row)
        run_episodes(
            f"{__name__}:collector",
            {"name": name, "recipe": dataclasses.asdict(recipe), "seed": seed, "folder": str(shards)},
            [dataclasses.asdict(job) for job in missing],
            finished=len(jobs) - len(missing),
            workers=workers,
            progress=progress,
        )
        return {split: (_files.read_npz(shards / job.shard) for job in jobs) for split, jobs in splits.items()}

    return build(
        name,
        data_dir,
        rows=rows,
        val_rows=val_rows,
        seed=seed,
        parameters=parameters,
        success_timing=_SUCCESS_NOTE,
        packages=("gymnasium", "ogbench"),
        collect=collect,
    )


def collector(name: str, recipe: dict[str, Any], seed: int, folder: str) -> Callable[[str, int, int], None]:
    """Prepares a process for collecting episodes (see `_pool.run`).

    Args:
        name: data-set name.
        recipe: the fields of a `Recipe`, as JSON values.
        seed: the data set's seed.
        folder: where the shards go.

    Returns:
        A function of (split, index, steps) that collects one episode and writes its shard.
    """
    collect = Collector(name, Recipe(**{**recipe, "stack": tuple(recipe["stack"])})).episode

    def work(split: str, index: int, steps: int) -> None:
        arrays = collect(seed, split, index, steps)
        # Not compressed: a shard lives until the last episode is done.
        _files.write_npz(Path(folder) / _Job(split, index, steps).shard, arrays, compress=False)

    return work


def _jobs(split: str, rows: int, steps: int) -> list[_Job]:
    """Cuts a number of transitions into episodes of full length and, if it does not divide, a shorter last one."""
    return [_Job(split, index, min(steps, rows - start)) for index, start in enumerate(range(0, rows, steps))]
