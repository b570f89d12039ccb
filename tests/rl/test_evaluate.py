"""Evaluation is paired, and independent of lanes and of the order of policies."""

import dataclasses
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes

from flowrl import SVGD, Box, Budget, Optax, Transport
from flowrl.rl import (
    AbstractAggregate,
    Agent,
    Lanes,
    LanesError,
    Policy,
    PolicyTable,
    RandomDirections,
    ReferenceLearner,
    Standardizer,
    Uniform,
    act,
    evaluate,
)
from flowrl.rl.learning import baselines, presets

POLICIES = (
    Policy("bc", 4, Uniform()),
    Policy("best", 4),
    Policy("vgf", 4, Budget(2, 0.3)),
    Policy("noise", 4, RandomDirections(Budget(2, 0.3))),
    Policy("wide", 16),
)


@pytest.fixture(scope="module")
def agent() -> Agent:
    vgf = presets.default(hidden=(16,), reference=ReferenceLearner(hidden=(16,)))
    state = vgf.init(3, 2, key=jr.key(0))
    return Agent(vgf, state, Standardizer(jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.float32)))


@pytest.mark.thorough
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


@pytest.mark.thorough
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


class Counted(AbstractAggregate):
    """The mean; each call is noted, which a compiled program does not make again."""

    calls: list = eqx.field(static=True)

    def __call__(self, values):
        self.calls.append(values.shape)
        return values.mean(axis=0)


def test_acting_compiles_once(agent):
    calls = []
    agent = dataclasses.replace(agent, algorithm=dataclasses.replace(agent.algorithm, selection=Counted(calls)))
    table = PolicyTable(POLICIES, 10)
    states, episode, time = lane_arrays(10)
    lanes = jnp.asarray([block.policies[0] for block in table.blocks for _ in block.lanes], jnp.int32)
    act(agent, table, lanes, states, episode, time, jr.key(0))
    traced = len(calls)
    assert traced >= 5  # once for each block at least
    act(agent, table, lanes, states + 1, episode + 1, time + 1, jr.key(1))
    assert len(calls) == traced


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


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"candidates": 0}, ValueError, "a: candidates must be a Python int >= 1"),
        ({"stages": Budget(2, 0.0)}, ValueError, "a: Improve: a budget of 2 steps of size 0 moves nothing"),
        ({"stages": Budget(2, 0.1, scale=0.5)}, ValueError, "a: Improve: leave the budget's scale out"),
        ({"stages": Budget(jnp.asarray(2), 0.1, max_steps=3)}, TypeError, "the budget's steps must be a Python int"),
    ],
)
def test_bad_policy(wrong, error, message):
    with pytest.raises(error, match=message):
        Policy(**({"name": "a", "candidates": 4} | wrong))


def test_a_policy_says_its_steps():
    assert [Policy("a", 4, budget).steps for budget in (None, Budget(0, 0.0), Budget(3, 0.1))] == [0, 0, 3]


def test_budgets_that_differ_in_numbers_share_a_program():
    """Steps, and what a budget bounds, are another program; a budget of 0 steps is none."""
    budgets = (
        Budget(2, 0.3),
        Budget(2, 0.1),
        Budget(1, 0.3),
        Budget(2, 0.3, max_displacement=0.1),
        Budget(2, 0.3, max_displacement=0.2),
        Budget(2, jnp.asarray([0.3, 0.1])),
        Budget(0, 0.3),
        None,
    )
    table = PolicyTable(tuple(Policy(f"{i}", 4, budget) for i, budget in enumerate(budgets)), 8)
    assert [block.policies for block in table.blocks] == [(0, 1), (2,), (3, 4), (5,), (6, 7)]


