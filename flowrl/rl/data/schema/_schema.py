"""The form every offline data set has once it is loaded, and the checks it has passed."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from flowrl.rl.data.schema._rewards import RewardTransform
from flowrl.rl.data.schema._scores import ReferenceScores

_Array = jax.Array | np.ndarray

#: Actions may leave [-1, 1] by this much (float32 rounding in foreign files); beyond it the file is refused.
ACTION_TOLERANCE = 1e-4
#: Actions are then clipped to +-(1 - ACTION_MARGIN), as the official agents do, so that atanh of an action is finite.
ACTION_MARGIN = 1e-5

_FIELDS = ("observations", "actions", "rewards", "next_observations", "masks", "terminals")
_MATRICES = ("observations", "actions", "next_observations")
_FLAGS = ("masks", "terminals")


class Transitions(eqx.Module):
    """Transitions of one or more trajectories; the rows of a trajectory are consecutive in time.

    `masks` and `terminals` say different things. A mask of 0 means the state's value is known to be 0 from here on
    (success, or a true end): do not bootstrap. A terminal of 1 means only that the next row belongs to another
    trajectory: do not sum rewards across it. Loaders give float32 NumPy arrays; the training loop may put them on a
    device.

    Attributes:
        observations: (n, obs).
        actions: (n, act), within [-1, 1].
        rewards: (n,).
        next_observations: (n, obs).
        masks: (n,), 1 where the target may bootstrap, else 0.
        terminals: (n,), 1 on the last row of each trajectory, else 0.
    """

    observations: Float[_Array, "n obs"]
    actions: Float[_Array, "n act"]
    rewards: Float[_Array, " n"]
    next_observations: Float[_Array, "n obs"]
    masks: Float[_Array, " n"]
    terminals: Float[_Array, " n"]

    def __len__(self) -> int:
        """Return the number of rows n."""
        return self.observations.shape[0]


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """Where a data set came from: enough to say, in a result row, exactly what was learnt from.

    Attributes:
        name: of the environment, for `make_env`; for `load` the name that was given.
        env_id: the gymnasium id of the evaluation environment; empty where there is none.
        label: "local" (generated on this machine: not comparable with published scores), "published" (the published
            file, downloaded here or recognised by its checksum), or "file" (given by the user, of unknown origin).
        sha256: of the training file; of several files or of arrays in memory: of their names and contents.
        versions: package name to version. For "local" data those that generated it.
        success_timing: OGBench's "pre" (reward r(s), from 1.2.0) or "post"; None where it does not apply.
        seed: the generator's seed; None where unknown.
        rows: number of training transitions.
        metric: "success" or "return".
        val_rows: number of validation transitions.
        split: where the validation split came from.
        reward_transform: what was done to the rewards, and by which protocol; `apply_protocol` sets it.
        reference: the returns between which scores are measured; None where no one has published any.
        notes: what else a reader of a result must know: repairs with their counts, another simulator version.
    """

    name: str
    env_id: str
    label: Literal["local", "published", "file"]
    sha256: str
    versions: dict[str, str]
    success_timing: str | None
    seed: int | None
    rows: int
    metric: Literal["success", "return"]
    val_rows: int = 0
    split: str = "its own"
    reward_transform: RewardTransform = RewardTransform()
    reference: ReferenceScores | None = None
    notes: tuple[str, ...] = ()

    def score(self, returns: np.ndarray) -> np.ndarray:
        """Return normalised scores where there is a reference, else the returns as they are.

        Args:
            returns: undiscounted sums of the environment's own rewards, of any shape.
        """
        return returns if self.reference is None else self.reference.score(returns)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys; equal infos give equal strings."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=True, allow_nan=False)


@dataclasses.dataclass(frozen=True)
class OfflineDataset:
    """A training split, a validation split, and where they came from.

    Attributes:
        train: what is learnt from.
        validation: what is only measured on; None if nothing was held out.
        info: where both came from.
    """

    train: Transitions
    validation: Transitions | None
    info: DataInfo


def from_dict(data: Mapping[str, Any], *, source: str, ignore: Sequence[str] = ()) -> Transitions:
    """Check a dictionary of arrays and turn it into `Transitions` of float32 NumPy arrays.

    Actions within `ACTION_TOLERANCE` of [-1, 1] are accepted, then all are clipped to +-(1 - `ACTION_MARGIN`).

    Args:
        data: the six fields of `Transitions`, as arrays; flags (`masks`, `terminals`) may also be bool.
        source: name of the data in messages: a path or a data-set name.
        ignore: keys that may be present and are not used (e.g. "qpos"). Any other unknown key is an error.

    Returns:
        The transitions.

    Raises:
        ValueError: a key is missing or unknown, a shape or dtype is wrong, lengths differ, a value is not finite, an
            action leaves [-1, 1], a flag is neither 0 nor 1, or the last row does not end a trajectory. The message
            names source, field, what was expected, and the first bad row.
    """
    missing = [name for name in _FIELDS if name not in data]
    if missing:
        raise ValueError(f"{source}: missing {', '.join(missing)}; found {', '.join(sorted(data)) or 'no keys'}.")
    unknown = sorted(set(data) - set(_FIELDS) - set(ignore))
    if unknown:
        raise ValueError(
            f"{source}: unknown keys {', '.join(unknown)}. Nothing is dropped silently: "
            "remove them from the data, or name them in `ignore`."
        )
    arrays = {name: _as_float32(np.asarray(data[name]), name, source) for name in _FIELDS}
    rows = arrays["observations"].shape[0]
    if rows == 0:
        raise ValueError(f"{source}: observations has no rows.")
    for name, array in arrays.items():
        if array.shape[0] != rows:
            raise ValueError(f"{source}: {name} has {array.shape[0]} rows, but observations has {rows}.")
    if arrays["next_observations"].shape != arrays["observations"].shape:
        raise ValueError(
            f"{source}: next_observations has shape {arrays['next_observations'].shape}, "
            f"expected that of observations, {arrays['observations'].shape}."
        )
    for name in _FLAGS:
        bad = (arrays[name] != 0) & (arrays[name] != 1)
        _refuse_rows(bad, arrays[name], name, source, "expected 0 or 1")
    bad = np.any(np.abs(arrays["actions"]) > 1 + ACTION_TOLERANCE, axis=1)
    _refuse_rows(bad, arrays["actions"], "actions", source, "expected values within [-1, 1]; rescale the actions")
    if arrays["terminals"][-1] != 1:
        raise ValueError(
            f"{source}: terminals is 0 on the last row ({rows - 1}), expected 1: the last trajectory must end there."
        )
    limit = np.float32(1 - ACTION_MARGIN)
    arrays["actions"] = np.clip(arrays["actions"], -limit, limit)
    return Transitions(**arrays)


def episode_ends(terminals: Float[_Array, " n"]) -> Int[np.ndarray, " n"]:
    """Compute for every row the index of the last row of its trajectory (an n-step return must not look past it).

    Args:
        terminals: (n,), 1 on the last row of each trajectory, else 0; the last one is 1.

    Returns:
        (n,) int32; entry i is the smallest j >= i with terminals[j] = 1.

    Raises:
        ValueError: there are no rows, or the last row does not end a trajectory.
    """
    flags = np.asarray(terminals)
    if flags.shape[0] == 0 or flags[-1] != 1:
        raise ValueError("terminals must have at least one row and be 1 on the last row.")
    ends = np.flatnonzero(flags)
    return ends[np.searchsorted(ends, np.arange(flags.shape[0]))].astype(np.int32)


def _as_float32(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """Check the dtype, number of axes and finiteness of one field, and cast it."""
    flag = name in _FLAGS
    if not (np.issubdtype(array.dtype, np.floating) or (flag and array.dtype == np.bool_)):
        expected = "a floating dtype or bool" if flag else "a floating dtype"
        raise ValueError(f"{source}: {name} has dtype {array.dtype}, expected {expected}.")
    axes = "(rows, features)" if name in _MATRICES else "(rows,)"
    if array.ndim != (2 if name in _MATRICES else 1):
        raise ValueError(f"{source}: {name} has shape {array.shape}, expected {axes}.")
    if array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(f"{source}: {name} has shape {array.shape}, expected at least one feature.")
    # A float64 beyond float32's range becomes inf here, which the next check reports; NumPy's own warning would be
    # a second, less precise message.
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array, dtype=np.float32)
    bad = ~np.isfinite(cast)
    _refuse_rows(
        np.asarray(bad.any(axis=1) if bad.ndim == 2 else bad), cast, name, source, "expected finite float32 values"
    )
    return cast


def _refuse_rows(bad: np.ndarray, array: np.ndarray, name: str, source: str, expected: str) -> None:
    """Raise a ValueError if any row is bad, naming the first one."""
    count = int(np.count_nonzero(bad))
    if count:
        row = int(np.argmax(bad))
        shown = np.array2string(array[row], precision=6, threshold=8)
        raise ValueError(
            f"{source}: {name} is wrong on {count} of {bad.shape[0]} rows, first row {row}: {shown}; {expected}."
        )
