"""The tasks of the paper at full size: they exist, they start, and their cost is counted right."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import transitions

from flowrl.rl import Standardizer, data, make_replay, tasks
from flowrl.rl.learning import presets

#: Those for which the paper gives scores task by task: coordinates of observations and actions, from the documentation
#: of the environments.
SIZES = {
    "hopper-medium": (11, 3),
    "walker2d-medium-replay": (17, 6),
    "antmaze-umaze-diverse": (29, 8),
    "antmaze-medium-play": (29, 8),
    "antmaze-large-diverse": (29, 8),
    "humanoidmaze-medium": (69, 21),
    "cube-double": (37, 5),
    "puzzle-3x3": (55, 5),
    "puzzle-4x4": (83, 5),
}


def _replay(observation_size, action_size, rows=300):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(rows, observation_size))
    toy = transitions(
        states,
        rng.uniform(-1, 1, (rows, action_size)),
        -np.ones(rows),
        np.roll(states, -1, axis=0),
        np.ones(rows),
        np.arange(rows) == rows - 1,
    )
    return make_replay(toy, Standardizer.fit(toy.observations), discount=0.99)


def test_every_row_of_the_paper_is_there_and_known_to_the_data():
    assert set(SIZES) <= set(tasks.PAPER_TASKS)
    assert len(tasks.PAPER_TASKS) == 9 + 6 + 10
    assert len({task.env for task in tasks.PAPER_TASKS.values()}) == 25
    for name, task in tasks.PAPER_TASKS.items():
        assert task.env in data.environments(), name
        assert task.rewards in data.REWARD_PROTOCOLS
        vgf = task.algorithm()
        assert vgf.hidden == vgf.reference.hidden == (512,) * 4
        assert vgf.train_budget.bound == task.steps
        assert not vgf.frozen_reference


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_one_update_at_full_size(name):
    task, sizes = tasks.PAPER_TASKS[name], SIZES[name]
    vgf, replay = task.algorithm(), _replay(*sizes)
    state = vgf.init(*sizes, key=jr.key(0))
    rows = jnp.arange(vgf.batch_size)
    after, metrics = eqx.filter_jit(type(vgf).update)(vgf, state, replay, rows, jr.key(1))
    assert int(after.step) == 1
    assert all(np.isfinite(float(x)) for x in metrics.values())
    assert float(metrics["failed"]) == 0
    # Adam moves a coordinate of a particle by about the step size at each step, whatever the critic.
    assert 0.3 * task.step_size < float(metrics["displacement"]) < 1.1 * task.steps * task.step_size
    before, now = (jax.tree.leaves(eqx.filter(s.critic.network, eqx.is_array)) for s in (state, after))
    assert any(not np.array_equal(a, b) for a, b in zip(before, now, strict=True))


def test_the_work_of_an_update_is_what_was_counted_by_hand():
    """Products of batches of 256 x 10 rows for cube-double, L = 1 and 5 (in 10⁹ operations)."""
    p = 42 * 512 + 3 * 512**2 + 512  # weights of a critic
    q = 43 * 512 + 3 * 512**2 + 512 * 5  # of the reference's field
    rows = 2560
    for steps in (1, 5):
        sampling, flow, target = 2 * q * rows * 10, steps * 4 * 2 * p * rows, 2 * 2 * p * rows
        losses = 256 * (6 * 2 * p + 6 * q)
        counted = tasks.flops_per_update(presets.authors(steps), 37, 5)
        assert counted == pytest.approx(sampling + flow + target + losses, rel=1e-12)
