"""Minari's data sets, by name: "minari:D4RL/pen/human-v2", or one that the user has recorded with its DataCollector.

Minari keeps them itself (under `MINARI_DATASETS_PATH`, or `~/.minari/datasets`). The rules by which they are read:

- an episode of T steps has T + 1 observations: `next_observations` are the last T of them;
- a termination makes the mask 0; the last step of an episode ends the trajectory, and if it is only truncated, or cut
  off, its mask stays 1;
- observations and actions are brought to this library's form by the spaces of the data set; see `_gym_env.py`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl._io import atomic_write, check_memory, lock, make_dir, parse_json, sha256_file
from flowrl.rl.data.files import versions
from flowrl.rl.data.schema import (
    DEFAULT_SHARE,
    AbstractPublishedSource,
    DataInfo,
    OfflineDataset,
    ReferenceScores,
    Request,
    describe_split,
    from_dict,
    split_episodes,
)
from flowrl.rl.data.sources._layouts import in_unit
from flowrl.rl.envs import (
    Environment,
    action_limits,
    adapt,
    flat_size,
    flatten_rows,
    quiet,
    render_mode,
    robotics,
    simulator_log_off,
)

_PREFIX = "minari:"
# No dots: a name must not lead out of Minari's folder.
_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


class Minari(AbstractPublishedSource):
    """Data sets that Minari knows by name."""

    prefixes = (_PREFIX,)

    def load(self, name: str, request: Request) -> OfflineDataset:
        if request.dataset_path is not None:
            raise ValueError(
                f"{name}: Minari finds its data sets by name; set MINARI_DATASETS_PATH to the folder that holds them, "
                "instead of dataset_path."
            )
        if request.origin == "published":
            self.download(name, request)
        dataset = _open(name)
        low, high = action_limits(dataset.action_space, name)
        width = flat_size(dataset.observation_space, name)
        rows = int(dataset.total_steps)
        # Observations twice, actions, and four columns, as float32: by episode, joined, checked, and split.
        check_memory(rows * (2 * width + low.size + 4) * 16, name)
        episodes = list(_episodes(dataset, width, name))
        used = [episode for episode in episodes if len(episode["rewards"])]
        notes = []
        if not used:
            raise ValueError(f"{name}: the data set has no steps.")
        if len(used) < len(episodes):
            notes.append(f"{len(episodes) - len(used)} episodes without a step were left out")
        arrays = {key: np.concatenate([episode[key] for episode in used]) for key in used[0]}
        arrays["actions"] = in_unit(arrays["actions"], low, high, name)
        everything = from_dict(arrays, source=name)
        share = DEFAULT_SHARE if request.validation is None else request.validation
        train, validation = split_episodes(everything, share, seed=request.seed)
        scores = self.reference_scores(name)
        if scores is None:
            notes.append("no reference scores in the data set: scores are returns")
        spec = _evaluation_spec(dataset)
        if spec is None:
            notes.append("no environment in the data set: policies cannot be evaluated")
        sha256 = _digest(_all_files(dataset))
        info = DataInfo(
            name=name,
            env_id="" if spec is None else str(spec.id),
            label="published" if _downloaded(request.data_dir, name) == sha256 else "file",
            sha256=sha256,
            versions=versions(readers=True),
            success_timing=None,
            seed=None,
            rows=len(train),
            metric=self.metric,
            val_rows=0 if validation is None else len(validation),
            split=describe_split(share, request.seed),
            reference=scores,
            notes=tuple(notes),
        )
        return OfflineDataset(train, validation, info)

    def download(self, name: str, request: Request) -> Path:
        # Minari keeps the data in its own folder and does not say how far it is; what came is recorded in ours.
        if request.mirrors:
            raise ValueError(f"{name}: Minari chooses its server itself; set MINARI_REMOTE instead of mirrors.")
        require("minari", "h5py", extra="rl")
        import minari
        from minari.storage import get_dataset_path

        identifier, root = _identifier(name), get_dataset_path()
        # Nothing is downloaded to a folder that cannot be written to. What Minari is still writing looks complete.
        writable = os.access(root, os.W_OK)
        with lock(root / ".flowrl.lock") if writable else contextlib.nullcontext():
            if identifier not in _local_names():
                try:
                    # It reports to standard output, which is the caller's.
                    with contextlib.redirect_stdout(io.StringIO()):
                        minari.download_dataset(identifier)
                except ImportError as error:
                    raise ImportError(f'{name}: {error} (pip install "minari[all]")', name=error.name) from error
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                except Exception as error:  # whatever its clients raise
                    raise OSError(f"{name}: Minari could not download it: {type(error).__name__}: {error}") from error
                files = _all_files(_open(name))
                path = _record(request.data_dir, name)
                make_dir(path.parent)
                with atomic_write(path) as stream:
                    stream.write((json.dumps({"name": name, "sha256": _digest(files)}) + "\n").encode())
        return Path(_open(name).spec.data_path).parent

    def make_env(self, name: str, *, seed: int | None, render: bool) -> Environment:
        # A data set names its environment by an entry point, which gymnasium imports: recover only what you trust.
        dataset = _open(name)
        spec = _evaluation_spec(dataset)
        if spec is None:
            raise ValueError(
                f"{name}: the data set names no environment. Load its arrays with flowrl.rl.data.from_arrays and give "
                "one."
            )
        if "gymnasium_robotics" in str(spec.entry_point):
            robotics()
        try:
            with quiet(), simulator_log_off():
                env = dataset.recover_environment(eval_env=True, disable_env_checker=True, **render_mode(render))
        except ModuleNotFoundError as error:
            message = f"{name}: its environment {spec.id} needs {error.name}: install it."
            raise ImportError(message, name=error.name) from error
        limits = [np.stack(action_limits(one.action_space, name)) for one in (env, dataset)]
        for kind in ("observation", "action"):
            here, there = getattr(env, f"{kind}_space"), getattr(dataset, f"{kind}_space")
            same = _same_form(here, there)
            if not same or (kind == "action" and not np.allclose(limits[0], limits[1])):
                raise ValueError(
                    f"{name}: the environment {spec.id} has the {kind} space {here}, but the data have {there}; "
                    "install the version of the environment that the data were recorded with."
                )
        return adapt(env, name, seed=seed)

    def reference_scores(self, name: str) -> ReferenceScores | None:
        metadata = _open(name).storage.metadata
        lowest, highest = metadata.get("ref_min_score"), metadata.get("ref_max_score")
        if lowest is None or highest is None:
            return None
        return ReferenceScores(float(lowest), float(highest), f"the metadata of {name}")


def _open(name: str) -> Any:
    """Open a data set that is on this machine."""
    require("gymnasium", "minari", "h5py", extra="rl")
    import minari

    identifier = _identifier(name)
    if identifier not in (local := _local_names()):
        near = f" On this machine are {', '.join(local)}." if local else " None is on this machine."
        raise FileNotFoundError(
            f'{name} is not on this machine: give origin="published" to download it, or set MINARI_DATASETS_PATH to '
            f"the folder that holds it.{near}"
        )
    try:
        return minari.load_dataset(identifier)
    except (OSError, KeyError, AssertionError) as error:
        raise ValueError(f"{name}: Minari cannot read it ({type(error).__name__}: {error}).") from error


def _local_names() -> Sequence[str]:
    """Return the data sets that Minari finds on this machine."""
    import minari

    return sorted(minari.list_local_datasets())


def _identifier(name: str) -> str:
    """Return Minari's own name, checked."""
    identifier = name.removeprefix(_PREFIX)
    if not _ID.fullmatch(identifier):
        raise ValueError(f"{name}: expected minari:namespace/name-vN, such as minari:mujoco/hopper/medium-v0.")
    return identifier


