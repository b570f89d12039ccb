"""The learning rule against known values, and the budget against a known optimum."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes, bandit, chain, transitions

from flowrl import Budget
from flowrl.rl import (
    Agent,
    First,
    Gaussian,
    LowerConfidence,
    Maximum,
    Mean,
    Minimum,
    Policy,
    PolicyTable,
    RandomDirections,
    ReferenceLearner,
    Standardizer,
    Uniform,
    act,
    evaluate,
    fit,
    make_replay,
)
from flowrl.rl.learning import baselines, presets, value
from flowrl.runs import RunDirectory

SMALL = {"hidden": (64, 64), "batch_size": 128}
REFERENCE = ReferenceLearner(hidden=(32, 32), updates=500)
GAUSSIAN = dataclasses.replace(REFERENCE, model=Gaussian())


def trained(data, *, updates, preset=presets.default, n_step=1, discount=0.9, **changes):
    reference = dataclasses.replace(REFERENCE, learning_rate=preset().reference.learning_rate)
    options = {"reference": reference, "polyak": 0.05, "learning_rate": 2e-3, **SMALL}
    vgf = preset(**options | changes)
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=discount, n_step=n_step)
    state = fit(vgf, replay, updates=updates, interval=500, key=jr.key(0))
    return Agent(vgf, state, standardizer)


def q(agent, place, action):
    state = agent.standardizer(jnp.asarray(np.eye(4, dtype=np.float32)[place]))
    return float(value(agent.state.critic.network, Mean(), state, jnp.asarray([[action]], jnp.float32))[0])


def reference_reward(agent, place):
    """Expected reward of the learned reference itself, so that its own error does not count."""
    state = agent.standardizer(jnp.asarray(np.eye(4, dtype=np.float32)[place]))
    noise = jr.normal(jr.key(5), (4000, 1), jnp.float32)
    actions = jax.vmap(lambda z: agent.state.reference.sample(state, z))(noise)
    return -float(jnp.mean((actions - 0.5) ** 2))


@pytest.mark.thorough
def test_td_gives_the_value_of_the_reference():
    """L_train = 0: the TD target bootstraps from the reference itself, and the chain's values are sums."""
    agent = trained(chain(3000), updates=2000)
    first, second = reference_reward(agent, 1), reference_reward(agent, 2)
    for place, remaining in ((2, 0.0), (1, 0.9 * second), (0, 0.9 * first + 0.81 * second)):
        for action in (-0.5, 0.5):
            expected = -((action - 0.5) ** 2) + remaining
            assert q(agent, place, action) == pytest.approx(expected, abs=0.12), (place, action)


@pytest.mark.thorough
def test_n_step_returns_take_the_rewards_of_the_data():
    """With n = 3 on a chain of three the target is the return of the data, E r = −(1/3 + 1/4) for uniform actions."""
    agent = trained(chain(3000), updates=1500, n_step=3)
    expected = -(0.9 + 0.81) * (1 / 3 + 1 / 4)
    assert q(agent, 0, 0.5) == pytest.approx(expected, abs=0.15)


@pytest.mark.slow
def test_transported_targets_and_the_maximum_are_worth_more():
    """The value of a state rises with what the target assumes will be done there, toward the optimum 0."""
    mean = trained(chain(3000), updates=1500)
    moved = trained(chain(3000), updates=1500, steps=5, step_size=0.3)
    best = trained(chain(3000), updates=1500, particle_aggregate=Maximum())
    values = [q(agent, 0, 0.5) for agent in (mean, moved, best)]
    assert values[0] < values[1] - 0.3
    assert values[0] < values[2] - 0.3
    assert max(values) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        (presets.default, {"steps": 0, "step_size": 0.3}),
        (presets.default, {"steps": 3, "step_size": 0.3}),
        (
            presets.default,
            {"steps": 3, "step_size": 0.3, "reference": dataclasses.replace(REFERENCE, model=Gaussian())},
        ),
        (presets.default, {"steps": 3, "step_size": 0.3, "amortized": "particles"}),
        (presets.paper, {"steps": 3, "step_size": 0.2}),
        (presets.authors, {"steps": 3, "step_size": 0.1}),
        (presets.amortized, {"steps": 3, "step_size": 0.1}),
    ],
    ids=["untransported", "transported", "gaussian", "amortized", "paper", "reference", "amortized"],
)
def test_vgf_beats_cloning_on_a_chain(preset, changes):
    """The optimum is 0.5 in every place, and cloning is worth −(1/3 + 1/4) there; values are sums over places."""
    agent = trained(chain(3000), updates=2000, preset=preset, **changes)
    places = agent.standardizer(jnp.asarray(np.eye(4, dtype=np.float32)[np.arange(3)]))
    vgf, state, budget = agent.algorithm, agent.state, agent.algorithm.train_budget

    @eqx.filter_jit
    def acted(place):
        start = jax.vmap(lambda k: vgf.propose(state, place, k))(jr.split(jr.key(7), 512))
        return vgf.improve(state, place, start, budget).particles if budget.steps else start

    table = PolicyTable((Policy("vgf", 8, budget.with_steps(3, changes["step_size"])),), 300)
    zero, observations = jnp.zeros(300, jnp.int32), jnp.asarray(np.eye(4, dtype=np.float32)[np.arange(300) % 3])
    actions = act(agent, table, zero, observations, jnp.arange(300), zero, jr.key(9)).action
    assert ((actions - 0.5) ** 2).mean() < 0.05
    # What its targets assume of each later place: particles at the training budget.
    worth = [-float(((acted(place) - 0.5) ** 2).mean()) for place in places]
    assert q(agent, 0, 0.5) == pytest.approx(0.9 * worth[1] + 0.81 * worth[2], abs=0.15)


