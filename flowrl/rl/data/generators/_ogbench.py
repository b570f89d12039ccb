"""OGBench data sets made on this machine: seeded, in parallel, and resumable.

The episodes are independent (see `_ogbench_episode.py`); `_local.py` joins them into the two npz files that OGBench's
loader reads.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._io import check_space, read_npz, write_npz
from flowrl.rl.data.generators._local import build, run_episodes
from flowrl.rl.data.generators._ogbench_episode import Collector
from flowrl.rl.data.generators._ogbench_recipes import RECIPES, Recipe
from flowrl.rl.data.schema import Request

_SUCCESS_NOTE = "decided by the loader's environment; OGBench >= 1.2.0: 'pre', reward r(s)"


@dataclasses.dataclass(frozen=True)
class _Job:
    """One episode to collect."""

    split: str
    index: int
    steps: int

    @property
    def shard(self) -> str:
        """Return the file name of the finished episode."""
        return f"{self.split}-{self.index:06d}-{self.steps}.npz"


def generate_ogbench(name: str, request: Request) -> Path:
    """Make a data set unless it is there already."""
    return generate_recipe(name, RECIPES[name], request)


def generate_recipe(name: str, recipe: Recipe, request: Request) -> Path:
    """Make a data set by a recipe of its own (tests shorten its episodes)."""
    parameters = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del parameters["bytes_per_row"]  # an estimate; it does not shape the data

    def collect(shards: Path) -> Mapping[str, Iterable[dict[str, np.ndarray]]]:
        splits = {
            "train": _jobs("train", request.rows, recipe.steps),
            "val": _jobs("val", request.val_rows, recipe.steps),
        }
        jobs = [job for split in splits.values() for job in split]
        missing = [job for job in jobs if not (shards / job.shard).exists()]
        # The missing shards, and then the joined files beside all of them.
        needed = sum(job.steps + 1 for job in missing) + sum(job.steps + 1 for job in jobs)
        check_space(shards.parent, needed * recipe.bytes_per_row)
        run_episodes(
            f"{__name__}:collector",
            {"name": name, "recipe": dataclasses.asdict(recipe), "seed": request.seed, "folder": str(shards)},
            [dataclasses.asdict(job) for job in missing],
            request,
            finished=len(jobs) - len(missing),
        )
        return {split: (read_npz(shards / job.shard) for job in jobs) for split, jobs in splits.items()}

    return build(
        name,
        request,
        parameters=parameters,
        success_timing=_SUCCESS_NOTE,
        packages=("gymnasium", "ogbench"),
        collect=collect,
    )


def collector(name: str, recipe: dict[str, Any], seed: int, folder: str) -> Callable[[str, int, int], None]:
    """Return the function that collects one episode in a worker process (see `run`) and writes its shard."""
    collect = Collector(name, Recipe(**{**recipe, "stack": tuple(recipe["stack"])})).episode

    def work(split: str, index: int, steps: int) -> None:
        arrays = collect(seed, split, index, steps)
        # Not compressed: a shard lives until the last episode is done.
        write_npz(Path(folder) / _Job(split, index, steps).shard, arrays, compress=False)

    return work


def _jobs(split: str, rows: int, steps: int) -> list[_Job]:
    """Cut a number of transitions into episodes of full length and, if it does not divide, a shorter last one."""
    return [_Job(split, index, min(steps, rows - start)) for index, start in enumerate(range(0, rows, steps))]
