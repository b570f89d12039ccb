"""The public verbs: names are looked up among all sources, and arguments checked, before anything is done."""

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowrl._io import resolve_dir
from flowrl.rl.data.generators import _locomotion
from flowrl.rl.data.schema import Metric, OfflineDataset, Origin, Progress, ReferenceScores, Request, Source
from flowrl.rl.data.sources import EnvFactory, _arrays, _d4rl, _minari, _ogbench as _ogbench_load
from flowrl.rl.envs import Environment, adapt, drawing

#: Every family of data sets; a new one adds its module's `SOURCES` here.
SOURCES: dict[str, Source] = {
    **_ogbench_load.SOURCES,
    **_locomotion.SOURCES,
    **_minari.SOURCES,
    **_d4rl.SOURCES,
    **_arrays.SOURCES,
}


def available(origin: Origin = "local") -> tuple[str, ...]:
    """The data sets that can be had by name, sorted.

    Args:
        origin: "local" are those that `generate` can make on this machine, "published" those that `download` can fetch
            (and Minari's, whose names begin with "minari:" and are not listed).
    """
    _check_origin(origin)
    names = (s.dataset_names if origin == "local" else s.published_names for s in SOURCES.values())
    return tuple(sorted(name for some in names for name in some))


def environments() -> tuple[str, ...]:
    """The names that `load`, `make_env` and `metric` accept, sorted.

    Besides these they accept "minari:ID" (a data set that Minari knows), "gym:ID" (an environment that gymnasium knows;
    "gym:module:ID" imports the module first) and "factory:module:function".
    """
    return tuple(sorted(name for source in SOURCES.values() for name in source.env_names))


def metric(env_name: str) -> Metric:
    """How policies are scored in an environment.

    Args:
        env_name: as for `make_env`.

    Returns:
        "success" (the fraction of episodes solved) or "return" (the undiscounted sum of rewards).

    Raises:
        ValueError: if the name is unknown; near names are suggested.
    """
    return _source_of(env_name).metric


def reference(env_name: str) -> ReferenceScores | None:
    """The returns between which scores are measured in an environment.

    Args:
        env_name: as for `make_env`; a Minari data set must be on this machine.

    Returns:
        The reference scores; None where no one has published any.

    Raises:
        FileNotFoundError: if a Minari data set is not on this machine.
        ValueError: if the name is unknown; near names are suggested.
    """
    return _source_of(env_name).reference(env_name)


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
    assert source.generate is not None
    return source.generate(
        name, resolve_dir(data_dir), rows=rows, val_rows=val_rows, seed=seed, workers=workers, progress=progress
    )


