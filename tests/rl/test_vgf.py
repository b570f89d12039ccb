"""The parts of VGF beside its plain form: other references, amortized gradients, states that choose their own steps."""

# ruff: noqa: ARG002  (the toy algorithm has the interface of all algorithms)

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import bandit, transitions

from flowrl import SVGD, Budget, Diffrax, KSDDescent, Langevin, SinkhornFlow, Solution, Transport
from flowrl.nn import MLP
from flowrl.rl import (
    VGF,
    AbstractState,
    AbstractValueBased,
    Agent,
    Critic,
    Denoising,
    FlowMatching,
    Gaussian,
    Mean,
    OneStepReference,
    Policy,
    PolicyTable,
    ReferenceLearner,
    Softmax,
    Standardizer,
    Uniform,
    act,
    fit,
    gradient_loss,
    held_out,
    make_replay,
)
from flowrl.rl.learning import baselines, presets
from flowrl.rl.networks import aggregated_value
from flowrl.runs import RunDirectory

F32 = jnp.float32
PLAIN = {"frozen_reference": False, "relative": False}
REFERENCE = ReferenceLearner(hidden=(16,), updates=20)
VARIANTS = {
    "gaussian": {"reference": dataclasses.replace(REFERENCE, model=Gaussian(), average=0.9)},
    "one step": {"reference": dataclasses.replace(REFERENCE, one_step=True)},
    "advantage": {"advantage_temperature": 0.5, **PLAIN},
    "amortized on particles": {"amortized": "particles"},
    "denoising": {"reference": dataclasses.replace(REFERENCE, model=Denoising(3))},
}


def data(rows=200):
    transitions = bandit(rows)
    return make_replay(transitions, Standardizer.fit(transitions.observations), discount=0.9)


def small(**changes):
    sizes = {"hidden": (16,), "batch_size": 16, "reference": REFERENCE}
    return presets.default(1, 0.1, **sizes | changes)


# References


def test_the_gaussian_reference_is_a_normal_law():
    reference = Gaussian().init(3, 2, (8,), key=jr.key(0))
    state = jnp.asarray([0.3, -0.2, 0.1], F32)
    mean, log_std = np.split(np.asarray(reference.network(state)), 2)
    action, noise = jnp.asarray([0.5, -0.4], F32), jnp.asarray([1.0, -2.0], F32)
    expected = np.mean(0.5 * ((action - mean) / np.exp(log_std)) ** 2 + log_std)
    np.testing.assert_allclose(reference.loss(state, action, noise, jnp.zeros((), F32)), expected, rtol=1e-5)
    sample = reference.sample(state, noise)
    np.testing.assert_allclose(sample, np.clip(mean + np.exp(log_std) * noise, -1, 1), rtol=1e-5)


@pytest.mark.thorough
def test_weights_leave_out_what_weighs_nothing():
    """Two batches whose rows of weight 1 agree give the same loss and the same step, whatever the others hold."""
    learner = ReferenceLearner(FlowMatching(3), (8,), 1e-2, updates=None)
    state = learner.init(3, 2, key=jr.key(0))
    observations, actions = jr.normal(jr.key(1), (6, 3), F32), jr.uniform(jr.key(2), (6, 2), F32)
    weights = jnp.asarray([1, 1, 1, 0, 0, 0], F32)
    other = actions.at[3:].set(-1.0)
    one, loss = learner.update(state, observations, actions, jr.key(3), weights)
    two, same = learner.update(state, observations, other, jr.key(3), weights)
    assert float(loss["reference_loss"]) == pytest.approx(float(same["reference_loss"]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.model.network), jax.tree.leaves(two.model.network), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    unweighted, _ = learner.update(state, observations, other, jr.key(3))
    assert any(
        not np.allclose(a, b, atol=1e-4)
        for a, b in zip(jax.tree.leaves(one.model.network), jax.tree.leaves(unweighted.model.network), strict=True)
    )


@pytest.mark.thorough
def test_the_average_trails_the_weights_and_stands_for_the_reference():
    learner = ReferenceLearner(Gaussian(), (8,), 1e-1, updates=None, average=0.75)
    start = learner.init(3, 2, key=jr.key(0))
    after, _ = learner.update(start, jnp.ones((4, 3), F32), jnp.ones((4, 2), F32) / 2, jr.key(1))
    old, new, mean = (
        np.asarray(r.network.layers[0].weight) for r in (start.network, after.model.network, after.average)
    )
    np.testing.assert_allclose(mean, 0.75 * old + 0.25 * new, atol=1e-6)
    assert after.network is after.average


@pytest.mark.slow
def test_one_step_learns_the_samples_of_the_flow():
    learner = ReferenceLearner(FlowMatching(5), (64,), 3e-3, updates=None, one_step=True)
    state = learner.init(3, 2, key=jr.key(0))
    replay = data(1000)

    @eqx.filter_jit
    def train(state, key):
        def step(dynamic, key):
            rows = jr.randint(key, (128,), 0, 1000)
            now = eqx.combine(dynamic, static)
            now, _ = learner.update(now, replay.observations[rows], replay.actions[rows], key)
            return eqx.filter(now, eqx.is_array), None

        dynamic, static = eqx.partition(state, eqx.is_array)
        dynamic, _ = jax.lax.scan(step, dynamic, jr.split(key, 2000))
        return eqx.combine(dynamic, static)

    state = train(state, jr.key(1))
    noise, states = jr.normal(jr.key(2), (200, 2), F32), replay.observations[:200]
    flow = np.asarray(jax.vmap(state.network.sample)(states, noise))
    quick = np.asarray(jax.vmap(state.sample)(states, noise))
    assert np.sqrt(np.mean((flow - quick) ** 2)) < 0.3 * flow.std()
    assert not np.allclose(flow, quick)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"average": 1.0}, ValueError, r"average must be in \[0, 1\)"),
        ({"updates": 0}, ValueError, "updates must be a Python int >= 1"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be > 0"),
        ({"hidden": (8, 0)}, ValueError, "hidden must be widths >= 1"),
        ({"model": "flow"}, TypeError, "model"),
    ],
)
def test_references_that_make_no_sense_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        ReferenceLearner(**changes)