class Killed(Exception):
    """Stands for a process that ends within an interval."""


@pytest.mark.parametrize(
    ("name", "changes"),
    [("vgf", {"chunk": 3}), pytest.param("vgf", {"n_step": 3}, marks=pytest.mark.slow)]
    + [pytest.param("rebrac", changes, marks=pytest.mark.slow) for changes in ({"chunk": 3}, {"n_step": 3})],
)
def test_runs_with_chunks_and_returns_of_more_steps_resume_exactly(name, changes, tmp_path):
    """Trajectories of ten steps, so that returns, chunks and the action that follows all reach across rows."""
    rng, rows = np.random.default_rng(0), 300
    states, ends = rng.normal(size=(rows + 1, 3)), np.arange(1, rows + 1) % 10 == 0
    data = transitions(
        states[:-1], rng.uniform(-1, 1, (rows, 1)), rng.normal(size=rows), states[1:], np.ones(rows), ends
    )
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9, **changes)
    assert float((replay.following >= 0).mean()) > 0.5
    sizes = {"hidden": (8,), "batch_size": 16}
    algorithm = (
        presets.default(1, 0.3, reference=ReferenceLearner(hidden=(8,), updates=6), **sizes)
        if name == "vgf"
        else baselines.make(name, **sizes)
    )

    def kill(progress):
        if progress.phase == "main" and progress.done == 6:
            raise Killed

    def trained_in(folder, resume=False, progress=None):
        with RunDirectory(tmp_path / folder, {"algorithm": name}, resume=resume) as run:
            fit(algorithm, replay, updates=9, interval=3, key=jr.key(1), run=run, progress=progress)

    trained_in("whole")
    with pytest.raises(Killed):
        trained_in("cut", progress=kill)
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() != (tmp_path / "whole" / "metrics.csv").read_bytes()
    trained_in("cut", resume=True)
    for file in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.thorough
def test_the_flow_improves_on_selection_where_the_optimum_lies_outside_the_data():
    """Known optimum 0.6, data N(−0.2, 0.2²): BC < best-of-N < VGF; random directions of the same length do not help."""
    agent = trained(bandit(2000), updates=1000, discount=0.0)
    policies = (
        Policy("bc", 8, Uniform()),
        Policy("best of 8", 8),
        Policy("vgf", 8, Budget(5, 0.5)),
        Policy("flow alone", 8, (Budget(5, 0.5), Uniform())),
        Policy("noise", 8, RandomDirections(Budget(5, 0.5))),
        Policy("best of 32", 32),
    )
    measured = evaluate(agent, policies, ToyLanes(12), episodes=10, seed=0)
    reward = dict(zip([p.name for p in policies], (measured.returns / measured.lengths).mean(axis=1), strict=True))
    assert reward["bc"] < reward["best of 8"] - 0.2
    assert reward["best of 8"] < reward["best of 32"]
    assert reward["best of 8"] < reward["vgf"] - 0.1
    assert reward["noise"] < reward["vgf"] - 0.1
    assert reward["bc"] < reward["flow alone"] - 0.4
    moved = measured.displacements.mean(axis=1)
    assert moved[0] == moved[1] == moved[5] == 0
    assert 1.0 < moved[2] < 2.6  # five Adam steps of half a spread
    # Both select among eight particles that went equally far.
    assert moved[4] == pytest.approx(moved[2], rel=0.35)


def test_aggregates():
    values = jnp.asarray([[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_allclose(Mean()(values), [2, 2])
    np.testing.assert_allclose(Minimum()(values), [1, 2])
    np.testing.assert_allclose(Maximum()(values), [3, 2])
    np.testing.assert_allclose(First()(values), [1, 2])
    np.testing.assert_allclose(LowerConfidence(2.0)(values), [0, 2], atol=1e-5)
    gradient = jax.grad(lambda v: LowerConfidence(1.0)(v).sum())(jnp.ones((2, 3)))
    assert np.isfinite(gradient).all()


@pytest.mark.thorough
def test_members_differ_and_share_no_gradient():
    from flowrl.rl import Critic

    critic = Critic(2, 1, (8,), 3, key=jr.key(0))
    state, action = jnp.ones(2, jnp.float32), jnp.ones(1, jnp.float32)
    out = critic(state, action)
    assert out.shape == (3,)
    assert len(set(np.asarray(out).tolist())) == 3
    grads = eqx.filter_grad(lambda c: c(state, action)[0])(critic)
    assert not np.asarray(grads.members.layers[0].weight[1]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"particles": 0}, "particles must be a Python int >= 1"),
        ({"samples": 4}, "samples"),
        ({"frozen_reference": False}, "relative=False"),
        ({"polyak": 7.0}, "polyak"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"members": 0}, "members"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        presets.default(**changes)


@pytest.mark.thorough
def test_transports_that_fail_stop_the_training():
    """Samples outside the domain are not moved; training on as if they had been would be silent nonsense."""
    import flowrl

    data = chain(300)
    narrow = flowrl.Transport(flowrl.Ascent(), flowrl.Optax(), flowrl.Box(-0.01, 0.01))
    vgf = presets.default(1, 0.1, transport=narrow, reference=dataclasses.replace(REFERENCE, updates=10), **SMALL)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    with pytest.raises(FloatingPointError, match="transports per update failed"):
        fit(vgf, replay, updates=10, interval=10, key=jr.key(0))
