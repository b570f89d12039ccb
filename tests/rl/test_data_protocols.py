"""Named protocols for rewards and observations, reference scores, and the split by whole trajectories."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from rl.toys import transitions

from flowrl.rl import Standardizer, data, make_replay
from flowrl.rl.data import ReferenceScores, RewardTransform
from flowrl.rl.data.sources import REFERENCES

RETURNS = (6.0, -2.0, 3.0)


def _dataset(rewards=(1, 2, 3, -2, 1.5, 1.5), ends=(2, 3, 5)):
    rows = len(rewards)
    terminals = np.isin(np.arange(rows), ends)
    states = np.random.default_rng(0).normal(3, 2, (rows, 2))
    train = transitions(states, np.zeros((rows, 1)), rewards, states, np.ones(rows), terminals)
    info = data.DataInfo("a-v0", "b-v0", "local", "00", {}, None, 0, rows, "return")
    return data.OfflineDataset(train, train, info)


def test_trajectory_returns():
    np.testing.assert_allclose(data.trajectory_returns(_dataset().train), RETURNS)


@pytest.mark.parametrize(
    ("protocol", "scale", "shift"),
    [
        ("none", 1, 0),
        ("unit_std", 1 / np.std([1, 2, 3, -2, 1.5, 1.5]), 0),
        ("d4rl_locomotion", 1000 / 8, 0),
        ("antmaze", 1, -1),
    ],
)
def test_protocols(protocol, scale, shift):
    before = _dataset()
    after = data.apply_protocol(before, rewards=protocol)
    np.testing.assert_allclose(after.train.rewards, scale * before.train.rewards + shift, rtol=1e-6)
    assert after.train.rewards.dtype == np.float32
    np.testing.assert_array_equal(after.validation.rewards, after.train.rewards)
    np.testing.assert_array_equal(after.train.observations, before.train.observations)
    found = json.loads(after.info.to_json())
    assert found["reward_transform"] == {
        "protocol": protocol,
        "scale": pytest.approx(scale),
        "shift": pytest.approx(shift),
    }
    # The same map for a reward met online, and for one that is traced.
    assert after.info.reward_transform(2.0) == pytest.approx(2 * scale + shift)
    online = after.info.reward_transform(jnp.float32(2.0))
    assert online.dtype == jnp.float32
    assert float(online) == pytest.approx(2 * scale + shift, rel=1e-6)
    entry = data.REWARD_PROTOCOLS[protocol]
    assert entry.equation
    assert entry.source


def test_the_validation_split_does_not_move_the_scale():
    dataset = _dataset()
    other = dataclasses.replace(dataset.train, rewards=100 * dataset.train.rewards)
    after = data.apply_protocol(data.OfflineDataset(dataset.train, other, dataset.info), rewards="unit_std")
    np.testing.assert_allclose(after.validation.rewards, 100 * after.train.rewards, rtol=1e-6)
    without = data.apply_protocol(data.OfflineDataset(dataset.train, None, dataset.info), rewards="unit_std")
    assert without.validation is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: data.apply_protocol(_dataset((0.1,) * 6), rewards="unit_std"),
            r"are constant \(0.1\).*'none'",
        ),
        (lambda: data.apply_protocol(_dataset((0,) * 6), rewards="unit_std"), "rewards are constant"),
        (
            lambda: data.apply_protocol(_dataset((1, 1, 1, 3, 1, 2)), rewards="d4rl_locomotion"),
            r"all returns are equal \(3, 3 trajectories\).*'unit_std'",
        ),
        (lambda: data.apply_protocol(_dataset(ends=(5,)), rewards="d4rl_locomotion"), "all returns are equal"),
        (lambda: data.apply_protocol(_dataset(), rewards="iql"), "unknown reward protocol 'iql', expected one of none"),
        (
            lambda: data.apply_protocol(data.apply_protocol(_dataset(), rewards="antmaze"), rewards="antmaze"),
            "already follow the protocol 'antmaze'",
        ),
        (lambda: Standardizer.fit(np.zeros((2, 2)), "z"), "unknown observation protocol 'z'"),
        (lambda: RewardTransform("x", 0.0, 0.0), "finite scale > 0"),
        (lambda: RewardTransform("x", 1.0, float("inf")), "finite scale > 0"),
        (lambda: ReferenceScores(1.0, 1.0, "x"), "minimum < maximum, got 1.0 and 1.0"),
        (lambda: ReferenceScores(0.0, float("nan"), "x"), "must be finite"),
        (lambda: data.split_episodes(_dataset().train, 1.0, seed=0), r"validation must be a share"),
        (lambda: data.split_episodes(_dataset(ends=(5,)).train, 0.1, seed=0), "10% of 1 trajectories; .*validation=0"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_reward_scale_of_the_replay_is_checked():
    train = _dataset().train
    for scale in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="reward_scale must be finite and > 0"):
            make_replay(train, Standardizer.fit(train.observations), discount=0.9, reward_scale=scale)


def test_observation_protocols():
    observations = _dataset().train.observations
    same = Standardizer.fit(observations, "none")(jnp.asarray(observations))
    np.testing.assert_array_equal(same, observations)
    standard = np.asarray(Standardizer.fit(observations, "standard")(jnp.asarray(observations)))
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=0), 1, rtol=1e-4)
    assert set(data.OBSERVATION_PROTOCOLS) == {"none", "standard"}


def test_scores():
    reference = ReferenceScores(-20.0, 180.0, "here")
    np.testing.assert_allclose(reference.score(np.array([[-20.0, 80.0], [180.0, 380.0]])), [[0, 50], [100, 200]])
    assert reference.score(80.0) == 50
    info = dataclasses.replace(_dataset().info, reference=reference)
    np.testing.assert_allclose(info.score(np.array([80.0])), [50])


@pytest.mark.parametrize(("share", "held_out"), [(0.01, 1), (0.5, 2), (0.6, 2)])
def test_at_least_one_and_never_all_trajectories_are_held_out(share, held_out):
    train = _dataset((1,) * 7, ends=(0, 2, 4, 6)).train if share == 0.5 else _dataset().train
    kept, validation = data.split_episodes(train, share, seed=0)
    assert int(validation.terminals.sum()) == held_out
    assert len(kept) + len(validation) == len(train)
    assert data.split_episodes(train, 0.0, seed=0) == (train, None)


def test_the_docs_have_the_tables_of_the_code():
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "data.md").read_text()
    for name, protocol in data.REWARD_PROTOCOLS.items():
        assert f"| `{name}` | `{protocol.equation}` |" in text
    for name, equation in data.OBSERVATION_PROTOCOLS.items():
        assert f"| `{name}` | `{equation}`" in text
    for task, reference in REFERENCES.items():
        assert f"| `d4rl:{task}-*-v{1 if task == 'pen' else 2}` | {reference.minimum} | {reference.maximum} |" in text
