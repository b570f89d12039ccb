"""Stages of acting: what each does to a set of candidates, alone and in sequence."""

# ruff: noqa: ARG002

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes

import flowrl
from flowrl import Ascent, Boltzmann, Box, Budget, Langevin, Metropolis, Optax, Transport
from flowrl.rl import (
    AbstractGenerative,
    AbstractState,
    AbstractValueBased,
    Actions,
    Agent,
    Barycentre,
    Best,
    Candidates,
    Cool,
    EliteMean,
    EliteMedoid,
    Improve,
    Mean,
    Move,
    Noise,
    Policy,
    RandomDirections,
    Situation,
    Softmax,
    Standardizer,
    Uniform,
    default_policy,
    evaluate,
)
from flowrl.rl.learning import baselines, presets

F32 = jnp.float32


class PlainState(AbstractState):
    """Nothing is learned."""

    step: Any
    key: Any


class Plain(AbstractValueBased, AbstractGenerative):
    """Proposals are tanh of half the noise; two members' values are what a function says."""

    value: Any = eqx.field(static=True)
    batch_size: int = 1
    selection: Any = Mean()

    def init(self, observation_size, action_size, *, key):
        return PlainState(jnp.zeros((), jnp.int32), key)

    def update(self, state, replay, rows, key):
        raise NotImplementedError

    def noise_shape(self, state):
        return (2,)

    def decode(self, state, observation, noise):
        return jnp.tanh(noise / 2)

    def improve(self, state, observation, particles, budget):
        transport = Transport(Ascent(), domain=Box(-1.0, 1.0))
        return transport(Boltzmann(lambda a: self.value(a[None])[0]), particles, budget, throw=False)

    def values(self, state, observation, actions):
        return jnp.stack([self.value(actions)] * 2)

    def unit(self, state):
        return jnp.asarray([0.5, 2.0], F32)


def situation(value) -> Situation:
    plain = Plain(value=value)
    return Situation(plain, plain.init(3, 2, key=jr.key(0)), jnp.zeros(3, F32))


def first(actions):
    return actions[:, 0]


def candidates(at: Situation, n: int = 16) -> Candidates:
    return at.propose(n, jr.key(1))


def test_candidates_are_decoded_from_their_noise():
    at = situation(first)
    drawn = candidates(at)
    assert drawn.noise is not None
    np.testing.assert_array_equal(at.decode(drawn.noise), drawn.actions)
    one = at.algorithm.propose(at.state, at.observation, jr.fold_in(jr.key(1), 3))
    np.testing.assert_allclose(drawn.actions[3], one, rtol=1e-6)


def test_a_barycentre_is_one_step_of_consensus_in_noise():
    """As transported by the library's own flow: all particles end where the stage puts its one."""
    at = situation(lambda a: 3 * jnp.sin(2 * a[:, 0]) + a[:, 1])
    drawn = candidates(at)
    spread = jnp.std(at.values(drawn.actions))
    target = Boltzmann(lambda z: at.values(at.decode(z[None]))[0])
    moved = flowrl.transport(
        target, drawn.noise, Budget(1, 1.0, 0.5 * spread), flow=flowrl.Consensus(1.0, 0.0), key=jr.key(0)
    ).particles
    np.testing.assert_allclose(moved, jnp.broadcast_to(moved[:1], moved.shape), atol=1e-6)
    merged = Barycentre(0.5)(at, drawn, jr.key(0))
    np.testing.assert_allclose(merged.noise, moved[:1], atol=1e-6)
    np.testing.assert_allclose(merged.actions, jnp.tanh(moved[:1] / 2), atol=1e-6)


def test_a_barycentre_goes_from_the_best_to_the_mean_with_its_temperature():
    at = situation(first)
    drawn = candidates(at)
    cold, hot = (Barycentre(t)(at, drawn, jr.key(0)).noise for t in (1e-4, float("inf")))
    best = jnp.argmax(at.values(drawn.actions))
    np.testing.assert_allclose(cold[0], drawn.noise[best], atol=1e-5)
    np.testing.assert_allclose(hot[0], drawn.noise.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(hot, EliteMean(16)(at, drawn, jr.key(0)).noise, atol=1e-6)


def test_temperatures_are_in_units_of_the_spread_of_values():
    """Values of another unit and origin change no choice."""
    small, large = situation(first), situation(lambda a: 1000 * a[:, 0] - 5)
    drawn = candidates(small)
    for stage in (Barycentre(0.5), Softmax(0.7), EliteMean(4), EliteMedoid(4), Best(), Uniform()):
        a, b = (stage(at, drawn, jr.key(3)).actions for at in (small, large))
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=type(stage).__name__)


