"""Domains: the box, first of all by projection."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, draw, log_normal, quadratic, same_bits

import flowrl

FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))


@hypothesis.given(
    x=hnp.arrays(np.float64, (4, 3), elements=st.floats(-5, 5, width=32, allow_subnormal=False)),
    low=hnp.arrays(np.float64, 3, elements=st.floats(-3, 0, width=32, allow_subnormal=False)),
    width=hnp.arrays(np.float64, 3, elements=st.floats(0.5, 2)),
)
def test_restrict_is_the_nearest_point_and_contains_agrees(x, low, width):
    x, low, high = (jnp.asarray(a, FLOAT) for a in (x, low, low + width))
    box = flowrl.Box(low, high)
    projected = box.restrict(x)
    np.testing.assert_array_equal(projected, np.clip(x, low[None], high[None]))
    assert np.asarray(box.contains(projected)).all()
    assert same_bits(box.restrict(projected), projected)
    outside = np.any((np.asarray(x) < np.asarray(low)) | (np.asarray(x) > np.asarray(high)), axis=1)
    np.testing.assert_array_equal(box.contains(x), ~outside)


@pytest.mark.parametrize("solver", [flowrl.Euler(), flowrl.Optax()], ids=["euler", "optax"])
def test_particles_end_on_the_face_nearest_to_a_far_target(solver):
    particles, target = draw(0, (8, 2)).clip(-1, 1), flowrl.Boltzmann(quadratic, jnp.asarray([9.0, 0.0], FLOAT))
    # Large steps at a low temperature: all but the repulsion is gone.
    solution = flowrl.transport(
        target,
        particles,
        flowrl.Budget(30, 0.5, 0.01),
        flow=FIXED,
        solver=solver,
        domain=flowrl.Box(-1, np.array([1.0, 2.0])),
    )
    assert np.all(np.asarray(solution.particles)[:, 0] == 1)
    assert np.abs(np.asarray(solution.particles)[:, 1]).max() < 1
    assert float(solution.stats["fraction_clipped"]) > 0.8


def test_faces_may_be_infinite_integer_or_of_another_dtype():
    half = flowrl.Box(np.zeros(2, np.float32), np.full(2, np.inf))
    particles = jnp.abs(draw(1, (6, 2)))
    away = flowrl.Boltzmann(quadratic, jnp.asarray([-9.0, 9.0], FLOAT))
    end = flowrl.transport(away, particles, flowrl.Budget(20, 0.5, 0.0), flow=FIXED, domain=half).particles
    assert end.dtype == particles.dtype
    assert np.all(np.asarray(end)[:, 0] == 0)
    assert np.all(np.asarray(end)[:, 1] > 5)
    assert np.asarray(flowrl.Box(-1, jnp.ones(2)).contains(jnp.zeros((3, 2)))).all()


def test_a_box_of_a_pytree_bounds_each_leaf():
    particles = {"a": draw(2, (5, 2)).clip(-1, 1), "b": draw(3, (5,)).clip(0, 1)}
    box = flowrl.Box({"a": -1.0, "b": 0.0}, {"a": jnp.ones(2), "b": 1.0})
    target = flowrl.Boltzmann(lambda x: 5 * jnp.sum(x["a"]) - 5 * jnp.sum(x["b"]))
    end = flowrl.transport(target, particles, flowrl.Budget(9, 0.5, 0.0), flow=FIXED, domain=box).particles
    assert np.all(np.asarray(end["a"]) == 1)
    assert np.all(np.asarray(end["b"]) == 0)
    beyond = {"a": particles["a"], "b": particles["b"].at[2].set(1.5)}
    assert np.asarray(box.contains(beyond)).tolist() == [True, True, False, True, True]


def test_a_start_on_the_face_is_inside():
    box, particles = flowrl.Box(-1, 1), jnp.asarray([[1.0, -1.0], [0.0, 0.0]], FLOAT)
    target = flowrl.Density(log_normal)
    assert np.isfinite(flowrl.transport(target, particles, flowrl.Budget(1), flow=FIXED, domain=box).particles).all()


def test_a_traced_start_outside_is_a_result_and_moves_nothing():
    @jax.jit
    def run(particles, high):
        target, budget = flowrl.Density(log_normal), flowrl.Budget(2, 0.1)
        return flowrl.transport(target, particles, budget, flow=FIXED, domain=flowrl.Box(-9.0, high), throw=False)

    particles = draw(4, (5, 2)).clip(-2, 2)
    assert run(particles, 2.0).result == flowrl.RESULTS.successful
    outside = run(particles, 0.1)
    assert outside.result == flowrl.RESULTS.outside_domain
    assert same_bits(outside.particles, particles)
    # Faces in the wrong order leave no inside.
    assert run(particles, -10.0).result == flowrl.RESULTS.outside_domain


def test_coordinates_are_the_users_own():
    x = jnp.asarray([0.3, -0.2], FLOAT)
    for domain in (flowrl.Box(-1, 1), flowrl.Unbounded()):
        assert same_bits(domain.forward(x), x)
        assert same_bits(domain.inverse(x), x)
        assert float(domain.log_det_jacobian(x)) == 0
    assert np.asarray(flowrl.Unbounded().contains(x[None])).all()
    assert same_bits(flowrl.Unbounded().restrict(x[None]), x[None])


@pytest.mark.parametrize("by", ["reflect", "bijector", "mirror"])
def test_a_box_of_a_pytree_keeps_each_leaf_in_any_way(by):
    particles = {"a": 0.9 * draw(2, (5, 2)).clip(-1, 1), "b": draw(3, (5,)).clip(0.1, 0.9)}
    box = flowrl.Box({"a": -1.0, "b": 0.0}, {"a": jnp.asarray([1.0, np.inf]), "b": 1.0}, by)
    target = flowrl.Boltzmann(lambda x: 5 * jnp.sum(x["a"]) - 5 * jnp.sum(x["b"]))
    budget = flowrl.Budget(9, 0.5, 0.0, max_displacement=0.5)
    end = flowrl.transport(target, particles, budget, flow=FIXED, domain=box).particles
    assert np.asarray(box.contains(end)).all()
    assert not same_bits(end, particles)
    beyond = {"a": particles["a"], "b": particles["b"].at[2].set(1.5)}
    assert np.asarray(box.contains(beyond)).tolist() == [True, True, False, True, True]


def test_a_start_on_the_face_is_outside_by_a_map():
    particles = jnp.asarray([[0.0, 1.0], [0.5, 0.5]], FLOAT)
    for box in (flowrl.Box(0, 2, "bijector"), flowrl.positive(), flowrl.positive("mirror")):
        assert np.asarray(box.contains(particles)).tolist() == [False, True]
        assert np.isfinite(box.inverse(particles[0])).all()
    with pytest.raises(ValueError, match="1 of 2 particles start outside Box"):
        flowrl.transport(flowrl.Density(log_normal), particles, flowrl.Budget(1), domain=flowrl.positive())


@pytest.mark.parametrize("by", ["project", "reflect", "bijector", "mirror"])
@pytest.mark.parametrize("kind", ["ball", "box"])
def test_particles_without_coordinates_are_inside_and_stay(kind, by):
    domain = flowrl.Ball(by=by) if kind == "ball" else flowrl.Box(-1, 1, by)
    particles = jnp.zeros((5, 0), FLOAT)
    assert np.asarray(domain.contains(particles)).all()
    assert domain.restrict(particles).shape == (5, 0)
    budget = flowrl.Budget(2, 0.1, max_displacement=0.1)
    solution = flowrl.transport(flowrl.Boltzmann(jnp.sum), particles, budget, flow=FIXED, domain=domain)
    assert solution.particles.shape == (5, 0)
    assert int(solution.stats["nonfinite"]) == 0
    assert float(solution.stats["displacement_max"]) == 0
    assert flowrl.spread(particles).shape == (0,)
