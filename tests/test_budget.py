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


def test_a_budget_of_static_steps_crosses_plain_jax_transformations():
    """Only Equinox keeps a Python int among a module's leaves static; jax.jit would trace it."""
    start, target = jnp.ones((3, 2), FLOAT), flowrl.Boltzmann(lambda x: -jnp.sum(x**2))

    def end(budget):
        return flowrl.transport(target, start, budget, flow=flowrl.Ascent(), throw=False).particles

    budget = flowrl.Budget(2, 0.1)
    expected = end(budget)
    np.testing.assert_allclose(jax.jit(end)(budget), expected, rtol=1e-6)
    budgets = jax.vmap(lambda step_size: flowrl.Budget(2, step_size))(jnp.asarray([0.1, 0.2], FLOAT))
    np.testing.assert_allclose(jax.vmap(end)(budgets)[0], expected, rtol=1e-6)
    carried, out = jax.lax.scan(lambda b, _: (b, end(b)), budget, None, length=2)
    np.testing.assert_allclose(out[1], expected, rtol=1e-6)
    assert carried.steps == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: flowrl.Budget(3, -0.1),
        lambda: flowrl.Budget(3, 0.1, -1.0),
        lambda: flowrl.Budget(3, 0.1, scale=0.0),
        lambda: flowrl.Budget(3, 0.1).rescaled(-1.0),
        lambda: flowrl.FixedBandwidth(-1.0),
        lambda: flowrl.Box(1.0, -1.0),
    ],
)
def test_constant_misuse_is_refused_inside_a_jitted_function_too(make):
    def traced(x):
        make()
        return x

    with pytest.raises(ValueError, match="must be|needs"):
        jax.jit(traced)(1.0)


def test_what_was_not_moved_was_not_spent():
    start, target = jnp.ones((3, 2), FLOAT), flowrl.Boltzmann(lambda x: -jnp.sum(x**2))

    @jax.jit
    def run(step_size):
        budget = flowrl.Budget(2, step_size)
        return flowrl.transport(target, start, budget, flow=flowrl.Ascent(), save=(0, 2), throw=False)

    failed = run(jnp.asarray(-1.0, FLOAT))
    assert failed.result == flowrl.RESULTS.invalid_budget
    assert (failed.trajectory == start[None]).all()
    assert all(float(x) == 0 for x in failed.stats.values())
    assert "invalid" in str(failed)
    both = jax.vmap(run)(jnp.asarray([-1.0, 0.1], FLOAT))
    assert "1 of 2: ran all its steps" in str(both)


def test_too_many_traced_steps_are_reported():
    start, target = jnp.ones((3, 2), FLOAT), flowrl.Boltzmann(lambda x: -jnp.sum(x**2))

    @jax.jit
    def run(steps):
        budget = flowrl.Budget(steps, 0.1, max_steps=2)
        return flowrl.transport(target, start, budget, flow=flowrl.Ascent(), throw=False)

    assert run(jnp.asarray(2)).result == flowrl.RESULTS.successful
    assert run(jnp.asarray(5)).result == flowrl.RESULTS.max_steps_reached
    assert int(run(jnp.asarray(5)).stats["steps"]) == 2


def test_a_density_traced_cold_is_reported():
    start = jnp.ones((3, 2), FLOAT)
    target = flowrl.Density(lambda x: -jnp.sum(x**2))
    cold = jax.jit(lambda t: flowrl.transport(target, start, flowrl.Budget(2, 0.1, t), throw=False))(
        jnp.asarray(0.0, FLOAT)
    )
    assert cold.result == flowrl.RESULTS.invalid_budget


def test_no_steps_with_an_empty_schedule():
    start = jnp.ones((3, 2), FLOAT)
    target = flowrl.Density(lambda x: -jnp.sum(x**2))
    assert (flowrl.transport(target, start, flowrl.Budget(0, np.zeros(0))).particles == start).all()


def test_lists_of_numbers_are_arrays():
    box = flowrl.Box([-1, -1], (1.0, 2.0))
    assert box.high.shape == (2,)
    start = jnp.zeros((3, 2), FLOAT)
    target = flowrl.Boltzmann(lambda x: jnp.sum(x))
    end = flowrl.transport(target, start, flowrl.Budget(1, 5.0, scale=[1.0, 1.0]), flow=flowrl.Ascent(), domain=box)
    assert (end.particles == jnp.asarray([[1.0, 2.0]], FLOAT)).all()


def test_a_budget_at_other_steps_keeps_everything_else():
    budget = flowrl.Budget(5, 0.1, 0.5, max_displacement=1.0, scale=2.0, max_mmd=0.3, mmd_sigma=1.5, check_every=2)
    other = budget.with_steps(3, 0.2)
    assert (other.steps, float(other.step_size)) == (3, pytest.approx(0.2))
    assert float(budget.with_steps(8).step_size) == pytest.approx(0.1)
    same = eqx.tree_equal(other.with_steps(5, budget.step_size), budget)
    assert same is True or bool(same)


def test_a_schedule_does_not_stretch_to_other_steps():
    with pytest.raises(ValueError, match=r"temperature must be a number or have shape \(4,\)"):
        flowrl.Budget(2, 0.1, jnp.array([1.0, 0.5])).with_steps(4)
