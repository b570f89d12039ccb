"""The baselines: their losses against numbers computed by hand, exact resume, and known optima.

Networks without hidden layers are affine, so that the numbers below are short sums in NumPy.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from rl.toys import bandit, chain
from scipy import stats

from flowrl import Budget
from flowrl.nn import MLP
from flowrl.rl import (
    AbstractValueBased,
    Agent,
    Critic,
    Denoising,
    First,
    FlowMatching,
    Gaussian,
    Mean,
    Minimum,
    OneStepReference,
    Policy,
    PolicyTable,
    Standardizer,
    act,
    fit,
    make_replay,
)
from flowrl.rl.learning import Trainable, baselines, reference_loss
from flowrl.rl.learning.baselines import (
    _deterministic,
    _dsrl,
    _fql,
    _generative_ql,
    _implicit,
    _iql,
    _qam,
    _qc,
    _rebrac,
)
from flowrl.runs import RunDirectory

OBS, ACT, BATCH = 3, 2, 5
SMALL = {"hidden": (16,), "batch_size": 16, "reference_steps": 2}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def affine(layer, *inputs):
    """x W + b in double precision."""
    weight, bias = (np.asarray(x, np.float64) for x in (layer.weight, layer.bias))
    return np.concatenate([np.asarray(x, np.float64) for x in inputs], axis=-1) @ weight + bias


def values_of(critic, states, actions):
    """Q of each member, (rows, members), of a critic without hidden layers."""
    (layers,) = critic.members.layers
    weight, bias = (np.asarray(x, np.float64) for x in (layers.weight, layers.bias))
    return np.concatenate([states, actions], axis=1) @ weight[:, :, 0].T + bias[:, 0]


def batch():
    states, actions = draw(BATCH, OBS), np.tanh(draw(BATCH, ACT, seed=1))
    return states, actions


def on(*arrays):
    """On the device, for flowrl; what is computed by hand stays in NumPy."""
    return tuple(jnp.asarray(x) for x in arrays)


def graded(loss, *arguments, has_aux=True, **options):
    """Value and gradient with respect to the first argument, as one program."""
    return eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=has_aux))(*arguments, **options)


def affine_critic(members=2):
    critic = Critic(OBS, ACT, (), members, key=jr.key(3))
    return eqx.tree_at(lambda c: c.members.layers[0].bias, critic, jnp.asarray(draw(members, 1, seed=4)))


def slope(critic, member):
    """∇_a Q of one member of a critic without hidden layers."""
    return np.asarray(critic.members.layers[0].weight, np.float64)[member, OBS:, 0]


# --- TD3+BC and ReBRAC


def test_td3_bc_actor_loss_and_its_gradient():
    """λ is a constant: the gradient is that of the mean square minus λ times the first critic's slope."""
    states, actions = batch()
    actor, critic = baselines.DeterministicActor(OBS, ACT, (), key=jr.key(1)), affine_critic()
    (loss, metrics), gradient = graded(
        _rebrac.rebrac_loss, actor, critic, First(), baselines.mean_square, *on(states, actions), 1.0, 2.5
    )
    setting = baselines.td3_bc()
    assert (setting.actor_penalty, setting.alpha, setting.critic_penalty) == (1.0, 2.5, 0.0)
    assert (setting.distance, setting.improvement) == (baselines.mean_square, First())
    chosen = np.tanh(affine(actor.network.layers[0], states))
    values = values_of(critic, states, chosen)[:, 0]
    strength = 2.5 / np.abs(values).mean()
    np.testing.assert_allclose(metrics["bc_loss"], ((chosen - actions) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, ((chosen - actions) ** 2).mean() - strength * values.mean(), rtol=1e-5)
    by_action = 2 * (chosen - actions) / (BATCH * ACT) - strength * slope(critic, 0) / BATCH
    expected = (by_action * (1 - chosen**2)).sum(axis=0)
    np.testing.assert_allclose(gradient.network.layers[0].bias, expected, rtol=1e-4)


def test_rebrac_actor_loss_and_its_gradient():
    states, actions = batch()
    actor, critic = baselines.DeterministicActor(OBS, ACT, (), key=jr.key(1)), affine_critic()
    (loss, metrics), gradient = graded(
        _rebrac.rebrac_loss, actor, critic, Minimum(), baselines.squared_distance, *on(states, actions), 0.3, 1.0
    )
    chosen = np.tanh(affine(actor.network.layers[0], states))
    values = values_of(critic, states, chosen)
    smallest, member = values.min(axis=1), values.argmin(axis=1)
    assert len(set(member)) == 2, "both members should be the smallest somewhere"
    strength = 1 / np.abs(smallest).mean()
    distance = ((chosen - actions) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(metrics["bc_loss"], distance, rtol=1e-5)
    np.testing.assert_allclose(loss, 0.3 * distance - strength * smallest.mean(), rtol=1e-5)
    slopes = np.stack([slope(critic, k) for k in member])
    by_action = (0.3 * 2 * (chosen - actions) - strength * slopes) / BATCH
    np.testing.assert_allclose(gradient.network.layers[0].bias, (by_action * (1 - chosen**2)).sum(axis=0), rtol=1e-4)


def test_target_policies_are_smoothed_within_limits():
    actor = baselines.DeterministicActor(OBS, ACT, (), key=jr.key(1))
    states = jnp.asarray(0.1 * draw(4000, OBS))
    chosen = np.asarray(jax.vmap(actor)(states))
    free = np.asarray(_deterministic.smoothed(actor, states, 0.1, 10.0, jr.key(0))) - chosen
    assert free.std() == pytest.approx(0.1, rel=0.03)
    assert free.mean() == pytest.approx(0, abs=0.01)
    limited = np.asarray(_deterministic.smoothed(actor, states, 0.5, 0.2, jr.key(0))) - chosen
    assert np.abs(limited).max() == pytest.approx(0.2, abs=1e-6)
    at_edge = eqx.tree_at(lambda a: a.network.layers[0].bias, actor, jnp.full(ACT, 3.0, jnp.float32))
    assert np.asarray(_deterministic.smoothed(at_edge, states, 0.5, 0.5, jr.key(0))).max() == 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["td3_bc", "rebrac"])
def test_deterministic_targets_and_the_delay(name):
    """Without smoothing a target is r + γ(min Q(s', π(s')) − β₂|π(s') − a'|²), a' being the next row's action."""
    data = chain(8)  # two trajectories, and one cut after two steps
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    algorithm = baselines.make(name, hidden=(), noise=0.0, polyak=0.5, batch_size=8)
    state = algorithm.init(4, 1, key=jr.key(0))
    rows = jnp.arange(8)
    update = eqx.filter_jit(algorithm.update)
    once, metrics = update(state, replay, rows, jr.key(1))
    chosen = np.tanh(affine(state.actor.network.network.layers[0], replay.next_observations))
    bootstrap = values_of(state.critic.network, replay.next_observations, chosen).min(axis=1)
    if name == "rebrac":
        # Rows 2 and 5 end the task; row 7 is the last there is.
        after = np.asarray([1, 2, 2, 4, 5, 5, 7, 7])
        known = np.asarray([1, 1, 0, 1, 1, 0, 1, 0])
        bootstrap -= known * ((chosen - np.asarray(replay.actions)[after]) ** 2).sum(axis=1)
    targets = np.asarray(replay.returns) + np.asarray(replay.discounts) * bootstrap
    np.testing.assert_allclose(metrics["value"], targets.mean(), rtol=1e-4)
    errors = values_of(state.critic.network, replay.observations, replay.actions) - targets[:, None]
    np.testing.assert_allclose(metrics["td_loss"], (errors**2).sum(axis=1).mean(), rtol=1e-4)

    twice, _ = update(once, replay, rows, jr.key(2))
    for part in ("actor", "target_actor", "target_critic"):
        assert eqx.tree_equal(getattr(once, part), getattr(state, part)), part
        assert not eqx.tree_equal(getattr(twice, part), getattr(once, part)), part
    assert not eqx.tree_equal(once.critic, state.critic)
    halfway = jax.tree.map(lambda a, b: (a + b) / 2, state.target_critic, twice.critic.network)
    assert eqx.tree_equal(twice.target_critic, halfway, rtol=1e-5)


@pytest.mark.thorough
def test_the_next_action_of_the_data_is_known_within_a_trajectory_only():
    """Two trajectories cut by a time limit: the state after a cut is not that of the next row."""
    data = chain(9)
    cut = np.asarray([0, 0, 0, 1, 0, 0, 0, 0, 1], np.float32)
    # One walk through 9 different states, cut after the fourth; what follows begins elsewhere.
    here = draw(9, OBS)
    there = np.concatenate([here[1:], draw(1, OBS, seed=8)])
    there[3] = draw(1, OBS, seed=9)
    data = dataclasses.replace(
        data, observations=here, next_observations=there, masks=np.ones(9, np.float32), terminals=cut
    )
    standardizer = Standardizer.fit(here)
    for n_step, expected in (
        (1, [1, 2, 3, None, 5, 6, 7, 8, None]),
        (3, [3, None, None, None, 7, 8, None, None, None]),
    ):
        replay = make_replay(data, standardizer, discount=0.9, n_step=n_step)
        actions, known = _rebrac.next_actions(replay, jnp.arange(9))
        assert known.tolist() == [e is not None for e in expected]
        for row, e in enumerate(expected):
            if e is not None:
                assert actions[row] == data.actions[e]
    pairs = make_replay(data, standardizer, discount=0.9, chunk=2)  # they start in all rows but 3 and 8
    actions, known = _rebrac.next_actions(pairs, jnp.arange(7))
    assert known.tolist() == [True, False, False, True, True, False, False]
    np.testing.assert_array_equal(actions[0], data.actions[2:4, 0])
    np.testing.assert_array_equal(actions[3], data.actions[6:8, 0])
    distance = _rebrac.next_action_distance(jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.asarray([True, False]))
    assert distance.tolist() == [3, 0]


def test_rebrac_penalises_the_chunk_that_follows():
    """Trajectories of 6 and 3 steps give 5 and 2 pairs of actions; two pairs have none of the data after them."""
    data = chain(9)
    here = draw(10, OBS)
    cut = np.asarray([0, 0, 0, 0, 0, 1, 0, 0, 1], np.float32)
    data = dataclasses.replace(
        data, observations=here[:-1], next_observations=here[1:], masks=np.ones(9, np.float32), terminals=cut
    )
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9, chunk=2)
    rows = jnp.arange(7)

    def mean_target(critic_penalty):
        algorithm = baselines.ReBRAC(hidden=(), noise=0.0, critic_penalty=critic_penalty, batch_size=7)
        state = algorithm.init(OBS, 2, key=jr.key(0))
        return state, float(eqx.filter_jit(algorithm.update)(state, replay, rows, jr.key(1))[1]["value"])

    state, without = mean_target(0.0)
    _, with_penalty = mean_target(0.5)
    chosen = np.tanh(affine(state.actor.network.network.layers[0], replay.next_observations))
    pairs = data.actions[:, 0]
    # Pairs start in rows 0 to 4, 6 and 7. Two steps after rows 0, 1 and 2 begin those of rows 2, 3 and 4.
    distances = [((chosen[t] - pairs[[t + 2, t + 3]]) ** 2).sum() for t in (0, 1, 2)]
    assert without - with_penalty == pytest.approx(0.5 * 0.9**2 * np.sum(distances) / 7, rel=1e-4)


