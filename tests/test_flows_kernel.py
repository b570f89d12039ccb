"""Flows that descend an energy made of a kernel: against loops in float64, their energies' derivatives, quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
from problems import FLOAT, X64, assert_close, draw, log_normal, mmd_squared, quadratic, same_bits, tolerance, walled

import flowrl

SIGMA, ALPHA = 0.8, 0.6
FIXED = flowrl.RBF(flowrl.FixedBandwidth(SIGMA))
NORMAL = flowrl.Density(log_normal)
PULL = np.array([[2.0, 0.5], [0.5, 1.0]])


def _curved(pull, x):
    return -0.5 * jnp.vdot(x, pull @ x) + jnp.sum(jnp.sin(x))


CURVED = flowrl.Boltzmann(_curved, jnp.asarray(PULL, FLOAT))
SAMPLES = 0.5 * draw(100, (9, 2)) + 1


def _flow(name, kernel=FIXED):
    return {"blob": flowrl.Blob, "mmd": flowrl.MMDFlow, "ksd": flowrl.KSDDescent}[name](kernel)


def _toward(name, target=CURVED):
    return flowrl.Empirical(SAMPLES) if name == "mmd" else target


NAMES = ("blob", "mmd", "ksd")


def _same(x):
    return x


def _view(target, temperature=ALPHA, d=2, key=None):
    ones = jnp.ones((1, d), FLOAT)
    unbounded = flowrl.Unbounded()
    return flowrl.TargetView(
        jnp.asarray(temperature, FLOAT), None, key, target, unbounded, ones, entropic=True, unravel=_same
    )


def _everyone(x):
    return jnp.ones(x.shape[0], bool)


@eqx.filter_jit
def _velocity(flow, view, x, alive):
    return flow.velocity(view, x, alive)


@eqx.filter_jit
def _energy(flow, view, x, alive):
    return flow.energy(view, x, alive)


@eqx.filter_jit
def _slope(flow, view, x, alive):
    return jax.grad(lambda x: flow.energy(view, x, alive))(x)


# The definitions, a pair at a time, in float64 NumPy


def _kernel(x, y, sigma=SIGMA):
    return np.exp(-np.sum((x - y) ** 2) / (2 * sigma**2))


def _kernel_slope(x, y, sigma=SIGMA):
    return -(x - y) / sigma**2 * _kernel(x, y, sigma)


def _blob_energy(x):
    density = [np.mean([_kernel(a, b) for b in x]) for a in x]
    return np.mean([0.5 * a @ PULL @ a - np.sin(a).sum() + ALPHA * np.log(q) for a, q in zip(x, density, strict=True)])


def _blob(x):
    density = [sum(_kernel(a, b) for b in x) for a in x]
    out = []
    for i, a in enumerate(x):
        push = sum(_kernel_slope(a, b) * (1 / density[i] + 1 / density[j]) for j, b in enumerate(x))
        out.append(-PULL @ a + np.cos(a) - ALPHA * push)
    return np.array(out)


def _mmd_energy(x):
    return 0.5 * mmd_squared(x, SAMPLES, SIGMA)


def _mmd(x):
    samples = np.asarray(SAMPLES, np.float64)
    witness = lambda a: (
        np.mean([_kernel_slope(a, b) for b in x], 0) - np.mean([_kernel_slope(a, b) for b in samples], 0)
    )
    return np.array([-witness(a) for a in x])


def _score(x):
    return (-PULL @ x + np.cos(x)) / ALPHA


def _stein(x, y):
    s, t, gap, variance = _score(x), _score(y), x - y, SIGMA**2
    along = s @ gap / variance - t @ gap / variance
    return _kernel(x, y) * (s @ t + along + (len(x) - gap @ gap / variance) / variance)


def _ksd_energy(x):
    return 0.5 * np.mean([_stein(a, b) for a in x for b in x])


def _ksd(x, step=1e-5):
    """By central differences of the energy: the score moves with the particle."""
    out = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        out[index] = -len(x) * (_ksd_energy(x + shift) - _ksd_energy(x - shift)) / (2 * step)
    return out


LOOPS = {"blob": (_blob, _blob_energy), "mmd": (_mmd, _mmd_energy), "ksd": (_ksd, _ksd_energy)}


FROZEN = jnp.asarray([2, 5])


@pytest.mark.parametrize("name", NAMES)
def test_velocity_and_energy_are_those_of_the_definition_whatever_the_frozen_are(name):
    velocity, energy = LOOPS[name]
    x, view = draw(0, (9, 2)), _view(_toward(name))
    x = x.at[FROZEN].set(jnp.asarray([[1e3, -1.0], [jnp.nan, jnp.inf]], FLOAT))
    alive = _everyone(x).at[FROZEN].set(False)
    living = np.asarray(alive)
    exact = np.asarray(x, np.float64)[living]
    got, after = _velocity(_flow(name), view, x, alive)
    assert same_bits(after, alive)
    assert np.all(np.asarray(got)[~living] == 0)
    np.testing.assert_allclose(got[living], velocity(exact), rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-8, 1e-4))
    assert float(_energy(_flow(name), view, x, alive)) == pytest.approx(energy(exact), rel=tolerance(1e-10, 1e-4))


@pytest.mark.parametrize("rule", ["fixed", "median"])
@pytest.mark.parametrize("name", NAMES)
def test_velocity_is_minus_n_times_the_slope_of_the_energy(name, rule):
    flow, view = _flow(name, FIXED if rule == "fixed" else flowrl.RBF()), _view(_toward(name))
    x = draw(1, (9, 2)) + 3  # off the origin, and so off the mean
    alive = _everyone(x).at[FROZEN].set(False)
    velocity, _ = _velocity(flow, view, x, alive)
    slope = _slope(flow, view, x, alive)
    assert_close(velocity, -7 * slope, rtol=tolerance(1e-10, 1e-3), atol=tolerance(1e-11, 1e-4))
    assert np.abs(velocity).max() > 0.01


@pytest.mark.parametrize("name", ["blob", "mmd"])
def test_the_energy_falls(name):
    particles, steps = draw(2, (9, 2)), 40
    flow, target = _flow(name), _toward(name)
    budget = flowrl.Budget(steps, 0.1, None if name == "mmd" else ALPHA)
    solution = flowrl.transport(target, particles, budget, flow=flow, save=range(steps + 1))
    energies = np.array([_energy(flow, _view(target), x, _everyone(x)) for x in solution.trajectory])
    assert np.all(np.diff(energies) < 0)
    assert energies[-1] < (energies[0] - 0.05 if name == "blob" else 0.5 * energies[0])


# What holds for all three


@pytest.mark.parametrize("name", ["blob", "ksd"])
def test_a_score_that_is_not_finite_freezes_its_particle_and_spreads_nowhere(name):
    bad, flow, view = 4, _flow(name, flowrl.RBF()), _view(flowrl.Density(walled))
    x = draw(3, (9, 2))
    velocity, alive = _velocity(flow, view, x.at[bad].set(9.0), _everyone(x))
    assert np.asarray(alive).tolist() == [i != bad for i in range(9)]
    want, _ = _velocity(flow, view, x, alive)  # frozen before, and where its score is finite
    assert_close(velocity, want, rtol=tolerance(1e-12, 1e-4), atol=tolerance(1e-12, 1e-6))
    assert np.all(np.asarray(velocity[bad]) == 0)
    assert np.abs(np.delete(velocity, bad, axis=0)).min() > 1e-4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "d"), [(1, 2), (5, 1)])
def test_one_particle_and_coincident_ones(name, n, d):
    x = jnp.full((n, d), 1.5, FLOAT)
    target = flowrl.Empirical(jnp.zeros((1, d), FLOAT)) if name == "mmd" else NORMAL
    # No two points differ, so the median falls back to 1.
    velocity, alive = _velocity(_flow(name, flowrl.RBF()), _view(target, 1.0, d), x, _everyone(x))
    assert np.asarray(alive).all()
    # Ascent of log p; the slope of the kernel at the one sample; −½ ∇|s|².
    pull = 1.5 * np.exp(-d * 1.5**2 / 2) if name == "mmd" else 1.5
    np.testing.assert_allclose(velocity, np.full((n, d), -pull), rtol=tolerance(1e-9, 1e-4))


@pytest.mark.parametrize("name", NAMES)
def test_one_set_of_many_and_far_away_in_single_precision(name):
    budget = flowrl.Budget(3, 0.1, None if name == "mmd" else ALPHA)
    centres = jnp.asarray([[0.0, 0.0], [1000.0, -1000.0]], jnp.float32)
    start = draw(4, (8, 2), jnp.float32)[None] + centres[:, None]
    samples = draw(5, (6, 2), jnp.float32)

    def one(centre, x):
        target = flowrl.Empirical(samples + centre[None]) if name == "mmd" else flowrl.Boltzmann(quadratic, centre)
        return flowrl.transport(target, x, budget, flow=_flow(name, flowrl.RBF()), throw=False).particles

    near = one(centres[0], start[0])
    far = one(centres[1], start[1])
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(far - centres[1][None], near, atol=2e-3)
    assert np.abs(near - start[0]).max() > 0.05
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(centres, start), jnp.stack([near, far]), atol=2e-3)


def _sizes(jaxpr):
    """The number of entries of every array in a jaxpr, those of inner loops and calls included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def _largest(function, flow, target, n, d):
    view = _view(target, 1.0, d)
    jaxpr = jax.make_jaxpr(lambda x: function(flow, view, x, jnp.ones(n, bool)))(jnp.zeros((n, d), FLOAT))
    return max(_sizes(jaxpr.jaxpr))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", [_velocity, _slope], ids=["velocity", "slope-of-energy"])
