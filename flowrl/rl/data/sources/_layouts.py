"""The common layouts of arrays, brought to the schema by documented repairs, each of them counted."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flowrl.rl.data.schema import ACTION_TOLERANCE
from flowrl.rl.envs import to_unit

_REQUIRED = ("observations", "actions", "rewards")
_FLAGS = ("masks", "terminals", "timeouts", "dones", "terminations", "truncations")
#: Distance at which a next observation no longer is the next row's observation.
_CONTINUOUS = 1e-6
#: Actions of no more values than this, all whole numbers, may be codes.
_CODES = 64


def repair(arrays: Mapping[str, Any], *, source: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Bring arrays in a common layout to the schema's six fields; return them unchecked, and the repairs with counts.

    The rules are those of `flowrl.rl.data.from_arrays`.
    """
    given = {key: np.asarray(value) for key, value in arrays.items()}
    missing = [key for key in _REQUIRED if key not in given]
    if missing or not set(given) & set(_FLAGS):
        lacking = [*missing, *([] if set(given) & set(_FLAGS) else ["flags (terminals or dones)"])]
        raise ValueError(f"{source}: missing {', '.join(lacking)}; found {', '.join(sorted(given)) or 'no arrays'}.")
    unknown = sorted(set(given) - {*_REQUIRED, *_FLAGS, "next_observations"})
    if unknown:
        raise ValueError(
            f"{source}: unknown keys {', '.join(unknown)}. Nothing is dropped silently: remove them, or name them in "
            "`ignore`."
        )
    rows = given["observations"].shape[0] if given["observations"].ndim else 0
    if rows == 0:
        raise ValueError(f"{source}: observations has no rows.")
    for key, array in given.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise ValueError(f"{source}: {key} has shape {array.shape}, but observations has {rows} rows.")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{source}: {key} has dtype {array.dtype}, expected numbers.")
    if given["actions"].dtype.kind in "biu":
        raise ValueError(
            f"{source}: actions have dtype {given['actions'].dtype}: discrete actions cannot be moved along a gradient."
        )
    notes = _codes(given["actions"])
    rewards = given["rewards"]
    if rewards.shape == (rows, 1):
        rewards = rewards[:, 0]
        notes.append("rewards: shape (n, 1) became (n,)")
    if rewards.dtype.kind in "biu":
        rewards = rewards.astype(np.float64)
    stops, ends = _flags(given, rows, source, notes)
    if not ends[-1]:
        ends[-1] = True
        notes.append("the last trajectory was unfinished: 1 end added")
    observations = given["observations"]
    keep = np.ones(rows, bool)
    if "next_observations" in given:
        following = given["next_observations"]
        if following.shape != observations.shape:
            raise ValueError(
                f"{source}: next_observations has shape {following.shape}, expected that of observations, "
                f"{observations.shape}."
            )
        _break_where_discontinuous(observations, following, ends, source, notes)
    else:
        following = np.concatenate([observations[1:], observations[-1:]])
        # After a true end the value is zero, so any state will do; after a time limit the next state is not known.
        following = np.where(ends.reshape((-1,) + (1,) * (observations.ndim - 1)), observations, following)
        keep = ~ends | stops
        dropped = int((~keep).sum())
        # What comes before a dropped row ends the trajectory now.
        ends = ends | np.concatenate([~keep[1:], [False]])
        notes.append(f"next_observations: taken from the next row; {dropped} last rows without one were dropped")
        if not keep.any():
            raise ValueError(f"{source}: no row has a next observation: every trajectory has one row.")
    fields = {
        "observations": observations,
        "actions": given["actions"],
        "rewards": rewards,
        "next_observations": following,
        "masks": ~stops,
        "terminals": ends,
    }
    return {key: value[keep] for key, value in fields.items()}, notes


def in_unit(actions: np.ndarray, low: np.ndarray, high: np.ndarray, source: str) -> np.ndarray:
    """Map actions (rows, act) to [-1, 1]; raise a ValueError in the environment's own units for those outside."""
    unit = to_unit(actions, low, high, source)
    beyond = (np.abs(unit) > 1 + ACTION_TOLERANCE).any(axis=1)  # what is NaN, the schema names
    if not beyond.any():
        return unit
    row, limits = int(np.argmax(beyond)), f"{_listed(low)} to {_listed(high)}"
    if (np.abs(actions) <= 1 + ACTION_TOLERANCE).all():
        way_out = 'all lie within [-1, 1]: give actions="unit" if that is what they are meant in.'
    else:
        way_out = "clip them to the limits, or name the environment that they were taken in."
    raise ValueError(
        f"{source}: actions leave the environment's limits, {limits}, in {int(beyond.sum())} of {len(actions)} rows, "
        f"first in row {row}, {_listed(actions[row])}; {way_out}"
    )