def test_a_word_that_names_no_variant_is_refused():
    with pytest.raises((ValueError, TypeError), match="amortized"):  # the second where annotations are checked
        presets.default(amortized="no")


def test_a_chain_of_noise_cannot_be_distilled():
    with pytest.raises(ValueError, match="one_step needs the noise of one action, Denoising has more"):
        ReferenceLearner(Denoising(3), (8,), one_step=True).init(3, 2, key=jr.key(0))
    with pytest.raises(ValueError, match="steps must be a Python int >= 1"):
        FlowMatching(0)


def test_the_one_step_sampler_gets_no_gradient_into_its_teacher():
    teacher, sampler = FlowMatching().init(3, 2, (8,), key=jr.key(0)), OneStepReference(3, 2, (8,), key=jr.key(1))
    state, noise = jnp.ones(3, F32), jnp.asarray([0.1, -0.3], F32)
    gradient = eqx.filter_grad(lambda t: sampler.loss(t, state, noise))(teacher)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    expected = np.mean((np.asarray(sampler.network(state, noise)) - np.asarray(teacher.sample(state, noise))) ** 2)
    np.testing.assert_allclose(sampler.loss(teacher, state, noise), expected, rtol=1e-5)


# Amortized gradients


@pytest.mark.thorough
def test_the_amortised_loss_compares_with_the_slope_of_the_critic():
    critic, network = Critic(3, 2, (8,), 2, key=jr.key(0)), MLP((3, 2), 2, (8,), key=jr.key(1))
    states, actions = jr.normal(jr.key(2), (4, 3), F32), jr.uniform(jr.key(3), (4, 5, 2), F32)
    slope = jax.grad(lambda a, s: jnp.mean(critic(s, a)))
    errors = [
        np.mean((np.asarray(network(s, a)) - np.asarray(slope(a, s))) ** 2)
        for s, row in zip(states, actions, strict=True)
        for a in row
    ]
    np.testing.assert_allclose(gradient_loss(network, critic, Mean(), states, actions), np.mean(errors), rtol=1e-4)
    into_critic = eqx.filter_grad(lambda c: gradient_loss(network, c, Mean(), states, actions))(critic)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(into_critic))


@pytest.mark.slow
def test_the_amortised_direction_agrees_with_the_critic_where_it_was_fitted():
    learner = ReferenceLearner(hidden=(32,), updates=200)
    vgf = presets.default(1, 0.1, amortized="data", hidden=(64, 64), reference=learner, learning_rate=2e-3)
    replay = data(2000)
    state = fit(vgf, replay, updates=1000, interval=200, key=jr.key(0))
    states, actions = replay.observations[:200], replay.actions[:200]
    slopes = jax.vmap(lambda s, a: jax.grad(aggregated_value, argnums=3)(state.critic.network, Mean(), s, a))(
        states, actions
    )
    guesses = jax.vmap(state.gradient.network)(states, actions)
    cosine = np.sum(slopes * guesses, axis=1) / np.linalg.norm(slopes, axis=1) / np.linalg.norm(guesses, axis=1)
    assert np.median(cosine) > 0.9
    # And particles follow f, not the critic: a network that gives −1 everywhere moves them that way.
    fooled = eqx.tree_at(
        lambda s: (s.gradient.network.layers[-1].weight, s.gradient.network.layers[-1].bias),
        state,
        (jnp.zeros((64, 2), F32), -jnp.ones(2, F32)),
    )
    moved = vgf.improve(fooled, states[0], jnp.zeros((4, 2), F32), Budget(1, 0.5)).particles
    assert (np.asarray(moved) < 0).all()


