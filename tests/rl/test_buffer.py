"""The buffer against a plain list, and its windows against the replay of a data set."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import transitions

from flowrl.rl import (
    AbstractBatchSource,
    Batches,
    Buffer,
    HostBuffer,
    ReferenceLearner,
    Rows,
    Standardizer,
    Windows,
    check_rows_agree,
    make_replay,
    train,
)
from flowrl.rl.data import RewardTransform, Transitions
from flowrl.rl.learning import baselines, presets

AS_IS = RewardTransform()


def walk(rows: int, ends: list[int], deaths: list[int], seed: int = 0) -> Transitions:
    """Trajectories that end where `ends` says, some of them because the task does."""
    rng = np.random.default_rng(seed)
    terminals, masks = np.zeros(rows), np.ones(rows)
    terminals[[*ends, rows - 1]] = 1
    masks[deaths] = 0
    state = rng.normal(size=(rows + 1, 2))
    return transitions(state[:-1], rng.uniform(-1, 1, (rows, 1)), rng.normal(size=rows), state[1:], masks, terminals)


def numbered(first: int, count: int, padding: int = 0) -> Rows:
    """Rows that say their number everywhere."""
    x = jnp.arange(first, first + count + padding, dtype=jnp.float32)
    return Rows(jnp.asarray(count), jnp.stack([x, x], 1), x[:, None], x, jnp.stack([-x, -x], 1), 0.5 * jnp.ones_like(x))


def small(rows: int = 5, capacity: int = 7, protocol="prefilled", kind=Buffer):
    data = walk(rows, [], [])
    return kind(make_replay(data, Standardizer.fit(data.observations, "none"), discount=0.9), capacity, protocol)


def windows(lanes: int = 1, discount: float = 0.9) -> Windows:
    unit = Standardizer.fit(np.zeros((2, 1), np.float32))
    return Windows(lanes, unit, discount=discount, n_step=1, rewards=AS_IS)


def columns(buffer) -> dict[str, np.ndarray]:
    """What the ring holds."""
    return {name: x for name, x in buffer.ring().items() if x.ndim}


@pytest.mark.parametrize("n_step", [1, 3])
def test_windows_are_the_rows_of_a_replay(n_step):
    data = walk(23, [4, 5, 13], [5, 13])
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=0.9, n_step=n_step, reward_scale=2.0)
    windows = Windows(1, standardizer, discount=0.9, n_step=n_step, rewards=RewardTransform("none", 2.0))
    for i in range(23):
        dead = data.masks[i] == 0
        windows.add(
            0,
            data.observations[i],
            data.actions[i],
            float(data.rewards[i]),
            data.next_observations[i],
            terminated=bool(dead),
            truncated=bool(data.terminals[i]) and not dead,
        )
    rows = windows.take()
    assert windows.take() is None
    assert int(rows.count) == 23
    rows = jax.tree.map(lambda x: x[:23] if x.ndim else x, rows)
    np.testing.assert_allclose(rows.observations, replay.observations, rtol=1e-6)
    np.testing.assert_allclose(rows.actions, replay.actions)
    np.testing.assert_array_equal(rows.returns, replay.returns)  # one piece of code sums them
    np.testing.assert_array_equal(rows.discounts, replay.discounts)
    np.testing.assert_allclose(rows.next_observations, replay.next_observations[replay.bootstrap], rtol=1e-6)


def test_environments_side_by_side_do_not_share_windows():
    unit = Standardizer(jnp.zeros(1, jnp.float32), jnp.ones(1, jnp.float32))
    windows = Windows(2, unit, discount=0.5, n_step=2, rewards=AS_IS)
    for t in range(3):
        for lane in range(2):
            here, there = (np.full(1, 10.0 * lane + t + k, np.float32) for k in (0, 1))
            windows.add(lane, here, here, 10.0 * lane + t, there, terminated=False, truncated=t == 2)
    rows = windows.take()
    assert (int(rows.count), rows.actions.shape[0]) == (6, 8)  # padded to two rows of two lanes
    rows = jax.tree.map(lambda x: x[:6] if x.ndim else x, rows)
    order = np.argsort(rows.observations[:, 0])
    np.testing.assert_allclose(rows.observations[order, 0], [0, 1, 2, 10, 11, 12])
    np.testing.assert_allclose(rows.returns[order], [0.5, 2, 2, 15.5, 17, 12])
    np.testing.assert_allclose(rows.discounts[order], [0.25, 0.25, 0.5] * 2)


@pytest.mark.parametrize("kind", [Buffer, HostBuffer])
def test_new_rows_replace_the_oldest(kind):
    buffer, kept = small(kind=kind), []
    for first, count, padding in ((0, 3, 0), (3, 3, 2), (6, 4, 3), (10, 7, 0), (17, 0, 4)):
        buffer = buffer.insert(numbered(first, count, padding))
        kept = [*kept, *range(first, first + count)][-7:]
        ring = columns(buffer)
        assert sorted(ring["ring/actions"][:, 0]) == kept
        np.testing.assert_array_equal(ring["ring/next_observations"][:, 0], -ring["ring/actions"][:, 0])
        there = small(kind=kind).restored(buffer.ring())
        assert (int(there.filled), int(there.head)) == (int(buffer.filled), int(buffer.head))
        for name, x in columns(there).items():
            np.testing.assert_array_equal(x, ring[name])
    with pytest.raises(ValueError, match="does not fit"):
        small(capacity=6, kind=kind).restored(buffer.ring())


@pytest.mark.parametrize("kind", [Buffer, HostBuffer])
@pytest.mark.parametrize(("inserted", "kept"), [(5, [0, 1, 2, 3, 4]), (7, list(range(7))), (10, list(range(3, 10)))])
def test_a_ring_of_more_rows_goes_on_behind_the_newest(kind, inserted, kept):
    buffer = small(kind=kind)
    for first in range(0, inserted, 5):
        buffer = buffer.insert(numbered(first, min(5, inserted - first), 0))
    larger = small(capacity=9, kind=kind).restored(buffer.ring()).insert(numbered(90, 2, 0))
    assert list(columns(larger)["ring/actions"][:, 0]) == [*kept, 90, 91]


def test_the_data_stay():
    buffer, kept = small(), []
    data = jax.device_get(buffer.replay.actions[:5])
    for first, count in ((0, 3), (3, 3), (6, 4), (10, 7)):
        buffer = buffer.insert(numbered(first, count))
        kept = [*kept, *range(first, first + count)][-7:]
        ring = np.asarray(buffer.replay.actions[5:, 0])
        assert sorted(ring[: int(buffer.filled)]) == kept
    np.testing.assert_array_equal(buffer.replay.actions[:5], data)
    np.testing.assert_array_equal(buffer.replay.next_observations[5:, 0], -buffer.replay.actions[5:, 0])
    assert buffer.replay.bootstrap[5:].tolist() == list(range(5, 12))
    assert set(buffer.replay.following[5:].tolist()) == {-1}


def test_inserting_works_in_place():
    """The arrays of the buffer are given away: no second copy of the data."""
    buffer = small(1000, 50)
    before = buffer.replay.observations
    buffer = buffer.insert(numbered(0, 2))
    assert before.is_deleted()
    assert buffer.replay.observations.shape == (1050, 2)


@pytest.mark.parametrize(("protocol", "share"), [("prefilled", 3 / 8), ("rlpd", 1 / 2), ("wsrl", 1.0)])
def test_batches_hold_the_share_of_new_rows_that_the_protocol_says(protocol, share):
    buffer = small(protocol=protocol)
    assert (buffer.draw(100, jr.key(0)) < 5).all()  # nothing new yet
    rows = np.asarray(buffer.insert(numbered(0, 3)).draw(4000, jr.key(0)))
    assert rows.max() < 8
    assert set(rows[rows >= 5]) == {5, 6, 7}
    assert (rows >= 5).mean() == pytest.approx(share, abs=0.03 if protocol == "prefilled" else 0)


@pytest.mark.thorough
def test_an_algorithm_learns_from_it_as_from_any_replay():
    data = walk(60, [29], [])
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    vgf = presets.default(hidden=(8,), reference=ReferenceLearner(hidden=(8,), updates=2), batch_size=16)
    state = vgf.init(2, 1, key=jr.key(0))
    state, replay = vgf.prepare(state, replay, key=jr.key(1))
    buffer = Buffer(replay, 20, "rlpd")
    with pytest.raises(ValueError, match="as many cached particles as those of the buffer have, 8"):
        buffer.insert(numbered(0, 4))
    rows = eqx.tree_at(
        lambda r: r.particles, numbered(0, 4), jnp.zeros((4, 8, 1), jnp.float32), is_leaf=lambda x: x is None
    )
    buffer = buffer.insert(rows)
    batch = buffer.draw(16, jr.key(2))
    updated, metrics = eqx.filter_jit(vgf.update)(state, buffer.replay, batch, jr.key(3))
    assert int(updated.step) == 1
    assert np.isfinite(float(metrics["td_loss"]))


@pytest.mark.thorough
@pytest.mark.parametrize("algorithm", ["vgf", "rebrac"])
def test_training_from_the_host_is_the_same_training(algorithm):
    """ReBRAC also asks for the action that the data took next."""
    data = walk(60, [29], [])
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=0.9, n_step=2)
    if algorithm == "vgf":
        learner = presets.default(hidden=(8,), reference=ReferenceLearner(hidden=(8,), updates=2), batch_size=16)
    else:
        learner = baselines.make("rebrac", hidden=(8,), batch_size=16)
    state = learner.init(2, 1, key=jr.key(0))
    rows = numbered(0, 6, 2)
    if algorithm == "vgf":
        state, replay = learner.prepare(state, replay, key=jr.key(1))
        samples = jnp.zeros((8, 8, 1), jnp.float32)
        rows = eqx.tree_at(lambda r: r.particles, rows, samples, is_leaf=lambda x: x is None)
    ends = []
    for kind in (Buffer, HostBuffer):
        buffer = kind(replay, 20, "rlpd").insert(rows)
        copy = jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, state)
        copy, metrics = train(learner, copy, buffer, 5)
        assert np.isfinite(float(metrics["td_loss"]))
        ends.append(eqx.filter(copy.critic.network, eqx.is_array))
    for here, there in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)


class Recorded(AbstractBatchSource):
    """Batches of one's own: the rows that another source drew."""

    def __init__(self, source):
        self.source = source

    def batches(self, size, updates, key):
        drawn = self.source.batches(size, updates, key)
        return Batches(drawn.replay, jnp.asarray(np.asarray(drawn.rows)))


