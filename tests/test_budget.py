"""The budget's numbers: what becomes an array, what stays static, and what happens to traced nonsense."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import FLOAT, draw, log_normal, same_bits

import flowrl

NORMAL = flowrl.Density(log_normal)
FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))


def _leaves(budget):
    return len(jax.tree.leaves(eqx.filter(budget, eqx.is_array)))


def test_numbers_become_arrays_and_a_python_int_of_steps_stays_static():
    budget = flowrl.Budget(3, 1, 2, max_displacement=1, scale=2)
    assert _leaves(budget) == 4
    assert isinstance(budget.steps, int)
    assert isinstance(flowrl.Budget(np.int64(3)).steps, int)
    assert all(leaf.dtype == FLOAT for leaf in jax.tree.leaves(eqx.filter(budget, eqx.is_array)))
    traced = flowrl.Budget(jnp.asarray(3), max_steps=7)
    assert isinstance(traced.steps, jax.Array)
    assert (budget.bound, traced.bound) == (3, 7)


def test_optax_schedules_are_schedules():
    budget = flowrl.Budget(4, optax.linear_schedule(1.0, 0.0, 4), lambda l: 2.0**-l)
    np.testing.assert_allclose(budget.step_size, [1, 0.75, 0.5, 0.25])
    assert budget.temperature is not None
    np.testing.assert_allclose(budget.temperature, [1, 0.5, 0.25, 0.125])
    assert flowrl.Budget(0, lambda l: 1 / l).step_size.shape == ()  # never asked
    traced = flowrl.Budget(jnp.asarray(1), lambda l: 1.0 * l, max_steps=3)
    np.testing.assert_allclose(traced.step_size, [0, 1, 2])


def test_no_temperature_means_one_for_a_flow_with_entropy():
    particles = draw(0, (6, 2))
    default = flowrl.transport(NORMAL, particles, flowrl.Budget(2, 0.1), flow=FIXED)
    one = flowrl.transport(NORMAL, particles, flowrl.Budget(2, 0.1, 1.0), flow=FIXED)
    assert same_bits(default.particles, one.particles)


def test_rescaled_changes_the_scale_alone():
    budget = flowrl.Budget(3, 0.1, 0.5, max_displacement=1.0)
    scaled = budget.rescaled(np.array([1, 2]))
    np.testing.assert_array_equal(scaled.scale, [1, 2])
    assert scaled.rescaled(3.0).scale.shape == ()
    assert same_bits(scaled.step_size, budget.step_size)
    assert same_bits(scaled.max_displacement, budget.max_displacement)
    assert budget.scale is None


FINE = {"step_size": 0.1, "temperature": 1.0, "cap": 1.0, "scale": 1.0, "steps": 2}
NONSENSE = [
    ("step_size", -0.1),
    ("step_size", np.nan),
    ("step_size", np.inf),
    ("temperature", -1.0),
    ("temperature", np.nan),
    ("cap", -1.0),
    ("cap", np.nan),
    ("scale", 0.0),
    ("scale", -1.0),
    ("scale", np.inf),
    ("steps", -1),
]


@jax.jit
def _traced(particles, step_size, temperature, cap, scale, steps):
    budget = flowrl.Budget(steps, step_size, temperature, max_displacement=cap, scale=scale, max_steps=3)
    return flowrl.transport(NORMAL, particles, budget, flow=FIXED, throw=False)


def test_traced_nonsense_is_a_result_and_moves_nothing():
    particles = draw(1, (5, 2))
    fine = _traced(particles, **FINE)
    assert fine.result == flowrl.RESULTS.successful
    assert not same_bits(fine.particles, particles)
    for name, number in NONSENSE:
        solution = _traced(particles, **(FINE | {name: number}))
        assert solution.result == flowrl.RESULTS.invalid_budget, name
        assert same_bits(solution.particles, particles), name
        assert float(solution.stats["displacement_max"]) == 0
    assert "Nothing was moved" in str(solution)


def test_traced_nonsense_raises_if_asked_to():
    @eqx.filter_jit
    def throwing(particles, step_size):
        return flowrl.transport(NORMAL, particles, flowrl.Budget(2, step_size), flow=FIXED)

    particles = draw(1, (5, 2))
    assert np.isfinite(throwing(particles, 0.1).particles).all()
    with pytest.raises(RuntimeError, match="traced budget was invalid"):
        jax.block_until_ready(throwing(particles, jnp.asarray(-0.1)).particles)


def test_an_infinite_cap_is_no_cap():
    particles = draw(1, (5, 2))
    free = flowrl.transport(NORMAL, particles, flowrl.Budget(2, 0.1), flow=FIXED)
    capped = flowrl.transport(NORMAL, particles, flowrl.Budget(2, 0.1, max_displacement=np.inf), flow=FIXED)
    np.testing.assert_allclose(capped.particles, free.particles, rtol=1e-6)


def test_budgets_can_be_mapped_over():
    particles = draw(1, (5, 2))
    caps = jnp.asarray([0.01, 0.1, 10.0])

    def moved(cap):
        budget = flowrl.Budget(3, 0.5, max_displacement=cap)
        return flowrl.transport(NORMAL, particles, budget, flow=FIXED, throw=False).stats["displacement_max"]

    got = jax.vmap(moved)(caps)
    np.testing.assert_allclose(got[:2], caps[:2], rtol=1e-5)
    assert 0.1 < float(got[2]) < 10
