"""From a data set to an agent in one call: what it chooses, and that it goes on where it stopped."""

import subprocess
import sys

import jax
import jax.random as jr
import numpy as np
import pytest
from problems import same_bits

from flowrl import rl
from flowrl.scripts.offline._options import defaults

HIDDEN = (8,)


def dataset(scale=1.0, rows=200):
    rng = np.random.default_rng(0)
    columns = {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": scale * rng.normal(size=rows),
        "dones": np.arange(rows) % 50 == 49,
    }
    return rl.data.from_arrays(columns)


def small(updates=20, **changes):
    reference = rl.ReferenceLearner(hidden=HIDDEN, updates=updates)
    return rl.presets.small("return", updates, hidden=HIDDEN, reference=reference, batch_size=16, **changes)


@pytest.mark.parametrize(
    ("env", "metric"), [("halfcheetah-medium-local-v0", "return"), ("puzzle-3x3-play-singletask-task1-v0", "success")]
)
def test_the_preset_is_what_the_program_trains(env, metric):
    assert rl.presets.small(metric) == defaults(env=env).learner()
    assert rl.presets.small(metric, 100).reference.updates == 80
    assert rl.presets.small(metric, hidden=HIDDEN).hidden == HIDDEN


@pytest.mark.thorough
def test_it_is_what_its_parts_do():
    """Rewards brought to unit scale, observations standardised, returns of five steps; progress counts all updates."""
    data, seen = dataset(scale=30.0), []
    agent = rl.learn(data, small(), updates=20, key=jr.key(1), progress=lambda *now: seen.append(now))
    treated = rl.data.apply_protocol(data, rewards="unit_std")
    standardizer = rl.Standardizer.fit(treated.train.observations)
    replay = rl.make_replay(treated.train, standardizer, discount=0.99, n_step=5)
    state = rl.fit(small(), replay, updates=20, interval=20, key=jr.key(1))
    assert same_bits(agent.state.critic.network, state.critic.network)
    assert seen[-1] == (40, 40)
    assert agent.chunk == 1
    again = rl.learn(treated, small(), updates=20, key=jr.key(1))  # rewards are not scaled twice
    assert same_bits(again.state.critic.network, state.critic.network)
    action = agent(np.zeros(3), key=jr.key(2))
    assert action.shape == (2,)


@pytest.mark.thorough
def test_the_same_call_goes_on_and_returns_a_finished_agent(tmp_path):
    class Stop(Exception):
        pass

    def stop(done, _):
        if done > 4:
            raise Stop

    updates, settings = 6, {"key": jr.key(1), "updates": 6, "out": tmp_path / "run"}
    algorithm = small(updates, relative=False, frozen_reference=False)
    whole = rl.learn(dataset(), algorithm, updates=updates, key=jr.key(1), out=tmp_path / "whole")
    with pytest.raises(Stop):
        rl.learn(dataset(), algorithm, **settings, progress=stop)
    parts = [rl.learn(dataset(), algorithm, **settings) for _ in range(2)]
    for part in parts:
        assert same_bits(part.state.critic.network, whole.state.critic.network)
    with pytest.raises(ValueError, match="updates: 6 there, 12 here"):
        rl.learn(dataset(), algorithm, **settings | {"updates": 12})
    with pytest.raises(ValueError, match="data"):
        rl.learn(dataset(scale=2.0), algorithm, **settings)
    other = small(updates, relative=False, frozen_reference=False, polyak=0.5)  # one field
    with pytest.raises(ValueError, match=r"algorithm: VGF \w+ there, VGF \w+ here"):
        rl.learn(dataset(), other, **settings)
    with pytest.raises(ValueError, match="key"):
        rl.learn(dataset(), algorithm, **settings | {"key": jr.key(2)})


def test_chunks_of_any_length_need_no_other_number():
    agent = rl.learn(
        dataset(), rl.baselines.make("iql", hidden=HIDDEN, batch_size=16), updates=2, chunk=3, key=jr.key(0)
    )
    assert agent(np.zeros(3), key=jr.key(2)).shape == (3, 2)


def test_arrays_are_no_data_set():
    program = "import jax\nfrom flowrl import rl\nrl.learn({'observations': []}, key=jax.random.key(0))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith(
        "TypeError: dataset must be an OfflineDataset, got dict: make one by"
    )


def test_a_baseline_learns_by_the_same_call():
    agent = rl.learn(dataset(), rl.baselines.make("iql", hidden=HIDDEN, batch_size=16), updates=3, key=jr.key(0))
    assert jax.numpy.isfinite(agent(np.zeros(3), key=jr.key(2))).all()