def test_means_of_elites_are_in_their_space():
    at = situation(first)
    drawn = candidates(at)
    order = np.argsort(-np.asarray(drawn.actions[:, 0]))[:4]
    np.testing.assert_allclose(
        EliteMean(4)(at, drawn, jr.key(0)).actions[0], np.tanh(np.asarray(drawn.noise)[order].mean(0) / 2), atol=1e-6
    )
    in_actions = EliteMean(4, Actions())(at, drawn, jr.key(0))
    np.testing.assert_allclose(in_actions.actions[0], np.asarray(drawn.actions)[order].mean(0), atol=1e-6)
    assert in_actions.noise is None


@pytest.mark.parametrize("stage", [Barycentre(0.5), EliteMean(4), EliteMean(4, Actions())])
def test_what_is_merged_is_measured_from_the_nearest_proposal(stage):
    """In the algorithm's unit of length, in which the second coordinate counts a quarter of the first."""
    at = situation(first)
    drawn = candidates(at, 64)
    merged = stage(at, drawn, jr.key(0))
    apart = (np.asarray(drawn.actions) - np.asarray(merged.actions)) / np.asarray(at.unit(2))
    nearest = np.argmin((apart**2).sum(axis=1))
    assert nearest != 0
    np.testing.assert_array_equal(merged.origins, drawn.actions[nearest][None])


def test_a_medoid_is_the_elite_in_the_middle():
    at = situation(first)
    actions = jnp.asarray([[0.9, 0.5], [0.8, 0.1], [0.85, 0.12], [-0.9, 0.1], [-0.8, 0.1]], F32)
    chosen = EliteMedoid(3)(at, Candidates(actions, None, actions), jr.key(0))
    np.testing.assert_array_equal(chosen.actions, actions[2:3])


def test_softmax_draws_by_value():
    at = situation(first)
    actions = jnp.asarray([[0.0, 0.0], [1.0, 0.0]], F32)
    drawn = Candidates(actions, None, actions)
    keys = jr.split(jr.key(0), 4000)
    # σ = 1/2, so at temperature 2 the odds are e.
    share = np.mean(jax.vmap(lambda k: Softmax(2.0)(at, drawn, k).actions[0, 0])(keys))
    assert share == pytest.approx(np.e / (1 + np.e), abs=0.02)
    assert np.mean(jax.vmap(lambda k: Uniform()(at, drawn, k).actions[0, 0])(keys)) == pytest.approx(0.5, abs=0.03)


def test_random_directions_go_as_far_as_the_flow():
    at = situation(lambda a: a[:, 0] + a[:, 1])
    actions = jnp.zeros((50, 2), F32)
    drawn, unit = Candidates(actions, None, actions), np.asarray(at.unit(2))
    flowed, control = (
        Improve(Budget(2, 0.1))(at, drawn, jr.key(0)),
        RandomDirections(Budget(2, 0.1))(at, drawn, jr.key(0)),
    )
    lengths = [np.linalg.norm(np.asarray(x.actions) / unit, axis=1) for x in (flowed, control)]
    np.testing.assert_allclose(*lengths, rtol=1e-5)
    assert np.std(np.asarray(control.actions)[:, 0]) > 0.05
    assert flowed.noise is control.noise is None


def test_cold_noise_proposes_anew():
    at = situation(first)
    drawn = candidates(at)
    cold = Cool(0.5)(at, drawn, jr.key(0))
    np.testing.assert_allclose(cold.noise, drawn.noise / 2)
    np.testing.assert_allclose(cold.actions, np.tanh(np.asarray(drawn.noise) / 4), atol=1e-6)
    np.testing.assert_array_equal(cold.origins, cold.actions)


