"""A data set made on this machine: its folder, its shards, and what is known of it afterwards.

What the families have in common. Each finished episode is a shard file; when all are there they are joined, in their
own order, into two npz files. A generation that was killed goes on from its shards, and its files have the same bytes
as those of one that was not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._io import _files
from flowrl.rl.data.files import _store, is_published
from flowrl.rl.data.schema import DataInfo, Metric, Progress
from flowrl.rl.envs import Values, require, run

#: Given the folder of the shards, makes those that are missing; then the shards' arrays in order, by split.
Collect = Callable[[Path], Mapping[str, Iterable[dict[str, np.ndarray]]]]


def build(
    name: str,
    data_dir: Path,
    *,
    rows: int,
    val_rows: int,
    seed: int,
    parameters: dict[str, Any],
    success_timing: str | None,
    packages: Sequence[str],
    collect: Collect,
) -> Path:
    """Makes a data set unless it is there already.

    Args:
        name: of the data set.
        data_dir: the folder of all data sets.
        rows: training transitions.
        val_rows: validation transitions.
        seed: of the data.
        parameters: everything else that shapes the data, as JSON values.
        success_timing: for the manifest.
        packages: optional packages that collecting needs.
        collect: makes the missing shards of "train" and "val", and gives all of them; called with the folder locked.

    Returns:
        The path of the training npz; the validation npz and the manifest are beside it.

    Raises:
        ImportError: if a package is missing and the data are not there yet.
        OSError: if the directory cannot be written to, or lacks the space.
        ValueError: if the files there are damaged or were made with other parameters.
    """
    folder = data_dir / name / f"local-rows{rows}-val{val_rows}-seed{seed}"
    path = folder / f"{name}.npz"
    wanted = {"name": name, "seed": seed, "rows": rows, "val_rows": val_rows, "parameters": parameters}
    # First without the lock: data that are complete can be used from a read-only directory.
    if _store.is_complete(folder, wanted):
        _remove_shards(folder)  # there are some if the process that made the data was killed at the very end
        return path
    require(*packages)
    _files.make_dir(folder)
    with _files.lock(folder / ".lock"):
        # Another process may have made them while this one waited.
        if _store.is_complete(folder, wanted):
            return path
        versions = _store.versions()
        # Shards of another simulator or recipe must not be mixed with new ones, so each combination has its folder.
        key = hashlib.sha256(json.dumps([parameters, versions], sort_keys=True).encode()).hexdigest()[:12]
        shards = folder / f".shards-{key}"
        _files.make_dir(shards)
        _files.remove_halves(folder)
        _files.remove_halves(shards)
        splits = collect(shards)
        files: dict[str, str] = {}
        for file, split in ((path, "train"), (_store.validation_path(path), "val")):
            parts = list(splits[split])
            _files.write_npz(file, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
            files[file.name] = _files.sha256_file(file)
        manifest = _store.Manifest(versions=versions, success_timing=success_timing, files=files, **wanted)
        _store.write_manifest(folder, manifest)
        _remove_shards(folder)
    return path


def _remove_shards(folder: Path) -> None:
    """Removes the episodes of a data set that is complete."""
    for leftover in folder.glob(".shards-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def run_episodes(
    factory: str,
    arguments: Values,
    jobs: Sequence[Values],
    *,
    finished: int,
    workers: int | None,
    progress: Progress | None,
) -> None:
    """Collects episodes as `_pool.run` does, and says how far it is.

    Args:
        factory: as for `_pool.run`.
        arguments: as for `_pool.run`.
        jobs: the episodes that are missing.
        finished: how many are there already.
        workers: number of processes; None means one per core.
        progress: told at the start, and after every episode.
    """
    total = finished + len(jobs)

    def report(new: int) -> None:
        nonlocal finished
        finished += new
        if progress is not None:
            progress(finished, total)

    report(0)
    run(factory, arguments, jobs, workers or os.cpu_count() or 1, lambda: report(1))


def describe(path: Path, name: str, env_id: str, *, rows: int, success_timing: str | None, metric: Metric) -> DataInfo:
    """What is known about where a file came from.

    Args:
        path: the training npz: one that `build` made, or the user's.
        name: as given to `load`.
        env_id: gymnasium id of the evaluation environment.
        rows: training transitions.
        success_timing: see `DataInfo`.
        metric: see `DataInfo`.

    Returns:
        The information; "local" if a manifest beside the file vouches for it, "published" if a download does.
    """
    sha256 = _files.sha256_file(path)
    manifest = _store.read_manifest(path.parent)
    # Also a path given by the user may be one of ours: the checksum says so.
    ours = manifest if manifest is not None and manifest.files.get(path.name) == sha256 else None
    label = "local" if ours is not None else "published" if is_published(path, sha256) else "file"
    return DataInfo(
        name=name,
        env_id=env_id,
        label=label,
        sha256=sha256,
        versions=_store.versions() if ours is None else ours.versions,
        success_timing=success_timing,
        seed=None if ours is None else ours.seed,
        rows=rows,
        metric=metric,
    )
