"""Makes OGBench data sets on this machine: seeded, in parallel, and resumable.

The episodes are independent (see `_episode.py`). Each becomes a shard file when it is finished; when all are there,
they are joined, in their own order, into the two npz files OGBench's loader reads. A generation that was killed goes on
from its shards, and its files have the same bytes as those of one that was not.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.rl.data import _store
from flowrl.rl.data._episode import Collector
from flowrl.rl.data._extras import require
from flowrl.rl.data._pool import run
from flowrl.rl.data._recipes import RECIPES, Recipe
from flowrl.rl.data._source import Progress

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
    folder = data_dir / name / f"local-rows{rows}-val{val_rows}-seed{seed}"
    path = folder / f"{name}.npz"
    parameters = json.loads(json.dumps(dataclasses.asdict(recipe)))
    del parameters["bytes_per_row"]  # an estimate; it does not shape the data
    # First without the lock: data that are complete can be used from a read-only directory.
    if not _present(folder, name, seed, rows, val_rows, parameters):
        require("gymnasium", "ogbench")
        _store.make_dir(folder)
        with _store.lock(folder / ".lock"):
            # Another process may have made them while this one waited.
            if not _present(folder, name, seed, rows, val_rows, parameters):
                _make(folder, name, recipe, parameters, rows, val_rows, seed, workers, progress)
    return path


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
        _store.write_npz(Path(folder) / _Job(split, index, steps).shard, arrays, compress=False)

    return work


def _present(folder: Path, name: str, seed: int, rows: int, val_rows: int, parameters: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this data set, complete and undamaged."""
    manifest = _store.read_manifest(folder)
    if manifest is None:
        return False
    wanted = {"name": name, "seed": seed, "rows": rows, "val_rows": val_rows, "parameters": parameters}
    for field, value in wanted.items():
        found = getattr(manifest, field)
        if found != value:
            raise ValueError(
                f"{folder / _store.MANIFEST_NAME}: {field} is {found}, expected {value}: the data were made by another "
                "recipe. Delete the folder to make them again, or choose another data_dir."
            )
    _store.verify(folder, manifest)
    return True


def _make(
    folder: Path,
    name: str,
    recipe: Recipe,
    parameters: dict[str, Any],
    rows: int,
    val_rows: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Collects what is missing and joins it; called with the folder's lock held."""
    versions = _store.versions()
    # Shards of another simulator version or recipe must not be mixed with new ones, so each combination has its folder.
    key = hashlib.sha256(json.dumps([parameters, versions], sort_keys=True).encode()).hexdigest()[:12]
    shards = folder / f".shards-{key}"
    _store.make_dir(shards)
    splits = {"train": _jobs("train", rows, recipe.steps), "val": _jobs("val", val_rows, recipe.steps)}
    jobs = [job for split in splits.values() for job in split]
    missing = [job for job in jobs if not (shards / job.shard).exists()]
    # The missing shards, and then the joined files beside all of them.
    needed = sum(job.steps + 1 for job in missing) + sum(job.steps + 1 for job in jobs)
    _store.check_space(folder, needed * recipe.bytes_per_row)

    finished = len(jobs) - len(missing)

    def report() -> None:
        nonlocal finished
        finished += 1
        if progress is not None:
            progress(finished, len(jobs))

    if progress is not None:
        progress(finished, len(jobs))
    arguments = {"name": name, "recipe": dataclasses.asdict(recipe), "seed": seed, "folder": str(shards)}
    run(
        f"{__name__}:collector",
        arguments,
        [dataclasses.asdict(job) for job in missing],
        workers or os.cpu_count() or 1,
        report,
    )

    files: dict[str, str] = {}
    for file, split in ((f"{name}.npz", "train"), (f"{name}-val.npz", "val")):
        parts = [_store.read_npz(shards / job.shard) for job in splits[split]]
        _store.write_npz(folder / file, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        files[file] = _store.sha256_file(folder / file)
    _store.write_manifest(
        folder,
        _store.Manifest(
            name=name,
            seed=seed,
            rows=rows,
            val_rows=val_rows,
            parameters=parameters,
            versions=versions,
            success_timing=_SUCCESS_NOTE,
            files=files,
        ),
    )
    for leftover in folder.glob(".shards-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _jobs(split: str, rows: int, steps: int) -> list[_Job]:
    """Cuts a number of transitions into episodes of full length and, if it does not divide, a shorter last one."""
    return [_Job(split, index, min(steps, rows - start)) for index, start in enumerate(range(0, rows, steps))]
