"""A user's own arrays: the common layouts, brought to the schema by documented repairs, each of them counted."""

import dataclasses
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowrl._io import _files
from flowrl.rl.data.files import _store, read_hdf5
from flowrl.rl.data.schema import (
    DEFAULT_SHARE,
    DataInfo,
    OfflineDataset,
    Request,
    Source,
    Transitions,
    describe_split,
    from_dict,
    split_episodes,
)
from flowrl.rl.envs import Environment, action_limits, adapt, drawing, make, render_mode, to_unit

EnvFactory = Callable[[], Any]
"""Makes a gymnasium environment; defined at the top level of a module, so that worker processes can import it."""

_GYM, _FACTORY = "gym:", "factory:"
_REQUIRED = ("observations", "actions", "rewards")
_FLAGS = ("masks", "terminals", "timeouts", "dones", "terminations", "truncations")
#: Distance at which a next observation no longer is the next row's observation.
_CONTINUOUS = 1e-6


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    env: str | EnvFactory | None = None,
    validation: Mapping[str, Any] | float | None = None,
    seed: int = 0,
    actions: Literal["environment", "unit"] = "environment",
    ignore: Sequence[str] = (),
    source: str = "arrays",
) -> OfflineDataset:
    """Makes a data set of a user's own arrays.

    Expected are `observations` (n, obs), `actions` (n, act), `rewards` (n,), the rows of a trajectory consecutive in
    time, and flags (n,) in one of these layouts:

    | given | a row's mask is 0 where | a trajectory ends where |
    |---|---|---|
    | `masks`, `terminals` (this library) | `masks` is 0 | `terminals` is 1 |
    | `terminals`, perhaps `timeouts` (D4RL) | `terminals` is 1 | either is 1 |
    | `terminations`, `truncations` (gymnasium) | `terminations` is 1 | either is 1 |
    | `dones`, perhaps `timeouts` | `dones` is 1 and `timeouts` is not | either is 1 |

    What is missing or inconsistent is repaired, and each repair is counted in `info.notes`:

    - without `next_observations`, they are the observations of the next row; the last row of a trajectory that did not
      truly end has none and is dropped;
    - where the next observation is not that of the next row, a trajectory ends, whatever the flags say;
    - the last row ends a trajectory.

    Args:
        arrays: by name, as above, and `next_observations` (n, obs) if known.
        env: the environment that policies are evaluated in: a name that `make_env` accepts, such as "gym:Pendulum-v1",
            or a function at the top level of a module that makes one. None: none.
        validation: held out data in the same form, or a share of the trajectories to hold out; None means a twentieth.
        seed: of the choice of what is held out.
        actions: in the environment's own units (mapped to [-1, 1] by its limits), or already in [-1, 1].
        ignore: names in `arrays` that are not used; any other unknown name is an error.
        source: what the data are called in messages.

    Returns:
        The data set; `info.name` is what `make_env` and `flowrl.rl.Lanes` take.

    Raises:
        ImportError: naming the extra, if `env` is given and gymnasium is missing.
        TypeError: if `env` does not make a gymnasium environment.
        ValueError: if the arrays do not fit each other or the environment, are not finite, hold discrete actions, or
            their flags are misplaced; the message says what and where.
    """
    name = "" if env is None else name_of(env)
    limits, widths, env_id = _environment(name) if name else (None, None, "")

    def transitions(part: Mapping[str, Any], what: str) -> tuple[Transitions, list[str]]:
        data, notes = repair({key: value for key, value in part.items() if key not in ignore}, source=what)
        _check_widths(data, widths, name, what)
        if limits is not None and actions == "environment":
            data["actions"] = to_unit(data["actions"], *limits, what)
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
    if not name:
        notes.append("no environment: policies cannot be evaluated")
    info = DataInfo(
        name=name or source,
        env_id=env_id,
        label="file",
        sha256=_digest(arrays),
        versions=_store.versions(readers=True),
        success_timing=None,
        seed=None,
        rows=len(train),
        metric="return",
        val_rows=0 if held_out is None else len(held_out),
        split=split,
        notes=tuple(notes),
    )
    return OfflineDataset(train, held_out, info)


def load_arrays(
    path: str | os.PathLike[str],
    *,
    env: str | EnvFactory | None = None,
    validation: float | None = None,
    seed: int = 0,
    actions: Literal["environment", "unit"] = "environment",
    ignore: Sequence[str] = (),
) -> OfflineDataset:
    """Makes a data set of a user's file: an npz, or an HDF5 with arrays at its top level; see `from_arrays`.

    Args:
        path: the file; if "x-val.npz" stands beside "x.npz", it is the validation split.
        env: as for `from_arrays`.
        validation: as for `from_arrays`; a number makes the split from `path`, whatever stands beside it.
        seed: as for `from_arrays`.
        actions: as for `from_arrays`.
        ignore: as for `from_arrays`.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: if there is no such file.
        MemoryError: if it does not fit into memory.
        ValueError: if the file is damaged, holds Python objects, or as for `from_arrays`.
    """
    path = Path(path).expanduser()
    beside = path.with_name(f"{path.stem}-val{path.suffix}")
    held_out = _read(beside) if validation is None and beside.is_file() else validation
    dataset = from_arrays(
        _read(path), env=env, validation=held_out, seed=seed, actions=actions, ignore=ignore, source=str(path)
    )
    return dataclasses.replace(dataset, info=dataclasses.replace(dataset.info, sha256=_files.sha256_file(path)))