def _evaluation_spec(dataset: Any) -> Any:
    """Return the specification of the environment for evaluation, or of the one the data were recorded in."""
    return getattr(dataset, "_eval_env_spec", None) or dataset.env_spec


def _episodes(dataset: Any, width: int, name: str) -> Iterator[dict[str, np.ndarray]]:
    """Yield the episodes as fields of the schema; actions in the environment's units."""
    try:
        for episode in dataset.iterate_episodes():
            steps = len(episode.rewards)
            try:
                observations = flatten_rows(dataset.observation_space, episode.observations, steps + 1)
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"{name}: episode {episode.id} has {steps} steps, but not {steps + 1} observations of "
                    f"{dataset.observation_space} ({error})."
                ) from error
            if observations.shape != (steps + 1, width):
                raise ValueError(
                    f"{name}: the observations of episode {episode.id} have shape {observations.shape}, expected "
                    f"{(steps + 1, width)}."
                )
            yield {
                "observations": observations[:-1].astype(np.float32),
                "actions": np.asarray(episode.actions),
                "rewards": np.asarray(episode.rewards, np.float64),
                "next_observations": observations[1:].astype(np.float32),
                "masks": ~np.asarray(episode.terminations, bool),
                "terminals": np.arange(steps) == steps - 1,
            }
    except (OSError, KeyError, AssertionError) as error:
        raise ValueError(f"{name}: Minari cannot read it ({type(error).__name__}: {error}).") from error


def _same_form(one: Any, other: Any) -> bool:
    """Return whether two spaces have one kind and shape; limits may differ in rounding or in what is unbounded."""
    if type(one) is not type(other):
        return False
    spaces = getattr(one, "spaces", None)
    if isinstance(spaces, dict):
        return spaces.keys() == other.spaces.keys() and all(_same_form(spaces[k], other.spaces[k]) for k in spaces)
    if spaces is not None:
        return len(spaces) == len(other.spaces) and all(map(_same_form, spaces, other.spaces))
    return one.shape == other.shape and bool(getattr(one, "n", None) == getattr(other, "n", None))


def _all_files(dataset: Any) -> list[Path]:
    """Return all files of a data set, in a fixed order."""
    return sorted(path for path in Path(dataset.spec.data_path).rglob("*") if path.is_file())


def _digest(files: Sequence[Path]) -> str:
    """Return one SHA-256 for several files."""
    lines = [f"{path.name} {sha256_file(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _record(data_dir: Path, name: str) -> Path:
    """Return the path of the record of a download."""
    return data_dir / "minari" / f"{_identifier(name)}.json"


def _downloaded(data_dir: Path, name: str) -> str | None:
    """Return the digest of a data set when it was downloaded here; None if it was not."""
    try:
        content = parse_json(_record(data_dir, name).read_bytes())
    except (OSError, ValueError):
        return None
    return content.get("sha256") if isinstance(content, dict) else None
