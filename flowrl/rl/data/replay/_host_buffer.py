"""The buffer of `_buffer.py` in the memory of the host, for data that do not fit on the device.

Only the batches of the next updates travel. Which rows they hold is decided by the same keys, so that training on
either buffer is the same training.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowrl._custom_types import Key
from flowrl.rl.data.replay._buffer import (
    STORED,
    AbstractBuffer,
    Protocol,
    check_ring,
    check_rows,
    draw_rows,
    read_ring,
    ring_arrays,
)
from flowrl.rl.data.replay._replay import Batches, Replay, draw_batches
from flowrl.rl.data.replay._windows import Rows


class HostBuffer(AbstractBuffer):
    """An `AbstractBuffer` of NumPy arrays. `insert` and `restored` change it in place.

    Attributes:
        protocol: how batches are drawn.
        data: rows of the data set, which come first.
        filled: rows of the ring that hold something.
        head: place in the ring of the next row.
    """

    def __init__(self, replay: Replay, capacity: int, protocol: Protocol = "prefilled"):
        """Put a ring behind a data set, which is copied once.

        Args:
            replay: the data set, on either side.
            capacity: rows of the ring, >= 1.
            protocol: how batches are drawn, as for `Buffer`.

        Raises:
            TypeError: `replay` is something else.
            ValueError: the capacity is below 1, or there is no such protocol.
        """
        check_ring(replay, capacity, protocol)
        self.protocol: Protocol = protocol
        self._capacity = capacity
        self.data, self.filled, self.head = replay.actions.shape[0], 0, 0
        self._samples = 0 if replay.particles is None else replay.particles.shape[1]
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

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def samples(self) -> int:
        return self._samples

    def insert(self, rows: Rows) -> "HostBuffer":
        check_rows(rows, self.capacity, self.samples)
        count = int(rows.count)
        places = self.data + (self.head + np.arange(count)) % self.capacity
        for name, column in self._columns.items():
            column[places] = np.asarray(getattr(rows, name))[:count]
        self.filled = min(self.filled + count, self.capacity)
        self.head = (self.head + count) % self.capacity
        return self

    def batches(self, size: int, updates: int, key: Key) -> Batches:
        draw = eqx.Partial(draw_rows, self.protocol, self.data, jnp.asarray(self.filled), size)
        rows = np.asarray(draw_batches(draw, updates, key))
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
        place = slice(self.data, self.data + self.filled)
        return ring_arrays({name: x[place] for name, x in self._columns.items()}, self.head)

    def restored(self, ring: dict[str, np.ndarray]) -> "HostBuffer":
        columns, self.filled, self.head = read_ring(ring, dict(self._columns), self.capacity)
        for name, x in columns.items():
            self._columns[name][self.data : self.data + self.filled] = x
        return self
