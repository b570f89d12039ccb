"""Critics as values: scalar ones, histograms of returns, the user's own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import bandit, chain
from scipy import stats

from flowrl.rl import (
    AbstractCritic,
    AbstractCriticModel,
    Agent,
    Critic,
    Histogram,
    Mean,
    ReferenceLearner,
    ScalarCritic,
    Standardizer,
    critic_loss,
    fit,
    make_replay,
    value,
)
from flowrl.rl.learning import baselines, presets

F32 = jnp.float32
S, A = jnp.ones(3, F32), jnp.full(2, 0.5, F32)


def histogram(low=-2.0, high=6.0, bins=40, members=3):
    return Histogram(low, high, bins).init(3, 2, (16,), members, key=jr.key(0))


def test_the_scalar_critic_is_the_default_and_its_loss_is_squared_error():
    made = ScalarCritic().init(3, 2, (16,), 2, key=jr.key(0))
    plain = Critic(3, 2, (16,), 2, key=jr.key(0))
    assert eqx.tree_equal(made, plain)
    np.testing.assert_allclose(made.loss(S, A, F32(1.5)), np.sum((np.asarray(plain(S, A)) - 1.5) ** 2), rtol=1e-6)


@pytest.mark.thorough
def test_the_loss_of_a_batch_is_the_mean_of_the_critics_own():
    critic = histogram()
    states, actions = jr.normal(jr.key(1), (5, 3), F32), jr.normal(jr.key(2), (5, 2), F32)
    targets = jnp.arange(5, dtype=F32)
    alone = [float(critic.loss(s, a, y)) for s, a, y in zip(states, actions, targets, strict=True)]
    np.testing.assert_allclose(critic_loss(critic, states, actions, targets), np.mean(alone), rtol=1e-5)


@pytest.mark.parametrize("target", [-2.5, -1.97, 0.3, 5.9, 8.0])
def test_a_histogram_is_fitted_to_a_normal_distribution_around_the_target(target):
    """Against SciPy: the loss is the cross entropy to the mass of N(y, smoothing) in the bins, y kept in the range."""
    critic = histogram()
    edges, width = np.linspace(-2, 6, 41), 0.75 * 8 / 40
    mass = np.diff(stats.norm(np.clip(target, -2, 6), width).cdf(edges))
    mass /= mass.sum()
    logits = np.asarray(eqx.filter_vmap(lambda m: m(S, A))(critic.members), np.float64)
    log_share = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(critic.loss(S, A, F32(target)), -(log_share @ mass).sum(), rtol=1e-4)
    np.testing.assert_allclose(critic(S, A), np.exp(log_share) @ ((edges[1:] + edges[:-1]) / 2), rtol=1e-4, atol=1e-5)


def test_a_new_histogram_says_about_the_middle_and_its_range_never_learns():
    critic = histogram()
    np.testing.assert_allclose(critic(S, A), 2.0, atol=0.1)
    gradient = jax.grad(lambda c: c.loss(S, A, F32(1.0)))(critic)
    assert not gradient.edges.any()
    assert not gradient.smoothing.any()
    assert np.abs(gradient.members.layers[-1].weight).max() > 0


def trained(algorithm, data, updates, discount):
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=discount)
    return Agent(algorithm, fit(algorithm, replay, updates=updates, interval=500, key=jr.key(0)), standardizer)


@pytest.mark.thorough
def test_a_histogram_learns_the_values_of_the_chain():
    """The last state's value is its reward, and the one before adds 0.9 of what is expected there."""
    vgf = presets.default(
        hidden=(64, 64),
        batch_size=128,
        polyak=0.05,
        learning_rate=2e-3,
        critic=Histogram(-4.0, 0.5, 31),
        reference=ReferenceLearner(hidden=(32, 32), updates=500),
    )
    agent = trained(vgf, chain(3000), 2000, 0.9)

    def q(place, action):
        state = agent.standardizer(jnp.asarray(np.eye(4, dtype=np.float32)[place]))
        return float(value(agent.state.critic.network, Mean(), state, jnp.asarray([[action]], F32))[0])

    uniform = 1 / 3 + 1 / 4
    for action in (-0.5, 0.5):
        reward = -((action - 0.5) ** 2)
        assert q(2, action) == pytest.approx(reward, abs=0.12)
        assert q(1, action) == pytest.approx(reward - 0.9 * uniform, abs=0.2)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in baselines.ALGORITHMS if name != "bc"])
def test_every_baseline_with_a_critic_takes_another(name):
    algorithm = baselines.make(name, hidden=(8,), critic=Histogram(-3.0, 0.0, 11))
    data = bandit(60)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.0)
    state, metrics = eqx.filter_jit(algorithm.update)(
        algorithm.init(3, 2, key=jr.key(0)), replay, jnp.arange(16), jr.key(1)
    )
    # The cross entropy of a fresh, uniform histogram.
    assert float(metrics["td_loss"]) == pytest.approx(algorithm.members * np.log(11), rel=0.02)
    assert np.isfinite(algorithm.values(state, S, A[None])).all()


class Quadratic(AbstractCritic):
    """Values −|a − θ|², each member with its own θ; the median of errors is fitted."""

    theta: jax.Array

    def __call__(self, observation, action):
        del observation
        return -jnp.sum((action[None] - self.theta) ** 2, axis=1)

    def loss(self, observation, action, target):
        return jnp.sum(jnp.abs(self(observation, action) - target))


class QuadraticModel(AbstractCriticModel):
    """A critic of one's own."""

    def init(self, observation_size, action_size, hidden, members, *, key):
        del observation_size, hidden
        return Quadratic(0.1 * jr.normal(key, (members, action_size), F32))


@pytest.mark.thorough
def test_a_critic_of_ones_own_is_trained_and_flowed_along():
    vgf = presets.default(
        critic=QuadraticModel(),
        batch_size=64,
        learning_rate=1e-2,
        reference=ReferenceLearner(hidden=(16,), updates=500),
    )
    agent = trained(vgf, bandit(1000), 1500, 0.0)
    np.testing.assert_allclose(agent.state.critic.network.theta, 0.6, atol=0.05)
    start = jnp.zeros((4, 2), F32)
    moved = vgf.improve(agent.state, S, start, vgf.train_budget.with_steps(20, 0.3)).particles
    assert (np.asarray(moved) > 0.4).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Histogram(1.0, 1.0), "low < high, both finite"),
        (lambda: Histogram(0.0, float("inf")), "low < high, both finite"),
        (lambda: Histogram(0.0, 1.0, 1), "bins must be a Python int >= 2"),
    ],
)
def test_ranges_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
