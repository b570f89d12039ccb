"""n-step returns against a loop that follows each trajectory by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from rl.toys import transitions

from flowrl.rl import Standardizer, make_replay


@pytest.mark.parametrize("n_step", [1, 3, 5])
def test_n_step_returns_follow_the_trajectory(n_step):
    rng = np.random.default_rng(0)
    rows, gamma = 40, 0.9
    terminals = np.zeros(rows)
    terminals[[6, 7, 20, rows - 1]] = 1
    masks = np.ones(rows)
    masks[[3, 20]] = 0  # a success in the middle of a trajectory, and a true end
    data = transitions(
        rng.normal(size=(rows, 2)),
        rng.uniform(-1, 1, (rows, 1)),
        rng.normal(size=rows),
        rng.normal(size=(rows, 2)),
        masks,
        terminals,
    )
    replay = make_replay(
        data,
        Standardizer(jnp.zeros(2, jnp.float32), jnp.ones(2, jnp.float32)),
        discount=gamma,
        n_step=n_step,
        reward_scale=2.0,
    )
    for t in range(rows):
        total, factor, at = 0.0, 1.0, t
        for i in range(n_step):
            at = t + i
            total += factor * 2.0 * data.rewards[at]
            factor *= gamma
            if terminals[at] or masks[at] == 0:
                break
        np.testing.assert_allclose(replay.returns[t], total, rtol=1e-5, atol=1e-6)
        assert int(replay.bootstrap[t]) == at
        np.testing.assert_allclose(replay.discounts[t], factor * masks[at], rtol=1e-6)
        assert int(replay.following[t]) == (-1 if terminals[at] else at + 1)


def test_standardizer_gives_unit_scale_and_survives_constants():
    x = np.random.default_rng(0).normal(3, [5, 0.1, 0], (1000, 3)).astype(np.float32)
    z = np.asarray(Standardizer.fit(x)(jnp.asarray(x)))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0), [1, 1, 0], atol=1e-4)


@pytest.mark.parametrize(("bad", "message"), [({"discount": 1.1}, "discount"), ({"n_step": 0}, "n_step")])
def test_bad_numbers(bad, message):
    data = transitions(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), np.zeros((2, 1)), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=message):
        make_replay(data, Standardizer.fit(data.observations), **({"discount": 0.9} | bad))


def test_chunks_are_consecutive_actions_with_their_return():
    """Two trajectories of 5 and 2 steps, the first with the end of the task in its fourth; chunks of three."""
    rows = np.arange(7)
    data = transitions(
        rows[:, None],
        0.1 * rows[:, None] * [1.0, -1.0],
        1.0 + rows,
        rows[:, None] + 1,
        [1, 1, 1, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 0, 1],
    )
    unit = Standardizer.fit(data.observations, "none")
    replay = make_replay(data, unit, discount=0.5, chunk=3)
    np.testing.assert_allclose(replay.observations[:, 0], [0, 1, 2])
    np.testing.assert_allclose(replay.actions[1], [0.1, -0.1, 0.2, -0.2, 0.3, -0.3], rtol=1e-6)
    np.testing.assert_allclose(replay.returns, [1 + 2 / 2 + 3 / 4, 2 + 3 / 2 + 4 / 4, 3 + 4 / 2])
    np.testing.assert_allclose(replay.discounts, [1 / 8, 0, 0])
    np.testing.assert_allclose(replay.next_observations[replay.bootstrap][0, 0], 3)
    assert replay.following.tolist() == [-1, -1, -1]  # two steps are left in state 3: no chunk starts there
    pairs = make_replay(data, unit, discount=0.5, chunk=2)
    np.testing.assert_allclose(pairs.observations[:, 0], [0, 1, 2, 3, 5])
    assert pairs.following.tolist() == [2, 3, -1, -1, -1]
    np.testing.assert_allclose(pairs.observations[2], pairs.next_observations[pairs.bootstrap[0]])
    with pytest.raises(ValueError, match="no trajectory has 6 steps"):
        make_replay(data, unit, discount=0.5, chunk=6)
    with pytest.raises(ValueError, match="n_step must be left out"):
        make_replay(data, unit, discount=0.5, chunk=3, n_step=2)