# --- IQL and IDQL


def test_expectile_loss():
    value = MLP((1,), 1, (), key=jr.key(0))
    value = eqx.tree_at(lambda v: v.layers[0].weight, value, jnp.ones((1, 1), jnp.float32))
    states = jnp.asarray([[1.0], [2.0], [0.0]], jnp.float32)
    values = jnp.asarray([2.0, 0.0, 0.5], jnp.float32)  # above V by 1, below by 2, above by 0.5
    loss = _implicit.expectile_loss(value, states, values, 0.9)
    assert loss == pytest.approx((0.9 * 1 + 0.1 * 4 + 0.9 * 0.25) / 3, rel=1e-6)


def test_weights_and_weighted_cloning():
    advantages = jnp.asarray([0.0, 1.0, 5.0, -1.0, 0.5], jnp.float32)
    weights = _iql.advantage_weights(advantages, 3.0, 100.0)
    np.testing.assert_allclose(weights, [1, np.exp(3), 100, np.exp(-3), np.exp(1.5)], rtol=1e-5)
    assert not jax.grad(lambda a: _iql.advantage_weights(a, 3.0, 100.0).sum())(advantages).any()
    states, actions = batch()
    actor = baselines.GaussianActor(OBS, ACT, (), key=jr.key(1))
    actor = eqx.tree_at(lambda a: a.log_std, actor, jnp.asarray([-0.5, 0.3], jnp.float32))
    loss, gradient = graded(_iql.weighted_cloning_loss, actor, *on(states, actions), weights, has_aux=False)
    mean = np.tanh(affine(actor.network.layers[0], states))
    std = np.exp([-0.5, 0.3])
    density = np.exp(-0.5 * ((actions - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(loss, -(np.asarray(weights) * np.log(density).sum(axis=1)).mean(), rtol=1e-5)
    by_mean = -np.asarray(weights)[:, None] * (actions - mean) / std**2 / BATCH
    np.testing.assert_allclose(gradient.network.layers[0].bias, (by_mean * (1 - mean**2)).sum(axis=0), rtol=1e-4)


def test_iql_update():
    """V regresses on the smallest target Q, Q on two rewards and γ² V, the policy is weighted by the advantage."""
    data = chain(8)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9, n_step=2)
    algorithm = baselines.IQL(hidden=(), expectile=0.8, inverse_temperature=2.0)
    state = algorithm.init(4, 1, key=jr.key(0))
    _, metrics = eqx.filter_jit(algorithm.update)(state, replay, jnp.arange(8), jr.key(1))
    # Two steps on, or where the task or the data end.
    ends = np.asarray(replay.next_observations)[[1, 2, 2, 4, 5, 5, 7, 7]]
    here, there = (affine(state.value.network.layers[0], x)[:, 0] for x in (replay.observations, ends))
    values = values_of(state.critic.network, replay.observations, replay.actions)
    excess = values.min(axis=1) - here
    np.testing.assert_allclose(metrics["value_loss"], np.where(excess < 0, 0.2, 0.8) @ excess**2 / 8, rtol=1e-4)
    targets = np.asarray(replay.returns) + np.asarray(replay.discounts) * there
    np.testing.assert_allclose(metrics["value"], targets.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["td_loss"], ((values - targets[:, None]) ** 2).sum(axis=1).mean(), rtol=1e-4)
    mean = np.tanh(affine(state.actor.network.network.layers[0], replay.observations))
    logs = (-0.5 * (np.asarray(replay.actions) - mean) ** 2 - 0.5 * np.log(2 * np.pi)).sum(axis=1)
    weights = np.minimum(np.exp(2 * excess), 100)
    np.testing.assert_allclose(metrics["actor_loss"], -(weights * logs).mean(), rtol=1e-4)


# --- flows and diffusion


def euler(field, states, start, steps):
    x = np.asarray(start, np.float64)
    for i in range(steps):
        x = x + affine(field, states, x, np.full((len(x), 1), i / steps)) / steps
    return x


@pytest.mark.parametrize("normalise", [False, True])
def test_fql_loss(normalise):
    """α times the distance to the clipped end of the flow, minus Q of the clipped one-step action."""
    states, _ = batch()
    noise = draw(BATCH, ACT, seed=5)
    reference = FlowMatching(3).init(OBS, ACT, (), key=jr.key(1))
    actor, critic = OneStepReference(OBS, ACT, (), key=jr.key(2)), affine_critic()

    def loss(networks):
        actor, reference, critic = networks
        return _fql.fql_loss(actor, reference, critic, Mean(), *on(states, noise), 2.0, normalise=normalise)

    (total, metrics), gradients = graded(loss, (actor, reference, critic))
    raw = affine(actor.network.layers[0], states, noise)
    teacher = np.clip(euler(reference.field.layers[0], states, noise, 3), -1, 1)
    values = values_of(critic, states, np.clip(raw, -1, 1)).mean(axis=1)
    scale = np.abs(values).mean() if normalise else 1
    np.testing.assert_allclose(metrics["distillation_loss"], ((raw - teacher) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(total, 2 * ((raw - teacher) ** 2).mean() - values.mean() / scale, rtol=1e-5)
    inside = np.abs(raw) < 1
    assert 0 < inside.sum() < inside.size
    by_action = 4 * (raw - teacher) / (BATCH * ACT)
    by_action -= inside * (slope(critic, 0) + slope(critic, 1)) / 2 / BATCH / scale
    np.testing.assert_allclose(gradients[0].network.layers[0].bias, by_action.sum(axis=0), rtol=1e-4)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[1])), "the flow is cloned, not steered"


@pytest.mark.parametrize("normalise", [False, True])
def test_flow_ql_loss_and_its_gradient_through_the_steps(normalise):
    states, actions = batch()
    noise, begin = draw(BATCH, ACT, seed=5), 0.3 * draw(BATCH, ACT, seed=6)
    time = np.linspace(0, 1, BATCH, dtype=np.float32)
    actor, critic = FlowMatching(3).init(OBS, ACT, (), key=jr.key(7)), affine_critic()
    on_device = on(states, actions, noise, time, begin)
    setting = baselines.flow_ql(normalise=normalise)
    assert (setting.eta, setting.alpha, setting.improvement) == (1.0, 10.0, Mean())
    value = functools.partial(setting.actor_value, critic, Mean(), on_device[0], key=jr.key(0))
    (total, metrics), gradient = graded(_generative_ql.generative_ql_loss, actor, value, *on_device, 0.5, 1.0)
    scale = np.abs(
        values_of(critic, states, np.clip(euler(actor.field.layers[0], states, begin, 3), -1, 1)).mean(1)
    ).mean()

    def by_hand(shift):
        field = eqx.tree_at(lambda f: f.bias, actor.field.layers[0], np.asarray(shift))
        t = time[:, None]
        guess = affine(field, states, (1 - t) * noise + t * actions, t)
        cloning = ((guess - (actions - noise)) ** 2).mean()
        values = values_of(critic, states, np.clip(euler(field, states, begin, 3), -1, 1)).mean()
        return cloning, 0.5 * cloning - values / (scale if normalise else 1)

    bias = np.asarray(actor.field.layers[0].bias, np.float64)
    cloning, expected = by_hand(bias)
    np.testing.assert_allclose(metrics["bc_loss"], cloning, rtol=1e-5)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    for i in range(ACT):
        shift = 1e-5 * np.eye(ACT)[i]
        numeric = (by_hand(bias + shift)[1] - by_hand(bias - shift)[1]) / 2e-5
        assert gradient.field.layers[0].bias[i] == pytest.approx(numeric, rel=1e-3)


def schedule(steps):
    t = np.arange(1, steps + 1)
    beta = 1 - np.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2)
    return beta, np.cumprod(1 - beta)


def guess(policy, states, x, step):
    hot = np.tile(np.eye(policy.steps)[step], (len(x), 1))
    return affine(policy.network.layers[0], states, x, hot)


def test_diffusion_loss_and_one_step_back():
    policy = Denoising(3).init(OBS, ACT, (), key=jr.key(0))
    states, actions = batch()
    beta, kept = schedule(3)
    assert kept[-1] == pytest.approx(np.exp(-0.1 - 4.95)), "the schedule ends at exp(−β_min − (β_max − β_min)/2)"
    noise = draw(BATCH, ACT, seed=5)
    for step in range(3):
        noised = np.sqrt(kept[step]) * actions + np.sqrt(1 - kept[step]) * noise
        expected = ((guess(policy, states, noised, step) - noise) ** 2).mean(axis=1)
        losses = jax.vmap(policy.loss, (0, 0, 0, None))(states, actions, noise, jnp.asarray(step))
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    x, z = draw(BATCH, ACT, seed=6), draw(BATCH, ACT, seed=7)
    clean = (x - np.sqrt(1 - kept[1]) * guess(policy, states, x, 1)) / np.sqrt(kept[1])
    assert (np.abs(clean) > 1).any()
    mean = np.sqrt(kept[0]) * beta[1] * np.clip(clean, -1, 1) + np.sqrt(1 - beta[1]) * (1 - kept[0]) * x
    expected = mean / (1 - kept[1]) + np.sqrt(beta[1] * (1 - kept[0]) / (1 - kept[1])) * z
    back = jax.vmap(policy.denoise, (0, 0, None, 0))
    np.testing.assert_allclose(back(states, x, jnp.asarray(1), z), expected, rtol=1e-4, atol=1e-5)
    last = back(states, x, jnp.asarray(0), z)
    np.testing.assert_array_equal(last, back(states, x, jnp.asarray(0), -z))
    assert np.abs(last).max() <= 1


def test_diffusion_samples_are_the_data_if_the_noise_is_known():
    """The best guess for data that are one action a is (x − √ᾱ a)/√(1 − ᾱ); its chain ends in a."""
    _, kept = schedule(4)
    action = jnp.asarray([0.4, -0.7], jnp.float32)

    def best(observation, x, hot):
        del observation
        here = hot @ jnp.asarray(kept, jnp.float32)
        return (x - jnp.sqrt(here) * action) / jnp.sqrt(1 - here)

    policy = Denoising(4).init(OBS, ACT, (), key=jr.key(0))
    policy = eqx.tree_at(lambda p: p.network, policy, best)
    np.testing.assert_allclose(policy.sample(*on(np.zeros(OBS, np.float32), draw(4, ACT))), action, atol=1e-5)


@pytest.mark.parametrize("member", [0, 1])
def test_diffusion_ql_loss(member):
    """The value of one member over the size of the other's; both at the end of the chain of denoising steps."""
    states, actions = batch()
    policy, critic = Denoising(3).init(OBS, ACT, (), key=jr.key(1)), affine_critic()
    noise, chain_noise = draw(BATCH, ACT, seed=5), draw(BATCH, 3, ACT, seed=6)
    steps = np.asarray([0, 1, 2, 1, 0])
    on_device = on(states, actions, noise, steps, chain_noise)
    setting = baselines.diffusion_ql()
    assert (setting.eta, setting.alpha) == (1.0, 1.0)
    key = next(k for k in map(jr.key, range(20)) if int(jr.randint(k, (), 0, 2)) == member)
    value = functools.partial(setting.actor_value, critic, Mean(), on_device[0], key=key)
    (total, metrics), gradient = graded(_generative_ql.generative_ql_loss, policy, value, *on_device, 1.0, 0.7)
    beta, kept = schedule(3)
    before = np.concatenate([[1.0], kept[:-1]])

    def by_hand(shift):
        moved = eqx.tree_at(lambda p: p.network.layers[0].bias, policy, np.asarray(shift))
        k = kept[steps][:, None]
        noised = np.sqrt(k) * actions + np.sqrt(1 - k) * noise
        hot = np.eye(3)[steps]
        cloning = ((affine(moved.network.layers[0], states, noised, hot) - noise) ** 2).mean()
        x = chain_noise[:, 0].astype(np.float64)
        for t in (2, 1, 0):
            clean = (x - np.sqrt(1 - kept[t]) * guess(moved, states, x, t)) / np.sqrt(kept[t])
            mean = np.sqrt(before[t]) * beta[t] * np.clip(clean, -1, 1) + np.sqrt(1 - beta[t]) * (1 - before[t]) * x
            x = mean / (1 - kept[t])
            if t:
                x = x + np.sqrt(beta[t] * (1 - before[t]) / (1 - kept[t])) * chain_noise[:, 3 - t]
        return cloning, values_of(critic, states, x)

    bias = np.asarray(policy.network.layers[0].bias, np.float64)
    cloning, values = by_hand(bias)
    scale = np.abs(values[:, 1 - member]).mean()
    np.testing.assert_allclose(metrics["bc_loss"], cloning, rtol=1e-4)
    np.testing.assert_allclose(total, cloning - 0.7 * values[:, member].mean() / scale, rtol=1e-4)
    for i in range(ACT):
        shift = 1e-5 * np.eye(ACT)[i]
        up, down = by_hand(bias + shift), by_hand(bias - shift)
        numeric = (up[0] - down[0] - 0.7 * (up[1] - down[1])[:, member].mean() / scale) / 2e-5
        assert gradient.network.layers[0].bias[i] == pytest.approx(numeric, rel=1e-3, abs=1e-4)


# --- acting


@pytest.mark.thorough
def test_proposals_flow_along_the_critic():
    """Where Q is linear, Adam moves every coordinate by ε in each step, up the slope, and the box stops it."""
    algorithm = baselines.td3_bc(hidden=())
    state = algorithm.init(OBS, ACT, key=jr.key(0))
    observation = jnp.zeros(OBS, jnp.float32)
    particles = jnp.asarray([[0.0, 0.2], [-0.5, 0.1]], jnp.float32)
    path = algorithm.improve(state, observation, particles, Budget(3, 0.05)).trajectory
    steps = 0.05 * np.arange(4)[:, None, None] * np.sign(slope(state.critic.network, 0))
    np.testing.assert_allclose(path, np.asarray(particles)[None] + steps, atol=1e-4)
    far = algorithm.improve(state, observation, particles, Budget(3, 1.0)).trajectory
    assert np.abs(far).max() == 1
    values = algorithm.values(state, observation, particles)
    np.testing.assert_allclose(values, values_of(state.critic.network, np.zeros((2, OBS)), particles).T, rtol=1e-5)


def test_cloning_has_no_critic():
    algorithm = baselines.make("bc", hidden=(8,), reference_steps=2)
    assert not isinstance(algorithm, AbstractValueBased)
    state = algorithm.init(OBS, ACT, key=jr.key(0))
    agent = Agent(algorithm, state, Standardizer(jnp.zeros(OBS, jnp.float32), jnp.ones(OBS, jnp.float32)))
    lanes = (jnp.zeros(2, jnp.int32), jnp.zeros((2, OBS), jnp.float32), jnp.arange(2), jnp.zeros(2, jnp.int32))
    acted = act(agent, PolicyTable((Policy("bc", 3),), 2), *lanes, jr.key(0))
    assert not acted.value.any()
    assert np.abs(acted.action).max() <= 1
    with pytest.raises(ValueError, match="BC has no values to move"):
        act(agent, PolicyTable((Policy("moved", 3, Budget(1, 0.1)),), 2), *lanes, jr.key(0))


# --- QC


def test_qc_bootstraps_from_the_proposal_that_the_learning_critic_ranks_first():
    """Which one is the learning critic's choice, what it is worth the slow one's; members are averaged in both."""
    critic = affine_critic()
    slow = eqx.tree_at(lambda c: c.members.layers[0].weight, critic, replace_fn=lambda w: -0.5 * w)
    states, actions = batch()
    proposals = np.tanh(draw(BATCH, 5 * ACT, seed=7)).reshape(BATCH, 5, ACT)
    returns, discounts = draw(BATCH, 1, seed=8)[:, 0], np.abs(draw(BATCH, 1, seed=9))[:, 0]
    data = baselines.Batch(*on(states, actions, returns, discounts, states))
    chosen = _qc.best_proposal(critic, Mean(), data, jnp.asarray(proposals))
    targets = baselines.backup(slow, Mean(), data, chosen[:, None])
    fast = np.stack([values_of(critic, states, proposals[:, i]).mean(axis=1) for i in range(5)], axis=1)
    best = proposals[np.arange(BATCH), fast.argmax(axis=1)]
    assert len(set(fast.argmax(axis=1))) > 2
    np.testing.assert_array_equal(chosen, best.astype(np.float32))
    np.testing.assert_allclose(targets, returns + discounts * values_of(slow, states, best).mean(axis=1), rtol=1e-4)


@pytest.mark.thorough
def test_qc_learns_from_chunks():
    data = chain(300)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9, chunk=2)
    algorithm = baselines.make("qc", **SMALL, particles=4)
    state = fit(algorithm, replay, updates=6, interval=3, key=jr.key(1))
    assert algorithm.propose(state, jnp.zeros(4, jnp.float32), jr.key(0)).shape == (2,)


