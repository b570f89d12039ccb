"""Sets that stop for themselves: at rest, or at a cap on the discrepancy to their start."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import FLOAT, X64, assert_close, draw, linear, log_normal, mmd_squared, quadratic, same_bits

import flowrl

ASCENT, ZERO = flowrl.Ascent(), jnp.zeros(2, FLOAT)
BOWL = flowrl.Boltzmann(quadratic, ZERO)


def _steps_to_rest(particles, step_size, tolerance):
    """Euler on V = −|x|²/2: |x| shrinks by 1 − ε a step, and the speed is |x| before the step."""
    size, steps = np.sqrt(np.mean(np.sum(np.asarray(particles, np.float64) ** 2, axis=1))), 0
    while size > tolerance:
        size, steps = size * (1 - step_size), steps + 1
    return steps + 1


@pytest.mark.parametrize("traced", [False, True])
def test_a_set_stops_where_it_comes_to_rest(traced):
    particles = draw(0, (6, 2))
    expected = _steps_to_rest(particles, 0.2, 1e-2)
    steps = {"steps": jnp.asarray(300), "max_steps": 300} if traced else {"steps": 300}
    budget = flowrl.Budget(step_size=0.2, tolerance=1e-2, **steps)
    solution = flowrl.transport(BOWL, particles, budget, flow=ASCENT, save=(0, expected, 300))
    assert solution.result == flowrl.RESULTS.stationary
    assert int(solution.stats["steps"]) == expected
    assert float(solution.stats["time"]) == pytest.approx(0.2 * expected)
    np.testing.assert_allclose(solution.particles, particles * 0.8**expected, rtol=1e-4)
    assert same_bits(solution.trajectory[1], solution.particles)
    assert same_bits(solution.trajectory[2], solution.particles)
    assert "came to rest" in str(solution)
    plain = flowrl.transport(BOWL, particles, flowrl.Budget(expected, 0.2), flow=ASCENT)
    assert_close(plain.particles, solution.particles)
    late = flowrl.transport(BOWL, particles, flowrl.Budget(300, 0.2, tolerance=1e-2, check_every=10), flow=ASCENT)
    assert int(late.stats["steps"]) == -(-expected // 10) * 10


def test_speed_is_measured_in_the_unit_of_the_budget_and_only_over_the_living():
    particles = draw(1, (5, 2))
    unit = flowrl.transport(BOWL, particles * 10, flowrl.Budget(300, 0.002, tolerance=1.0, scale=10.0), flow=ASCENT)
    # In z = x / 10 the velocity is 100 z, and a step multiplies by 1 − 0.2.
    assert int(unit.stats["steps"]) == _steps_to_rest(particles, 0.2, 1e-2)

    def holed(x):
        return -0.5 * jnp.sum(x**2) + 1e-3 * jnp.sqrt(5 - x[0])

    stuck = particles.at[0].set(jnp.asarray([6.0, 0.0], FLOAT))
    solution = flowrl.transport(flowrl.Boltzmann(holed), stuck, flowrl.Budget(300, 0.2, tolerance=1e-2), flow=ASCENT)
    assert solution.result == flowrl.RESULTS.stationary
    assert int(solution.stats["nonfinite"]) == 1


@pytest.mark.parametrize("optimiser", [optax.adagrad(1.0), optax.adam(1.0), optax.sgd(0.01)])
def test_an_optimiser_that_shortens_its_steps_is_not_at_rest(optimiser):
    """Adagrad's steps shrink wherever it is: at mean 3 of a target at 300 the set seemed to rest."""
    start, far = draw(0, (20, 1)), jnp.full(1, 300.0, FLOAT)
    budget = flowrl.Budget(400, 0.1, tolerance=0.1)
    solution = flowrl.transport(
        flowrl.Boltzmann(quadratic, far), start, budget, flow=ASCENT, solver=flowrl.Optax(optimiser)
    )
    assert float(jnp.abs(solution.particles - 300).max()) > 1
    assert solution.result == flowrl.RESULTS.successful
    near = flowrl.transport(
        BOWL, draw(1, (20, 2)), flowrl.Budget(2000, 0.1, tolerance=0.05), flow=ASCENT, solver=flowrl.Optax(optimiser)
    )
    if near.result == flowrl.RESULTS.stationary:
        assert float(jnp.sqrt(jnp.mean(jnp.sum(near.particles**2, axis=1)))) < 0.1


@pytest.mark.thorough
def test_a_set_that_a_wall_or_a_cap_holds_is_at_rest():
    uphill = flowrl.Boltzmann(linear, jnp.ones(2, FLOAT))
    for numbers, domain in (({"max_displacement": 0.5}, flowrl.Unbounded()), ({}, flowrl.Box(-9, 4))):
        budget = flowrl.Budget(300, 0.1, tolerance=1e-3, **numbers)
        for solver in (flowrl.Euler(), flowrl.Optax()):
            solution = flowrl.transport(uphill, draw(2, (5, 2)), budget, flow=ASCENT, solver=solver, domain=domain)
            assert solution.result == flowrl.RESULTS.stationary


def test_a_random_velocity_rests_where_what_it_draws_is_small(key):
    target, start = flowrl.Empirical(draw(3, (40, 2))), draw(4, (40, 2)) + 1
    budget, flow = flowrl.Budget(1000, 1.0, tolerance=5e-3), flowrl.MMDFlow(noise=0.1)
    solution = flowrl.transport(target, start, budget, flow=flow, key=key)
    assert solution.result == flowrl.RESULTS.stationary
    assert 0.5 < float(solution.stats["displacement_rms"]) < 3


