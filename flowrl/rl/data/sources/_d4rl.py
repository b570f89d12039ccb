"""D4RL's HDF5 files, read directly: neither d4rl nor mujoco-py is needed.

Rows are those of D4RL's `qlearning_dataset`: the last row of the file, and every row at a time limit, are left out (in
D4RL because their next observation is not in the file). A mask is 0 where the file says "terminal". Trajectories end

- before a row that was left out, and at the end of the file;
- where the file says "terminal", except in antmaze: there the ant is at its goal, and the episode goes on;
- where the file has next observations of its own, and they are not those of the next row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl._io import sha256_file
from flowrl.rl.data.files import Published, is_published, obtain, read_hdf5, versions
from flowrl.rl.data.schema import (
    DEFAULT_SHARE,
    AbstractPublishedSource,
    DataInfo,
    OfflineDataset,
    ReferenceScores,
    Request,
    Transitions,
    describe_split,
    from_dict,
    split_episodes,
)
from flowrl.rl.data.sources._d4rl_names import TASKS, Task
from flowrl.rl.data.sources._layouts import refuse_other_flags
from flowrl.rl.envs import Environment, make, render_mode, robotics

#: Height of the pen below which D4RL's environment takes it for dropped, and its place in an observation.
_DROPPED, _PEN_HEIGHT = 0.075, 26


class D4RL(AbstractPublishedSource):
    """D4RL's tasks, evaluated in the nearest environments there are today."""

    env_names = tuple(TASKS)
    published_names = tuple(TASKS)

    def load(self, name: str, request: Request) -> OfflineDataset:
        task = TASKS[name]
        if request.dataset_path is not None:
            path = request.dataset_path
        elif request.origin == "published":
            path = self.download(name, request)
        else:
            raise ValueError(
                f'{name} is not made on this machine: give origin="published" to download {task.file}, or its path as '
                "dataset_path."
            )
        arrays = read_hdf5(
            path,
            required=("observations", "actions", "rewards", "terminals"),
            optional=("timeouts", "next_observations"),
        )
        everything, notes = qlearning_transitions(arrays, task, source=str(path))
        share = DEFAULT_SHARE if request.validation is None else request.validation
        train, validation = split_episodes(everything, share, seed=request.seed)
        sha256 = sha256_file(path)
        info = DataInfo(
            name=name,
            env_id=task.env_id,
            label="published" if is_published(path, sha256) else "file",
            sha256=sha256,
            versions=versions(readers=True),
            success_timing=None,
            seed=None,
            rows=len(train),
            metric=self.metric,
            val_rows=0 if validation is None else len(validation),
            split=describe_split(share, request.seed),
            reference=task.reference,
            notes=(*notes, task.env_note),
        )
        return OfflineDataset(train, validation, info)

    def download(self, name: str, request: Request) -> Path:
        task = TASKS[name]
        folder = request.data_dir / "d4rl" / name.removeprefix("d4rl:")
        file = Published(task.file, task.urls(request.mirrors), asked=bool(request.mirrors))
        obtain(folder, [file], request.progress)
        return folder / task.file

    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        task = TASKS[name]
        if not task.env_id:
            raise ValueError(f"{name}: {task.env_note}.")
        require("gymnasium", "mujoco", extra="rl")
        if task.family == "pen":
            return _pen(task, seed, render_mode(render))
        return make(task.env_id, seed=seed, **task.env_options, **render_mode(render))

    def reference_scores(self, name: str) -> ReferenceScores:
        return TASKS[name].reference


def qlearning_transitions(
    arrays: Mapping[str, np.ndarray], task: Task, *, source: str
) -> tuple[Transitions, tuple[str, ...]]:
    """Turn the arrays of a file into transitions by the rules of the module; return them, and notes with counts."""
    observations = arrays["observations"]
    rows = observations.shape[0] if observations.ndim else 0
    if rows < 2:
        raise ValueError(f"{source}: observations has {rows} rows, expected at least 2.")
    width, act = task.widths
    shapes = {"observations": (rows, width), "next_observations": (rows, width), "actions": (rows, act)}
    columns: dict[str, np.ndarray] = {}
    for key, array in arrays.items():
        expected = shapes.get(key, (rows,))
        array = array[:, 0] if array.shape == (rows, 1) and expected == (rows,) else array
        if array.shape != expected:
            raise ValueError(f"{source}: {key} has shape {array.shape}, expected {expected} for this task.")
        if key in ("terminals", "timeouts"):
            refuse_other_flags(array, f"{source}: {key} must hold values that are 0 or 1")
        columns[key] = array
    terminals = columns["terminals"].astype(bool)
    timed = "timeouts" in columns
    limits = columns["timeouts"].astype(bool) if timed else _count_limits(terminals, task.max_steps)
    # The last row has no next one.
    dropped = limits | (np.arange(rows) == rows - 1)
    keep = ~dropped
    if not keep.any():
        raise ValueError(f"{source}: every row is at a time limit, so none has a next observation.")
    following = np.roll(observations, -1, axis=0)
    ends = np.zeros(rows, bool) if task.family == "antmaze" else terminals.copy()
    # A trajectory ends before a row that is left out.
    ends[:-1] |= dropped[1:]
    if "next_observations" in columns:
        step = np.linalg.norm(columns["next_observations"].astype(np.float64) - following, axis=1)
        ends |= step > 1e-6
        following = columns["next_observations"]
    fields = {
        "observations": observations,
        "actions": columns["actions"],
        "rewards": columns["rewards"],
        "next_observations": following,
        "masks": ~terminals,
        "terminals": ends,
    }
    data = from_dict({key: value[keep] for key, value in fields.items()}, source=source)
    notes = [f"left out, as in qlearning_dataset: the last row, and {int(limits[:-1].sum())} more at time limits"]
    if not timed:
        notes.append(f"timeouts: not in the file; an episode was taken to last {task.max_steps} steps")
    return data, tuple(notes)


def _count_limits(terminals: np.ndarray, max_steps: int) -> np.ndarray:
    """Return where episodes reach their time limit, counted from the last end, for a file that does not say."""
    limits = np.zeros(len(terminals), bool)
    start = 0
    for end in [*np.flatnonzero(terminals).tolist(), len(terminals)]:
        limits[start + max_steps - 1 : end + 1 : max_steps] = True
        start = end + 1
    return limits


def _pen(task: Task, seed: int | None, options: dict[str, Any]) -> Environment:
    """Make the pen environment, ended when the pen drops."""
    import gymnasium

    gymnasium.register_envs(robotics())
    env: Any = make(task.env_id, seed=seed, **task.env_options, **options)

    class DropEndsEpisode(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Ends the episode there, as D4RL's environment does and its successor does not."""

        def step(self, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            dropped = bool(observation[_PEN_HEIGHT] < _DROPPED)
            return observation, reward, terminated or dropped, truncated, info

    return DropEndsEpisode(env)