def test_metropolis_in_noise_samples_the_tilted_reference():
    """With V = z₀ in its own unit, N(z; 0, I) exp(V/α) is a normal distribution around 1/(ασ)."""
    at = situation(lambda a: 2 * jnp.arctanh(jnp.clip(a[:, 0], -0.999999, 0.999999)))
    drawn = candidates(at, 400)
    sigma = float(jnp.std(at.values(drawn.actions)))
    move = Move(Transport(Langevin(), Metropolis()), Budget(60, 0.5, 2.0))
    moved = move(at, drawn, jr.key(2)).noise
    np.testing.assert_allclose(moved.mean(axis=0), [1 / (2 * sigma), 0], atol=0.15)
    np.testing.assert_allclose(moved.std(axis=0), [1, 1], atol=0.12)


def test_a_transport_in_actions_keeps_to_the_box():
    at = situation(lambda a: a[:, 0] - (a[:, 1] - 0.25) ** 2)
    move = Move(Transport(Ascent(), Optax(), Box(-1.0, 1.0)), Budget(60, 0.1), Actions())
    moved = move(at, candidates(at), jr.key(0))
    assert np.asarray(moved.actions).max() <= 1
    np.testing.assert_allclose(moved.actions[:, 0], 1, atol=1e-3)
    np.testing.assert_allclose(moved.actions[:, 1], 0.25, atol=0.05)


def agent(value=first) -> Agent:
    plain = Plain(value=value)
    return Agent(plain, plain.init(3, 2, key=jr.key(0)), Standardizer(jnp.zeros(3, F32), jnp.ones(3, F32)))


@pytest.mark.thorough
def test_stages_follow_each_other_in_a_policy():
    """Each sees what the one before it left, and the displacement is from the nearest proposal of a merged one."""
    policies = (
        Policy("merged", 16, Barycentre(0.5)),
        Policy("and pushed", 16, (Barycentre(0.5), Budget(1, 0.1))),
        Policy("best", 16),
        Policy("cooled, best", 16, (Cool(0.5), Best())),
    )
    lanes = ToyLanes(8)
    found = {p.name: evaluate(agent(), (p,), lanes, episodes=3, seed=0) for p in policies}
    assert found["best"].displacements.max() == 0
    assert found["cooled, best"].displacements.max() == 0
    assert (found["merged"].displacements > 0).all()
    # The step goes along the first coordinate by 0.1 of its unit of 0.5, wherever the set was merged.
    one, two = (agent()(np.zeros(3), key=jr.key(4), policy=p) for p in policies[:2])
    np.testing.assert_allclose(two - one, [0.1, 0], atol=1e-5)


def test_policies_that_differ_in_a_temperature_share_a_program():
    from flowrl.rl import PolicyTable

    policies = (Policy("a", 8, Barycentre(0.5)), Policy("b", 8, Barycentre(0.25)), Policy("c", 8, EliteMean(4)))
    assert [block.policies for block in PolicyTable(policies, 3).blocks] == [(0, 1), (2,)]


def test_an_agent_acts_once():
    one = agent()
    action = one(np.asarray([0.0, 1.0, 2.0]), key=jr.key(0))
    assert action.shape == (2,)
    np.testing.assert_array_equal(action, one(np.asarray([0.0, 1.0, 2.0]), key=jr.key(0)))
    assert dataclasses.replace(one, chunk=2)(np.zeros(3), key=jr.key(0)).shape == (2, 1)
    with pytest.raises(ValueError, match=r"observations of this agent have shape \(3,\), got \(4,\)"):
        one(np.zeros(4), key=jr.key(0))