def load(name: str, request: Request, /) -> OfflineDataset:
    """Loads a user's file for a user's environment; the arguments are those of `flowrl.rl.data.load`."""
    if request.dataset_path is None:
        raise ValueError(f"{name}: no one has published data for it; give the path of yours as dataset_path.")
    return load_arrays(request.dataset_path, env=name, validation=request.validation, seed=request.seed)


def make_env(name: str, /, *, seed: int | None, render: bool) -> Environment:
    """Makes an environment by "gym:ID" or "factory:module:function"; see `adapt` for its form."""
    if name.startswith(_GYM):
        return make(name.removeprefix(_GYM), seed=seed, **render_mode(render))
    return drawing(adapt(_factory(name)(), name, seed=seed), name, render=render)


def name_of(env: str | EnvFactory) -> str:
    """The name by which another process can make an environment too.

    Args:
        env: a name, returned as it is, or a function at the top level of a module.

    Raises:
        ValueError: if the function cannot be imported by name.
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


def repair(arrays: Mapping[str, Any], *, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Brings arrays in a common layout to the schema's six fields; see `from_arrays` for the rules.

    Args:
        arrays: by name.
        source: what they are called in messages.

    Returns:
        The six fields, not yet checked for their values; and what was repaired, with counts.

    Raises:
        ValueError: if names are missing, unknown or contradict each other, or flags are misplaced.
    """
    given = {key: np.asarray(value) for key, value in arrays.items()}
    missing = [key for key in _REQUIRED if key not in given]
    if missing or not set(given) & set(_FLAGS):
        lacking = [*missing, *([] if set(given) & set(_FLAGS) else ["flags (terminals or dones)"])]
        raise ValueError(f"{source}: missing {', '.join(lacking)}; found {', '.join(sorted(given)) or 'no arrays'}.")
    unknown = sorted(set(given) - {*_REQUIRED, *_FLAGS, "next_observations"})
    if unknown:
        raise ValueError(
            f"{source}: unknown keys {', '.join(unknown)}. Nothing is dropped silently: remove them, or name them in "
            "`ignore`."
        )
    rows = given["observations"].shape[0] if given["observations"].ndim else 0
    if rows == 0:
        raise ValueError(f"{source}: observations has no rows.")
    for key, array in given.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ValueError(f"{source}: {key} has shape {array.shape}, but observations has {rows} rows.")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{source}: {key} has dtype {array.dtype}, expected numbers.")
    if given["actions"].dtype.kind in "biu":
        raise ValueError(
            f"{source}: actions have dtype {given['actions'].dtype}: discrete actions cannot be moved along a gradient."
        )
    notes: list[str] = []
    rewards = given["rewards"]
    if rewards.shape == (rows, 1):
        rewards = rewards[:, 0]
        notes.append("rewards: shape (n, 1) became (n,)")
    if rewards.dtype.kind in "biu":
        rewards = rewards.astype(np.float64)
    stops, ends = _flags(given, rows, source, notes)
    if not ends[-1]:
        ends[-1] = True
        notes.append("the last trajectory was unfinished: 1 end added")
    observations = given["observations"]
    keep = np.ones(rows, bool)
    if "next_observations" in given:
        following = given["next_observations"]
        if following.shape != observations.shape:
            raise ValueError(
                f"{source}: next_observations has shape {following.shape}, expected that of observations, "
                f"{observations.shape}."
            )
        _break_where_discontinuous(observations, following, ends, source, notes)
    else:
        following = np.concatenate([observations[1:], observations[-1:]])
        # After a true end the value is zero, so any state will do; after a time limit the next state is not known.
        following = np.where(ends.reshape((-1,) + (1,) * (observations.ndim - 1)), observations, following)
        keep = ~ends | stops
        dropped = int((~keep).sum())
        # What comes before a dropped row ends the trajectory now.
        ends = ends | np.concatenate([~keep[1:], [False]])
        notes.append(f"next_observations: taken from the next row; {dropped} last rows without one were dropped")
        if not keep.any():
            raise ValueError(f"{source}: no row has a next observation: every trajectory has one row.")
    fields = {
        "observations": observations,
        "actions": given["actions"],
        "rewards": rewards,
        "next_observations": following,
        "masks": ~stops,
        "terminals": ends,
    }
    return {key: value[keep] for key, value in fields.items()}, notes


