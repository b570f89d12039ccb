"""Evaluation is paired, and independent of lanes and of the order of policies."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes

from flowrl.rl import Agent, Policy, PolicyTable, Standardizer, act, evaluate, presets

POLICIES = (
    Policy("bc", 4, select="uniform"),
    Policy("best", 4),
    Policy("vgf", 4, 2, 0.3),
    Policy("noise", 4, 2, 0.3, noise=True),
    Policy("wide", 16),
)


@pytest.fixture(scope="module")
def agent() -> Agent:
    vgf = presets.default(hidden=(16,), reference_hidden=(16,))
    state = vgf.init(3, 2, key=jr.key(0))
    return Agent(vgf, state, Standardizer(jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.float32)))


def test_results_do_not_depend_on_lanes_or_order(agent):
    first = evaluate(agent, POLICIES, ToyLanes(5), episodes=4, seed=3)
    again = evaluate(agent, POLICIES[::-1], ToyLanes(11), episodes=4, seed=3)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_allclose(a, b[::-1], rtol=1e-5)
    assert (first.lengths >= 3).all()
    assert (first.lengths == first.lengths[:1]).all()  # the same episodes for all


def test_seeds_matter(agent):
    first = evaluate(agent, POLICIES[:2], ToyLanes(4), episodes=3, seed=3)
    other = evaluate(agent, POLICIES[:2], ToyLanes(4), episodes=3, seed=4)
    assert not np.allclose(first.returns, other.returns)


def lane_arrays(n):
    states = jnp.asarray(np.random.default_rng(0).normal(size=(n, 3)), jnp.float32)
    return states, jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)


def test_policies_share_their_reference_samples(agent):
    """Best-of-4N ranks the samples of best-of-N and more; the control moves each particle as far as the flow."""
    table = PolicyTable(POLICIES, 5)
    order = [p for block in table.blocks for p in block.policies]
    states, episode, time = lane_arrays(5)
    states = jnp.broadcast_to(states[:1], states.shape)
    acted = act(agent, table, jnp.asarray(order, jnp.int32), states, episode, time, jr.key(0))
    value = dict(zip([POLICIES[i].name for i in order], np.asarray(acted.value), strict=True))
    assert value["wide"] >= value["best"]
    assert value["vgf"] > value["best"]
    displacement = dict(zip([POLICIES[i].name for i in order], np.asarray(acted.displacement), strict=True))
    assert displacement["best"] == displacement["bc"] == displacement["wide"] == 0
    assert displacement["vgf"] > 0.1


def test_acting_compiles_once(agent):
    table = PolicyTable(POLICIES, 10)
    states, episode, time = lane_arrays(10)
    lanes = jnp.asarray([block.policies[0] for block in table.blocks for _ in block.lanes], jnp.int32)
    act(agent, table, lanes, states, episode, time, jr.key(0))
    with pytest.MonkeyPatch.context() as patch:
        traced = []
        from flowrl.rl import _policy

        original = _policy._act
        patch.setattr(_policy, "_act", lambda *a: traced.append(1) or original(*a))
        act(agent, table, lanes, states + 1, episode + 1, time + 1, jr.key(1))
    assert not traced


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ((), "no policies"),
        ((Policy("a", 4), Policy("a", 8)), "different names"),
    ],
)
def test_bad_policies(policies, message):
    with pytest.raises(ValueError, match=message):
        PolicyTable(policies, 8)


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"steps": -1}, {"step_size": float("nan")}])
def test_bad_policy(wrong):
    with pytest.raises(ValueError, match="a: "):
        Policy(**({"name": "a", "candidates": 4} | wrong))


def test_too_few_lanes():
    with pytest.raises(ValueError, match="3 lanes or more"):
        PolicyTable(POLICIES, 2)


def test_non_finite_actions_are_an_error(agent):
    import equinox as eqx

    broken = eqx.tree_at(lambda a: a.standardizer.mean, agent, jnp.full(3, jnp.nan, jnp.float32))
    with pytest.raises(RuntimeError, match="non-finite action in episode 0"):
        evaluate(broken, POLICIES[:1], ToyLanes(2), episodes=1, seed=0)


def test_environment_errors_pass_through(agent):
    with pytest.raises(RuntimeError, match="toy broke"):
        evaluate(agent, POLICIES[:1], ToyLanes(2, fail_at=2), episodes=2, seed=0)
    with pytest.raises(ValueError, match="episodes"):
        evaluate(agent, POLICIES[:1], ToyLanes(2), episodes=0, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": float("nan")}, "step 0: the environment gave the reward nan"),
        ({"observation": np.zeros(2, np.float32)}, r"shape \(2,\), the data have \(3,\)"),
    ],
)
def test_an_environment_that_gives_nonsense_is_reported(agent, change, message):
    class Broken(ToyLanes):
        def step(self, actions):
            return {lane: step._replace(**change) for lane, step in super().step(actions).items()}

    with pytest.raises(RuntimeError, match=message):
        evaluate(agent, (Policy("best", 4),), Broken(2), episodes=1, seed=0)


class Recording(ToyLanes):
    """Remembers what each lane was told."""

    def __init__(self, size):
        super().__init__(size)
        self.told = {lane: [] for lane in range(size)}

    def step(self, actions):
        for lane, action in actions.items():
            self.told[lane].append(np.asarray(action))
        return super().step(actions)


def test_a_chunk_is_carried_out_action_by_action():
    """The reference's samples of four coordinates are two actions each; a new one is asked for when they are done."""
    vgf = presets.default(hidden=(16,), reference_hidden=(16,))
    state = vgf.init(3, 4, key=jr.key(0))
    whole = Agent(vgf, state, Standardizer(jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.float32)), chunk=2)
    policies, lanes = (Policy("best", 4),), Recording(1)
    measured = evaluate(whole, policies, lanes, episodes=1, seed=3)
    told = np.stack(lanes.told[0])
    assert told.shape == (measured.lengths[0, 0], 2)
    table = PolicyTable(policies, 1)
    toy = ToyLanes(1)
    observation = toy.reset({0: 300_000})[0]
    zero = jnp.zeros(1, jnp.int32)
    for t in range(len(told)):
        if t % 2 == 0:
            now = jnp.asarray([t], jnp.int32)
            chunk = np.asarray(act(whole, table, zero, jnp.asarray(observation)[None], zero, now, jr.key(3)).action[0])
        np.testing.assert_allclose(told[t], chunk[2 * (t % 2) : 2 * (t % 2) + 2], rtol=1e-5)
        observation = toy.step({0: told[t]})[0].observation
