"""What the sampling flows come to, on densities whose moments are known from quadrature or in closed form."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from problems import FLOAT, PLANE, draw, quadrature

import flowrl

CHAINS = 10_000
MOMENTS = {name: quadrature(log_prob) for name, log_prob in PLANE.items()}

# Flow, particles, and what may be missed of the mean and of the covariance, in units of the largest standard deviation.
# For SVGD it is the bias of 200 particles; for the others the Monte-Carlo error and that of the step.
METHODS = {
    "SVGD": (flowrl.SVGD(), 200, 0.45, 0.45),
    "Langevin": (flowrl.Langevin(), CHAINS, 0.05, 0.08),
    "ALDI": (flowrl.ALDI(), CHAINS, 0.1, 0.18),
}
# Width of the normal start, steps, step size. ALDI moves with the covariance of its particles, so where the score is
# steep it starts narrower.
PLANS = {
    "SVGD": dict.fromkeys(PLANE, (3, 3000, 0.05)),
    "Langevin": dict.fromkeys(PLANE, (3, 1500, 0.01)),
    "ALDI": dict.fromkeys(PLANE, (3, 2000, 0.003)) | {"banana": (1, 6000, 0.0015)},
}


@pytest.mark.slow
@pytest.mark.parametrize("density", PLANE)
@pytest.mark.parametrize("method", PLANS)
def test_plane_densities_from_an_over_dispersed_start(method, density, key):
    flow, count, mean_error, covariance_error = METHODS[method]
    width, steps, step_size = PLANS[method][density]
    start = width * draw(1, (count, 2), jnp.float32)
    budget = flowrl.Budget(steps, step_size)
    solution = flowrl.transport(flowrl.Density(PLANE[density]), start, budget, flow=flow, key=key)
    sample = np.asarray(solution.particles, np.float64)
    mean, covariance = MOMENTS[density]
    largest = np.sqrt(np.linalg.eigvalsh(covariance)[-1])
    if density == "mixture":
        # No mode is missed. The chains have a quarter each; a set under SVGD keeps the shares of its start's basins,
        # and so has no mean to compare.
        shares = np.bincount((sample[:, 0] > 0) * 2 + (sample[:, 1] > 0), minlength=4) / count
        assert shares.min() > (0.05 if method == "SVGD" else 0.23)
        if method == "SVGD":
            return
    assert np.abs(sample.mean(axis=0) - mean).max() <= mean_error * largest
    assert np.abs(np.cov(sample.T) - covariance).max() <= covariance_error * largest**2


# Bounded densities: (log density, domain's faces, scipy distribution)
def _gamma(x):
    return jnp.sum(2 * jnp.log(x) - x)


def _beta(x):
    return jnp.sum(jnp.log(x) + 2 * jnp.log1p(-x))


def _normal(x):
    return -0.5 * jnp.sum((x - 0.5) ** 2)


BOUNDED = {
    "Gamma(3, 1)": (_gamma, (0.0, np.inf), scipy.stats.gamma(3)),
    "Beta(2, 3)": (_beta, (0.0, 1.0), scipy.stats.beta(2, 3)),
    "truncated normal": (_normal, (-1.0, 1.0), scipy.stats.truncnorm(-1.5, 0.5, loc=0.5)),
}
# By a map every distribution works; by reflection those whose density does not vanish at the face, where the score is
# infinite.
WAYS = [(name, by) for name in BOUNDED for by in ("bijector", "mirror")]
JUMPING = flowrl.Langevin() + flowrl.BirthDeath(flowrl.RBF(flowrl.ScottBandwidth()))
BOUNDED_FLOWS = {
    "Langevin": (flowrl.Langevin(), CHAINS, 1500, 0.01),
    "ALDI": (flowrl.ALDI(), CHAINS, 1500, 0.01),
    "Langevin + BirthDeath": (JUMPING, 1000, 400, 0.02),
    "SVGD": (flowrl.SVGD(), 100, 2000, 0.2),
    "SVGD, preconditioned": (flowrl.SVGD(flowrl.Preconditioned()), 100, 1000, 0.2),
    "Blob": (flowrl.Blob(), 100, 2000, 0.05),
}
# SVGD and Blob do not see a face that only reflects; KSDDescent moves as slowly as the tails are long, and flows toward
# samples take no density: they have tests of their own.
CASES = [(method, name, by) for method in BOUNDED_FLOWS for name, by in WAYS]
CASES += [("Langevin", "truncated normal", "reflect")]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name", "by"), CASES)
def test_bounded_distributions_through_every_method(method, name, by, key):
    log_prob, faces, exact = BOUNDED[name]
    flow, count, steps, step_size = BOUNDED_FLOWS[method]
    start = jnp.asarray(exact.ppf(np.random.default_rng(2).uniform(0.3, 0.7, (count, 1))), FLOAT)
    domain = flowrl.Box(*faces, by=by)
    if by == "reflect":
        step_size = step_size / 4
    solution = flowrl.transport(
        flowrl.Density(log_prob), start, flowrl.Budget(steps, step_size), flow=flow, domain=domain, key=key
    )
    sample = np.asarray(solution.particles, np.float64)[:, 0]
    assert np.asarray(domain.contains(solution.particles)).all()
    mean, variance, kurtosis = (float(moment) for moment in exact.stats(moments="mvk"))
    deviation = np.sqrt(variance)
    if count == CHAINS:
        # Four and a half standard errors, and two or three per cent for the step.
        assert sample.mean() == pytest.approx(mean, abs=(4.5 / np.sqrt(count) + 0.02) * deviation)
        assert sample.var() == pytest.approx(variance, rel=4.5 * np.sqrt((kurtosis + 2) / count) + 0.03)
    else:
        # The bias of few particles under a kernel.
        assert sample.mean() == pytest.approx(mean, abs=0.12 * deviation)
        assert sample.var() == pytest.approx(variance, rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("flow", [flowrl.SinkhornFlow(), flowrl.MMDFlow()], ids=["SinkhornFlow", "MMDFlow"])
@pytest.mark.parametrize(("name", "by"), WAYS)
def test_flows_toward_samples_find_bounded_distributions_too(flow, name, by):
    """They compare in the coordinates of the map, and end with the moments of the samples."""
    _, faces, exact = BOUNDED[name]
    samples = jnp.asarray(exact.ppf((np.arange(200)[:, None] + 0.5) / 200), FLOAT)
    start = jnp.asarray(exact.ppf(np.random.default_rng(4).uniform(0.3, 0.7, (100, 1))), FLOAT)
    solution = flowrl.transport(
        flowrl.Empirical(samples),
        start,
        flowrl.Budget(500, 0.02),
        flow=flow,
        solver=flowrl.Optax(),
        domain=flowrl.Box(*faces, by=by),
    )
    moved, deviation = np.asarray(solution.particles, np.float64), float(exact.std())
    assert moved.mean() == pytest.approx(float(samples.mean()), abs=0.1 * deviation)
    assert moved.std() == pytest.approx(float(samples.std()), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Beta(2, 3)", "truncated normal"])
@pytest.mark.parametrize("by", ["bijector", "mirror"])
def test_stein_descent_finds_bounded_distributions_without_long_tails(name, by):
    log_prob, faces, exact = BOUNDED[name]
    start = jnp.asarray(exact.ppf(np.random.default_rng(5).uniform(0.2, 0.8, (50, 1))), FLOAT)
    solution = flowrl.transport(
        flowrl.Density(log_prob),
        start,
        flowrl.Budget(1500, 0.01),
        flow=flowrl.KSDDescent(),
        solver=flowrl.Optax(),
        domain=flowrl.Box(*faces, by=by),
    )
    moved = np.asarray(solution.particles, np.float64)
    assert moved.mean() == pytest.approx(float(exact.mean()), abs=0.12 * float(exact.std()))
    assert moved.var() == pytest.approx(float(exact.var()), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Langevin", "ALDI", "SVGD"])
@pytest.mark.parametrize("by", ["bijector", "mirror"])
def test_the_dirichlet_distribution(method, by, key):
    concentration = np.array([2.0, 3.0, 4.0])

    def log_prob(x):
        return jnp.sum(jnp.asarray(concentration - 1, x.dtype) * jnp.log(x))

    flow, count, steps, step_size = BOUNDED_FLOWS[method]
    start = jnp.asarray(np.random.default_rng(3).dirichlet([5, 5, 5], size=count), FLOAT)
    domain = flowrl.Simplex(by=by)
    solution = flowrl.transport(
        flowrl.Density(log_prob), start, flowrl.Budget(steps, step_size), flow=flow, domain=domain, key=key
    )
    sample = np.asarray(solution.particles, np.float64)
    exact = scipy.stats.dirichlet(concentration)
    variance = exact.var()
    slack = 0.06 if count < CHAINS else 4.5 / np.sqrt(count) + 0.02
    assert np.all(np.abs(sample.mean(axis=0) - exact.mean()) <= slack * np.sqrt(variance))
    np.testing.assert_allclose(sample.var(axis=0), variance, rtol=0.15 if count < CHAINS else 0.1)


@pytest.mark.parametrize("flow", [flowrl.SVGD(), flowrl.KSDDescent(flowrl.IMQ(flowrl.FixedBandwidth(1.0)))])
def test_the_stein_discrepancy_falls_for_small_steps(flow):
    kernel = flowrl.IMQ(flowrl.FixedBandwidth(1.0))
    start = draw(5, (40, 2)) * 1.5 + 1
    target = flowrl.Density(PLANE["banana"])
    solution = flowrl.transport(target, start, flowrl.Budget(60, 0.02), flow=flow, save=tuple(range(0, 61, 10)))
    score = jax.vmap(lambda p: target.gradient(p, jnp.ones((), FLOAT), key=None))
    discrepancy = jax.jit(lambda x: jnp.mean(kernel.stein_gram(x, score(x), x, score(x))))
    discrepancies = [float(discrepancy(x)) for x in solution.trajectory]
    assert np.all(np.diff(discrepancies) < 0), discrepancies
    assert discrepancies[-1] < 0.5 * discrepancies[0]


def test_keys_and_numbers_are_drawn_in_the_dtype_of_the_particles(key):
    for dtype in {jnp.float32, FLOAT}:
        start = draw(6, (50, 2), dtype)
        moved = flowrl.transport(
            flowrl.Density(PLANE["ring"]), start, flowrl.Budget(3, 0.01), flow=flowrl.Langevin(), key=jr.fold_in(key, 1)
        )
        assert moved.particles.dtype == dtype