def test_memory(name, function, at_most_entries):
    target = lambda d: flowrl.Empirical(jnp.zeros((64, d), FLOAT)) if name == "mmd" else NORMAL
    assert 64 * 64 <= _largest(function, _flow(name), target(33), 64, 33) < 64 * 64 * 33 / 4
    # In blocks of 32 rows memory is that of one block, in reverse mode too.
    at_most_entries(640 * 32)
    assert _largest(function, _flow(name), target(3), 640, 3) <= 640 * 32


@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(name, at_most_entries):
    x, view = draw(6, (50, 2)), _view(_toward(name))
    alive = jnp.asarray(np.random.default_rng(7).random(50) < 0.8)
    flow = _flow(name)
    # A new function each time, since the size of a block is read while tracing.
    both = lambda: jax.jit(lambda x: (flow.velocity(view, x, alive)[0], flow.energy(view, x, alive)))(x)
    dense = both()
    at_most_entries(50 * 16)
    assert_close(both(), dense, rtol=tolerance(1e-10, 1e-3), atol=tolerance(1e-12, 1e-5))


def test_what_is_not_a_kernel_is_refused():
    for flow in (flowrl.Blob, flowrl.MMDFlow, flowrl.KSDDescent):
        with pytest.raises(TypeError, match="kernel"):
            flow(0.5)
    for noise in (-1.0, np.ones(2), float("nan")):
        with pytest.raises(ValueError, match="noise must be (one number, got shape|a finite number >= 0)"):
            flowrl.MMDFlow(noise=noise)


