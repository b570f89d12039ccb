"""Makes D4RL-style locomotion data on this machine, from small behaviour policies that ship with the library.

- `*-medium-local-v0`: rollouts of one soft actor-critic policy, stopped well before it had converged, which samples
  its actions.
- `*-medium-replay-local-v0`: rollouts of the snapshots of that run before the one of "medium", evenly spaced from step
  0 on, the same number of rows from each. This is a *stand-in* for D4RL's replay buffer, not one: within an interval
  of training the policy stands still.

Neither is comparable with scores published for D4RL (other simulator, environment version and policies): their label
is "local". An episode is a function of (data set, seed, split, snapshot, index) alone, so neither the number of workers
nor an interruption changes a byte.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowrl._io import _files
from flowrl.rl.data.files import _store
from flowrl.rl.data.generators import _behaviour
from flowrl.rl.data.generators._local import build, describe, run_episodes
from flowrl.rl.data.schema import OfflineDataset, Progress, Request, Source, from_dict
from flowrl.rl.envs import Environment

_ENV_IDS = {"halfcheetah": "HalfCheetah-v5", "walker2d": "Walker2d-v5"}
#: All have gymnasium's usual time limit.
_MAX_STEPS = 1000
#: Generous size of a row in memory, to see beforehand whether the data will fit on the disk.
_BYTES_PER_ROW = 512


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The endless sequence of episodes of one snapshot, of which the first `rows` rows are taken.

    Attributes:
        split: "train" or "val".
        snapshot: file name of the policy.
        rows: how many to take; the last episode is cut there.
    """

    split: Literal["train", "val"]
    snapshot: str
    rows: int

    def shard(self, index: int) -> str:
        """The file name of an episode."""
        return f"{self.split}-{Path(self.snapshot).stem}-{index:06d}.npz"


def generate(
    name: str,
    data_dir: Path,
    /,
    *,
    rows: int,
    val_rows: int,
    seed: int,
    workers: int | None,
    progress: Progress | None,
) -> Path:
    """Makes a data set unless it is there already; the arguments are those of `flowrl.rl.data.generate`.

    Where episodes end early, the total that `progress` is told is an estimate.
    """
    parameters = _parameters(name)

    def collect(shards: Path) -> Mapping[str, Iterable[dict[str, np.ndarray]]]:
        _check_weights(parameters["policies"])
        policies = list(parameters["policies"])
        # The shards, and then the joined files beside them; the last episode of each stream is longer than needed.
        needed = 2 * (rows + val_rows + 2 * len(policies) * _MAX_STEPS) * _BYTES_PER_ROW
        _files.check_space(shards.parent, needed)
        splits = {"train": _streams("train", policies, rows), "val": _streams("val", policies, val_rows)}
        _collect(name, seed, shards, splits["train"] + splits["val"], workers, progress)
        return {split: (_join(shards, stream) for stream in streams) for split, streams in splits.items()}

    return build(
        name,
        data_dir,
        rows=rows,
        val_rows=val_rows,
        seed=seed,
        parameters=parameters,
        success_timing=None,
        packages=("gymnasium", "mujoco"),
        collect=collect,
    )


def load(name: str, request: Request, /) -> OfflineDataset:
    """Loads (and if need be makes) a data set; the arguments are those of `flowrl.rl.data.load`.

    A file of the user's (`dataset_path`) has the keys of `Transitions`.
    """
    if request.origin == "published":
        raise ValueError(f"{name} is made on this machine and was never published; leave out origin.")
    if request.validation is not None:
        raise ValueError(f"{name} has a validation split of its own; leave out validation.")
    path = request.dataset_path or generate(
        name,
        request.data_dir,
        rows=request.rows,
        val_rows=request.val_rows,
        seed=request.seed,
        workers=request.workers,
        progress=request.progress,
    )
    files = (path, _store.validation_path(path))
    train, validation = (from_dict(_files.read_npz(file), source=str(file)) for file in files)
    info = describe(path, name, _env_id(name), rows=len(train), success_timing=None, metric="return")
    return OfflineDataset(train, validation, dataclasses.replace(info, val_rows=len(validation)))


def make_env(name: str, /, *, seed: int | None, render: bool) -> Environment:
    """Makes the environment of a data set, with float32 observations and gymnasium's time limit.

    Args:
        name: such as "halfcheetah-medium-local-v0".
        seed: of the first `reset()` that is not given one; later resets go on from there. None: not reproducible.
        render: whether it can draw itself.

    Returns:
        The environment.

    Raises:
        ImportError: naming the extra to install, if gymnasium or mujoco is missing.
    """
    return _behaviour.make(_env_id(name), seed=seed, render=render)


