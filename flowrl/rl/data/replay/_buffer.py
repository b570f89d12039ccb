"""A ring for what acting adds, behind the rows of a data set.

Rows are complete when they enter (see `Windows`), so that nothing in the ring is ever revised, and inserting k rows
costs O(k), whatever the capacity.
"""

import abc
from typing import Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from flowrl._custom_types import Key
from flowrl._misc import check_count, check_kind
from flowrl.rl.data.replay._replay import AbstractBatchSource, Batches, Replay, draw_batches, draw_uniformly
from flowrl.rl.data.replay._windows import Rows

Protocol = Literal["prefilled", "rlpd", "wsrl"]
PROTOCOLS = get_args(Protocol)
#: The columns that a row of the ring fills.
STORED = ("observations", "actions", "returns", "next_observations", "discounts", "particles")


def draw_rows(protocol: Protocol, data: int, filled: Int[Array, ""], size: int, key: Key) -> Int[Array, " size"]:
    """Draw the rows of a batch, with replacement. While the ring is empty, all protocols draw from the data set."""
    all_key, data_key, ring_key = jr.split(key, 3)
    if protocol == "prefilled":
        return draw_uniformly(data + filled, size, all_key)
    from_data = jr.randint(data_key, (size,), 0, data)
    from_ring = data + jr.randint(ring_key, (size,), 0, jnp.maximum(filled, 1))
    ours = size if protocol == "wsrl" else (size + 1) // 2
    chosen = jnp.where(jnp.arange(size) < ours, from_ring, from_data)
    return jnp.where(filled > 0, chosen, from_data)