# Blob


def _quadrature(sigma, reach=4.5, points=201):
    """The density on a grid that minimises E[x²/2] + E[log k ∗ q], and that minimum; no particles are involved."""
    x = np.linspace(-reach, reach, points)
    kernel = np.exp(-((x[:, None] - x[None]) ** 2) / (2 * sigma**2))

    def objective(logits):
        mass = np.exp(logits - logits.max())
        mass /= mass.sum()
        smooth = kernel @ mass
        slope = x**2 / 2 + np.log(smooth) + kernel @ (mass / smooth)
        return mass @ (x**2 / 2 + np.log(smooth)), mass * (slope - mass @ slope)

    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-13, "gtol": 1e-10}
    found = scipy.optimize.minimize(objective, -(x**2) / 2, jac=True, method="L-BFGS-B", options=options)
    mass = np.exp(found.x - found.x.max())
    return x, mass / mass.sum(), found.fun


@pytest.mark.thorough
def test_blob_rests_at_the_minimiser_of_its_regularised_energy():
    sigma, n = 0.5, 200
    x, mass, minimum = _quadrature(sigma)
    flow = flowrl.Blob(flowrl.RBF(flowrl.FixedBandwidth(sigma)))
    particles = flowrl.transport(NORMAL, 0.3 + draw(8, (n, 1)), flowrl.Budget(500, 0.2), flow=flow).particles
    sample = np.asarray(particles, np.float64)[:, 0]
    variance = mass @ x**2
    assert sample.mean() == pytest.approx(0, abs=1e-3)
    assert sample.var() == pytest.approx(variance, abs=0.005)
    # Not the target's variance, but nearly that of the best Gaussian, u − σ² with u² = u + σ².
    u = (1 + np.sqrt(1 + 4 * sigma**2)) / 2
    assert variance == pytest.approx(u - sigma**2, abs=0.003)
    assert variance < 0.96
    # The energy sees the smoothed density alone, and so determines it; mass may be lumpy below the kernel's width.
    at = np.linspace(-3, 3, 25)
    smooth = lambda points, weight: np.exp(-((at[:, None] - points[None]) ** 2) / (2 * sigma**2)) @ weight
    np.testing.assert_allclose(smooth(sample, np.full(n, 1 / n)), smooth(x, mass), atol=0.003)
    energy = float(_energy(flow, _view(NORMAL, 1.0, 1), particles, _everyone(particles)))
    assert energy == pytest.approx(minimum, abs=0.003)


