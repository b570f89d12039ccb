"""The n-step rows of what environments do while they are acted in.

Rows are complete when they leave: an n-step window is closed on the host, so that nothing in a buffer is ever revised.
"""

from collections import deque

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl.rl.data.replay._n_step import n_step_rows
from flowrl.rl.data.replay._replay import Replay
from flowrl.rl.data.replay._standardizer import Standardizer
from flowrl.rl.data.schema import RewardTransform, Transitions


class Rows(eqx.Module):
    """Complete rows for a buffer, and padding behind them, so that few shapes are compiled.

    Attributes:
        count: rows that are to be kept; those behind them are padding.
        observations: s, standardised, (k, obs).
        actions: a, (k, act).
        returns: n-step returns, (k,).
        next_observations: the states to bootstrap from, standardised, (k, obs).
        discounts: γ^m, 0 where the task ended, (k,).
        particles: reference samples there, (k, M, act), or None where the buffer has none.
    """

    count: Int[Array, ""]
    observations: Float[Array, "k obs"]
    actions: Float[Array, "k act"]
    returns: Float[Array, " k"]
    next_observations: Float[Array, "k obs"]
    discounts: Float[Array, " k"]
    particles: Float[Array, "k samples act"] | None = None


class Windows:
    """The open n-step windows of several environments that act side by side.

    They close as in `make_replay`: after n steps, at the end of the task (no bootstrapping), and at the end of the
    episode (bootstrapping from its last state).
    """

    def __init__(
        self,
        lanes: int,
        standardizer: Standardizer,
        *,
        discount: float,
        n_step: int,
        rewards: RewardTransform,
    ):
        """Start with empty windows.

        Args:
            lanes: number of environments, >= 1.
            standardizer: that of the data set.
            discount: γ in [0, 1].
            n_step: n >= 1.
            rewards: what was done to the rewards of the data set, `info.reward_transform`.
        """
        if lanes < 1 or n_step < 1 or not 0 <= discount <= 1:
            raise ValueError(
                f"needs lanes >= 1, n_step >= 1 and discount in [0, 1], got {lanes}, {n_step} and {discount}."
            )
        self._lanes = lanes
        self._open: list[deque[tuple[np.ndarray, np.ndarray, float]]] = [deque() for _ in range(lanes)]
        self._closed: list[tuple[np.ndarray, np.ndarray, float, np.ndarray, float]] = []
        self._standardizer, self._discount, self._n_step, self._rewards = standardizer, discount, n_step, rewards

    def add(
        self,
        lane: int,
        observation: Float[np.ndarray, " obs"],
        action: Float[np.ndarray, " act"],
        reward: float,
        next_observation: Float[np.ndarray, " obs"],
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add one step of one environment.

        Args:
            lane: which.
            observation: s, raw.
            action: a.
            reward: r, raw.
            next_observation: s' as it was before any reset, raw.
            terminated: the task ended in s': its value is 0.
            truncated: the episode was cut off in s'.
        """
        steps = self._open[lane]
        steps.append((observation, action, self._rewards(reward)))
        over = terminated or truncated
        if not over and len(steps) < self._n_step:
            return
        masks = np.ones(len(steps))
        masks[-1] = not terminated
        rewards = np.asarray([reward for _, _, reward in steps])
        returns, discounts, _ = n_step_rows(rewards, masks, np.zeros(len(steps), bool), self._discount, self._n_step)
        # At the end all open windows are closed, in between the oldest one.
        for i in range(len(steps) if over else 1):
            first, taken, _ = steps.popleft()
            self._closed.append((first, taken, returns[i], next_observation, discounts[i]))

    def take(self) -> Rows | None:
        """Return the rows closed since the last call, in the order in which they were closed; None if there are none.

        They are padded to one row per lane or, where episodes ended, to a multiple of n rows per lane.
        """
        closed, count = self._closed, len(self._closed)
        if not closed:
            return None
        unit = self._lanes if count <= self._lanes else self._lanes * self._n_step
        closed += [closed[0]] * (-count % unit)
        columns = [jnp.asarray(np.asarray(x, np.float32)) for x in zip(*closed, strict=True)]
        closed.clear()
        observations, actions, returns, next_observations, discounts = columns
        return Rows(
            jnp.asarray(count, jnp.int32),
            self._standardizer(observations),
            actions,
            returns,
            self._standardizer(next_observations),
            discounts,
        )


def check_rows_agree(
    raw: Transitions,
    replay: Replay,
    standardizer: Standardizer,
    *,
    discount: float,
    n_step: int,
    rewards: RewardTransform,
    rows: int = 500,
) -> None:
    """Check that what acting adds is treated as the data were: the data, acted out, give the rows of their replay.

    Args:
        raw: the data set, with the environment's own rewards.
        replay: what `make_replay` made of it, without chunks.
        standardizer: as for `Windows`.
        discount: as for `Windows`.
        n_step: as for `Windows`.
        rewards: as for `Windows`.
        rows: how many rows are acted out, from the first on.

    Raises:
        ValueError: a column differs; the message names it.
    """
    windows = Windows(1, standardizer, discount=discount, n_step=n_step, rewards=rewards)
    ends = np.flatnonzero(np.asarray(raw.terminals[:rows]) > 0)
    count = int(ends[-1]) + 1 if ends.size else rows
    for i in range(count):
        over = bool(raw.masks[i] == 0)
        windows.add(
            0,
            np.asarray(raw.observations[i]),
            np.asarray(raw.actions[i]),
            float(raw.rewards[i]),
            np.asarray(raw.next_observations[i]),
            terminated=over,
            truncated=bool(raw.terminals[i]) and not over,
        )
    closed = windows.take()
    if closed is None:
        return
    count = int(closed.count)
    expected = {
        "observations": replay.observations[:count],
        "actions": replay.actions[:count],
        "returns": replay.returns[:count],
        "next_observations": replay.next_observations[replay.bootstrap[:count]],
        "discounts": replay.discounts[:count],
    }
    for name, there in expected.items():
        here = getattr(closed, name)[:count]
        if not np.allclose(here, there, rtol=1e-4, atol=1e-5):
            raise ValueError(f"{name} met online would not be treated as those of the data were: {here} and {there}.")
