"""Selection: which particle of a set is taken, and how often."""

import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, draw, same_bits

import flowrl

VALUES = np.array([0.5, -1.0, 2.0, 1.5, np.nan, -np.inf, np.inf])
FINITE = np.array([0, 1, 2, 3])
DRAWS = 8000


def _particles():
    return {"a": draw(0, (7, 3)), "b": draw(1, (7, 2, 2))}


def _frequencies(select, key):
    """How often each index comes out, over many keys at once."""
    index = jax.jit(jax.vmap(lambda k: select(k).index))(jr.split(key, DRAWS))
    return np.bincount(np.asarray(index), minlength=7) / DRAWS


def _assert_frequencies(frequencies, expected):
    # 4.5 standard deviations of each frequency; entries of probability zero must never come out.
    assert np.all(np.abs(frequencies - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_best_of_n_takes_the_highest_finite_value_bit_for_bit():
    particles = _particles()
    chosen = flowrl.best_of_n(particles, jnp.asarray(VALUES, FLOAT))
    assert int(chosen.index) == 2
    assert float(chosen.value) == 2.0
    assert same_bits(chosen.particle, {"a": particles["a"][2], "b": particles["b"][2]})


def test_ties_go_to_the_first():
    assert int(flowrl.best_of_n(draw(0, (4, 1)), jnp.asarray([0.0, 3.0, 3.0, 1.0])).index) == 1


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_softmax_select_has_the_frequencies_of_the_softmax(temperature, key):
    particles, values = _particles(), jnp.asarray(VALUES, FLOAT)
    weights = np.exp(VALUES[FINITE] / temperature)
    expected = np.zeros(7)
    expected[FINITE] = weights / weights.sum()
    _assert_frequencies(
        _frequencies(lambda k: flowrl.softmax_select(particles, values, temperature, key=k), key), expected
    )


def test_uniform_select_is_uniform_over_finite_values(key):
    particles, values = _particles(), jnp.asarray(VALUES, FLOAT)
    expected = np.zeros(7)
    expected[FINITE] = 1 / 4
    _assert_frequencies(_frequencies(lambda k: flowrl.uniform_select(particles, values, key=k), key), expected)


LOGS = np.array([0.0, -1.0, -np.inf, 1.0, 5.0, 5.0, 5.0])


@pytest.mark.parametrize("shift", [0.0, -1e5])
def test_weights_multiply_the_chances(shift, key):
    particles, values, logs = _particles(), jnp.asarray(VALUES, FLOAT), jnp.asarray(LOGS + shift, FLOAT)
    expected = np.zeros(7)
    expected[FINITE] = np.exp(LOGS[FINITE] + VALUES[FINITE] / 2)
    select = lambda k: flowrl.softmax_select(particles, values, 2.0, key=k, log_weights=logs)
    frequencies = _frequencies(select, key)
    # Far from zero single precision rounds the weights themselves.
    exact = np.asarray(logs, np.float64) - float(logs[0])
    expected[FINITE] = np.exp(exact[FINITE] + VALUES[FINITE] / 2)
    _assert_frequencies(frequencies, expected / expected.sum())
    expected[FINITE] = np.exp(exact[FINITE])
    select = lambda k: flowrl.uniform_select(particles, values, key=k, log_weights=logs)
    _assert_frequencies(_frequencies(select, key), expected / expected.sum())


def test_an_empty_slot_is_never_chosen_and_equal_weights_change_no_bit(key):
    particles, values, logs = _particles(), jnp.asarray(VALUES, FLOAT), jnp.asarray(LOGS, FLOAT)
    assert int(flowrl.best_of_n(particles, values, log_weights=logs).index) == 3  # the best has no weight
    equal = jnp.full(7, -2.0, FLOAT)
    assert same_bits(flowrl.best_of_n(particles, values, log_weights=equal), flowrl.best_of_n(particles, values))
    for k in jr.split(key, 5):
        plain = flowrl.softmax_select(particles, values, 0.7, key=k), flowrl.uniform_select(particles, values, key=k)
        same = (
            flowrl.softmax_select(particles, values, 0.7, key=k, log_weights=equal),
            flowrl.uniform_select(particles, values, key=k, log_weights=equal),
        )
        assert same_bits(same, plain)


def test_weights_of_many_sets_by_vmap(key):
    values, logs = draw(3, (5, 4)), jnp.where(draw(4, (5, 4)) > 0, 0.0, -jnp.inf).at[4].set(-jnp.inf)
    particles = draw(2, (5, 4, 3))
    chosen = jax.vmap(lambda x, v, w: flowrl.best_of_n(x, v, log_weights=w).index)(particles, values, logs)
    allowed = np.asarray(logs) > -np.inf
    np.testing.assert_array_equal(chosen, np.argmax(np.where(allowed, values, -np.inf), axis=1))
    assert int(chosen[4]) == 0  # no particle is left
    keys = jr.split(key, 5)
    for select in (
        lambda x, v, w, k: flowrl.softmax_select(x, v, 1.0, key=k, log_weights=w).index,
        lambda x, v, w, k: flowrl.uniform_select(x, v, key=k, log_weights=w).index,
    ):
        index = np.asarray(jax.vmap(select)(particles, values, logs, keys))
        assert index[4] == 0
        assert allowed[np.arange(4), index[:4]].all()


@pytest.mark.parametrize(
    ("logs", "message"),
    [
        (np.full(7, -np.inf), "all -inf: no particle is left"),
        (np.full(7, np.nan), "< inf and not NaN"),
        (np.full(7, np.inf), "< inf and not NaN"),
        (np.zeros(6), r"shape \(7,\), one per particle; got \(6,\)"),
    ],
)
def test_what_are_no_log_weights_is_refused(logs, message, key):
    particles, values, logs = _particles(), jnp.asarray(VALUES, FLOAT), jnp.asarray(logs, FLOAT)
    for select in (
        lambda: inspect.unwrap(flowrl.best_of_n)(particles, values, log_weights=logs),  # past the type checker
        lambda: inspect.unwrap(flowrl.softmax_select)(particles, values, 1.0, key=key, log_weights=logs),
        lambda: inspect.unwrap(flowrl.uniform_select)(particles, values, key=key, log_weights=logs),
    ):
        with pytest.raises(ValueError, match=message):
            select()


def test_a_cold_softmax_is_best_of_n_and_huge_values_do_not_overflow(key):
    particles, values = _particles(), jnp.asarray([1e30, -1e30, 9e30, 0, 0, 0, 0], FLOAT)
    for temperature in (1.0, 1e-3):
        chosen = flowrl.softmax_select(particles, values, temperature, key=key)
        assert int(chosen.index) == 2


def test_the_draw_returns_the_particle_and_value_of_its_index(key):
    particles, values = _particles(), jnp.asarray(VALUES, FLOAT)
    for chosen in (
        flowrl.softmax_select(particles, values, 1.0, key=key),
        flowrl.uniform_select(particles, values, key=key),
    ):
        index = int(chosen.index)
        assert same_bits(chosen.particle, {"a": particles["a"][index], "b": particles["b"][index]})
        assert float(chosen.value) == VALUES[index]


def test_nothing_finite_gives_the_first_with_its_value(key):
    particles, values = draw(0, (3, 1)), jnp.full(3, jnp.nan)
    for chosen in (
        flowrl.best_of_n(particles, values),
        flowrl.softmax_select(particles, values, 1.0, key=key),
        flowrl.uniform_select(particles, values, key=key),
    ):
        assert int(chosen.index) == 0
        assert np.isnan(chosen.value)


def test_many_sets_by_vmap_without_new_rules():
    particles, values = draw(2, (5, 4, 3)), draw(3, (5, 4))
    chosen = jax.vmap(flowrl.best_of_n)(particles, values)
    best = np.argmax(np.asarray(values), axis=1)
    np.testing.assert_array_equal(chosen.index, best)
    np.testing.assert_array_equal(chosen.particle, np.asarray(particles)[np.arange(5), best])


@pytest.mark.thorough
@pytest.mark.parametrize("dimension", [1, 6, 40])
def test_what_candidates_and_what_steps_gain_by_dimension(dimension):
    """Of a linear value: E max of N normals in every dimension; by steps of Adam L ε |g|_1 / |g|_2, up to L ε √d."""
    n, sets, steps, size = 8, 3000, 3, 0.1
    slope = jnp.arange(1.0, dimension + 1)
    slope = slope / jnp.linalg.norm(slope)  # so that values have the spread 1
    proposals = jr.normal(jr.key(0), (sets, n, dimension))
    best = jax.vmap(lambda x: flowrl.best_of_n(x, x @ slope).value)
    chosen = best(proposals)
    grid = jnp.linspace(-8, 8, 4001)
    density = n * jax.scipy.stats.norm.pdf(grid) * jax.scipy.stats.norm.cdf(grid) ** (n - 1)
    expected = jnp.trapezoid(grid * density, grid)  # 1.4236 for 8
    np.testing.assert_allclose(chosen.mean(), expected, atol=4.5 * float(chosen.std()) / np.sqrt(sets))
    flow = {"flow": flowrl.Ascent(), "solver": flowrl.Optax()}
    target, budget = flowrl.Boltzmann(lambda x: x @ slope), flowrl.Budget(steps, size)
    moved = jax.vmap(lambda x: flowrl.transport(target, x, budget, throw=False, **flow).particles)(proposals[:20])
    gained = best(moved) - chosen[:20]
    np.testing.assert_allclose(gained, steps * size * jnp.sum(jnp.abs(slope)), rtol=1e-3)
