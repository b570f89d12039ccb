"""Driving the loop oneself gives what the verb gives, and stops where it stops."""

import blackjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from problems import FLOAT, assert_close, draw, log_normal, quadratic, same_bits, tolerance, walled

import flowrl

NORMAL = flowrl.Density(log_normal)


METHODS = {
    "svgd": flowrl.Transport(),
    "adam in a box": flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adam(1.0)), flowrl.Box(-4, 4)),
    "noise": flowrl.Transport(flowrl.Langevin()),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("target", [NORMAL, flowrl.Density(walled)], ids=["normal", "walled"])
def test_steps_with_one_key_are_the_transport(name, target, key):
    method, particles = METHODS[name], draw(0, (9, 2)).clip(-3, 3).at[4, 0].set(3.9)
    budget = flowrl.Budget(6, np.array([0.1, 0.2, 0.3, 0.2, 0.1, 0.3]), scale=0.8)
    whole = method(target, particles, budget, key=key)
    stepper = flowrl.Stepper(target, budget, method)
    state = stepper.init(particles)
    assert same_bits(state.particles, particles)
    for step in range(8):  # two more than the budget holds
        state, info = stepper.step(key, state)
        assert int(info.stats["steps"]) == min(step + 1, 6)
    assert_close(state.particles, whole.particles)
    assert same_bits(info.particles, state.particles)
    assert info.result == flowrl.RESULTS.successful
    assert info.values is None
    for stat, value in whole.stats.items():
        np.testing.assert_allclose(info.stats[stat], value, rtol=1e-6, err_msg=stat)


def test_blackjax_drives_it():
    particles = 3 + draw(1, (30, 2))
    stepper = flowrl.Stepper(NORMAL, flowrl.Budget(200, 0.3))
    final, means = blackjax.util.run_inference_algorithm(
        jr.key(0),
        stepper,
        200,
        initial_position=particles,
        transform=lambda state, info: (state.particles.mean(axis=0), info.stats["path_length"]),
    )
    assert means[0].shape == (200, 2)
    assert np.all(np.diff(means[1]) >= 0)
    whole = flowrl.transport(NORMAL, particles, flowrl.Budget(200, 0.3))
    assert_close(final.particles, whole.particles, rtol=tolerance(1e-8, 1e-3), atol=1e-5)
    np.testing.assert_allclose(final.particles.mean(axis=0), 0, atol=0.02)


def test_a_step_is_traced_once_and_stops_where_the_budget_says():
    count = [0]

    def counted(centre, x):
        count[0] += 1
        return quadratic(centre, x)

    particles = draw(2, (8, 2))
    target = flowrl.Boltzmann(counted, jnp.zeros(2, FLOAT))
    stepper = flowrl.Stepper(target, flowrl.Budget(400, 0.5, tolerance=1e-3), flowrl.Transport(flowrl.Ascent()))
    state = stepper.init(particles)
    state, _ = stepper.step(None, state)
    traced = count[0]
    for _ in range(30):
        state, info = stepper.step(None, state)
    assert count[0] == traced
    assert info.result == flowrl.RESULTS.stationary
    assert int(info.stats["steps"]) < 20


def test_a_batch_of_steppers():
    particles = draw(3, (4, 7, 2))
    stepper = flowrl.Stepper(NORMAL, flowrl.Budget(3, 0.2))
    states = jax.vmap(stepper.init)(particles)
    states, _ = jax.vmap(lambda s: stepper.step(None, s))(states)
    one = stepper.step(None, stepper.init(particles[2]))[0]
    np.testing.assert_allclose(states.particles[2], one.particles, rtol=1e-6)


def test_misuse_is_refused(key):
    particles, budget = draw(4, (5, 2)), flowrl.Budget(2)

    class Whole(flowrl.AbstractSolver):
        needs = flowrl.Needs(restriction=False)
        solve = lambda *_: None

    with pytest.raises(TypeError, match="Whole integrates a whole budget at once"):
        flowrl.Stepper(NORMAL, budget, flowrl.Transport(solver=Whole()))
    noisy = flowrl.Stepper(NORMAL, budget, flowrl.Transport(flowrl.Langevin()))
    with pytest.raises(ValueError, match="Langevin toward Density is stochastic: pass key"):
        noisy.step(None, noisy.init(particles))
    with pytest.raises(ValueError, match="NaN or infinity"):
        noisy.init(particles.at[0].set(jnp.nan), key)
