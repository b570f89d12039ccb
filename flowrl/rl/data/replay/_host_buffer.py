"""The buffer of `_buffer.py` in the memory of the host, for data that do not fit on the device.

Only the batches of the next updates travel. Which rows they hold is decided by the same keys, so that training on
either buffer is the same training.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay._buffer import STORED, Protocol, check_ring, check_rows, draw_rows, read_ring, ring_arrays
from flowrl.rl.data.replay._replay import Replay
from flowrl.rl.data.replay._windows import Rows


class Batches(eqx.Module):
    """The batches of some updates, on the device.

    Attributes:
        replay: the rows that occur in them, and those that follow these.
        rows: of each batch, (updates, batch).
    """

    replay: Replay
    rows: Int[Array, "updates batch"]


class HostBuffer:
    """Rows of a data set, which stay, and a ring behind them, as NumPy arrays. `insert` changes it in place.

    Attributes:
        protocol: how batches are drawn.
        data: rows of the data set, which come first.
        capacity: rows of the ring.
        filled: rows of the ring that hold something.
        head: place in the ring of the next row.
        samples: cached particles of a row; 0 where they are drawn afresh.
    """

    def __init__(self, replay: Replay, capacity: int, protocol: Protocol = "prefilled"):
        """Put a ring behind a data set, which is copied once.

        Args:
            replay: the data set, on either side.
            capacity: rows of the ring, >= 1.
            protocol: how batches are drawn, as for `Buffer`.

        Raises:
            ValueError: the capacity is below 1, or there is no such protocol.
        """
        check_ring(capacity, protocol)
        self.protocol: Protocol = protocol
        self.capacity = capacity
        self.data, self.filled, self.head = replay.actions.shape[0], 0, 0
        self.samples = 0 if replay.particles is None else replay.particles.shape[1]
        self._columns: dict[str, np.ndarray] = {}
        for name in STORED:
            column = getattr(replay, name)
            if column is not None:
                grown = np.zeros((self.data + capacity, *column.shape[1:]), column.dtype)
                grown[: self.data] = column
                self._columns[name] = grown
        ring = np.arange(self.data, self.data + capacity, dtype=np.int32)
        self._bootstrap = np.concatenate([np.asarray(replay.bootstrap), ring])
        self._following = np.concatenate([np.asarray(replay.following), np.full_like(ring, -1)])

    def insert(self, rows: Rows) -> "HostBuffer":
        """Put rows into the ring, in their order, in the place of the oldest.

        Args:
            rows: at most as many, padding included, as the ring has.

        Returns:
            This buffer.

        Raises:
            ValueError: more rows than the ring has, or particles on one side only.
        """
        check_rows(rows, self.capacity, self.samples)
        count = int(rows.count)
        places = self.data + (self.head + np.arange(count)) % self.capacity
        for name, column in self._columns.items():
            column[places] = np.asarray(getattr(rows, name))[:count]
        self.filled = min(self.filled + count, self.capacity)
        self.head = (self.head + count) % self.capacity
        return self

    def batches(self, size: int, updates: int, key: Key) -> Batches:
        """Bring the batches of the next updates to the device.

        Args:
            size: rows of a batch.
            updates: number of batches.
            key: that of the state before these updates.
        """
        rows = np.asarray(_draws(self.protocol, self.data, jnp.asarray(self.filled), size, updates, key))
        taken, after = rows.reshape(-1), self._following[rows.reshape(-1)]
        # Behind the rows stand those that follow them, for algorithms that ask what the data did next.
        both = np.concatenate([taken, np.maximum(after, 0)])
        own = np.arange(both.size, dtype=np.int32)
        columns = {}
        for name, column in self._columns.items():
            # Every row holds its own bootstrap state.
            at = self._bootstrap[both] if name in ("next_observations", "particles") else both
            columns[name] = jnp.asarray(column[at])
        following = np.full_like(own, -1)
        following[: taken.size] = np.where(after >= 0, own[taken.size :], -1)
        replay = Replay(**columns, bootstrap=jnp.asarray(own), following=jnp.asarray(following))
        return Batches(replay, jnp.asarray(own[: taken.size].reshape(rows.shape)))

    def ring(self) -> dict[str, np.ndarray]:
        """Give what the ring holds, for a checkpoint: columns of its filled rows, and where the next one goes."""
        place = slice(self.data, self.data + self.filled)
        return ring_arrays({name: x[place] for name, x in self._columns.items()}, self.head)

    def restored(self, ring: dict[str, np.ndarray]) -> "HostBuffer":
        """Fill the ring with what `ring` gave.

        Args:
            ring: from a buffer of the same data and capacity, on either side.

        Raises:
            ValueError: the ring does not fit.
        """
        columns, self.filled, self.head = read_ring(ring, dict(self._columns), self.capacity)
        for name, x in columns.items():
            self._columns[name][self.data : self.data + self.filled] = x
        return self


@eqx.filter_jit
def _draws(protocol: Protocol, data: int, filled: Array, size: int, updates: int, key: Key) -> Array:
    def one(key: Key, _: None) -> tuple[Key, Array]:
        key, batch_key, _ = jr.split(key, 3)  # as `train` does
        return key, draw_rows(protocol, data, filled, size, batch_key)

    return jax.lax.scan(one, key, None, length=updates)[1]