# --- DSRL


def test_dsrl_losses():
    """With affine networks, and μ a flow of one step: what noise is worth is what its action is worth."""
    critic, noise_critic = affine_critic(), Critic(OBS, ACT, (), 2, key=jr.key(5))
    reference = FlowMatching(1).init(OBS, ACT, (), key=jr.key(6))
    actor = baselines.SquashedGaussianActor(OBS, ACT, (), key=jr.key(7))
    states, noise = draw(BATCH, OBS), draw(BATCH, ACT, seed=2)
    actions = np.clip(noise + affine(reference.field.layers[0], states, noise, np.zeros((BATCH, 1))), -1, 1)
    error = values_of(noise_critic, states, noise) - values_of(critic, states, actions)
    loss = _dsrl.noise_critic_loss(noise_critic, critic, reference, *on(states, noise))
    np.testing.assert_allclose(loss, (error**2).sum(axis=1).mean(), rtol=1e-4)

    mean, log_std = np.split(affine(actor.network.layers[0], states), 2, axis=1)
    drawn = mean + np.exp(log_std) * noise
    log_prob = stats.norm.logpdf(drawn, mean, np.exp(log_std)) - np.log(1 - np.tanh(drawn) ** 2)
    worth = values_of(noise_critic, states, 1.5 * np.tanh(drawn)).mean(axis=1)
    loss, entropy = _dsrl.noise_actor_loss(actor, noise_critic, Mean(), *on(states, noise, np.float32(0.3)), 1.5)
    np.testing.assert_allclose(loss, (0.3 * log_prob.sum(axis=1) - worth).mean(), rtol=1e-4)
    np.testing.assert_allclose(entropy, -log_prob.sum(axis=1).mean(), rtol=1e-4)


