"""OGBench's data sets for its single tasks, loaded by OGBench's own loader."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl._io import read_npz
from flowrl.rl.data.files import Published, obtain, validation_path
from flowrl.rl.data.generators import RECIPES, describe, generate_ogbench
from flowrl.rl.data.schema import (
    AbstractLocalSource,
    AbstractPublishedSource,
    OfflineDataset,
    ReferenceScores,
    Request,
    from_dict,
)
from flowrl.rl.data.sources._ogbench_names import published_data, single_tasks, split_name
from flowrl.rl.envs import Environment, evaluation_env, own_global_state, quiet

# The official host, and the mirror that OGBench's author names (seohongpark/ogbench, issue 49).
_MIRRORS = (
    "https://rail.eecs.berkeley.edu/datasets/ogbench",
    "https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main",
)


class OGBench(AbstractLocalSource, AbstractPublishedSource):
    """OGBench's single tasks on states."""

    env_names = single_tasks()
    metric = "success"
    dataset_names = tuple(RECIPES)
    published_names = published_data()

    def load(self, name: str, request: Request) -> OfflineDataset:
        dataset_name, env_id = split_name(name)
        if request.validation is not None:
            raise ValueError(f"{name} has a validation split of its own; leave out validation.")
        dataset_path = request.dataset_path
        if dataset_path is not None:
            path = dataset_path
        elif request.origin == "published":
            path = self.download(dataset_name, request)
        elif dataset_name in RECIPES:
            path = self.generate(dataset_name, request)
        else:
            raise ValueError(
                f"{dataset_name} cannot be made on this machine (its collecting policy is not published): give "
                f'origin="published" to download it, or the path of {dataset_name}.npz, with {dataset_name}-val.npz '
                "beside it, as dataset_path."
            )
        require("gymnasium", "ogbench", extra="rl")
        import gymnasium
        import ogbench

        with quiet(), own_global_state():
            env = gymnasium.make(env_id, disable_env_checker=True)
            try:
                if dataset_path is not None or request.origin == "published":
                    check_file(path, env, name)
                    check_file(validation_path(path), env, name)
                # With dataset_only it is always a pair of dictionaries; its type says "or many other things".
                splits: Any = ogbench.make_env_and_datasets(
                    name, dataset_path=str(path), dataset_only=True, cur_env=env
                )
                # Private, but nowhere else does an environment say it; a result row must.
                timing = getattr(env.unwrapped, "_success_timing", None)
            finally:
                env.close()
        files = (path, validation_path(path))
        train, validation = (from_dict(arrays, source=str(file)) for arrays, file in zip(splits, files, strict=True))
        info = describe(path, name, env_id, rows=len(train), success_timing=timing, metric=self.metric)
        return OfflineDataset(train, validation, dataclasses.replace(info, val_rows=len(validation)))

    def generate(self, name: str, request: Request) -> Path:
        return generate_ogbench(name, request)

    def download(self, name: str, request: Request) -> Path:
        folder = request.data_dir / name / "published"
        files = (f"{name}.npz", f"{name}-val.npz")
        addresses = [tuple(f"{mirror.rstrip('/')}/{file}" for mirror in request.mirrors or _MIRRORS) for file in files]
        asked = bool(request.mirrors)
        wanted = [Published(file, urls, asked=asked) for file, urls in zip(files, addresses, strict=True)]
        obtain(folder, wanted, request.progress)
        return folder / files[0]

    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        return evaluation_env(split_name(name)[1], seed=seed, render=render)

    def reference_scores(self, name: str) -> ReferenceScores | None:  # noqa: ARG002
        return None


def check_file(path: Path, env: Any, name: str) -> None:
    """Raise a ValueError unless an npz holds OGBench data of this environment; OGBench's loader fails obscurely."""
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
    arrays = read_npz(path, required=("terminals", *widths))
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