def collector(name: str, seed: int, folder: str) -> Callable[..., None]:
    """Prepares a process for collecting episodes (see `_pool.run`).

    Args:
        name: of the data set.
        seed: of the data set.
        folder: where the shards go.

    Returns:
        A function of (split, snapshot, index, shard) that collects one episode and writes it to the file `shard`.
    """
    env = _behaviour.make(_env_id(name))
    policies: dict[str, _behaviour.TanhGaussian] = {}

    def collect(split: str, snapshot: str, index: int, shard: str) -> None:
        if snapshot not in policies:
            policies[snapshot] = _behaviour.load_policy(_behaviour.FOLDER / snapshot)
        digest = hashlib.sha256(f"{name}/{seed}/{split}/{snapshot}/{index}".encode()).digest()
        episode = _behaviour.rollout(env, policies[snapshot], np.random.SeedSequence(int.from_bytes(digest, "big")))
        # Not compressed: a shard lives until the last episode is done.
        _files.write_npz(Path(folder) / shard, episode._asdict(), compress=False)

    return collect


def _env_id(name: str) -> str:
    """The gymnasium id behind a data-set name."""
    return _ENV_IDS[name.split("-")[0]]


def _parameters(name: str) -> dict[str, Any]:
    """All that shapes a data set beyond seed and sizes, as JSON values: the environment and the policies' checksums."""
    env_id = _env_id(name)
    snapshots = _behaviour.provenance()[env_id]["snapshots"]
    chosen = snapshots[:-1] if "-medium-replay-" in name else snapshots[-1:]
    return {"env_id": env_id, "policies": {entry["file"]: entry["sha256"] for entry in chosen}}


def _check_weights(policies: Mapping[str, str]) -> None:
    """Raises unless the shipped weights are those of the provenance; `policies` is file name to SHA-256."""
    for file, sha256 in policies.items():
        found = _files.sha256_file(_behaviour.FOLDER / file)
        if found != sha256:
            raise ValueError(
                f"{_behaviour.FOLDER / file}: SHA-256 is {found[:12]}..., but provenance.json says {sha256[:12]}...; "
                "reinstall the package."
            )


def _streams(split: Literal["train", "val"], policies: Sequence[str], rows: int) -> list[_Stream]:
    """Shares rows out among policies as evenly as they divide; a policy that gets none has no stream."""
    share, rest = divmod(rows, len(policies))
    counts = [share + (i < rest) for i in range(len(policies))]
    return [_Stream(split, policy, count) for policy, count in zip(policies, counts, strict=True) if count]


def _collect(
    name: str, seed: int, shards: Path, streams: Sequence[_Stream], workers: int | None, progress: Progress | None
) -> None:
    """Collects episodes until every stream has its rows.

    How long an episode lasts is only known afterwards, so this goes in rounds; a surplus episode is not used.
    """
    lengths: dict[str, int] = {}
    arguments = {"name": name, "seed": seed, "folder": str(shards)}
    jobs: list[dict[str, Any]] | None = None
    while jobs is None or jobs:
        plans = [_missing(shards, stream, lengths) for stream in streams]
        jobs = [job for plan in plans for job in plan]
        factory = f"{__name__}:collector"
        run_episodes(factory, arguments, jobs, finished=len(lengths), workers=workers, progress=progress)


def _missing(shards: Path, stream: _Stream, lengths: dict[str, int]) -> list[dict[str, Any]]:
    """The jobs a stream still needs, if the missing episodes are as long as those that are there are on average.

    Args:
        shards: where finished episodes stand.
        stream: the stream.
        lengths: shard to its number of rows; what is found is added.
    """
    known, missing, index = [], [], 0
    while True:
        guess = sum(known) / len(known) if known else _MAX_STEPS
        if sum(known) + len(missing) * guess >= stream.rows:
            return [
                {"split": stream.split, "snapshot": stream.snapshot, "index": i, "shard": stream.shard(i)}
                for i in missing
            ]
        shard = stream.shard(index)
        if shard not in lengths and (shards / shard).exists():
            lengths[shard] = _files.read_npz(shards / shard)["rewards"].shape[0]
        if shard in lengths:
            known.append(lengths[shard])
        else:
            missing.append(index)
        index += 1


def _join(shards: Path, stream: _Stream) -> dict[str, np.ndarray]:
    """A stream's rows; where the last episode is cut the trajectory ends (`terminals`), but the task does not."""
    parts, have, index = [], 0, 0
    while have < stream.rows:
        parts.append(_files.read_npz(shards / stream.shard(index)))
        have += parts[-1]["rewards"].shape[0]
        index += 1
    joined = {key: np.concatenate([part[key] for part in parts])[: stream.rows] for key in parts[0]}
    joined["terminals"][-1] = 1.0
    return joined


_NAMES = tuple(f"{env}-{kind}-local-v0" for env in _ENV_IDS for kind in ("medium", "medium-replay"))

#: What the registry merges.
SOURCES = {
    "locomotion": Source(
        env_names=_NAMES,
        metric="return",
        load=load,
        make_env=make_env,
        dataset_names=_NAMES,
        generate=generate,
    )
}
