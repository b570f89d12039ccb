"""A validation split for data that come without one."""

import numpy as np

from flowrl._misc import check_count, check_number
from flowrl.rl.data.schema._schema import Transitions

#: Share of the trajectories that is held out unless the caller says otherwise.
DEFAULT_SHARE = 0.05


def split_episodes(data: Transitions, share: float, *, seed: int) -> tuple[Transitions, Transitions | None]:
    """Hold out whole trajectories, so that no state of the one split is a neighbour of one of the other.

    Args:
        data: transitions; `terminals` end the trajectories.
        share: of the trajectories to hold out, in [0, 1); at least one is, unless `share` is 0.
        seed: of the choice; the order of the rows stays.

    Returns:
        What is left, and what was held out (None if `share` is 0).

    Raises:
        ValueError: `share` is out of range, or nothing would be left.
    """
    check_number("validation", share, lambda x: 0 <= x < 1, "a share of the trajectories in [0, 1)")
    check_count("seed", seed, 0)
    if share == 0:
        return data, None
    ends = np.flatnonzero(np.asarray(data.terminals))
    held_out = max(1, round(share * len(ends)))
    if held_out >= len(ends):
        raise ValueError(
            f"cannot hold out {share:.0%} of {len(ends)} trajectories; give validation=0 to go without a validation "
            "split."
        )
    chosen = np.zeros(len(ends), bool)
    chosen[np.random.default_rng(seed).permutation(len(ends))[:held_out]] = True
    rows = np.repeat(chosen, np.diff(ends, prepend=-1))
    return _take(data, ~rows), _take(data, rows)


def describe_split(share: float, seed: int) -> str:
    """Return what `DataInfo.split` says of `split_episodes`."""
    return f"{share:.0%} of the trajectories, seed {seed}" if share else "none"


def _take(data: Transitions, rows: np.ndarray) -> Transitions:
    return Transitions(
        data.observations[rows],
        data.actions[rows],
        data.rewards[rows],
        data.next_observations[rows],
        data.masks[rows],
        data.terminals[rows],
    )