# The table in the docstring, n = 200 there; d = 10 with the median rule at any n.
BIAS = {(50, 2, "median"): 0.38, (50, 10, "median"): 0.10, (50, 2, "log-n"): 0.92}


@pytest.mark.parametrize(("n", "d", "rule"), BIAS)
def test_the_bias_of_blob(n, d, rule):
    kernel = flowrl.RBF(flowrl.MedianBandwidth() if rule == "median" else flowrl.LogNBandwidth())
    start = draw(d, (n, d), jnp.float32)
    particles = flowrl.transport(NORMAL, start, flowrl.Budget(500, 0.2), flow=flowrl.Blob(kernel)).particles
    assert np.var(np.asarray(particles), axis=0, ddof=1).mean() == pytest.approx(BIAS[n, d, rule], abs=0.03)


# MMDFlow


@pytest.mark.thorough
def test_mmd_flow_matches_the_samples():
    samples = np.asarray(draw(9, (150, 2)), np.float64) @ np.array([[1.0, 0.4], [0.0, 0.5]]) + np.array([1.0, -0.5])
    target, start = flowrl.Empirical(jnp.asarray(samples, FLOAT)), 0.5 * draw(10, (60, 2))
    solution = flowrl.transport(target, start, flowrl.Budget(400, 2.0), flow=flowrl.MMDFlow(), save=(0, 10, 100, 400))
    squared = np.sum((samples[:, None] - samples[None]) ** 2, axis=-1)
    sigma = np.sqrt(np.median(squared[np.triu_indices(150, 1)]))  # fitted to the samples, whatever the particles do
    falls = [mmd_squared(x, samples, sigma) for x in solution.trajectory]
    assert np.all(np.diff(falls) < 0)
    assert falls[-1] < 2e-5 < 0.1 < falls[0]
    view = _view(target)
    for x, want in zip(solution.trajectory, falls, strict=True):
        got = float(_energy(flowrl.MMDFlow(), view, x, _everyone(x)))
        assert got == pytest.approx(want / 2, abs=tolerance(1e-12, 1e-6))
    end = np.asarray(solution.particles, np.float64)
    np.testing.assert_allclose(end.mean(axis=0), samples.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(np.cov(end.T, bias=True), np.cov(samples.T, bias=True), atol=0.03)


def test_noise_is_injected_where_the_velocity_is_read(key):
    x, beta = draw(11, (6, 2)), 0.7
    flow = flowrl.MMDFlow(FIXED, noise=beta)
    got, _ = _velocity(flow, _view(flowrl.Empirical(SAMPLES), key=key), x, _everyone(x))
    at = np.asarray(x + beta * jr.normal(key, x.shape, FLOAT), np.float64)
    witness = lambda a, to: np.mean([_kernel_slope(a, b) for b in np.asarray(to, np.float64)], axis=0)
    want = [witness(a, SAMPLES) - witness(a, x) for a in at]
    np.testing.assert_allclose(got, want, rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-11, 1e-5))


def test_noise_injection_needs_a_key_and_leaves_no_energy(key):
    noisy, target, x = flowrl.MMDFlow(noise=0.3), flowrl.Empirical(SAMPLES), draw(12, (5, 2))
    assert noisy.traits.random
    assert noisy.traits.energy_needs is None
    assert not flowrl.MMDFlow().traits.stochastic
    with pytest.raises(ValueError, match="MMDFlow toward Empirical is stochastic: pass key"):
        flowrl.transport(target, x, flowrl.Budget(2), flow=noisy)
    with pytest.raises(TypeError, match="with noise descends no energy"):
        noisy.energy(_view(target), x, _everyone(x))
    with pytest.raises(ValueError, match="MMDFlow has no entropy"):
        flowrl.transport(target, x, flowrl.Budget(2, temperature=1.0), flow=flowrl.MMDFlow())
    with pytest.raises(ValueError, match="MMDFlow needs the samples of its target"):
        flowrl.transport(NORMAL, x, flowrl.Budget(2), flow=flowrl.MMDFlow())
    run = lambda key, noise: (
        flowrl.transport(target, x, flowrl.Budget(2), flow=flowrl.MMDFlow(noise=noise), key=key).particles
    )
    first = run(key, 0.3)
    assert same_bits(first, run(key, 0.3))
    assert not np.allclose(first, run(jr.fold_in(key, 1), 0.3))
    assert_close(run(key, 0.0), flowrl.transport(target, x, flowrl.Budget(2), flow=flowrl.MMDFlow()).particles)


