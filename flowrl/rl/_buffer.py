"""What acting adds to the data: a ring on the device behind the rows of a data set, and the n-step rows in it.

Rows are complete when they enter: an n-step window is closed on the host, so that nothing on the device is ever
revised, and inserting k rows costs O(k), whatever the capacity.
"""

from collections import deque
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl._replay import Replay, Standardizer

#: How a batch is drawn; `Buffer.rows` says what each name means.
PROTOCOLS = ("prefilled", "rlpd", "wsrl")
_STORED = ("observations", "actions", "returns", "next_observations", "discounts", "particles")


class Buffer(eqx.Module):
    """Rows of a data set, which stay, and a ring behind them, in which new rows replace the oldest.

    Attributes:
        replay: all rows, (data + capacity); algorithms read it as any other.
        data: rows of the data set, which come first.
        filled: rows of the ring that hold something.
        head: place in the ring of the next row.
    """

    replay: Replay
    data: int = eqx.field(static=True)
    filled: Int[Array, ""]
    head: Int[Array, ""]

    def __init__(self, replay: Replay, capacity: int):
        """Put a ring behind a data set. This copies the data set once; nothing later does.

        Args:
            replay: the data set; where it has cached particles, so must all rows that are inserted.
            capacity: rows of the ring, >= 1.

        Raises:
            ValueError: the capacity is below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}.")
        self.data = replay.actions.shape[0]
        self.filled = jnp.zeros((), jnp.int32)
        self.head = jnp.zeros((), jnp.int32)

        def longer(x: Array) -> Array:
            return jnp.concatenate([x, jnp.zeros((capacity, *x.shape[1:]), x.dtype)])

        names = [name for name in _STORED if getattr(replay, name) is not None]
        grown = eqx.tree_at(lambda r: [getattr(r, name) for name in names], replay, replace_fn=longer)
        ring = jnp.arange(self.data, self.data + capacity, dtype=jnp.int32)
        # A row of the ring holds its own bootstrap state; the action that followed is not kept.
        indices = (
            jnp.concatenate([replay.bootstrap, ring]),
            jnp.concatenate([replay.following, jnp.full_like(ring, -1)]),
        )
        self.replay = eqx.tree_at(lambda r: (r.bootstrap, r.following), grown, indices)

    @property
    def capacity(self) -> int:
        """Rows of the ring."""
        return self.replay.actions.shape[0] - self.data

    def rows(self, protocol: Literal["prefilled", "rlpd", "wsrl"], size: int, key: Key) -> Int[Array, " size"]:
        """Draw the rows of a batch, with replacement.

        Args:
            protocol: "prefilled" draws from all rows alike; "rlpd" half a batch (rounded up) from the ring and half
                from the data set; "wsrl" from the ring alone. While the ring is empty all draw from the data set.
            size: rows, >= 1.
            key: randomness.

        Raises:
            ValueError: another protocol.

        ??? cite "Source"
            Ball et al., *Efficient Online Reinforcement Learning with Offline Data*, ICML 2023 (arXiv 2302.02948), for
            half and half; Zhou et al., *Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline
            Data*, ICLR 2025 (arXiv 2412.07762), for the ring alone, there after a warm-up without updates.
        """
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}.")
        all_key, data_key, ring_key = jr.split(key, 3)
        from_data = jr.randint(data_key, (size,), 0, self.data)
        from_ring = self.data + jr.randint(ring_key, (size,), 0, jnp.maximum(self.filled, 1))
        if protocol == "prefilled":
            return jr.randint(all_key, (size,), 0, self.data + self.filled)
        ours = size if protocol == "wsrl" else (size + 1) // 2
        chosen = jnp.where(jnp.arange(size) < ours, from_ring, from_data)
        return jnp.where(self.filled > 0, chosen, from_data)


class Rows(eqx.Module):
    """Complete rows, ready for a `Buffer`.

    Attributes:
        observations: s, standardised, (k, obs).
        actions: a, (k, act).
        returns: n-step returns, (k,).
        next_observations: the states to bootstrap from, standardised, (k, obs).
        discounts: γ^m, 0 where the task ended, (k,).
        particles: reference samples there, (k, M, act), or None where the buffer has none.
    """

    observations: Float[Array, "k obs"]
    actions: Float[Array, "k act"]
    returns: Float[Array, " k"]
    next_observations: Float[Array, "k obs"]
    discounts: Float[Array, " k"]
    particles: Float[Array, "k samples act"] | None = None


def insert(buffer: Buffer, rows: Rows) -> Buffer:
    """Put rows into the ring, in their order, in the place of the oldest.

    Args:
        buffer: its arrays are given away.
        rows: at most as many as the ring has.

    Raises:
        ValueError: more rows than the ring has, or particles on one side only.
    """
    count, capacity = rows.actions.shape[0], buffer.capacity
    if count > capacity:
        raise ValueError(f"{count} rows do not fit into a ring of {capacity}.")
    if (rows.particles is None) != (buffer.replay.particles is None):
        raise ValueError("rows need cached particles where the buffer has them, and only there.")
    return _insert(rows, buffer)


@eqx.filter_jit(donate="all-except-first")
def _insert(rows: Rows, buffer: Buffer) -> Buffer:
    count, capacity = rows.actions.shape[0], buffer.capacity
    places = buffer.data + (buffer.head + jnp.arange(count, dtype=jnp.int32)) % capacity
    names = [name for name in _STORED if getattr(rows, name) is not None]
    columns = [getattr(buffer.replay, name).at[places].set(getattr(rows, name)) for name in names]
    replay = eqx.tree_at(lambda r: [getattr(r, name) for name in names], buffer.replay, columns)
    counters = jnp.minimum(buffer.filled + count, capacity), (buffer.head + count) % capacity
    return eqx.tree_at(lambda b: (b.replay, b.filled, b.head), buffer, (replay, *counters))


class Windows:
    """Closes the n-step windows of several environments that act side by side.

    The rows are those of `make_replay`: a window ends after n steps, at the end of the task (no bootstrapping) and at
    the end of the episode (bootstrapping from its last state).
    """

    def __init__(
        self, lanes: int, standardizer: Standardizer, *, discount: float, n_step: int = 1, reward_scale: float = 1.0
    ):
        """Start with empty windows.

        Args:
            lanes: environments.
            standardizer: that of the data set.
            discount: γ in [0, 1].
            n_step: n >= 1.
            reward_scale: the factor on the rewards of the data set.

        Raises:
            ValueError: a number is out of range.
        """
        if lanes < 1 or n_step < 1 or not 0 <= discount <= 1 or not 0 < reward_scale < float("inf"):
            raise ValueError(
                "needs lanes >= 1, n_step >= 1, discount in [0, 1] and a finite reward_scale > 0, "
                f"got {lanes}, {n_step}, {discount} and {reward_scale}."
            )
        self._open: list[deque[tuple[np.ndarray, np.ndarray, float]]] = [deque() for _ in range(lanes)]
        self._closed: list[tuple[np.ndarray, np.ndarray, float, np.ndarray, float]] = []
        self._standardizer, self._discount, self._n_step, self._scale = standardizer, discount, n_step, reward_scale

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
        steps.append((observation, action, reward * self._scale))
        over = terminated or truncated
        while steps and (over or len(steps) == self._n_step):
            total = sum(self._discount**i * r for i, (_, _, r) in enumerate(steps))
            discount = 0.0 if terminated else self._discount ** len(steps)
            first = steps.popleft()
            self._closed.append((first[0], first[1], total, next_observation, discount))

    def take(self) -> Rows | None:
        """Give the rows closed since the last call, in the order in which they were closed; None if there are none."""
        if not self._closed:
            return None
        columns = [jnp.asarray(np.asarray(x, np.float32)) for x in zip(*self._closed, strict=True)]
        self._closed.clear()
        observations, actions, returns, next_observations, discounts = columns
        return Rows(
            self._standardizer(observations), actions, returns, self._standardizer(next_observations), discounts
        )
