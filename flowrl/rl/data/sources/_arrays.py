"""A data set of a user's own arrays, for an environment or without one."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowrl._io import read_npz, sha256_file
from flowrl.rl.data.files import read_hdf5, versions
from flowrl.rl.data.schema import (
    DEFAULT_SHARE,
    DataInfo,
    OfflineDataset,
    Transitions,
    describe_split,
    from_dict,
    split_episodes,
)
from flowrl.rl.data.sources._layouts import in_unit, repair
from flowrl.rl.envs import action_limits

Units = Literal["environment", "unit"]
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class EnvironmentForm:
    """What data of an environment look like: width of observations, limits of actions."""

    name: str
    env_id: str
    width: int
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, env: Any, name: str) -> "EnvironmentForm":
        """Measure an environment, and close it."""
        try:
            low, high = action_limits(getattr(env, "native_action_space", env.action_space), name)
            spec = env.unwrapped.spec if getattr(env, "spec", None) is None else env.spec
            return cls(name, "" if spec is None else str(spec.id), env.observation_space.shape[0], low, high)
        finally:
            env.close()

    def check_widths(self, data: Mapping[str, np.ndarray], source: str) -> None:
        """Raise a ValueError for data that are not of this environment."""
        for key, width in zip(("observations", "actions"), (self.width, self.low.size), strict=True):
            if data[key].ndim != 2 or data[key].shape[1] != width:
                raise ValueError(
                    f"{source}: {key} has shape {data[key].shape}, but the environment {self.name} has {width} "
                    "columns: these are not data of this environment."
                )


def dataset_from_arrays(
    arrays: Mapping[str, Any],
    form: EnvironmentForm | None,
    validation: Mapping[str, Any] | float | None,
    *,
    seed: int,
    actions: Units = "environment",
    ignore: Sequence[str] = (),
    source: str,
) -> OfflineDataset:
    """Make a data set of arrays by the rules of `flowrl.rl.data.from_arrays`."""

    def transitions(part: Mapping[str, Any], what: str) -> tuple[Transitions, list[str]]:
        data, notes = repair({key: value for key, value in part.items() if key not in ignore}, source=what)
        if form is not None:
            form.check_widths(data, what)
            if actions == "environment":
                data["actions"] = in_unit(data["actions"], form.low, form.high, what)
        return from_dict(data, source=what), notes

    everything, notes = transitions(arrays, source)
    if isinstance(validation, Mapping):
        train, (held_out, more) = everything, transitions(validation, f"{source}, validation")
        notes += [f"validation: {note}" for note in more]
        split = "given"
    else:
        share = DEFAULT_SHARE if validation is None else validation
        train, held_out = split_episodes(everything, share, seed=seed)
        split = describe_split(share, seed)
    if form is None:
        notes.append("no environment: policies cannot be evaluated")
    info = DataInfo(
        name=source if form is None else form.name,
        env_id="" if form is None else form.env_id,
        label="file",
        sha256=_digest(arrays),
        versions=versions(readers=True),
        success_timing=None,
        seed=None,
        rows=len(train),
        metric="return",
        val_rows=0 if held_out is None else len(held_out),
        split=split,
        notes=tuple(notes),
    )
    return OfflineDataset(train, held_out, info)


def dataset_from_file(
    path: Path,
    arrays: Mapping[str, Any],
    form: EnvironmentForm | None,
    validation: Mapping[str, Any] | float | None,
    *,
    seed: int,
    actions: Units = "environment",
    ignore: Sequence[str] = (),
) -> OfflineDataset:
    """Make a data set of the arrays of a file, whose digest is the file's."""
    dataset = dataset_from_arrays(arrays, form, validation, seed=seed, actions=actions, ignore=ignore, source=str(path))
    return dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, sha256=sha256_file(path)))


def read_file(path: Path, validation: float | None) -> tuple[_Arrays, _Arrays | float | None]:
    """Read a user's file, and "x-val.npz" beside "x.npz" unless a share of the trajectories is to be held out."""
    beside = path.with_name(f"{path.stem}-val{path.suffix}")
    held_out = _read(beside) if validation is None and beside.is_file() else validation
    return _read(path), held_out


def _read(path: Path) -> _Arrays:
    if path.suffix in (".hdf5", ".h5"):
        return read_hdf5(path)
    if path.suffix == ".npz":
        return read_npz(path)
    raise ValueError(f"{path}: expected a path that ends in .npz, .hdf5 or .h5.")


def _digest(arrays: Mapping[str, Any]) -> str:
    """Return one SHA-256 for all arrays, names included."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
