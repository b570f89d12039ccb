"""Particles of few bits, and lengths whose squares vanish: what is promised holds in every dtype that is taken."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import X64, distances, draw, linear, log_normal, quadratic, same_bits

import flowrl
from flowrl._misc import row_norm, scaled_row_norm

SMALL = (jnp.float16, jnp.bfloat16)
WIDE = (jnp.float32, jnp.float64) if X64 else (jnp.float32,)
UPHILL = flowrl.Boltzmann(linear, jnp.array(1.0))
DOMAINS = {
    "nowhere in particular": flowrl.Unbounded(),
    "box": flowrl.Box(-0.9, 0.9),
    "mapped box": flowrl.Box(-0.9, 0.9, by="bijector"),
    "ball": flowrl.Ball(radius=1.9),
    "mapped ball": flowrl.Ball(radius=1.9, by="bijector"),
}


def furthest(start, end, scale=1.0):
    """The longest move, in units of the scale, in float64."""
    return distances(start, end, scale).max()


@pytest.mark.parametrize("dtype", [*SMALL, *WIDE])
@pytest.mark.parametrize("width", [0.0, 1.0, 100.0])
def test_no_particle_is_beyond_the_cap_in_any_dtype(dtype, width):
    start = (width * draw(0, (7, 3), jnp.float32)).astype(dtype)
    for cap, scale in itertools.product((0.0, 1e-28, 5e-5, 0.3), (1e-3, 1.0, 100.0)):
        budget = flowrl.Budget(10, max(cap, 1e-28) / scale, max_displacement=cap, scale=scale)
        solution = flowrl.transport(UPHILL, start, budget, flow=flowrl.Ascent())
        moved = furthest(start, solution.particles, scale)
        assert moved <= cap
        np.testing.assert_allclose(solution.stats["displacement_max"], moved, rtol=1e-5)
        room = np.spacing(np.float64(width)) if dtype == jnp.float64 else float(jnp.finfo(dtype).eps)
        if cap * scale > 40 * max(room * 4 * width, float(jnp.finfo(dtype).tiny)):
            assert moved > 0.9 * cap  # and the cap, not a lack of bits, holds them


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
@pytest.mark.parametrize("solver", [flowrl.Euler(), flowrl.Optax()])
def test_particles_of_few_bits_stay_in_their_domain_and_within_the_cap(dtype, domain, solver):
    start = jnp.clip(0.5 * draw(1, (20, 3), jnp.float32), -0.75, 0.75).astype(dtype)
    for cap in (0.01, 0.2, None):
        solution = flowrl.transport(
            UPHILL, start, flowrl.Budget(40, 0.05, max_displacement=cap), flow=flowrl.Ascent(), solver=solver,
            domain=domain, save=(0, 20, 40),
        )  # fmt: skip
        assert solution.particles.dtype == dtype
        assert domain.contains(solution.particles).all()
        assert same_bits(solution.trajectory[0], start) or domain.maps
        assert same_bits(solution.trajectory[2], solution.particles)
        if cap is not None:
            assert furthest(start, solution.particles) <= cap
            assert max(furthest(start, saved) for saved in solution.trajectory) <= cap


@pytest.mark.parametrize("dtype", WIDE)
def test_scaled_norms_are_the_plain_ones_bit_for_bit_and_hold_beyond_them(dtype):
    rows = jnp.exp(6 * draw(2, (2000, 5), dtype))
    assert same_bits(scaled_row_norm(rows), row_norm(rows))
    assert same_bits(jax.grad(lambda x: scaled_row_norm(x).sum())(rows), jax.grad(lambda x: row_norm(x).sum())(rows))
    info = jnp.finfo(dtype)
    for size in (float(info.tiny), float(info.max) / 4):
        np.testing.assert_allclose(scaled_row_norm(jnp.full((1, 3), size, dtype)), 3**0.5 * size, rtol=1e-6)
    edges = jnp.array([[0.0, 0.0], [jnp.inf, 1.0], [jnp.nan, 1.0]], dtype)
    assert same_bits(scaled_row_norm(edges), row_norm(edges))
    assert (jax.grad(lambda x: scaled_row_norm(x).sum())(edges[:1]) == 0).all()


@pytest.mark.parametrize("dtype", SMALL)
def test_time_and_path_are_summed_in_single_precision(dtype):
    budget = flowrl.Budget(1000, 1e-3)
    solution = flowrl.transport(UPHILL, jnp.zeros((4, 2), dtype), budget, flow=flowrl.Ascent())
    np.testing.assert_allclose(solution.stats["time"], 1, rtol=1e-4)
    np.testing.assert_allclose(solution.stats["path_length"], 2**0.5, rtol=1e-4)
    # A thousand steps, each below the spacing of the numbers near 1, lead as far as one step of their sum.
    assert same_bits(solution.particles, jnp.ones((4, 2), dtype))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", SMALL)
def test_transport_of_few_bits_is_that_of_single_precision_but_for_the_last_rounding(dtype):
    start = draw(3, (10, 3), jnp.float32).astype(dtype)
    target = flowrl.Density(quadratic, jnp.array(1.0))
    for method in (flowrl.Transport(), flowrl.Transport(flowrl.Ascent(), flowrl.Diffrax())):
        few, single = (method(target, x, flowrl.Budget(20, 0.1)) for x in (start, start.astype(jnp.float32)))
        spacing = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            few.particles.astype(jnp.float32), single.particles, rtol=2 * spacing, atol=4 * spacing
        )
        assert few.stats["time"].dtype == few.log_weights.dtype == jnp.float32


@pytest.mark.parametrize("flow", [flowrl.ALDI(), flowrl.Langevin(), flowrl.SVGD() + flowrl.BirthDeath()], ids=str)
def test_flows_that_factor_or_draw_take_particles_of_few_bits(flow):
    start = draw(4, (30, 2), jnp.bfloat16)
    method = flowrl.Transport(flow, flowrl.Adaptive() if isinstance(flow, flowrl.ALDI) else flowrl.Euler())
    solution = method(flowrl.Density(log_normal), start, flowrl.Budget(50, 0.05), key=jax.random.key(0))
    assert solution.particles.dtype == jnp.bfloat16
    assert 0.3 < float(solution.particles.astype(jnp.float32).std()) < 2


def test_the_target_sees_particles_as_they_were_given():
    seen = set()

    def value(x):
        seen.add(x.dtype)
        return jnp.sum(x)

    flowrl.transport(flowrl.Boltzmann(value), jnp.zeros((3, 2), jnp.bfloat16), flowrl.Budget(2, 0.1))
    assert seen == {jnp.dtype(jnp.bfloat16)}


def test_a_particle_that_its_dtype_cannot_hold_is_frozen_where_it_was():
    start = jnp.array([[0.0], [65000.0]], jnp.float16)
    solution = flowrl.transport(UPHILL, start, flowrl.Budget(10, 100.0), flow=flowrl.Ascent())
    assert int(solution.stats["nonfinite"]) == 1
    np.testing.assert_array_equal(solution.particles[:, 0], [1000, 65504])


def test_particles_of_eight_bits_are_refused():
    with pytest.raises(TypeError, match="float8_e5m2, whose few bits"):
        flowrl.transport(UPHILL, jnp.zeros((3, 2), jnp.float8_e5m2), flowrl.Budget(2, 0.1), flow=flowrl.Ascent())


def test_stepping_particles_of_few_bits_is_transport():
    start, budget = draw(5, (6, 2), jnp.bfloat16), flowrl.Budget(100, 1e-3, max_displacement=0.05)
    target = flowrl.Density(quadratic, jnp.array(1.0))
    stepper = flowrl.Stepper(target, budget)
    state = stepper.init(start)
    for _ in range(100):
        state, info = stepper.step(None, state)
    whole = flowrl.transport(target, start, budget)
    assert same_bits(state.particles, whole.particles)
    assert furthest(start, info.particles) <= 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [*SMALL, *WIDE])
def test_events_of_diffrax_in_every_dtype(dtype):
    start, target = draw(6, (8, 3), jnp.float32).astype(dtype), flowrl.Density(quadratic, jnp.array(1.0))
    for cap, ending in (
        ({"max_displacement": 0.3}, flowrl.RESULTS.displacement_reached),
        ({"max_mmd": 0.1}, flowrl.RESULTS.mmd_reached),
        ({"tolerance": 0.05}, flowrl.RESULTS.stationary),
    ):
        solution = flowrl.transport(
            target, start, flowrl.Budget(100, 0.2, **cap), flow=flowrl.Ascent(), solver=flowrl.Diffrax()
        )
        assert solution.result == ending
        assert 0 < float(solution.stats["time"]) < 20
        assert furthest(start, solution.particles) <= cap.get("max_displacement", np.inf)
