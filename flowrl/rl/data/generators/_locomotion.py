"""D4RL-style locomotion data made on this machine, from small behaviour policies that ship with the library.

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

from flowrl._io import check_space, read_npz, sha256_file, write_npz
from flowrl.rl.data.generators import _behaviour
from flowrl.rl.data.generators._local import build, run_episodes
from flowrl.rl.data.schema import Request

#: Data-set name to the gymnasium id of its environment.
LOCOMOTION = {
    f"{env}-{kind}-local-v0": env_id
    for env, env_id in (("halfcheetah", "HalfCheetah-v5"), ("walker2d", "Walker2d-v5"))
    for kind in ("medium", "medium-replay")
}
#: All have gymnasium's usual time limit.
_MAX_STEPS = 1000
#: Generous size of a row in memory, to see beforehand whether the data will fit on the disk.
_BYTES_PER_ROW = 512


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The endless sequence of episodes of one snapshot (a file name), of which the first `rows` rows are taken."""

    split: Literal["train", "val"]
    snapshot: str
    rows: int

    def shard(self, index: int) -> str:
        """Return the file name of an episode."""
        return f"{self.split}-{Path(self.snapshot).stem}-{index:06d}.npz"


def generate_locomotion(name: str, request: Request) -> Path:
    """Make a data set unless it is there already; where episodes end early, the total of `progress` is an estimate."""
    parameters = _parameters(name)
    rows, val_rows = request.rows, request.val_rows

    def collect(shards: Path) -> Mapping[str, Iterable[dict[str, np.ndarray]]]:
        _check_weights(parameters["policies"])
        policies = list(parameters["policies"])
        # The shards, and then the joined files beside them; the last episode of each stream is longer than needed.
        needed = 2 * (rows + val_rows + 2 * len(policies) * _MAX_STEPS) * _BYTES_PER_ROW
        check_space(shards.parent, needed)
        splits = {"train": _streams("train", policies, rows), "val": _streams("val", policies, val_rows)}
        _collect(name, request, shards, splits["train"] + splits["val"])
        return {split: (_join(shards, stream) for stream in streams) for split, streams in splits.items()}

    return build(
        name,
        request,
        parameters=parameters,
        success_timing=None,
        packages=("gymnasium", "mujoco"),
        collect=collect,
    )


def collector(name: str, seed: int, folder: str) -> Callable[..., None]:
    """Return the function that collects one episode in a worker process (see `run`) and writes it to `shard`."""
    env = _behaviour.make_mujoco(LOCOMOTION[name])
    policies: dict[str, _behaviour.TanhGaussian] = {}

    def collect(split: str, snapshot: str, index: int, shard: str) -> None:
        if snapshot not in policies:
            policies[snapshot] = _behaviour.load_policy(_behaviour.FOLDER / snapshot)
        digest = hashlib.sha256(f"{name}/{seed}/{split}/{snapshot}/{index}".encode()).digest()
        episode = _behaviour.rollout(env, policies[snapshot], np.random.SeedSequence(int.from_bytes(digest, "big")))
        # Not compressed: a shard lives until the last episode is done.
        write_npz(Path(folder) / shard, episode._asdict(), compress=False)

    return collect


def _parameters(name: str) -> dict[str, Any]:
    """Return what shapes a data set beyond seed and sizes: the environment, and the policies' checksums."""
    env_id = LOCOMOTION[name]
    snapshots = _behaviour.provenance()[env_id]["snapshots"]
    chosen = snapshots[:-1] if "-medium-replay-" in name else snapshots[-1:]
    return {"env_id": env_id, "policies": {entry["file"]: entry["sha256"] for entry in chosen}}


def _check_weights(policies: Mapping[str, str]) -> None:
    """Raise a ValueError unless the shipped weights have the SHA-256 of the provenance."""
    for file, sha256 in policies.items():
        found = sha256_file(_behaviour.FOLDER / file)
        if found != sha256:
            raise ValueError(
                f"{_behaviour.FOLDER / file}: SHA-256 is {found[:12]}..., but provenance.json says {sha256[:12]}...; "
                "reinstall the package."
            )


def _streams(split: Literal["train", "val"], policies: Sequence[str], rows: int) -> list[_Stream]:
    """Share rows among policies as evenly as they divide; a policy that gets none has no stream."""
    share, rest = divmod(rows, len(policies))
    counts = [share + (i < rest) for i in range(len(policies))]
    return [_Stream(split, policy, count) for policy, count in zip(policies, counts, strict=True) if count]


def _collect(name: str, request: Request, shards: Path, streams: Sequence[_Stream]) -> None:
    """Collect episodes until every stream has its rows."""
    # How long an episode lasts is only known afterwards, so this goes in rounds; a surplus episode is not used.
    lengths: dict[str, int] = {}
    arguments = {"name": name, "seed": request.seed, "folder": str(shards)}
    jobs: list[dict[str, Any]] | None = None
    while jobs is None or jobs:
        plans = [_missing(shards, stream, lengths) for stream in streams]
        jobs = [job for plan in plans for job in plan]
        factory = f"{__name__}:collector"
        run_episodes(factory, arguments, jobs, request, finished=len(lengths))


def _missing(shards: Path, stream: _Stream, lengths: dict[str, int]) -> list[dict[str, Any]]:
    """Return the jobs a stream still needs, if missing episodes last as long as the others on average.

    The lengths of shards that are found are added to `lengths`.
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
            lengths[shard] = read_npz(shards / shard)["rewards"].shape[0]
        if shard in lengths:
            known.append(lengths[shard])
        else:
            missing.append(index)
        index += 1


def _join(shards: Path, stream: _Stream) -> dict[str, np.ndarray]:
    """Return a stream's rows; where the last episode is cut, `terminals` is 1 but the task has not ended."""
    parts, have, index = [], 0, 0
    while have < stream.rows:
        parts.append(read_npz(shards / stream.shard(index)))
        have += parts[-1]["rewards"].shape[0]
        index += 1
    joined = {key: np.concatenate([part[key] for part in parts])[: stream.rows] for key in parts[0]}
    joined["terminals"][-1] = 1.0
    return joined