def _flags(given: Mapping[str, np.ndarray], rows: int, source: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Where the task stops (mask 0) and where trajectories end."""
    flags: dict[str, np.ndarray] = {}
    for key in set(given) & set(_FLAGS):
        array = given[key].reshape(rows) if given[key].shape == (rows, 1) else given[key]
        bad = array.shape != (rows,) or not np.all((array == 0) | (array == 1))
        if bad:
            raise ValueError(f"{source}: {key} must be {rows} values that are 0 or 1; its shape is {array.shape}.")
        flags[key] = array.astype(bool)
    names = set(flags)
    none = np.zeros(rows, bool)
    if "masks" in names and names == {"masks", "terminals"}:
        return ~flags["masks"], flags["terminals"].copy()
    if names <= {"terminals", "timeouts"} and "terminals" in names:
        stops, limits = flags["terminals"], flags.get("timeouts", none)
    elif names <= {"terminations", "truncations"} and "terminations" in names:
        stops, limits = flags["terminations"], flags.get("truncations", none)
    elif names <= {"dones", "timeouts"} and "dones" in names:
        limits = flags.get("timeouts", none)
        stops = flags["dones"] & ~limits
        if "timeouts" not in names:
            notes.append(f"dones: all {int(stops.sum())} were taken for true ends, none for a time limit")
    else:
        raise ValueError(
            f"{source}: the flags {', '.join(sorted(names))} are no layout that is known; give masks and terminals, "
            "terminals and timeouts, terminations and truncations, or dones."
        )
    return stops, stops | limits


def _break_where_discontinuous(
    observations: np.ndarray, following: np.ndarray, ends: np.ndarray, source: str, notes: list[str]
) -> None:
    """Ends trajectories (in place) where the next row does not go on from this one."""
    axes = tuple(range(1, observations.ndim))
    step = np.abs(following[:-1].astype(np.float64) - observations[1:]).max(axis=axes, initial=0.0)
    scale = 1 + np.abs(observations[1:]).max(axis=axes, initial=0.0)
    breaks = np.concatenate([step > _CONTINUOUS * scale, [True]])
    added = breaks & ~ends
    # No end where the data break off, but one a row later, where they go on: an error of whoever wrote the flags.
    late = added[:-1] & ends[1:] & ~breaks[1:]
    if late.any() and 2 * late.sum() >= added.sum():
        raise ValueError(
            f"{source}: trajectories break off {int(late.sum())} times one row before their end is flagged, first at "
            f"row {int(np.argmax(late))}: the flags seem to stand on the first row of the next trajectory; shift them "
            "by one row."
        )
    ends |= breaks
    if added.any():
        notes.append(f"terminals: {int(added.sum())} ends added where the next row does not go on")


def _environment(name: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[int, int], str]:
    """The limits of an environment's actions, its widths, and its gymnasium id."""
    from flowrl.rl.data._load import make_env as make_any

    env: Any = make_any(name)
    try:
        limits = action_limits(getattr(env, "native_action_space", env.action_space), name)
        spec = env.unwrapped.spec if getattr(env, "spec", None) is None else env.spec
        env_id = "" if spec is None else str(spec.id)
        return limits, (env.observation_space.shape[0], env.action_space.shape[0]), env_id
    finally:
        env.close()


def _check_widths(data: Mapping[str, np.ndarray], widths: tuple[int, int] | None, name: str, source: str) -> None:
    """Refuses data that are not of this environment."""
    if widths is None:
        return
    for key, width in zip(("observations", "actions"), widths, strict=True):
        if data[key].ndim != 2 or data[key].shape[1] != width:
            raise ValueError(
                f"{source}: {key} has shape {data[key].shape}, but the environment {name} has {width} columns: these "
                "are not data of this environment."
            )


def _factory(name: str) -> EnvFactory:
    """The function behind "factory:module:function"."""
    module, _, function = name.removeprefix(_FACTORY).partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: there is no such function ({error}); expected factory:module:function.") from error
    if not callable(found):
        raise ValueError(f"{name}: {function} is not a function.")
    return found


def _read(path: Path) -> dict[str, np.ndarray]:
    """Reads a user's file."""
    if path.suffix in (".hdf5", ".h5"):
        return read_hdf5(path)
    if path.suffix == ".npz":
        return _files.read_npz(path)
    raise ValueError(f"{path}: expected a path that ends in .npz, .hdf5 or .h5.")


def _digest(arrays: Mapping[str, Any]) -> str:
    """One SHA-256 for all arrays, names included."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


#: What the registry merges.
SOURCES: dict[str, Source] = {
    "own": Source(env_names=(), metric="return", load=load, make_env=make_env, prefixes=(_GYM, _FACTORY)),
}
