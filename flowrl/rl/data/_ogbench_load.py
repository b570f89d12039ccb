"""Loads an OGBench data set for one of its single tasks, through OGBench's own loader."""

from pathlib import Path
from typing import Any

import numpy as np

from flowrl.rl.data import _store
from flowrl.rl.data._evaluation_env import evaluation_env
from flowrl.rl.data._extras import require
from flowrl.rl.data._isolation import own_global_state, quiet
from flowrl.rl.data._local import describe
from flowrl.rl.data._ogbench import generate
from flowrl.rl.data._ogbench_names import env_names, split_name
from flowrl.rl.data._recipes import RECIPES
from flowrl.rl.data._schema import OfflineDataset, from_dict
from flowrl.rl.data._source import Environment, Progress, Source


def load(
    name: str,
    data_dir: Path,
    /,
    *,
    rows: int,
    val_rows: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
    dataset_path: Path | None,
) -> OfflineDataset:
    """Loads (and if need be makes) a data set; the arguments are those of `flowrl.rl.data.load`."""
    dataset_name, env_id = split_name(name)
    if dataset_path is not None:
        path = dataset_path
    elif dataset_name in RECIPES:
        path = generate(
            dataset_name, data_dir, rows=rows, val_rows=val_rows, seed=seed, workers=workers, progress=progress
        )
    else:
        raise ValueError(
            f"{dataset_name} cannot be made on this machine (its collecting policy is not published): give the path of "
            f"a downloaded {dataset_name}.npz, with {dataset_name}-val.npz beside it, as dataset_path."
        )
    require("gymnasium", "ogbench")
    import gymnasium
    import ogbench

    with quiet(), own_global_state():
        env = gymnasium.make(env_id, disable_env_checker=True)
        try:
            if dataset_path is not None:
                check_file(path, env, name)
                check_file(_store.validation_path(path), env, name)
            # With dataset_only it is always a pair of dictionaries; its type says "or many other things".
            splits: Any = ogbench.make_env_and_datasets(name, dataset_path=str(path), dataset_only=True, cur_env=env)
            # Private, but nowhere else does an environment say it; a result row must.
            timing = getattr(env.unwrapped, "_success_timing", None)
        finally:
            env.close()
    files = (path, _store.validation_path(path))
    train, validation = (from_dict(arrays, source=str(file)) for arrays, file in zip(splits, files, strict=True))
    info = describe(path, name, env_id, rows=len(train), success_timing=timing, metric="success")
    return OfflineDataset(train, validation, info)


def check_file(path: Path, env: Any, name: str) -> None:
    """Refuses an npz that is not OGBench data of this environment; OGBench's own loader would fail obscurely.

    Args:
        path: the npz.
        env: the single-task environment that it is meant for.
        name: the name given to `load`, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, the key and the expected shape or dtype.
    """
    if path.suffix != ".npz" or ".npz" in str(path.parent):
        # OGBench finds the validation file by replacing every ".npz" in the path.
        raise ValueError(f"{path}: expected a path that ends in .npz and has .npz nowhere else.")
    inner = env.unwrapped
    widths = {
        "observations": inner.observation_space.shape[0],
        "actions": inner.action_space.shape[0],
        "qpos": inner.model.nq,
    }
    if hasattr(inner, "_num_buttons"):
        widths["button_states"] = inner._num_buttons
    arrays = _store.read_npz(path, required=("terminals", *widths))
    rows = arrays["observations"].shape[0] if arrays["observations"].ndim else 0
    for key, width in widths.items():
        array = arrays[key]
        if array.shape != (rows, width):
            raise ValueError(f"{path}: {key} has shape {array.shape}, expected {(rows, width)} for {name}.")
        wanted = np.integer if key == "button_states" else np.floating
        if not np.issubdtype(array.dtype, wanted):
            raise ValueError(f"{path}: {key} has dtype {array.dtype}, expected a kind of {wanted.__name__}.")
    terminals = arrays["terminals"]
    if terminals.shape != (rows,) or not np.all((terminals == 0) | (terminals == 1)):
        raise ValueError(f"{path}: terminals must hold {rows} values that are 0 or 1; its shape is {terminals.shape}.")
    # The last row of a trajectory only holds its final state, so one needs two rows to be a transition.
    if rows < 2 or not terminals[-1]:
        raise ValueError(f"{path}: expected at least 2 rows, and terminals to be 1 on the last one ({rows - 1}).")
    starts = np.concatenate([[0], np.flatnonzero(terminals)[:-1] + 1])
    short = np.flatnonzero(np.flatnonzero(terminals) == starts)
    if short.size:
        raise ValueError(f"{path}: the trajectory at row {starts[short[0]]} has one row, expected at least 2.")


def make_env(name: str, /, *, seed: int | None) -> Environment:
    """The environment of a single-task name; see `evaluation_env`."""
    return evaluation_env(split_name(name)[1], seed=seed)


SOURCES: dict[str, Source] = {
    "ogbench": Source(
        env_names=env_names(),
        dataset_names=tuple(RECIPES),
        metric="success",
        generate=generate,
        load=load,
        make_env=make_env,
    )
}
