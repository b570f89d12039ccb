"""Consensus-based optimisation: its mean and noise against NumPy, its moments in closed form, and what it finds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, log_normal, same_bits, tolerance, walled

import flowrl


def _curved(x):
    return -0.5 * jnp.sum(x**2) + jnp.sum(jnp.sin(3 * x))


VALUE = flowrl.Boltzmann(_curved)


def _view(target, temperature, d=2, dtype=FLOAT):
    alpha, scale = jnp.asarray(temperature, dtype), jnp.ones((1, d), dtype)
    return flowrl.TargetView(alpha, None, None, target, flowrl.Unbounded(), scale, False, lambda z: z)


@eqx.filter_jit
def _velocity(flow, target, temperature, x, alive):
    return flow.velocity(_view(target, temperature, x.shape[1], x.dtype), x, alive)


@eqx.filter_jit
def _noise(flow, target, temperature, x, alive, white):
    return flow.noise(_view(target, temperature, x.shape[1], x.dtype), x, alive, white)


def _consensus(x, values, temperature):
    weights = [np.exp(v / temperature) for v in values]
    return sum(w * z for w, z in zip(weights, x, strict=True)) / sum(weights)


def _values(x):
    return [-0.5 * np.sum(z**2) + np.sum(np.sin(3 * z)) for z in x]


# Against NumPy


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_drift_goes_to_the_weighted_mean(temperature):
    particles = draw(0, (8, 2))
    x = np.asarray(particles, np.float64)
    velocity, alive = _velocity(flowrl.Consensus(0.7), VALUE, temperature, particles, jnp.ones(8, bool))
    want = -0.7 * (x - _consensus(x, _values(x), temperature))
    np.testing.assert_allclose(velocity, want, atol=tolerance(1e-12, 1e-5))
    assert alive.all()


def test_at_temperature_zero_the_consensus_is_the_best_and_at_infinity_the_mean():
    particles = draw(0, (8, 2))
    best = particles[np.argmax(_values(np.asarray(particles, np.float64)))]
    for temperature, want in ((1e-30, best), (1e-3, best), (1e6, particles.mean(axis=0))):
        velocity, _ = _velocity(flowrl.Consensus(), VALUE, temperature, particles, jnp.ones(8, bool))
        np.testing.assert_allclose(particles + velocity, np.broadcast_to(want, (8, 2)), atol=1e-5)


def test_a_density_weighs_by_itself_whatever_the_temperature():
    particles = draw(0, (8, 2))
    hot, _ = _velocity(flowrl.Consensus(), flowrl.Density(_curved), 5.0, particles, jnp.ones(8, bool))
    one, _ = _velocity(flowrl.Consensus(), VALUE, 1.0, particles, jnp.ones(8, bool))
    assert_close(hot, one, rtol=tolerance(1e-9, 1e-4))


@pytest.mark.parametrize("anisotropic", [True, False])
def test_the_noise_is_linear_in_the_white_noise_and_in_proportion_to_the_distance(anisotropic):
    flow, particles = flowrl.Consensus(1.0, 0.6, anisotropic=anisotropic), draw(1, (8, 2))
    alive = jnp.ones(8, bool).at[3].set(False)
    x, kept = np.asarray(particles, np.float64), np.asarray(alive)
    apart = x - _consensus(x[kept], _values(x[kept]), 0.5)
    white, other = draw(2, (8, 2)), draw(3, (8, 2))
    size = apart if anisotropic else np.linalg.norm(apart, axis=1)[:, None]
    want = np.where(kept[:, None], 0.6 * size * np.asarray(white, np.float64), 0)
    got = _noise(flow, VALUE, 0.5, particles, alive, white)
    np.testing.assert_allclose(got, want, atol=tolerance(1e-12, 1e-5))
    both = _noise(flow, VALUE, 0.5, particles, alive, white - 2 * other)
    np.testing.assert_allclose(
        both, got - 2 * _noise(flow, VALUE, 0.5, particles, alive, other), atol=tolerance(1e-12, 1e-5)
    )
    assert np.all(np.asarray(got)[3] == 0)


@pytest.mark.parametrize("anisotropic", [True, False])
def test_one_step_has_the_moments_of_euler_maruyama(anisotropic, key):
    # 4000 runs of the same three particles: z + (m − z)λε with variance σ²ε D².
    start, epsilon, drift, diffusion = jnp.asarray([[2.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], FLOAT), 0.1, 1.5, 0.8
    flow = flowrl.Consensus(drift, diffusion, anisotropic=anisotropic)
    budget = flowrl.Budget(1, epsilon, 0.7)
    run = lambda k: flowrl.transport(VALUE, start, budget, flow=flow, key=k, throw=False).particles
    sample = np.asarray(jax.jit(jax.vmap(run))(jr.split(key, 4000)), np.float64)
    x = np.asarray(start, np.float64)
    apart = x - _consensus(x, _values(x), 0.7)
    size = np.abs(apart) if anisotropic else np.broadcast_to(np.linalg.norm(apart, axis=1)[:, None], apart.shape)
    deviation = diffusion * np.sqrt(epsilon) * size
    assert np.all(np.abs(sample.mean(axis=0) - (x - drift * epsilon * apart)) <= 4.5 * deviation / np.sqrt(4000) + 1e-6)
    assert np.all(np.abs(sample.var(axis=0) / deviation**2 - 1) <= 4.5 * np.sqrt(2 / 4000))


# The bound on the diffusion


@pytest.mark.parametrize("anisotropic", [True, False])
def test_distances_shrink_below_the_bound_and_grow_beyond(anisotropic, key):
    # One particle holds all the weight and so is the consensus: distances to it are a product of independent factors.
    d, epsilon, steps = 3, 0.01, 50
    x = jnp.ones((4001, d), FLOAT).at[0].set(0)
    target = flowrl.Boltzmann(log_normal)
    for factor in (0.5, 1.5):
        diffusion = np.sqrt(factor * 2 / (1 if anisotropic else d))
        flow = flowrl.Consensus(1.0, diffusion, anisotropic=anisotropic)
        moved = flowrl.transport(target, x, flowrl.Budget(steps, epsilon, 1e-12), flow=flow, key=key).particles
        # E|z|² per step: (1 − ε)² + σ²ε, d times the noise if isotropic.
        growth = (1 - epsilon) ** 2 + 2 * factor * epsilon
        got = np.mean(np.asarray(moved[1:], np.float64) ** 2)
        assert got == pytest.approx(growth**steps, rel=0.25)
        assert (got < 1) == (factor < 1)


# Search


def _rastrigin(x):
    """A local maximum at every point with integer coordinates, about; the highest at 1."""
    return -jnp.sum((x - 1) ** 2 - 2.5 * (jnp.cos(2 * jnp.pi * (x - 1)) - 1))


def _rounded(x):
    """A bowl in steps: its gradient is zero wherever there is one."""
    return -jnp.sum(jnp.abs(jnp.round(4 * x) - 4))


# (d, particles, steps, step size, σ, how close)
SEARCHES = [(2, 100, 200, 0.05, 1.0), (10, 400, 600, 0.05, 4.0)]


@pytest.mark.parametrize(("d", "n", "steps", "epsilon", "diffusion"), SEARCHES)
@pytest.mark.thorough
def test_it_finds_the_highest_of_many_maxima(d, n, steps, epsilon, diffusion, key):
    start = 3 + 2 * draw(d, (n, d))
    flow, budget = flowrl.Consensus(1.0, diffusion), flowrl.Budget(steps, epsilon, 0.05)
    target = flowrl.Boltzmann(_rastrigin)
    found = 0
    for trial in range(3):
        solution = flowrl.transport(target, start, budget, flow=flow, key=jr.fold_in(key, trial))
        best = np.asarray(solution.particles)[np.argmax(solution.values)]
        found += np.abs(best - 1).max() < 0.1
    assert found == 3
    # Climbing does not: every particle ends on the maximum next to it.
    climbed = flowrl.transport(target, start, flowrl.Budget(200, 0.005), flow=flowrl.Ascent()).particles
    assert np.mean(np.abs(np.asarray(climbed) - 1).max(axis=1) < 0.1) < 0.1


def test_it_asks_for_no_gradient(key):
    start = 3 + 2 * draw(4, (100, 2))
    flow, budget = flowrl.Consensus(), flowrl.Budget(200, 0.05, 0.1)
    solution = flowrl.transport(flowrl.Boltzmann(_rounded), start, budget, flow=flow, key=key)
    assert float(jnp.max(solution.values)) == 0
    still = flowrl.transport(flowrl.Boltzmann(_rounded), start, flowrl.Budget(20, 0.1), flow=flowrl.Ascent())
    assert same_bits(still.particles, start)
    with pytest.raises(ValueError, match="Consensus needs the value of its target, which Score does not know"):
        flowrl.transport(flowrl.Score(jax.grad(log_normal)), start, budget, flow=flow, key=key)


# Invariants


def test_a_value_that_is_not_finite_freezes_its_particle_alone(key):
    start = draw(5, (9, 2)).at[4, 0].set(6.0)
    target, budget, flow = flowrl.Density(walled), flowrl.Budget(5, 0.1), flowrl.Consensus(1.0, 0.3)
    solution = flowrl.transport(target, start, budget, flow=flow, key=key)
    assert int(solution.stats["nonfinite"]) == 1
    assert same_bits(solution.particles[4], start[4])
    # The same as if it stood anywhere else beyond the wall.
    moved = flowrl.transport(target, start.at[4, 0].set(1e6), budget, flow=flow, key=key)
    others = np.arange(9) != 4
    assert_close(moved.particles[others], solution.particles[others])
    assert np.isfinite(solution.particles).all()
    nobody, alive = _velocity(flow, target, 1.0, start, jnp.zeros(9, bool))
    assert not alive.any()
    assert np.all(np.asarray(nobody) == 0)


def test_one_particle_and_particles_in_one_place_stay(key):
    for start in (draw(6, (1, 2)), jnp.ones((5, 1), FLOAT)):
        for anisotropic in (True, False):
            flow = flowrl.Consensus(anisotropic=anisotropic)
            solution = flowrl.transport(VALUE, start, flowrl.Budget(3, 0.1), flow=flow, key=key)
            assert_close(solution.particles, start, atol=1e-6)


def test_far_from_the_origin_in_single_precision(key):
    start = jnp.round(draw(7, (9, 2), jnp.float32) * 1024) / 1024
    budget, flow = flowrl.Budget(3, 0.1, 0.5), flowrl.Consensus()
    here = flowrl.transport(flowrl.Boltzmann(_bowl, 0.0), start, budget, flow=flow, key=key).particles
    there = flowrl.transport(flowrl.Boltzmann(_bowl, 1000.0), start + 1000, budget, flow=flow, key=key).particles
    assert there.dtype == jnp.float32
    np.testing.assert_allclose(there - 1000, here, atol=1e-3)


def _bowl(centre, x):
    return -jnp.sum((x - jnp.asarray(centre, x.dtype)) ** 2)


def test_a_batch_of_sets_is_a_loop_over_them_and_new_numbers_do_not_retrace(key):
    start, keys, traces = draw(8, (3, 6, 2)), jr.split(key, 3), []

    @jax.jit
    def run(x, k, drift, diffusion):
        traces.append(None)
        flow = flowrl.Consensus(drift, diffusion)
        return flowrl.transport(VALUE, x, flowrl.Budget(3, 0.2), flow=flow, key=k, throw=False).particles

    loop = jnp.stack([run(x, k, 1.0, 0.5) for x, k in zip(start, keys, strict=True)])
    assert not np.allclose(run(start[0], keys[0], 0.5, 1.0), loop[0])
    assert len(traces) == 1
    assert_close(jax.vmap(run, in_axes=(0, 0, None, None))(start, keys, 1.0, 0.5), loop, atol=tolerance(1e-12, 1e-5))


def test_misuse_is_refused(key):
    for numbers in ((-1.0, 0.5), (1.0, -0.5), (np.inf, 1.0), (1.0, np.nan)):
        with pytest.raises(ValueError, match=r"(drift|diffusion) must be a finite number >= 0, got"):
            flowrl.Consensus(*numbers)
    with pytest.raises(ValueError, match="divides by the temperature"):
        flowrl.transport(VALUE, draw(0, (3, 2)), flowrl.Budget(1, 0.1, 0.0), flow=flowrl.Consensus(), key=key)
    with pytest.raises(ValueError, match="pass key"):
        flowrl.transport(VALUE, draw(0, (3, 2)), flowrl.Budget(1, 0.1), flow=flowrl.Consensus())
    flow = flowrl.Consensus()
    assert flow.fitted(_view(VALUE, 1.0), draw(0, (3, 2)), jnp.ones(3, bool)) is flow  # nothing of it depends on data
    with pytest.raises(TypeError, match="no energy"):
        flow.energy(_view(VALUE, 1.0), draw(0, (3, 2)), jnp.ones(3, bool))