def test_zero_step_sizes_are_not_rest():
    particles = draw(2, (5, 2))
    sizes = np.array([0.0, 0.0, 0.2, 0.2])
    solution = flowrl.transport(BOWL, particles, flowrl.Budget(4, sizes, tolerance=1e-3), flow=ASCENT)
    assert solution.result == flowrl.RESULTS.successful
    assert int(solution.stats["steps"]) == 4


SLOPE = jnp.asarray([1.0, 0.0], FLOAT)


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("sigma", [None, 0.8])
def test_no_set_ends_beyond_the_cap_on_its_discrepancy(check_every, sigma):
    particles, cap = draw(3, (20, 2)), 0.4
    budget = flowrl.Budget(50, 0.05, max_mmd=cap, mmd_sigma=sigma, check_every=check_every)
    target = flowrl.Boltzmann(linear, SLOPE)
    solution = flowrl.transport(target, particles, budget, flow=ASCENT, save=tuple(range(51)))
    if sigma is None:
        squared = np.sum((np.asarray(particles)[:, None] - np.asarray(particles)[None]) ** 2, axis=-1)
        sigma = np.sqrt(np.median(squared[~np.eye(20, dtype=bool)]))
    discrepancies = [np.sqrt(max(mmd_squared(particles, x, sigma), 0)) for x in solution.trajectory]
    assert solution.result == flowrl.RESULTS.mmd_reached
    assert max(discrepancies) <= cap + 1e-6
    # The path is a line: one step (or one check) more would have left.
    kept = round(float(jnp.max(solution.particles[:, 0] - particles[:, 0])) / 0.05)
    assert kept % check_every == 0
    beyond = np.asarray(particles) + np.array([0.05 * (kept + check_every), 0])
    assert np.sqrt(mmd_squared(particles, beyond, sigma)) > cap
    for index in (kept + 1, 50):
        assert same_bits(solution.trajectory[index], solution.particles)
    assert "max_mmd" in str(solution)


def test_the_last_step_is_checked_whatever_check_every():
    particles = draw(4, (20, 2))
    target = flowrl.Boltzmann(linear, SLOPE)
    budget = flowrl.Budget(7, 0.5, max_mmd=0.1, check_every=100)
    solution = flowrl.transport(target, particles, budget, flow=ASCENT)
    assert solution.result == flowrl.RESULTS.mmd_reached
    assert same_bits(solution.particles, particles)


def test_each_set_of_a_batch_stops_for_itself():
    particles = jnp.stack([draw(5, (6, 2)), 0.01 * draw(6, (6, 2)), 10 * draw(7, (6, 2))])
    budget = flowrl.Budget(jnp.asarray(60), 0.2, max_steps=60, tolerance=1e-2)
    run = lambda x: flowrl.transport(BOWL, x, budget, flow=ASCENT, throw=False)
    solutions = jax.vmap(run)(particles)
    assert solutions.stats["steps"].tolist() == [_steps_to_rest(x, 0.2, 1e-2) for x in particles]
    for index, x in enumerate(particles):
        np.testing.assert_allclose(run(x).particles, solutions.particles[index], rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.skipif(not X64, reason="finite differences")
def test_a_static_number_of_steps_can_still_be_differentiated():
    particles = draw(8, (4, 2))

    def end(size):
        budget = flowrl.Budget(40, size, tolerance=0.1, max_mmd=2.0)
        return flowrl.transport(BOWL, particles, budget, flow=ASCENT).particles.sum()

    size = jnp.asarray(0.2)
    difference = (end(size + 1e-6) - end(size - 1e-6)) / 2e-6
    assert float(jax.grad(end)(size)) == pytest.approx(float(difference), rel=1e-5)


def test_new_numbers_do_not_retrace():
    count = [0]

    def counted(centre, x):
        count[0] += 1
        return quadratic(centre, x)

    target, particles = flowrl.Boltzmann(counted, ZERO), draw(9, (5, 2))
    traces = []
    for tolerance, cap, sigma in ((1e-3, 1.0, 0.5), (1e-2, 0.1, 2.0)):
        budget = flowrl.Budget(10, tolerance=tolerance, max_mmd=cap, mmd_sigma=sigma)
        flowrl.transport(target, particles, budget, flow=ASCENT)
        traces.append(count[0])
    assert traces[0] == traces[1] > 0


def test_traced_nonsense_becomes_a_result():
    particles = draw(10, (5, 2))

    @jax.jit
    def run(tolerance, cap, sigma):
        budget = flowrl.Budget(3, tolerance=tolerance, max_mmd=cap, mmd_sigma=sigma)
        return flowrl.transport(flowrl.Density(log_normal), particles, budget, throw=False)

    assert run(0.1, 0.1, 1.0).result != flowrl.RESULTS.invalid_budget
    for bad in ((-0.1, 0.1, 1.0), (0.1, -0.1, 1.0), (0.1, 0.1, 0.0), (0.1, np.nan, 1.0)):
        solution = run(*bad)
        assert solution.result == flowrl.RESULTS.invalid_budget
        assert same_bits(solution.particles, particles)