def test_dsrl_weighs_entropy_until_it_is_as_wanted():
    data = bandit(60)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    rates = []
    for target in (-3.0, 3.0):  # below and above any entropy of the start
        algorithm = baselines.make("dsrl", **SMALL, members=2, entropy_target=target)
        state = algorithm.init(OBS, ACT, key=jr.key(0))
        state, _ = eqx.filter_jit(algorithm.update)(state, replay, jnp.arange(16), jr.key(2))
        rates.append(float(state.entropy.network.log))
    assert rates[0] < 0 < rates[1]


def test_dsrl_chooses_no_noise_beyond_its_scale():
    algorithm = baselines.make("dsrl", **SMALL, members=2, noise_scale=0.5)
    state = algorithm.init(OBS, ACT, key=jr.key(0))
    still = jax.tree.map(lambda w: 0 * w if eqx.is_array(w) else w, state.reference.average)  # μ(s, z) = z
    seen = eqx.tree_at(lambda s: s.reference.average, state, still)
    actions = jax.vmap(lambda x: algorithm.decode(seen, jnp.zeros(OBS, x.dtype), x))(
        3 * jr.normal(jr.key(1), (200, ACT), jnp.float32)
    )
    assert 0.4 < np.abs(actions).max() <= 0.5


# --- QAM


