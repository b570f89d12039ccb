"""The public verbs: names are looked up among all sources, and arguments checked, before anything is done."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from flowrl.rl.data import _locomotion, _ogbench_load
from flowrl.rl.data._schema import OfflineDataset
from flowrl.rl.data._source import Environment, Metric, Progress, Source
from flowrl.rl.data._store import resolve_dir

#: Every family of data sets; a new one adds its module's `SOURCES` here.
SOURCES: dict[str, Source] = {**_ogbench_load.SOURCES, **_locomotion.SOURCES}


def available() -> tuple[str, ...]:
    """The data sets that `generate` can make on this machine, sorted."""
    return tuple(sorted(name for source in SOURCES.values() for name in source.dataset_names))


def environments() -> tuple[str, ...]:
    """The names that `load`, `make_env` and `metric` accept, sorted."""
    return tuple(sorted(name for source in SOURCES.values() for name in source.env_names))


def metric(env_name: str) -> Metric:
    """How policies are scored in an environment.

    Args:
        env_name: one of `environments()`.

    Returns:
        "success" (the fraction of episodes solved) or "return" (the undiscounted sum of rewards).

    Raises:
        ValueError: if the name is unknown; near names are suggested.
    """
    return _source_of(env_name).metric


def generate(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    rows: int = 100_000,
    val_rows: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes a data set on this machine, unless it is there already.

    The same name, rows, val_rows and seed give the same bytes (on one machine, with the same package versions),
    whatever the number of workers, and whether or not an earlier attempt was killed half-way: finished episodes are
    kept and the next call goes on from them. A second process that asks for the same data waits for the first.

    Such data are *not* the published ones: fewer rows, other seeds, another simulator version. They are labelled
    "local" everywhere.

    Args:
        name: one of `available()`, such as "puzzle-3x3-play-v0".
        data_dir: where data sets are kept; None means `$XDG_CACHE_HOME/flowrl/data` or `~/.cache/flowrl/data`. Each
            combination of name, rows, val_rows and seed has its own folder there.
        rows: training transitions.
        val_rows: validation transitions.
        seed: of the data set.
        workers: number of processes; None means the number of cores, 1 means no extra process.
        progress: called as `progress(done_episodes, total_episodes)`.

    Returns:
        The path of the training npz. Beside it are the validation npz and `manifest.json`.

    Raises:
        ImportError: naming the extra, if a package is missing.
        OSError: if the directory cannot be written to, or the disk is too small.
        RuntimeError: if a worker process died.
        TypeError: if a count is not an integer.
        ValueError: if the name is unknown, a count is out of range, or existing files are damaged.
    """
    for source in SOURCES.values():
        if name in source.dataset_names:
            break
    else:
        raise ValueError(_unknown("data set", name, available()))
    _check_counts(rows=rows, val_rows=val_rows, seed=seed, workers=workers)
    return source.generate(
        name, resolve_dir(data_dir), rows=rows, val_rows=val_rows, seed=seed, workers=workers, progress=progress
    )


def load(
    env_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    rows: int = 100_000,
    val_rows: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    dataset_path: str | os.PathLike[str] | None = None,
) -> OfflineDataset:
    """Loads the data for an environment, making them first if they are missing.

    Args:
        env_name: one of `environments()`, such as "puzzle-3x3-play-singletask-task1-v0".
        data_dir: as in `generate`.
        rows: as in `generate`; not used with `dataset_path`.
        val_rows: as in `generate`; not used with `dataset_path`.
        seed: as in `generate`; not used with `dataset_path`.
        workers: as in `generate`; not used with `dataset_path`.
        progress: as in `generate`; not used with `dataset_path`.
        dataset_path: a file to load instead, with its validation split beside it ("x-val.npz" beside "x.npz").

    Returns:
        Both splits, checked, and where they came from.

    Raises:
        FileNotFoundError: if a file is missing.
        ImportError: naming the extra, if a package is missing.
        OSError: as in `generate`.
        RuntimeError: as in `generate`.
        TypeError: if a count is not an integer.
        ValueError: if the name is unknown, or a file does not hold what it should (the message says where).
    """
    source = _source_of(env_name)
    _check_counts(rows=rows, val_rows=val_rows, seed=seed, workers=workers)
    return source.load(
        env_name,
        resolve_dir(data_dir),
        rows=rows,
        val_rows=val_rows,
        seed=seed,
        workers=workers,
        progress=progress,
        dataset_path=None if dataset_path is None else Path(dataset_path).expanduser().absolute(),
    )


def make_env(env_name: str, *, seed: int | None = None) -> Environment:
    """Makes the environment in which policies for `env_name` are evaluated.

    Args:
        env_name: one of `environments()`.
        seed: of the first `reset()` that is not given one; later resets go on from there. None: not reproducible.

    Returns:
        A gymnasium environment with float32 observations; it neither reads nor changes any global random state.

    Raises:
        ImportError: naming the extra, if a package is missing.
        ValueError: if the name is unknown; near names are suggested.
    """
    return _source_of(env_name).make_env(env_name, seed=seed)


def _source_of(env_name: str) -> Source:
    """The source that knows an environment name."""
    for source in SOURCES.values():
        if env_name in source.env_names:
            return source
    if env_name in available():
        near = [name for name in environments() if name.startswith(env_name.removesuffix("-v0") + "-")]
        raise ValueError(f"{env_name!r} is a data set, expected an environment: one of {', '.join(near)}.")
    raise ValueError(_unknown("environment", env_name, environments()))


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if not near:  # perhaps only the beginning of a name was given
        near = [k for k in known if difflib.SequenceMatcher(None, name, k[: len(name)]).ratio() > 0.8][:4]
    advice = f"did you mean {' or '.join(near)}?" if near else "no known name is near."
    listing = "available" if kind == "data set" else "environments"
    return f"unknown {kind} {name!r}: {advice} flowrl.rl.data.{listing}() lists them all."


def _check_counts(*, rows: int, val_rows: int, seed: int, workers: int | None) -> None:
    """Raises for counts that make no sense."""
    lowest = {"rows": (rows, 1), "val_rows": (val_rows, 1), "seed": (seed, 0)}
    if workers is not None:
        lowest["workers"] = (workers, 1)
    for name, (value, least) in lowest.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, expected an integer.")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}.")