class AbstractBuffer(AbstractBatchSource):
    """Rows of a data set, which stay, and a ring behind them, in which new rows replace the oldest."""

    @property
    @abc.abstractmethod
    def capacity(self) -> int:
        """Rows of the ring."""

    @property
    @abc.abstractmethod
    def samples(self) -> int:
        """Cached particles per row; 0 where they are drawn in every update."""

    @abc.abstractmethod
    def insert(self, rows: Rows) -> "AbstractBuffer":
        """Put rows into the ring, in their order, in the place of the oldest.

        Args:
            rows: at most as many, padding included, as the ring has.

        Returns:
            The next buffer, to be used in the place of this one.

        Raises:
            ValueError: more rows than the ring has, or particles on one side only.
        """

    @abc.abstractmethod
    def ring(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint must hold of the ring: columns of its filled rows, and where the next one goes."""

    @abc.abstractmethod
    def restored(self, ring: dict[str, np.ndarray]) -> "AbstractBuffer":
        """Return the buffer with the ring of a checkpoint, to be used in the place of this one.

        Args:
            ring: from `ring` of a buffer of the same data and at most this capacity, on the device or on the host.

        Raises:
            ValueError: the ring does not fit.
        """


class Buffer(eqx.Module, AbstractBuffer):
    """An `AbstractBuffer` on the device. What `insert` and `restored` return takes over the arrays of this one.

    Attributes:
        replay: all rows, (data + capacity); algorithms read it as any other.
        protocol: how batches are drawn.
        data: rows of the data set, which come first.
        filled: rows of the ring that hold something.
        head: place in the ring of the next row.
    """

    replay: Replay
    protocol: Protocol = eqx.field(static=True)
    data: int = eqx.field(static=True)
    filled: Int[Array, ""]
    head: Int[Array, ""]

    def __init__(self, replay: Replay, capacity: int, protocol: Protocol = "prefilled"):
        """Put a ring behind a data set. This copies the data set once; nothing later does.

        Args:
            replay: the data set; where it has cached particles, so must all rows that are inserted.
            capacity: rows of the ring, >= 1.
            protocol: how batches are drawn: "prefilled" from all rows alike, "rlpd" half (rounded up) from the ring
                and half from the data set, "wsrl" from the ring alone.

        Raises:
            TypeError: `replay` is something else.
            ValueError: the capacity is below 1, or there is no such protocol.

        ??? cite "Source"
            Ball et al., *Efficient Online Reinforcement Learning with Offline Data*, ICML 2023 (arXiv 2302.02948), for
            half and half; Zhou et al., *Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline
            Data*, ICLR 2025 (arXiv 2412.07762), for the ring alone, there after 5000 steps without updates.
        """
        check_ring(replay, capacity, protocol)
        self.protocol = protocol
        self.data = replay.actions.shape[0]
        self.filled = jnp.zeros((), jnp.int32)
        self.head = jnp.zeros((), jnp.int32)

        def longer(x: Array) -> Array:
            return jnp.concatenate([x, jnp.zeros((capacity, *x.shape[1:]), x.dtype)])

        names = [name for name in STORED if getattr(replay, name) is not None]
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
        return self.replay.actions.shape[0] - self.data

    @property
    def samples(self) -> int:
        return 0 if self.replay.particles is None else self.replay.particles.shape[1]

    def draw(self, size: int, key: Key) -> Int[Array, " size"]:
        """Draw the rows of a batch by the buffer's protocol.

        Args:
            size: rows of the batch.
            key: randomness.
        """
        return draw_rows(self.protocol, self.data, self.filled, size, key)

    def batches(self, size: int, updates: int, key: Key) -> Batches:
        draw = eqx.Partial(draw_rows, self.protocol, self.data, self.filled, size)
        return Batches(self.replay, draw_batches(draw, updates, key))

    def insert(self, rows: Rows) -> "Buffer":
        check_rows(rows, self.capacity, self.samples)
        return _insert(rows, self)

    def ring(self) -> dict[str, np.ndarray]:
        columns = {name: getattr(self.replay, name) for name in STORED}
        # Cut on the host: on the device every length would be a program of its own.
        ring = {name: np.asarray(x[self.data :]) for name, x in columns.items() if x is not None}
        return ring_arrays({name: x[: int(self.filled)] for name, x in ring.items()}, int(self.head))

    def restored(self, ring: dict[str, np.ndarray]) -> "Buffer":
        columns, filled, head = read_ring(ring, {name: getattr(self.replay, name) for name in STORED}, self.capacity)
        whole = {name: np.zeros((self.capacity, *x.shape[1:]), x.dtype) for name, x in columns.items()}
        for name, x in columns.items():
            whole[name][:filled] = x
        counters = jnp.asarray(filled, jnp.int32), jnp.asarray(head, jnp.int32)
        return _refill((jax.tree.map(jnp.asarray, whole), *counters), self)


@eqx.filter_jit(donate="all-except-first")
def _insert(rows: Rows, buffer: Buffer) -> Buffer:
    number = jnp.arange(rows.actions.shape[0], dtype=jnp.int32)
    places = buffer.data + (buffer.head + number) % buffer.capacity
    # Padding goes nowhere: a place beyond the last is dropped.
    places = jnp.where(number < rows.count, places, buffer.data + buffer.capacity)
    names = [name for name in STORED if getattr(rows, name) is not None]
    columns = [getattr(buffer.replay, name).at[places].set(getattr(rows, name), mode="drop") for name in names]
    replay = eqx.tree_at(lambda r: [getattr(r, name) for name in names], buffer.replay, columns)
    filled = jnp.minimum(buffer.filled + rows.count, buffer.capacity)
    head = (buffer.head + rows.count) % buffer.capacity
    return eqx.tree_at(lambda b: (b.replay, b.filled, b.head), buffer, (replay, filled, head))


@eqx.filter_jit(donate="all-except-first")
def _refill(ring: tuple[dict[str, Array], Array, Array], buffer: Buffer) -> Buffer:
    columns, filled, head = ring
    whole = [getattr(buffer.replay, name).at[buffer.data :].set(x) for name, x in columns.items()]
    replay = eqx.tree_at(lambda r: [getattr(r, name) for name in columns], buffer.replay, whole)
    return eqx.tree_at(lambda b: (b.replay, b.filled, b.head), buffer, (replay, filled, head))


def check_ring(replay: Replay, capacity: int, protocol: str) -> None:
    """Check the data before a ring, its capacity and its protocol."""
    check_kind("replay", replay, Replay, "make_replay makes one of the data")
    check_count("capacity", capacity)
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {PROTOCOLS}, got {protocol!r}.")


def check_rows(rows: Rows, capacity: int, samples: int) -> None:
    """Check that rows fit into a ring, with as many cached particles per row as the buffer has."""
    size = rows.actions.shape[0]
    if size > capacity:
        raise ValueError(f"{size} rows do not fit into a ring of {capacity}.")
    if (0 if rows.particles is None else rows.particles.shape[1]) != samples:
        raise ValueError(f"rows need as many cached particles as those of the buffer have, {samples}.")


def ring_arrays(columns: dict[str, np.ndarray], head: int) -> dict[str, np.ndarray]:
    """Name the columns of the filled rows, and where the next row goes, for a checkpoint."""
    return {**{f"ring/{name}": np.asarray(x) for name, x in columns.items()}, "ring/head": np.asarray(head)}


def read_ring(
    ring: dict[str, np.ndarray], into: dict[str, Array | np.ndarray | None], capacity: int
) -> tuple[dict[str, np.ndarray], int, int]:
    """Read what `ring_arrays` named into columns, the number of filled rows, and where the next one goes.

    A ring of more rows takes up where a full one ended: the oldest row comes first, and the next goes behind the last.
    """
    there = {f"ring/{name}": x for name, x in into.items() if x is not None}
    found = {name: x for name, x in ring.items() if name.startswith("ring/") and name != "ring/head"}
    sizes = {x.shape[0] for x in found.values()}
    fits = found.keys() == there.keys() and len(sizes) == 1 and "ring/head" in ring and max(sizes) <= capacity
    if not fits or any(found[name].shape[1:] != x.shape[1:] for name, x in there.items()):
        raise ValueError(f"the stored ring does not fit into one of {capacity} rows of these columns.")
    filled, head = sizes.pop(), int(ring["ring/head"])
    columns = {name.removeprefix("ring/"): x for name, x in found.items()}
    if filled < capacity and head != filled:
        columns, head = {name: np.roll(x, -head, axis=0) for name, x in columns.items()}, filled
    return columns, filled, head
