"""n-step returns, of a data set as of what acting adds."""

import numpy as np
from jaxtyping import Bool, Float, Int


def n_step_rows(
    rewards: Float[np.ndarray, " rows"],
    masks: Float[np.ndarray, " rows"],
    terminals: Bool[np.ndarray, " rows"],
    discount: float,
    n_step: int,
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """Compute n-step returns, the discount of the state that follows them, and the row that leads to that state.

    A sum stops at the end of a trajectory (`terminals`), at the end of the task (`masks` 0, so that its discount is 0)
    and at the last row.
    """
    rows = rewards.shape[0]
    stops = terminals | (masks == 0)
    returns = np.zeros(rows)
    discounts = np.ones(rows)
    bootstrap = np.arange(rows)
    running = np.ones(rows, bool)
    for i in range(n_step):
        at = np.minimum(np.arange(rows) + i, rows - 1)
        returns += np.where(running, discounts * rewards[at], 0)
        bootstrap = np.where(running, at, bootstrap)
        discounts = np.where(running, discounts * discount, discounts)
        running &= ~stops[at] & (np.arange(rows) + i + 1 < rows)
    return returns, discounts * masks[bootstrap], bootstrap