@pytest.mark.thorough
def test_all_that_a_budget_says_holds_in_acting(agent):
    """A cap, the step sizes of each step, a temperature and a cap on the discrepancy reach the transport."""
    svgd = dataclasses.replace(agent.algorithm, transport=Transport(SVGD(), Optax(), Box(-1, 1)))
    agent = dataclasses.replace(agent, algorithm=svgd)
    budgets = {
        "free": Budget(3, 0.2, 0.1),
        "less": Budget(3, 0.1, 0.1),
        "capped": Budget(3, 0.2, 0.1, max_displacement=0.05),
        "capped less": Budget(3, 0.2, 0.1, max_displacement=0.02),
        "schedule": Budget(3, jnp.asarray([0.2, 0.0, 0.0]), 0.1),
        "hot": Budget(3, 0.2, 5.0),
        "near": Budget(3, 0.2, 0.1, max_mmd=1e-3, mmd_sigma=1.0),
    }
    policies = tuple(Policy(name, 4, budget) for name, budget in budgets.items())
    table = PolicyTable(policies, 7)
    order = [p for block in table.blocks for p in block.policies]
    states, zero = jnp.broadcast_to(lane_arrays(1)[0], (7, 3)), jnp.zeros(7, jnp.int32)
    acted = act(agent, table, jnp.asarray(order, jnp.int32), states, zero, zero, jr.key(0))
    proposal_key = jr.split(jr.fold_in(jr.fold_in(jr.key(0), 0), 0))[0]
    start = jax.vmap(lambda i: svgd.propose(agent.state, states[0], jr.fold_in(proposal_key, i)))(jnp.arange(4))
    moved = {}
    for lane, policy in enumerate(order):
        alone = svgd.improve(agent.state, states[0], start, budgets[policies[policy].name]).particles
        distances = np.abs(np.asarray(alone) - np.asarray(acted.action[lane])).max(axis=1)
        assert distances.min() < 1e-5, policies[policy].name
        moved[policies[policy].name] = float(acted.displacement[lane])
    assert moved["capped less"] < moved["capped"] < moved["less"] < moved["free"]
    assert moved["schedule"] != moved["free"]
    assert moved["near"] == 0  # sent back to the start
    assert moved["hot"] != moved["free"]


def test_candidates_without_values_are_taken_as_they_are_and_never_moved():
    cloning = baselines.make("bc", hidden=(8,))
    agent = Agent(cloning, cloning.init(3, 2, key=jr.key(0)), Standardizer.fit(np.ones((2, 3), np.float32)))
    measured = evaluate(agent, (Policy("one", 1), Policy("some", 4, Uniform())), ToyLanes(2), episodes=2, seed=0)
    assert (measured.displacements == 0).all()
    moved = Policy("moved", 4, Budget(1, 0.1))
    lanes = ToyLanes(2)
    with pytest.raises(ValueError, match="moved: BC has no values to move"):
        evaluate(agent, (Policy("one", 1), moved), lanes, episodes=2, seed=0)
    assert not lanes.rngs  # before an environment is reset
    states, episode, time = lane_arrays(1)
    with pytest.raises(ValueError, match="BC has no values to move"):
        act(agent, PolicyTable((moved,), 1), episode, states, episode, time, jr.key(0))


def test_too_few_lanes():
    with pytest.raises(ValueError, match="5 lanes or more"):
        PolicyTable(POLICIES, 2)


def test_non_finite_actions_are_an_error(agent):
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


def loses(*calls):
    """Lanes that lose their first environment at some calls of `step`."""

    class Losing(ToyLanes):
        lost = frozenset()

        def step(self, actions):
            if self.calls in {*calls} - self.lost:
                self.lost |= {self.calls}
                raise LanesError(f"lane {min(actions)} broke\nTraceback", (min(actions),))
            return super().step(actions)

        def restart(self):
            self.left.clear()

    return Losing(3)