# The whole loop


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "one step" else pytest.mark.slow) for n in VARIANTS])
@pytest.mark.thorough
def test_every_variant_trains_and_resumes_exactly(tmp_path, name):
    vgf, replay = small(**VARIANTS[name]), data()
    for folder, parts in (("whole", (40,)), ("cut", (20, 40))):
        for i, updates in enumerate(parts):
            with RunDirectory(tmp_path / folder, {}, resume=i > 0) as run:
                state = fit(vgf, replay, updates=updates, interval=20, key=jr.key(1), run=run)
    for file in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    assert int(state.step) == 40


@pytest.mark.thorough
def test_held_out_metrics_are_those_of_an_update_that_is_not_made():
    vgf, replay = small(**PLAIN), data()
    state = vgf.init(3, 2, key=jr.key(0))
    metrics = held_out(vgf, state, replay, jr.key(1), 2)
    assert {"td_loss", "reference_loss"} <= set(metrics)
    again = held_out(vgf, state, replay, jr.key(1), 2)
    assert float(metrics["td_loss"]) == float(again["td_loss"])


def test_the_loss_of_a_frozen_reference_can_be_held_out_too():
    vgf, replay = small(), data()
    state = vgf.init(3, 2, key=jr.key(0))
    losses = held_out(vgf, state, replay, jr.key(1), 2, "reference")
    assert set(losses) == {"reference_loss"}
    assert 0.1 < float(losses["reference_loss"]) < 10
    with pytest.raises(TypeError, match="trains no reference before the rest"):
        held_out(baselines.td3_bc(hidden=(8,)), state, replay, jr.key(1), 2, "reference")


@pytest.mark.slow
def test_advantage_weights_find_the_good_part_of_bad_data():
    """Nine of ten actions lie around −0.5, the rest around +0.5, where the reward is: the weights turn the odds."""
    rng = np.random.default_rng(0)
    rows = 3000
    good = rng.random(rows) < 0.1
    actions = np.clip(rng.normal(np.where(good, 0.5, -0.5)[:, None], 0.1, (rows, 1)), -1, 1)
    states = rng.normal(size=(rows, 2))
    toy = transitions(states, actions, good * 1.0, states, np.zeros(rows), np.ones(rows))
    replay = make_replay(toy, Standardizer.fit(toy.observations), discount=0.0)
    share = {}
    for beta in (None, 0.2):
        vgf = presets.default(
            hidden=(64,),
            reference=ReferenceLearner(hidden=(64,)),
            learning_rate=2e-3,
            advantage_temperature=beta,
            **PLAIN,
        )
        state = fit(vgf, replay, updates=2000, interval=1000, key=jr.key(0))
        noise = jr.normal(jr.key(1), (1000, 1), F32)
        share[beta] = float(
            np.mean(np.asarray(jax.vmap(state.reference.sample)(replay.observations[:1000], noise)) > 0)
        )
    assert share[None] < 0.2
    assert share[0.2] > 0.7


# Acting


class Walk(AbstractValueBased):
    """Particles walk right by one; the members' values are what a function says."""

    members: Any = eqx.field(static=True)
    batch_size: int = 1
    selection: Any = Mean()

    def init(self, observation_size, action_size, *, key):
        return WalkState(jnp.zeros((), int), key)

    def update(self, state, replay, rows, key):
        raise NotImplementedError

    def propose(self, state, observation, key):
        return jr.uniform(key, (1,), F32, 0, 0.01)

    def improve(self, state, observation, particles, budget):
        path = particles[None] + budget.step_size * jnp.arange(budget.steps + 1, dtype=F32)[:, None, None]
        return Solution(path[-1], None, None, {}, path)

    def values(self, state, observation, actions):
        return jnp.stack([member(actions[:, 0]) for member in self.members])

    def unit(self, state):
        return jnp.ones((), F32)


class WalkState(AbstractState):
    step: Any
    key: Any


