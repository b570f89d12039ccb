"""A score that is not finite freezes its particle, is counted, and never spreads."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, linear, log_normal, same_bits, tolerance, walled

import flowrl

FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
BAD = 4


def _particles():
    """Ten particles, of which one stands where the score of `walled` is NaN."""
    return draw(0, (10, 2)).at[BAD].set(jnp.asarray([9.0, 0.5], FLOAT))


def _pole(x):
    """A score that is infinite, not NaN, where `walled` has its NaN."""
    return jnp.where(x[0] > 5, jnp.inf, -x)


@pytest.mark.parametrize(
    ("target", "flow", "solver"),
    [
        (flowrl.Density(walled), flowrl.SVGD(), flowrl.Euler()),
        (flowrl.Density(walled), FIXED, flowrl.Optax()),
        (flowrl.Score(_pole), FIXED, flowrl.Euler()),
        (flowrl.Boltzmann(walled), flowrl.Ascent(), flowrl.Euler()),
    ],
    ids=["svgd-median", "svgd-adam", "infinite-score", "ascent"],
)
def test_the_others_move_as_if_it_had_never_been_there(target, flow, solver):
    particles, budget = _particles(), flowrl.Budget(4, 0.2)
    others = np.delete(np.arange(10), BAD)
    solution = flowrl.transport(target, particles, budget, flow=flow, solver=solver)
    without = flowrl.transport(target, particles[others], budget, flow=flow, solver=solver)
    assert same_bits(solution.particles[BAD], particles[BAD])
    assert int(solution.stats["nonfinite"]) == 1
    assert solution.result == flowrl.RESULTS.successful
    assert_close(solution.particles[others], without.particles, atol=tolerance(1e-12, 1e-5))
    assert np.abs(solution.particles[others] - particles[others]).min() > 1e-4
    if "value" in target.knows:
        assert np.isnan(solution.values[BAD])
        assert_close(solution.values[others], without.values, atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("select", ["best", "softmax", "uniform"])
def test_a_frozen_particle_is_never_selected(select):
    solution = flowrl.transport(flowrl.Boltzmann(walled), _particles(), flowrl.Budget(2, 0.2), flow=flowrl.Ascent())

    def index(key):
        if select == "softmax":
            return flowrl.softmax_select(solution.particles, solution.values, 1e3, key=key).index
        if select == "uniform":
            return flowrl.uniform_select(solution.particles, solution.values, key=key).index
        return flowrl.best_of_n(solution.particles, solution.values).index

    chosen = np.asarray(jax.vmap(index)(jr.split(jr.key(0), 500)))
    assert BAD not in chosen
    assert len(set(chosen.tolist())) == (1 if select == "best" else 9)


def _cliff(x):
    """Climbs toward 1 and has a NaN gradient beyond."""
    return jnp.sum(x) + 1e-12 * jnp.sum(jnp.sqrt(1 - x))


def test_a_particle_freezes_where_its_score_stops_being_finite():
    particles = jnp.asarray([[0.0], [-5.0]], FLOAT)
    solution = flowrl.transport(
        flowrl.Boltzmann(_cliff), particles, flowrl.Budget(6, 0.4), flow=flowrl.Ascent(), save=range(7)
    )
    path = np.asarray(solution.trajectory)[:, :, 0]
    np.testing.assert_allclose(path[:, 0], [0, 0.4, 0.8, 1.2, 1.2, 1.2, 1.2], rtol=1e-5)
    np.testing.assert_allclose(path[:, 1], -5 + 0.4 * np.arange(7), rtol=1e-5)
    assert int(solution.stats["nonfinite"]) == 1


def test_no_finite_particle_left_is_an_error_that_says_what_to_do():
    particles = _particles().at[:, 0].set(9.0)
    target, budget = flowrl.Density(walled), flowrl.Budget(4, 0.2)
    with pytest.raises(RuntimeError, match="lower `step_size`"):
        flowrl.transport(target, particles, budget, flow=FIXED)
    solution = flowrl.transport(target, particles, budget, flow=FIXED, throw=False)
    assert solution.result == flowrl.RESULTS.nonfinite_score
    assert int(solution.stats["nonfinite"]) == 10
    assert same_bits(solution.particles, particles)
    assert np.isnan(np.asarray(solution.values)).all()
    assert "non-finite at every particle" in str(solution)
    chosen = flowrl.best_of_n(solution.particles, solution.values)
    assert int(chosen.index) == 0
    assert np.isnan(chosen.value)


def test_a_dead_set_does_not_stop_the_others_of_its_batch():
    batch = jnp.stack([_particles(), _particles().at[:, 0].set(9.0)])

    def one(particles):
        return flowrl.transport(flowrl.Density(walled), particles, flowrl.Budget(4, 0.2), flow=FIXED, throw=False)

    many = jax.vmap(one)(batch)
    assert np.asarray(many.result == flowrl.RESULTS.nonfinite_score).tolist() == [False, True]
    assert np.asarray(many.result == flowrl.RESULTS.successful).tolist() == [True, False]
    np.testing.assert_array_equal(many.stats["nonfinite"], [1, 10])
    assert_close(many.particles[0], one(batch[0]).particles, atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("solver", [flowrl.Euler(), flowrl.Optax()], ids=["euler", "optax"])
@pytest.mark.parametrize("cap", [None, 1.0])
def test_a_step_that_overflows_freezes_its_particle(solver, cap):
    huge = jnp.finfo(FLOAT).max
    target = flowrl.Boltzmann(_right_only, huge / 4)
    particles = jnp.asarray([[-1.0], [2.0]], FLOAT)
    budget = flowrl.Budget(3, huge / 4, max_displacement=cap)
    solution = flowrl.transport(target, particles, budget, flow=flowrl.Ascent(), solver=solver, throw=False)
    assert np.isfinite(np.asarray(solution.particles)).all()
    assert same_bits(solution.particles[0], particles[0])
    if isinstance(solver, flowrl.Euler):  # the moments of Adam overflow first, and its step is zero
        assert int(solution.stats["nonfinite"]) == 1
    assert same_bits(solution.particles[1], particles[1])


def _right_only(slope, x):
    return slope * jnp.sum(jnp.maximum(x, 0))


def test_a_value_that_is_nan_where_the_score_is_fine_is_not_selected():
    def value(x):  # JAX's derivative of log is 1/x, also where log is NaN
        return jnp.sum(jnp.log(x))

    particles = jnp.asarray([[1.0], [-1.0], [2.0]], FLOAT)
    solution = flowrl.transport(flowrl.Boltzmann(value), particles, flowrl.Budget(1, 0.1), flow=flowrl.Ascent())
    assert np.isfinite(np.asarray(solution.values)).tolist() == [True, False, True]
    assert int(flowrl.best_of_n(solution.particles, solution.values).index) == 2


def test_score_and_density_and_value_gradient_move_alike():
    particles, budget = draw(1, (6, 2)), flowrl.Budget(3, 0.2, 0.5)
    density = flowrl.transport(flowrl.Density(log_normal), particles, budget, flow=FIXED)
    score = flowrl.transport(flowrl.Score(jnp.negative), particles, budget, flow=FIXED)
    assert_close(score.particles, density.particles)
    assert score.values is None
    slope = jnp.asarray([1.0, -1.0], FLOAT)
    value = flowrl.transport(flowrl.Boltzmann(linear, slope), particles, budget, flow=FIXED)
    given = flowrl.transport(flowrl.ValueGradient(lambda w, _: w, slope), particles, budget, flow=FIXED)
    assert_close(given.particles, value.particles)


def test_an_overflow_inside_a_box_freezes_instead_of_reaching_a_face():
    def steep(x):
        return 1e30 * jnp.sum(x)

    start = jnp.zeros((3, 2), jnp.float32)
    budget = flowrl.Budget(1, jnp.asarray(1e30, jnp.float32))
    got = flowrl.transport(
        flowrl.Boltzmann(steep), start, budget, flow=flowrl.Ascent(), domain=flowrl.Box(-1, 1), throw=False
    )
    assert (got.particles == start).all()
    assert int(got.stats["nonfinite"]) == 3
    assert got.result == flowrl.RESULTS.nonfinite_score
