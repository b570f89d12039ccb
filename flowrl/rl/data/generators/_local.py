"""What data sets made on this machine have in common: a folder, shards, a description afterwards.

Each finished episode is a shard file; when all are there they are joined, in their own order, into two npz files. A
generation that was killed goes on from its shards, and its files have the same bytes as those of one that was not.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl._io import lock, make_dir, remove_halves, sha256_file, write_npz
from flowrl.rl.data.files import (
    Manifest,
    is_complete,
    is_published,
    read_manifest,
    validation_path,
    versions,
    write_manifest,
)
from flowrl.rl.data.schema import DataInfo, Metric, Request
from flowrl.rl.envs import Values, run

#: Given the folder of the shards, makes those that are missing; then the shards' arrays in order, by split.
Collect = Callable[[Path], Mapping[str, Iterable[dict[str, np.ndarray]]]]


def build(
    name: str,
    request: Request,
    *,
    parameters: dict[str, Any],
    success_timing: str | None,
    packages: Sequence[str],
    collect: Collect,
) -> Path:
    """Make a data set unless it is there already; return the path of the training npz.

    Args:
        name: of the data set.
        request: rows, seed and folder.
        parameters: everything else that shapes the data, as JSON values.
        success_timing: for the manifest.
        packages: optional packages that collecting needs; required only if it has to be done.
        collect: called with the folder locked.
    """
    rows, val_rows, seed = request.rows, request.val_rows, request.seed
    folder = request.data_dir / name / f"local-rows{rows}-val{val_rows}-seed{seed}"
    path = folder / f"{name}.npz"
    wanted = {"name": name, "seed": seed, "rows": rows, "val_rows": val_rows, "parameters": parameters}
    # First without the lock: data that are complete can be used from a read-only directory.
    if is_complete(folder, wanted):
        _remove_shards(folder)  # there are some if the process that made the data was killed at the very end
        return path
    require(*packages, extra="rl")
    make_dir(folder)
    with lock(folder / ".lock"):
        # Another process may have made them while this one waited.
        if is_complete(folder, wanted):
            return path
        installed = versions()
        # Shards of another simulator or recipe must not be mixed with new ones, so each combination has its folder.
        key = hashlib.sha256(json.dumps([parameters, installed], sort_keys=True).encode()).hexdigest()[:12]
        shards = folder / f".shards-{key}"
        make_dir(shards)
        remove_halves(folder)
        remove_halves(shards)
        splits = collect(shards)
        files: dict[str, str] = {}
        for file, split in ((path, "train"), (validation_path(path), "val")):
            parts = list(splits[split])
            write_npz(file, {key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
            files[file.name] = sha256_file(file)
        manifest = Manifest(versions=installed, success_timing=success_timing, files=files, **wanted)
        write_manifest(folder, manifest)
        _remove_shards(folder)
    return path


def _remove_shards(folder: Path) -> None:
    """Remove the episodes of a data set that is complete."""
    for leftover in folder.glob(".shards-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def run_episodes(factory: str, arguments: Values, jobs: Sequence[Values], request: Request, *, finished: int) -> None:
    """Collect the missing episodes as `run` does, and report progress; `finished` are there already."""
    total = finished + len(jobs)

    def report(new: int) -> None:
        nonlocal finished
        finished += new
        if request.progress is not None:
            request.progress(finished, total)

    report(0)
    run(factory, arguments, jobs, request.workers or os.cpu_count() or 1, lambda: report(1))


def describe(path: Path, name: str, env_id: str, *, rows: int, success_timing: str | None, metric: Metric) -> DataInfo:
    """Describe a file: "local" if a manifest beside it vouches for it, "published" if a download does, else "file"."""
    sha256 = sha256_file(path)
    manifest = read_manifest(path.parent)
    # Also a path given by the user may be one of ours: the checksum says so.
    ours = manifest if manifest is not None and manifest.files.get(path.name) == sha256 else None
    label = "local" if ours is not None else "published" if is_published(path, sha256) else "file"
    return DataInfo(
        name=name,
        env_id=env_id,
        label=label,
        sha256=sha256,
        versions=versions() if ours is None else ours.versions,
        success_timing=success_timing,
        seed=None if ours is None else ours.seed,
        rows=rows,
        metric=metric,
    )