@pytest.mark.thorough
def test_the_default_is_consensus_and_a_step_of_vgf_and_the_best_of_others():
    vgf = presets.default(hidden=(8,))
    stages = default_policy(vgf).stages
    assert [type(stage) for stage in stages] == [Barycentre, Improve]
    assert stages[1].budget.step_size == pytest.approx(0.1)
    assert default_policy(baselines.make("iql")) == Policy("best-of-8", 8)
    state = vgf.init(3, 2, key=jr.key(0))
    one = Agent(vgf, state, Standardizer(jnp.zeros(3, F32), jnp.ones(3, F32)))
    given = one(np.zeros(3), key=jr.key(0), policy=default_policy(vgf))
    np.testing.assert_array_equal(one(np.zeros(3), key=jr.key(0)), given)


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ((EliteMean(9),), ValueError, "a: EliteMean needs 9 candidates, and 8 are there"),
        ((Best(), EliteMedoid(2)), ValueError, "a: EliteMedoid needs 2 candidates, and 1 are there"),
        ((Budget(1, 0.1), Barycentre()), ValueError, "a: Barycentre works in the noise .* put it first"),
        ((Barycentre(0.5, Actions()), Cool(0.5)), ValueError, "a: Cool works in the noise .* put it first"),
        ("best", TypeError, r"a: a stage is a value such as Best\(\), got 'best'"),
        ("softmax", TypeError, r"a: a stage is a value such as Softmax\(temperature\)"),
        (3, TypeError, r"a: a stage is a value such as Budget\(3, step_size\), got 3"),
        (Best, TypeError, "a: a stage is a value such as"),
        (object(), TypeError, "a: a stage is a value such as"),
    ],
)
def test_stages_that_cannot_follow_are_refused(stages, error, message):
    with pytest.raises(error, match=message):
        Policy("a", 8, stages)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Barycentre(0.0), r"temperature must be > 0; at 0 it would be Best\(\)"),
        (lambda: Softmax(-1.0), "temperature must be > 0"),
        (lambda: EliteMean(0), "elites must be a Python int >= 1"),
        (lambda: Cool(2.0), r"factor must be in \[0, 1\]"),
        (lambda: Move(Transport(Ascent()), Budget(2, 0.0)), "step"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_stages_that_an_algorithm_cannot_take_are_refused():
    """A policy without randomness has no noise; behaviour cloning has no values."""
    rebrac, bc = baselines.make("rebrac", hidden=(8,)), baselines.make("bc", hidden=(8,))
    with pytest.raises(ValueError, match="a: Barycentre works in the noise of the proposals, and ReBRAC makes its own"):
        Policy("a", 8, Barycentre()).check(rebrac)
    with pytest.raises(
        ValueError, match="a: Softmax|a: BC has no values to move or weigh candidates by; leave Softmax"
    ):
        Policy("a", 8, Softmax(1.0)).check(bc)
    Policy("a", 8, Cool(0.5)).check(bc)
    Policy("a", 8, (EliteMean(4, Actions()), Budget(1, 0.1))).check(rebrac)


@pytest.mark.parametrize("name", ["fql", "iql", "idql", "flow_ql", "bc"])
def test_baselines_that_sample_can_be_moved_in_their_noise(name):
    algorithm = baselines.make(name, hidden=(8,))
    state = algorithm.init(3, 2, key=jr.key(0))
    at = Situation(algorithm, state, jnp.zeros(3, F32))
    drawn = at.propose(4, jr.key(1))
    keys = jax.vmap(lambda i: jr.fold_in(jr.key(1), i))(jnp.arange(4))
    np.testing.assert_allclose(
        drawn.actions, jax.vmap(lambda k: algorithm.propose(state, at.observation, k))(keys), atol=1e-6
    )
    np.testing.assert_allclose(at.decode(drawn.noise), drawn.actions, atol=1e-6)


def test_noise_is_where_the_reference_is_standard_normal():
    """The target over noise is the reference tilted: its log density falls as that of N(0, I) where values are flat."""
    at = situation(lambda a: 0 * a[:, 0])
    target = Noise().target(at, jnp.ones((), F32))
    z = jnp.asarray([0.3, -2.0], F32)
    gradient = target.gradient(z, jnp.ones((), F32), key=None)
    np.testing.assert_allclose(gradient, -z, atol=1e-6)


def test_vgf_moves_in_the_noise_of_its_reference():
    vgf = presets.default(hidden=(8,))
    state = vgf.init(3, 2, key=jr.key(0))
    assert vgf.noise_shape(state) == (2,)
    np.testing.assert_allclose(
        vgf.decode(state, jnp.zeros(3, F32), jnp.ones(2, F32)),
        state.reference.sample(jnp.zeros(3, F32), jnp.ones(2, F32)),
    )