@pytest.mark.thorough
def test_the_budget_of_a_policy_is_kept_whole():
    """A cap on the discrepancy to the proposals is the policy's own, and holds in acting too."""
    vgf = small()
    agent = Agent(vgf, vgf.init(3, 2, key=jr.key(0)), Standardizer(jnp.zeros(3, F32), jnp.ones(3, F32)))
    free = vgf.train_budget.with_steps(3, 0.2)
    budgets = {"free": free, "still": Budget(3, 0.2, max_mmd=0.0), "near": Budget(3, 0.2, max_displacement=0.1)}
    table = PolicyTable(tuple(Policy(name, 4, budget) for name, budget in budgets.items()), 3)
    rows, zeros = jnp.arange(3, dtype=jnp.int32), jnp.zeros(3, jnp.int32)
    acted = act(agent, table, rows, jnp.zeros((3, 3), F32), zeros, zeros, jr.key(1))
    moved = np.asarray(acted.displacement)
    assert moved[1] == 0
    assert 0 < moved[2] < 0.1 / np.sqrt(2) + 1e-4  # root mean square over two coordinates
    assert moved[0] > moved[2] + 0.02


def test_softmax_selection_prefers_value_by_its_temperature():
    algorithm = Walk(batch_size=1, selection=Mean(), members=(lambda x: 100 * x,))
    state = algorithm.init(3, 1, key=jr.key(0))
    agent = Agent(algorithm, state, Standardizer(jnp.zeros(3, F32), jnp.ones(3, F32)))
    policies = (
        Policy("best", 6),
        Policy("cold", 6, Softmax(1e-6)),
        Policy("hot", 6, Softmax(1e3)),
        Policy("uniform", 6, Uniform()),
    )
    lanes = 200
    table = PolicyTable(policies, 4 * lanes)
    row = jnp.repeat(jnp.arange(4, dtype=jnp.int32), lanes)
    episode = jnp.tile(jnp.arange(lanes, dtype=jnp.int32), 4)
    acted = act(agent, table, row, jnp.zeros((4 * lanes, 3), F32), episode, jnp.zeros_like(episode), jr.key(1))
    best, cold, hot, uniform = np.asarray(acted.value).reshape(4, lanes)
    np.testing.assert_array_equal(best, cold)
    assert hot.mean() == pytest.approx(uniform.mean(), abs=0.05)
    assert hot.mean() < best.mean() - 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": ReferenceLearner(updates=None)}, "needs updates before"),
        ({"transport": Transport(Langevin())}, "Langevin is stochastic, and no key reaches"),
        ({"transport": Transport(SVGD(), Diffrax())}, "step by step, which Diffrax cannot"),
        ({"transport": Transport(SinkhornFlow())}, "VGF: .* needs the samples of its target"),
        ({"transport": Transport(KSDDescent()), "train_budget": Budget(1, 0.1, 0.0)}, "must be > 0"),
        ({"train_budget": Budget(1, 0.1, 1.0)}, "Ascent has no entropy"),
        ({"advantage_temperature": 0.5}, "advantage weights need the critic"),
        ({"advantage_temperature": -1.0, **PLAIN}, "advantage_temperature must be > 0"),
    ],
)
def test_variants_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        presets.default(**changes)


# Derived classes


class Scaled(VGF):
    """Reports the loss of the critic times a field of its own."""

    factor: float = eqx.field(static=True, default=1.0)

    def update(self, state, replay, rows, key):
        state, metrics = super().update(state, replay, rows, key)
        return state, metrics | {"scaled": self.factor * metrics["td_loss"]}


def test_a_preset_can_be_derived_without_a_copy_of_its_fields():
    preset = small(members=3)
    mine = presets.derived(Scaled, preset, factor=2.0, particles=4)
    assert isinstance(mine, Scaled)
    assert (mine.factor, mine.particles, mine.members, mine.transport) == (2.0, 4, 3, preset.transport)
    first = mine.init(3, 2, key=jr.key(0))
    trained, metrics = mine.update(*_prepared(mine, first), jnp.arange(16, dtype=jnp.int32), jr.key(2))
    assert float(metrics["scaled"]) == 2 * float(metrics["td_loss"])
    assert int(trained.step) == 1
    assert isinstance(presets.derived(Scaled, mine, factor=3.0), Scaled)


def _prepared(algorithm, state):
    return algorithm.prepare(state, data(), key=jr.key(1))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (baselines.IQL, {}, "kind must be a class derived from VGF"),
        (Scaled, {"rate": 1.0}, r"Scaled has no fields \['rate'\]; it has"),
    ],
)
def test_what_cannot_be_derived_is_said(kind, changes, words):
    with pytest.raises(TypeError, match=words):
        presets.derived(kind, small(), **changes)