def test_noise_carries_on_particles_that_feel_no_sample(key):
    # Two clouds, and all particles about the first: by the measure of the kernel the second is far away.
    target = flowrl.Empirical(jnp.concatenate([0.5 * draw(13, (40, 1)), 6 + 0.5 * draw(14, (40, 1))]))
    kernel = flowrl.RBF(flowrl.FixedBandwidth(1.0))
    run = lambda x, noise: (
        flowrl.transport(
            target, x, flowrl.Budget(300, 1.0), flow=flowrl.MMDFlow(kernel, noise=noise), key=key
        ).particles
    )
    start = 0.5 * draw(15, (40, 1))
    still, carried = run(run(start, None), None), run(run(start, 2.0), None)
    assert mmd_squared(carried, target.samples(), 1.0) < 0.3 * mmd_squared(still, target.samples(), 1.0)
    assert np.mean(np.asarray(still) > 3) < 0.35 < 0.4 < np.mean(np.asarray(carried) > 3)


# KSDDescent


def test_the_discrepancy_falls_by_its_own_flow_and_by_svgd():
    start, steps = 1 + draw(16, (9, 2)), 60
    for flow, step_size in ((flowrl.KSDDescent(FIXED), 0.02), (flowrl.SVGD(FIXED), 0.1)):
        solution = flowrl.transport(CURVED, start, flowrl.Budget(steps, step_size, ALPHA), flow=flow, save=range(61))
        energies = [_energy(_flow("ksd"), _view(CURVED), x, _everyone(x)) for x in solution.trajectory]
        assert np.all(np.diff(energies) < 0)
        assert energies[-1] < 0.1 * energies[0]


def test_ksd_descent_finds_a_gaussian():
    target = flowrl.Boltzmann(quadratic, jnp.asarray([1.0, -1.0], FLOAT))
    solution = flowrl.transport(
        target, draw(17, (50, 2)), flowrl.Budget(800, 0.1, 0.5), flow=flowrl.KSDDescent(flowrl.RBF())
    )
    sample = np.asarray(solution.particles, np.float64)
    np.testing.assert_allclose(sample.mean(axis=0), [1, -1], atol=0.02)
    np.testing.assert_allclose(np.cov(sample.T), 0.5 * np.eye(2), atol=0.06)


def _score_of(x):
    return -(jnp.asarray(PULL, x.dtype) @ x) + jnp.cos(x)


def test_ksd_descent_needs_no_more_than_a_score():
    particles, budget = draw(18, (8, 2)), flowrl.Budget(3, 0.05)
    by_score = flowrl.transport(flowrl.Score(_score_of), particles, budget, flow=flowrl.KSDDescent())
    assert_close(by_score.particles, flowrl.transport(CURVED, particles, budget, flow=flowrl.KSDDescent()).particles)
    with pytest.raises(ValueError, match="KSDDescent divides by the temperature"):
        flowrl.transport(CURVED, particles, flowrl.Budget(3, 0.05, 0.0), flow=flowrl.KSDDescent())


def _two_modes(x):
    return jnp.logaddexp(-2 * jnp.sum((x - MODE.astype(x.dtype)) ** 2), -2 * jnp.sum((x + MODE.astype(x.dtype)) ** 2))


MODE = jnp.asarray([1.5, 0.0], FLOAT)


def test_ksd_descent_rests_between_modes_and_svgd_does_not():
    start = jnp.stack([0.2 * jnp.sign(draw(20, (10,))), jnp.linspace(-1, 1, 10, dtype=FLOAT)], axis=1)
    caught = flowrl.KSDDescent(flowrl.RBF(flowrl.FixedBandwidth(0.5)))
    for flow, step_size in ((caught, 0.005), (flowrl.SVGD(), 0.1)):
        end = flowrl.transport(flowrl.Density(_two_modes), start, flowrl.Budget(300, step_size), flow=flow).particles
        from_the_middle = np.abs(np.asarray(end)[:, 0])
        assert from_the_middle.max() < 0.15 if flow is caught else from_the_middle.min() > 1


@pytest.mark.skipif(not X64, reason="one precision is enough")
@pytest.mark.parametrize("name", NAMES)
def test_velocities_are_differentiable_in_the_target_too(name):
    x = draw(19, (6, 2))

    @jax.jit
    @jax.value_and_grad
    def size(scale):
        target = flowrl.Boltzmann(_curved, scale * jnp.asarray(PULL))
        if name == "mmd":
            target = flowrl.Empirical(scale * SAMPLES)
        return jnp.sum(_flow(name).velocity(_view(target), x, _everyone(x))[0] ** 2)

    slope = (size(1 + 1e-5)[0] - size(1 - 1e-5)[0]) / 2e-5
    assert float(size(1.0)[1]) == pytest.approx(float(slope), rel=1e-6)