def test_training_takes_the_batches_of_any_source():
    data = walk(40, [], [])
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    learner = baselines.make("rebrac", hidden=(8,), batch_size=16)
    ends = []
    for source in (replay, Recorded(replay)):
        state, metrics = train(learner, learner.init(2, 1, key=jr.key(0)), source, 5)
        ends.append(jax.tree.leaves((eqx.filter(state.critic.network, eqx.is_array), metrics)))
    for here, there in zip(*ends, strict=True):
        np.testing.assert_array_equal(here, there)


@pytest.mark.thorough
def test_batches_are_drawn_by_the_keys_of_the_updates():
    """Two intervals of one update are one of two, whatever the source."""
    replay = small().replay
    for source in (replay, small(protocol="rlpd"), small(kind=HostBuffer)):
        key = jr.key(3)
        whole = source.batches(4, 2, key)
        first, second = source.batches(4, 1, key), source.batches(4, 1, jr.split(key, 3)[0])
        for i, one in enumerate((first, second)):
            expected = whole.replay.actions[whole.rows[i]]
            np.testing.assert_array_equal(one.replay.actions[one.rows[0]], expected)
    np.testing.assert_array_equal(replay.batches(4, 1, key).rows[0], replay.draw(4, jr.split(key, 3)[1]))


def test_what_acting_adds_is_treated_as_the_data_were():
    data = walk(60, [29, 40], [40])
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=0.9, n_step=3, reward_scale=2.0)
    settings = {"discount": 0.9, "n_step": 3, "rewards": RewardTransform("none", 2.0)}
    check_rows_agree(data, replay, standardizer, **settings)
    for change in ({"discount": 0.8}, {"n_step": 2}, {"rewards": RewardTransform("antmaze", 2.0, -1.0)}):
        with pytest.raises(ValueError, match="met online would not be treated"):
            check_rows_agree(data, replay, standardizer, **(settings | change))
    with pytest.raises(ValueError, match="observations met online"):
        check_rows_agree(data, replay, Standardizer.fit(data.observations, "none"), **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small(capacity=0), "capacity must be a Python int >= 1"),
        (lambda: small().insert(numbered(0, 8)), "8 rows do not fit into a ring of 7"),
        (lambda: windows(lanes=0), "lanes >= 1"),
        (lambda: windows(discount=1.9), "discount in"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
