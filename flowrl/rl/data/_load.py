"""The public verbs: names are looked up among all sources, and arguments checked, before anything is done."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flowrl._io import resolve_dir
from flowrl._misc import check_count, check_kind
from flowrl.rl.data.schema import (
    AbstractLocalSource,
    AbstractPublishedSource,
    AbstractSource,
    Metric,
    OfflineDataset,
    Origin,
    Progress,
    ReferenceScores,
    Request,
    check_origin,
)
from flowrl.rl.data.sources import D4RL, EnvFactory, Locomotion, Minari, OGBench, Own
from flowrl.rl.envs import Environment, adapt, drawing

#: Every family of data sets; a new one is added here.
SOURCES: tuple[AbstractSource, ...] = (OGBench(), Locomotion(), Minari(), D4RL(), Own())
LOCAL = tuple(source for source in SOURCES if isinstance(source, AbstractLocalSource))
PUBLISHED = tuple(source for source in SOURCES if isinstance(source, AbstractPublishedSource))


def available(origin: Origin = "local") -> tuple[str, ...]:
    """Return the data sets that can be had by name, sorted.

    Args:
        origin: "local" are those that `generate` can make on this machine, "published" those that `download` can fetch
            (and Minari's, whose names begin with "minari:" and are not listed).
    """
    check_origin(origin)
    local = origin == "local"
    names = [source.dataset_names for source in LOCAL] if local else [source.published_names for source in PUBLISHED]
    return tuple(sorted(name for some in names for name in some))


def environments() -> tuple[str, ...]:
    """Return the names that `load`, `make_env` and `metric` accept, sorted.

    Besides these they accept "minari:ID" (a data set that Minari knows), "gym:ID" (an environment that gymnasium knows;
    "gym:module:ID" imports the module first) and "factory:module:function".
    """
    return tuple(sorted(name for source in SOURCES for name in source.env_names))


def metric(env_name: str) -> Metric:
    """Return how policies are scored: "success" (share of episodes solved) or "return" (undiscounted sum of rewards).

    Args:
        env_name: as for `make_env`.

    Raises:
        ValueError: the name is unknown; near names are suggested.
    """
    return _source_of(env_name).metric


def reference_scores(env_name: str) -> ReferenceScores | None:
    """Return the returns between which scores are measured in an environment; None where no one has published any.

    Args:
        env_name: as for `make_env`; a Minari data set must be on this machine.

    Raises:
        FileNotFoundError: a Minari data set is not on this machine.
        ValueError: the name is unknown; near names are suggested.
    """
    return _source_of(env_name).reference_scores(env_name)


def generate(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    rows: int = Request.rows,
    val_rows: int = Request.val_rows,
    seed: int = Request.seed,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Make a data set on this machine, unless it is there already.

    The same name, rows, val_rows and seed give the same bytes (on one machine, with the same package versions),
    whatever the number of workers, and whether or not an earlier attempt was killed half-way: finished episodes are
    kept and the next call goes on from them. A second process that asks for the same data waits for the first.

    Such data are *not* the published ones: fewer rows, other seeds, another simulator version. They are labelled
    "local" everywhere.

    Args:
        name: one of `available()`, such as "puzzle-3x3-play-v0".
        data_dir: where data sets are kept; None means `$XDG_CACHE_HOME/flowrl/data` or `~/.cache/flowrl/data`. Each
            combination of name, rows, val_rows and seed has its own folder there.
        rows: training transitions, by default 100,000.
        val_rows: validation transitions, by default 10,000.
        seed: of the data set, by default 0.
        workers: number of processes; None means the number of cores, 1 means no extra process.
        progress: called as `progress(done_episodes, total_episodes)`.

    Returns:
        The path of the training npz. Beside it are the validation npz and `manifest.json`.

    Raises:
        ImportError: a package is missing; the message names the extra.
        OSError: the directory cannot be written to, or the disk is too small.
        RuntimeError: a worker process died.
        TypeError: a count is not an integer, or an argument is of another kind.
        ValueError: the name is unknown, a count is out of range, or existing files are damaged.
    """
    check_kind("name", name, str, "one of available()")
    for source in LOCAL:
        if name in source.dataset_names:
            request = Request(
                resolve_dir(data_dir), rows=rows, val_rows=val_rows, seed=seed, workers=workers, progress=progress
            )
            return source.generate(name, request)
    raise ValueError(_unknown("data set", name, available()))


def download(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mirrors: Sequence[str] = (),
    progress: Progress | None = None,
) -> Path:
    """Download a published data set, unless it is there already; `load(..., origin="published")` then finds it.

    Mirrors are tried in turn. A download that was cut off is resumed where it stopped, by this call or a later one.
    A file gets its name only once it has been checked: against a known SHA-256 where there is one, and otherwise for
    its size and integrity. Its SHA-256 is written to `download.json` and compared at every use.

    Args:
        name: one of `available("published")`, such as "cube-double-play-v0" or "d4rl:hopper-medium-v2", or
            "minari:ID" (which Minari downloads, into its own folder).
        data_dir: as for `generate`.
        mirrors: addresses of folders that hold the files, instead of the public ones. Of the public ones those without
            encryption (http://) serve only files whose SHA-256 is known; these may be such for any file.
        progress: called as `progress(bytes_so_far, bytes_in_all)` for each file.

    Returns:
        The path of the training file (of Minari's folder, for its data sets).

    Raises:
        ImportError: a package is missing; the message names the extra.
        OSError: no mirror gives a file (with the reason of each), or the disk is too small.
        ValueError: the name is unknown, or existing files are damaged.
    """
    check_kind("name", name, str, 'one of available("published")')
    for source in PUBLISHED:
        if name in source.published_names or name.startswith(source.prefixes):
            return source.download(name, Request(resolve_dir(data_dir), mirrors=tuple(mirrors), progress=progress))
    raise ValueError(_unknown("data set", name, available("published"), 'available("published")'))


def load(
    env_name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    origin: Origin | None = None,
    dataset_path: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    rows: int = Request.rows,
    val_rows: int = Request.val_rows,
    seed: int = Request.seed,
    workers: int | None = None,
    progress: Progress | None = None,
) -> OfflineDataset:
    """Load the data for an environment, making or downloading them first if they are missing.

    `info.label` says which data they are: "local", "published" or "file". Nothing is downloaded unasked.

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
        FileNotFoundError: a file is missing.
        ImportError: a package is missing; the message names the extra.
        MemoryError: the data do not fit into memory; raised before they are read.
        OSError: as for `generate` and `download`.
        RuntimeError: as for `generate`.
        TypeError: a count is not an integer, or an argument is of another kind.
        ValueError: the name is unknown, arguments contradict each other, or a file does not hold what it should (the
            message says where).
    """
    source = _source_of(env_name)
    if dataset_path is not None:
        check_kind("dataset_path", dataset_path, (str, os.PathLike))
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
    if origin == "local" and not isinstance(source, AbstractLocalSource):
        raise ValueError(f'{env_name} cannot be made on this machine; leave out origin, or give "published".')
    return source.load(env_name, request)


def make_env(env: str | EnvFactory, *, seed: int | None = None, render: bool = False) -> Environment:
    """Make an environment in which policies are evaluated.

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
        FileNotFoundError: a Minari data set is not on this machine.
        ImportError: a package is missing; the message names the extra.
        TypeError: `env` is neither a name nor a function, or the function makes something else.
        ValueError: the name is unknown (near names are suggested), actions are discrete or without limits, it cannot
            draw itself though it shall, or there is no environment for these data.
    """
    if seed is not None:
        check_count("seed", seed, 0)
    if not isinstance(env, str):
        if not callable(env):
            raise TypeError(f"env must be the name of an environment or a function that makes one, got {env!r}.")
        name = getattr(env, "__name__", repr(env))
        return drawing(adapt(env(), name, seed=seed), name, render=render)
    return _source_of(env).make_env(env, seed=seed, render=render)


def check_env(env_name: str) -> None:
    """Refuse the name of an environment that does not exist, before anything is made.

    Args:
        env_name: as for `make_env`.

    Raises:
        TypeError: it is no name.
        ValueError: it is unknown (near names are suggested), gymnasium does not know it, or there is no such function.
    """
    _source_of(env_name).check_env(env_name)


def _source_of(env_name: str) -> AbstractSource:
    """Return the source that knows an environment name."""
    check_kind("the name of an environment", env_name, str, "one of environments()")
    for source in SOURCES:
        if env_name in source.env_names or env_name.startswith(source.prefixes):
            return source
    if env_name in available() or env_name in available("published"):
        near = [name for name in environments() if name.startswith(env_name.removesuffix("-v0") + "-")]
        raise ValueError(f"{env_name!r} is a data set, expected an environment: one of {', '.join(near)}.")
    raise ValueError(_unknown("environment", env_name, environments()))


def _unknown(kind: str, name: str, known: Iterable[str], listing: str = "") -> str:
    """Return the message for an unknown name, with near ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if not near:  # perhaps only the beginning of a name was given
        near = [k for k in known if difflib.SequenceMatcher(None, name, k[: len(name)]).ratio() > 0.8][:4]
    advice = f"did you mean {' or '.join(near)}?" if near else "no known name is near."
    listing = listing or ("available()" if kind == "data set" else "environments()")
    own = "" if kind == "data set" else ' Any environment of gymnasium is "gym:ID", data of Minari are "minari:ID".'
    return f"unknown {kind} {name!r}: {advice} flowrl.rl.data.{listing} lists them all.{own}"