def _listed(numbers: np.ndarray) -> str:
    some = ", ".join(f"{float(x):.6g}" for x in numbers[:6])
    return f"[{some}{', ...' if numbers.size > 6 else ''}]"


def refuse_other_flags(array: np.ndarray, expected: str) -> None:
    """Raise a ValueError that says which flag is neither 0 nor 1, and where it stands first."""
    bad = (array != 0) & (array != 1)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{expected}; {int(bad.sum())} are not, first row {row}: {array[row]:.6g}.")


def _codes(actions: np.ndarray) -> list[str]:
    """Return a note if actions look like codes of discrete ones, which would pass for continuous numbers."""
    values = np.unique(actions[np.isfinite(actions)])
    if not 2 <= values.size <= _CODES or (values != np.round(values)).any():
        return []
    one_hot = actions.ndim == 2 and actions.shape[1] > 1 and values.size == 2 and (actions.sum(axis=1) == 1).all()
    form = "rows with a single 1, as one-hot codes do" if one_hot else f"{values.size} whole numbers alone"
    return [
        f"actions: they hold {form}; taken as continuous, and if they are codes of discrete actions, no gradient leads "
        "from one to another"
    ]


def _flags(given: Mapping[str, np.ndarray], rows: int, source: str, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return where the task stops (mask 0) and where trajectories end."""
    flags: dict[str, np.ndarray] = {}
    for key in set(given) & set(_FLAGS):
        array = given[key].reshape(rows) if given[key].shape == (rows, 1) else given[key]
        if array.shape != (rows,):
            raise ValueError(f"{source}: {key} must be {rows} values that are 0 or 1; its shape is {array.shape}.")
        refuse_other_flags(array, f"{source}: {key} must be {rows} values that are 0 or 1")
        flags[key] = array.astype(bool)
    names = set(flags)
    none = np.zeros(rows, bool)
    if "masks" in names and names == {"masks", "terminals"}:
        return ~flags["masks"], flags["terminals"].copy()
    if names <= {"terminals", "timeouts"} and "terminals" in names:
        stops, limits = flags["terminals"], flags.get("timeouts", none)
    elif names <= {"terminations", "truncations"} and "terminations" in names:
        stops, limits = flags["terminations"], flags.get("truncations", none)
    elif names <= {"dones", "timeouts"} and "dones" in names:
        limits = flags.get("timeouts", none)
        stops = flags["dones"] & ~limits
        if "timeouts" not in names:
            notes.append(f"dones: all {int(stops.sum())} were taken for true ends, none for a time limit")
    else:
        raise ValueError(
            f"{source}: the flags {', '.join(sorted(names))} are not a known layout; give masks and terminals, "
            "terminals and timeouts, terminations and truncations, or dones."
        )
    return stops, stops | limits


def _break_where_discontinuous(
    observations: np.ndarray, following: np.ndarray, ends: np.ndarray, source: str, notes: list[str]
) -> None:
    """End trajectories (in place) where the next row does not go on from this one."""
    axes = tuple(range(1, observations.ndim))
    step = np.abs(following[:-1].astype(np.float64) - observations[1:]).max(axis=axes, initial=0.0)
    scale = 1 + np.abs(observations[1:]).max(axis=axes, initial=0.0)
    breaks = np.concatenate([step > _CONTINUOUS * scale, [True]])
    added = breaks & ~ends
    # No end where the data break off, but one a row later, where they go on: an error of whoever wrote the flags.
    late = added[:-1] & ends[1:] & ~breaks[1:]
    if late.any() and 2 * late.sum() >= added.sum():
        raise ValueError(
            f"{source}: trajectories break off {int(late.sum())} times one row before their end is flagged, first at "
            f"row {int(np.argmax(late))}: the flags seem to stand on the first row of the next trajectory; shift them "
            "by one row."
        )
    ends |= breaks
    if added.any():
        notes.append(f"terminals: {int(added.sum())} ends added where the next row does not go on")