def test_adjoint_paths_and_their_loss():
    """Affine fields have constant derivatives: the diffusion, the adjoint and the loss are short sums."""
    steps = 4
    make = FlowMatching(steps).init
    actor, reference = make(OBS, ACT, (), key=jr.key(6)), make(OBS, ACT, (), key=jr.key(7))
    jacobian = np.asarray(reference.field.layers[0].weight, np.float64)[OBS : OBS + ACT].T
    states, noise = draw(BATCH, OBS), draw(BATCH, steps, ACT, seed=2)
    pull = np.array([0.7, -0.2])

    def field(model, x, time):
        return affine(model.field.layers[0], states, x, np.full((BATCH, 1), time))

    h, x, points = 1 / steps, noise[:, 0].astype(np.float64), []
    for i in range(steps):
        points.append(x)
        if i < steps - 1:
            t = i * h
            sigma = np.sqrt(2 * (1 - t + h) / (t + h))
            x = x + h * (2 * field(actor, x, t) - x / (t + h)) + np.sqrt(h) * sigma * noise[:, i + 1]
    end = points[-1] + h * field(reference, points[-1], 1 - h)
    adjoint, adjoints = -pull * end, []
    for i in reversed(range(steps)):
        adjoint = adjoint + h * (2 * adjoint @ jacobian - adjoint / (i * h + h))
        adjoints.insert(0, adjoint)
    loss = 0
    for i in range(steps):
        sigma = np.sqrt(2 * (1 - i * h + h) / (i * h + h))
        apart = field(actor, points[i], i * h) - field(reference, points[i], i * h)
        loss += ((2 * apart / sigma + sigma * adjoints[i]) ** 2).sum(axis=1).mean()

    def walked(state, x):
        return _qam.adjoint_path(actor, reference, lambda _, a: jnp.asarray(pull, jnp.float32) * a, state, x)

    path, back = jax.vmap(walked)(*on(states, noise))
    np.testing.assert_allclose(path, np.stack(points, axis=1), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(back, np.stack(adjoints, axis=1), rtol=1e-3, atol=1e-4)
    found = _qam.adjoint_matching_loss(actor, reference, jnp.asarray(states), path, back)
    np.testing.assert_allclose(found, loss, rtol=1e-3)


@pytest.mark.thorough
def test_adjoint_matching_tilts_a_normal_reference_by_a_linear_value():
    """N(m, s²) exp(g a) is N(m + g s², s²): the flow that is learned samples it, from a reference that was learned."""
    mean, std, pull = -0.3, 0.25, 4.0
    state, optimiser = jnp.zeros(1, jnp.float32), optax.adam(3e-3)
    model = FlowMatching(20)

    @eqx.filter_jit
    def step(fitted, teacher, key, loss):
        _, gradient = eqx.filter_value_and_grad(loss)(fitted.network, teacher, key)
        return fitted.updated(gradient, optimiser)

    def cloning(network, _, key):
        noise_key, data_key, time_key = jr.split(key, 3)
        data = mean + std * jr.normal(data_key, (256, 1), jnp.float32)
        times = jr.uniform(time_key, (256,), jnp.float32)
        return reference_loss(
            network, jnp.zeros((256, 1), jnp.float32), data, jr.normal(noise_key, (256, 1), jnp.float32), times
        )

    def matching(network, teacher, key):
        def walked(x):
            return _qam.adjoint_path(network, teacher, lambda _, a: pull * jnp.ones_like(a), state, x)

        points, adjoints = jax.lax.stop_gradient(jax.vmap(walked)(jr.normal(key, (256, 20, 1), jnp.float32)))
        return _qam.adjoint_matching_loss(network, teacher, jnp.zeros((256, 1), jnp.float32), points, adjoints)

    networks = []
    for number, loss in enumerate((cloning, matching)):
        fitted = Trainable.start(model.init(1, 1, (64, 64), key=jr.key(number)), optimiser)
        teacher = networks[0] if networks else None
        for i in range(1500):
            fitted = step(fitted, teacher, jr.fold_in(jr.key(2 + number), i), loss)
        networks.append(fitted.network)
    reference, tilted = (
        jax.vmap(lambda x, n=n: n.sample(state, x))(jr.normal(jr.key(9), (4000, 1), jnp.float32)) for n in networks
    )
    np.testing.assert_allclose(reference.mean(), mean, atol=0.03)
    np.testing.assert_allclose(tilted.mean() - reference.mean(), pull * std**2, rtol=0.15)
    np.testing.assert_allclose(tilted.std(), reference.std(), rtol=0.2)


def test_baselines_by_name():
    names = ["bc", "td3_bc", "rebrac", "iql", "idql", "diffusion_ql", "flow_ql", "fql", "qc", "dsrl", "qam"]
    assert list(baselines.ALGORITHMS) == names
    common = {"hidden": (8,), "batch_size": 4, "learning_rate": 1e-3, "members": 3, "polyak": 0.1, "reference_steps": 2}
    for name in baselines.ALGORITHMS:
        algorithm = baselines.make(name, **common)
        fields = {field.name for field in dataclasses.fields(algorithm)}
        assert all(getattr(algorithm, option) == given for option, given in common.items() if option in fields)
        assert {"hidden", "batch_size", "learning_rate"} <= fields
    assert baselines.make("fql", alpha=3.0).alpha == 3
    assert baselines.make("bc", **common).model == baselines.make("flow_ql", **common).model == FlowMatching(2)
    assert baselines.make("diffusion_ql", **common).model == Denoising(2)
    assert baselines.make("flow_ql", normalise=True).actor_value.normalise
    with pytest.raises(ValueError, match="no baseline is called 'sac'; there are bc, td3_bc"):
        baselines.make("sac")
    with pytest.raises(TypeError, match=r"iql has no fields \['alpha'\]"):
        baselines.make("iql", alpha=1.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bc", {"hidden": (8, 0)}, "BC: hidden must be widths >= 1"),
        ("td3_bc", {"delay": 0}, "ReBRAC: delay must be a Python int >= 1, got 0"),
        ("td3_bc", {"learning_rate": 0.0}, "learning_rate must be > 0"),
        ("rebrac", {"critic_penalty": -1.0}, "critic_penalty must be >= 0"),
        ("rebrac", {"noise": float("nan")}, "noise must be >= 0"),
        ("iql", {"expectile": 1.5}, r"expectile must be in \(0, 1\]"),
        ("iql", {"decay_updates": 0}, "decay_updates"),
        ("idql", {"reference_average": 1.0}, "reference_average"),
        ("diffusion_ql", {"backup_samples": 0}, "backup_samples must be a Python int >= 1"),
        ("flow_ql", {"polyak": 0.0}, r"polyak must be in \(0, 1\]"),
        ("fql", {"batch_size": 0}, "batch_size must be a Python int >= 1"),
        ("qc", {"particles": 0}, "QC: particles must be a Python int >= 1"),
        ("dsrl", {"noise_scale": 0.0}, "DSRL: noise_scale must be > 0"),
        ("qam", {"inverse_temperature": -1.0}, "QAM: inverse_temperature must be > 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        baselines.make(name, **changes)


# --- training

QUICK = ("td3_bc", "fql")
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in baselines.ALGORITHMS]


def leaves(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))


@pytest.mark.thorough
@pytest.mark.parametrize("name", EACH)
def test_runs_resume_exactly(name, tmp_path):
    data = bandit(60)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    algorithm = baselines.make(name, **SMALL)
    for run_name, parts in (("whole", (9,)), ("cut", (3, 9))):
        for i, updates in enumerate(parts):
            with RunDirectory(tmp_path / run_name, {"algorithm": name}, resume=i > 0) as run:
                state = fit(algorithm, replay, updates=updates, interval=3, key=jr.key(1), run=run)
    assert int(state.step) == 9
    named = {"bc_loss"} if name == "bc" else {"td_loss", "value"}
    assert named <= set(run.rows[-1])
    for file in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


@pytest.mark.parametrize("name", [p for p in EACH if p.values[0] != "bc"])
def test_losses_see_the_networks_before_the_update(name):
    """Rewards move the critic alone: no loss of an actor or a reference goes to it, and none of its to them."""
    data = bandit(30)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    algorithm = baselines.make(name, **SMALL, **({"delay": 1} if name in ("td3_bc", "rebrac") else {}))
    update = eqx.filter_jit(algorithm.update)
    start = algorithm.init(OBS, ACT, key=jr.key(0))
    raised = dataclasses.replace(replay, returns=replay.returns + 1)
    one, other = (update(start, r, jnp.arange(16), jr.key(2))[0] for r in (replay, raised))
    moved = {part: getattr(start, part, None) for part in ("actor", "target_actor", "reference", "value")}
    for part in [part for part, network in moved.items() if network is not None]:
        assert not eqx.tree_equal(getattr(one, part), moved[part]), f"{part} learns nothing"
        assert eqx.tree_equal(getattr(one, part), getattr(other, part)), part
    assert not eqx.tree_equal(one.critic, other.critic)
    assert not eqx.tree_equal(one.target_critic, other.target_critic)


def learned(name, data, updates, discount, **changes):
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=discount)
    sizes = {"hidden": (64, 64), "batch_size": 128, "learning_rate": 2e-3, "polyak": 0.05, "reference_steps": 5}
    algorithm = baselines.make(name, **(sizes | changes))
    return Agent(algorithm, fit(algorithm, replay, updates=updates, interval=updates // 2, key=jr.key(0)), standardizer)


def actions_of(agent, observations, candidates):
    """Acts as an evaluation does: the best of some proposals."""
    lanes = len(observations)
    table = PolicyTable((Policy("best", candidates),), lanes)
    indices = jnp.zeros(lanes, jnp.int32)
    acted = act(agent, table, indices, jnp.asarray(observations, jnp.float32), jnp.arange(lanes), indices, jr.key(9))
    return np.asarray(acted.action)


# Weights of the value that suit rewards of size 1 and a thousand updates; candidates as each paper acts.
SETTINGS = {
    "td3_bc": ({}, 1),
    "rebrac": ({"actor_penalty": 0.3, "critic_penalty": 0.1}, 1),
    "iql": ({"inverse_temperature": 10.0}, 1),
    "idql": ({"reference_average": 0.95}, 16),
    "diffusion_ql": ({"eta": 2.0, "actor_polyak": 0.05}, 16),
    "flow_ql": ({"alpha": 0.5}, 1),
    "fql": ({"alpha": 0.5}, 1),
    "qc": ({}, 32),
    "dsrl": ({"members": 2, "noise_scale": 3.0}, 1),
    "qam": ({"members": 2, "inverse_temperature": 10.0, "reference_steps": 20}, 1),
}


def bandit_reward(name, updates):
    changes, candidates = SETTINGS.get(name, ({}, 1))
    agent = learned(name, bandit(2000), updates, 0.0, **changes)
    actions = actions_of(agent, draw(300, OBS, seed=3), candidates)
    return -((actions - 0.6) ** 2).sum(axis=1).mean()


@pytest.mark.parametrize("name", [p for p in EACH if p.values[0] != "bc"])
@pytest.mark.thorough
def test_each_beats_cloning_on_a_bandit(name):
    """The optimum has the reward 0, and the data that cloning copies −2 (0.8² + 0.2²) = −1.36."""
    reward = bandit_reward(name, 400)
    cloning = bandit(2000).rewards.mean()
    assert cloning == pytest.approx(-1.36, abs=0.05)
    # What stays within the data cannot come near the optimum; what climbs the critic does.
    inside = {"iql": 0.4, "idql": 0.4, "qc": 0.4, "dsrl": 0.3, "qam": 0.6}
    assert reward > cloning + inside.get(name, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"model": Gaussian()}], ids=["flow", "gaussian"])