def test_an_episode_whose_environment_is_lost_is_played_again_and_counts(agent):
    unharmed = evaluate(agent, POLICIES[:2], ToyLanes(3), episodes=4, seed=3)
    with pytest.warns(UserWarning, match=r"lane \d broke - the environments are made again") as said:
        harmed = evaluate(agent, POLICIES[:2], loses(2, 9), episodes=4, seed=3)
    assert len(said) == 2
    for name in ("returns", "successes", "lengths", "displacements"):
        np.testing.assert_array_equal(getattr(harmed, name), getattr(unharmed, name), err_msg=name)
    assert (unharmed.attempts == 1).all()
    assert 3 < (harmed.attempts == 2).sum() < 8


@pytest.mark.filterwarnings("ignore:.*are made again")
def test_an_episode_that_loses_its_environment_twice_is_an_error(agent):
    with pytest.raises(LanesError, match="lane 0 broke"):
        evaluate(agent, POLICIES[:2], loses(2, 3), episodes=4, seed=3)


@pytest.mark.thorough
def test_environments_of_one_process_that_raise_in_turn_are_each_played_again(tmp_path, monkeypatch):
    """Lanes 0 and then 2 of one worker: no episode loses its own environment twice."""
    vgf = presets.default(hidden=(16,), reference=ReferenceLearner(hidden=(16,)))
    agent = Agent(vgf, vgf.init(7, 2, key=jr.key(0)), Standardizer.fit(np.ones((2, 7), np.float32)))
    monkeypatch.setenv("FLOWRL_FRAGILE", os.pathsep.join(str(tmp_path / seed) for seed in ("300000", "300002")))
    policies, words = (Policy("best", 4),), r"lane \d, seed 30000\d: ValueError: the simulator is unstable"
    with Lanes("factory:rl.environments:fragile_seeds", 4, workers=1) as lanes:
        with pytest.warns(UserWarning, match=words) as said:
            harmed = evaluate(agent, policies, lanes, episodes=4, seed=3)
        unharmed = evaluate(agent, policies, lanes, episodes=4, seed=3)
    for number, message in zip((0, 2), said, strict=True):
        assert f"lane {number}, seed 30000{number}: ValueError" in str(message.message)
    assert harmed.attempts.tolist() == [[3] * 4]
    for name in ("returns", "successes", "lengths", "displacements"):
        np.testing.assert_array_equal(getattr(harmed, name), getattr(unharmed, name), err_msg=name)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory):
    """Evaluates in environments that fail in their third step, so many times and in such a way."""
    vgf = presets.default(hidden=(16,), reference=ReferenceLearner(hidden=(16,)))
    agent = Agent(vgf, vgf.init(7, 2, key=jr.key(0)), Standardizer.fit(np.ones((2, 7), np.float32)))

    def run(how, times):
        folder = tmp_path_factory.mktemp(how)
        files = [str(folder / str(i)) for i in range(times)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLOWRL_FRAGILE", os.pathsep.join([how, *files]))
            with Lanes("factory:rl.environments:fragile", 2, workers=2, timeout=5) as lanes:
                return evaluate(agent, (Policy("best", 4),), lanes, episodes=3, seed=3)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", r"lane \d, seed 30000\d: ValueError: the simulator is unstable"),
        ("dies", r"died \(exit status -9\) at .*step of lanes \d \(seeds 30000\d\)"),
        ("hangs", r"step of lanes \d \(seeds 30000\d\): no answer from a worker process within 5 s"),
    ],
)
def test_processes_that_fail_are_replaced(fragile, how, words):
    unharmed = fragile(how, 0)
    with pytest.warns(UserWarning, match=words + ".*played again"):
        harmed = fragile(how, 1)
    for name in ("returns", "successes", "lengths", "displacements"):
        np.testing.assert_array_equal(getattr(harmed, name), getattr(unharmed, name), err_msg=name)
    assert (harmed.attempts.min(), harmed.attempts.max()) == (1, 2)


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
    vgf = presets.default(hidden=(16,), reference=ReferenceLearner(hidden=(16,)))
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