def download(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Downloads a published data set, unless it is there already; `load(..., origin="published")` then finds it.

    Mirrors are tried in turn. A download that was cut off is taken up where it stopped, by this call or a later one.
    A file gets its name only once it has been checked: against a known SHA-256 where there is one, and otherwise for
    its size and integrity. Its SHA-256 is written to `download.json` and compared at every use.

    Args:
        name: one of `available("published")`, such as "cube-double-play-v0" or "d4rl:hopper-medium-v2", or
            "minari:ID" (which Minari downloads, into its own folder).
        data_dir: as for `generate`.
        mirrors: addresses of folders that hold the files, instead of the public ones.
        progress: called as `progress(bytes_so_far, bytes_in_all)` for each file.

    Returns:
        The path of the training file (of Minari's folder, for its data sets).

    Raises:
        ImportError: naming the extra, if a package is missing.
        OSError: if no mirror gives a file (with the reason of each), or the disk is too small.
        ValueError: if the name is unknown, or existing files are damaged.
    """
    for source in SOURCES.values():
        if source.download is not None and (name in source.published_names or name.startswith(source.prefixes)):
            return source.download(name, resolve_dir(data_dir), mirrors=tuple(mirrors), progress=progress)
    raise ValueError(_unknown("data set", name, available("published"), 'available("published")'))


def load(
    env_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    origin: Origin | None = None,
    dataset_path: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    rows: int = 100_000,
    val_rows: int = 10_000,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> OfflineDataset:
    """Loads the data for an environment, making or downloading them first if they are missing.

    Which data is always said: `info.label` is "local", "published" or "file", and nothing is downloaded unasked.

    Args:
        env_name: as for `make_env`, such as "puzzle-3x3-play-singletask-task1-v0".
        data_dir: as for `generate`.
        origin: "local" generates the data on this machine, "published" downloads what the benchmark's authors made.
            None: "local" where that is possible, what is there already for Minari, and otherwise an error.
        dataset_path: a file to load instead. For OGBench's and the local data its validation split is beside it
            ("x-val.npz" beside "x.npz").
        validation: share of the trajectories to hold out from data without a validation split of their own (D4RL,
            Minari, yours); None means a twentieth, 0 none. Published D4RL scores are of policies that learnt from all.
        rows: as for `generate`; of generated data only.
        val_rows: as for `generate`; of generated data only.
        seed: as for `generate`; also of the choice of what is held out.
        workers: as for `generate`; of generated data only.
        progress: as for `generate` and `download`.

    Returns:
        Both splits, checked, and where they came from.

    Raises:
        FileNotFoundError: if a file is missing.
        ImportError: naming the extra, if a package is missing.
        MemoryError: if the data do not fit into memory, before they are read.
        OSError: as for `generate` and `download`.
        RuntimeError: as for `generate`.
        TypeError: if a count is not an integer.
        ValueError: if the name is unknown, arguments contradict each other, or a file does not hold what it should
            (the message says where).
    """
    source = _source_of(env_name)
    _check_counts(rows=rows, val_rows=val_rows, seed=seed, workers=workers)
    _check_origin(origin)
    if origin is not None and dataset_path is not None:
        raise ValueError(f"origin is {origin!r} and dataset_path is {str(dataset_path)!r}; give only one of the two.")
    if origin == "local" and source.generate is None:
        raise ValueError(f'{env_name} cannot be made on this machine; leave out origin, or give "published".')
    if validation is not None and not (math.isfinite(validation) and 0 <= validation < 1):
        raise ValueError(f"validation is {validation}, expected a share of the trajectories in [0, 1).")
    request = Request(
        data_dir=resolve_dir(data_dir),
        origin=origin,
        dataset_path=None if dataset_path is None else Path(dataset_path).expanduser().absolute(),
        validation=validation,
        rows=rows,
        val_rows=val_rows,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    return source.load(env_name, request)


def make_env(env: str | EnvFactory, *, seed: int | None = None, render: bool = False) -> Environment:
    """Makes an environment in which policies are evaluated.

    Args:
        env: one of `environments()`; "minari:ID", "gym:ID" or "factory:module:function"; or the function itself, which
            makes a gymnasium environment. Give it a time limit: an evaluation lasts until its episodes end.
        seed: of the first `reset()` that is not given one; later resets go on from there. None: not reproducible.
        render: whether its `render()` gives frames, (height, width, 3) uint8. MuJoCo's needs EGL or OSMesa without a
            screen: set the environment variable MUJOCO_GL=egl (or osmesa) before Python starts.

    Returns:
        A gymnasium environment with float32 observations (obs,) and actions (act,) in [-1, 1]. Those that the library
        knows by name neither read nor change any global random state.

    Raises:
        FileNotFoundError: if a Minari data set is not on this machine.
        ImportError: naming the extra, if a package is missing.
        TypeError: if a function makes something else.
        ValueError: if the name is unknown (near names are suggested), actions are discrete or without limits, it
            cannot draw itself though it shall, or there is no environment for these data.
    """
    if not isinstance(env, str):
        name = getattr(env, "__name__", repr(env))
        return drawing(adapt(env(), name, seed=seed), name, render=render)
    return _source_of(env).make_env(env, seed=seed, render=render)


def _source_of(env_name: str) -> Source:
    """The source that knows an environment name."""
    for source in SOURCES.values():
        if env_name in source.env_names or env_name.startswith(source.prefixes):
            return source
    if env_name in available() or env_name in available("published"):
        near = [name for name in environments() if name.startswith(env_name.removesuffix("-v0") + "-")]
        raise ValueError(f"{env_name!r} is a data set, expected an environment: one of {', '.join(near)}.")
    raise ValueError(_unknown("environment", env_name, environments()))


def _unknown(kind: str, name: str, known: Iterable[str], listing: str = "") -> str:
    """The message for a name that is not known."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if not near:  # perhaps only the beginning of a name was given
        near = [k for k in known if difflib.SequenceMatcher(None, name, k[: len(name)]).ratio() > 0.8][:4]
    advice = f"did you mean {' or '.join(near)}?" if near else "no known name is near."
    listing = listing or ("available()" if kind == "data set" else "environments()")
    own = "" if kind == "data set" else ' Any environment of gymnasium is "gym:ID", data of Minari are "minari:ID".'
    return f"unknown {kind} {name!r}: {advice} flowrl.rl.data.{listing} lists them all.{own}"


def _check_origin(origin: Origin | None) -> None:
    """Raises for an origin that is none."""
    if origin not in (None, "local", "published"):
        raise ValueError(f'origin is {origin!r}, expected "local" or "published".')


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