def test_cloning_clones(changes):
    agent = learned("bc", bandit(2000), 1000, 0.0, **changes)
    actions = actions_of(agent, draw(2000, OBS, seed=3), 1)
    np.testing.assert_allclose(actions.mean(axis=0), -0.2, atol=0.05)
    np.testing.assert_allclose(actions.std(axis=0), 0.2, atol=0.06)


def expectile_of_chain(expectile):
    """The expectile of −(a − 1/2)² for uniform a, the fixed point of a weighted mean."""
    rewards = -((np.linspace(-1, 1, 2001) - 0.5) ** 2)
    centre = rewards.mean()
    for _ in range(100):
        weights = np.where(rewards < centre, 1 - expectile, expectile)
        centre = weights @ rewards / weights.sum()
    return centre


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SETTINGS))
def test_each_beats_cloning_on_a_chain(name):
    """The optimum is 0.5 in every place, and cloning is worth −(1/3 + 1/4) there; values are sums over places."""
    changes, candidates = SETTINGS[name]
    agent = learned(name, chain(3000), 2000, 0.9, **changes)
    places = np.eye(4)[np.arange(300) % 3]
    actions = actions_of(agent, places, candidates)
    loss = ((actions - 0.5) ** 2).mean()
    assert loss < 0.15
    # What the targets assume of each later place: the expectile, or the policy with its smoothing and its penalty.
    worth = {
        "iql": expectile_of_chain(0.7),
        "idql": expectile_of_chain(0.7),
        "td3_bc": -loss - 0.2**2,
        "rebrac": -loss - 0.2**2 - 0.1 * (1 / 3 + 1 / 4 + 0.2**2),
    }.get(name, -loss)
    state = agent.standardizer(jnp.asarray(np.eye(4)[0], jnp.float32))
    value = agent.algorithm.values(agent.state, state, jnp.full((1, 1), 0.5, jnp.float32)).mean()
    assert value == pytest.approx((0.9 + 0.81) * worth, abs=0.12)


@pytest.mark.slow
def test_the_flow_adds_to_a_baseline():
    """Test-time transport along IQL's critic: what the data hold back, the flow reaches."""
    agent = learned("iql", bandit(2000), 1000, 0.0)
    policies = (Policy("iql", 1), Policy("flow", 1, Budget(5, 0.1)))
    table = PolicyTable(policies, 400)
    observations = jnp.asarray(draw(400, OBS, seed=3))
    which = jnp.repeat(jnp.arange(2), 200)
    acted = act(agent, table, which, observations, jnp.arange(400) % 200, jnp.zeros(400, jnp.int32), jr.key(9))
    rewards = -((np.asarray(acted.action) - 0.6) ** 2).sum(axis=1)
    assert rewards[200:].mean() > rewards[:200].mean() + 0.3
