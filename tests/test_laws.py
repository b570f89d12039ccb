"""What the sampling flows come to, on densities whose moments are known from quadrature or in closed form."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from problems import FLOAT, PLANE, draw, quadrature

import flowrl

CHAINS = 10_000
MOMENTS = {name: quadrature(log_prob) for name, log_prob in PLANE.items()}

# Flow, particles, steps, step size, and what may be missed: of the mean and of the covariance, in units of the largest
# standard deviation. For the deterministic flows it is their bias at this number of particles
# and for the others the Monte-Carlo error of correlated coordinates plus the bias of the step.
PLANS = {
    "SVGD": (flowrl.SVGD(), 200, 1500, 0.2, 0.15, 0.25),
    "Langevin": (flowrl.Langevin(), CHAINS, 1500, 0.01, 0.06, 0.08),
    "ALDI": (flowrl.ALDI(), CHAINS, 1500, 0.005, 0.06, 0.08),
}


@pytest.mark.parametrize("density", PLANE)
@pytest.mark.parametrize("method", PLANS)
def test_plane_densities_from_an_over_dispersed_start(method, density, key):
    flow, count, steps, step_size, mean_error, covariance_error = PLANS[method]
    start = 3 * draw(1, (count, 2), jnp.float32)
    budget = flowrl.Budget(steps, step_size)
    solution = flowrl.transport(flowrl.Density(PLANE[density]), start, budget, flow=flow, key=key)
    sample = np.asarray(solution.particles, np.float64)
    mean, covariance = MOMENTS[density]
    largest = np.sqrt(np.linalg.eigvalsh(covariance)[-1])
    print(
        method,
        density,
        np.abs(sample.mean(axis=0) - mean).max() / largest,
        np.abs(np.cov(sample.T) - covariance).max() / largest**2,
    )
    assert np.abs(sample.mean(axis=0) - mean).max() <= mean_error * largest
    assert np.abs(np.cov(sample.T) - covariance).max() <= covariance_error * largest**2
    if density == "mixture":
        # Every mode has its quarter, up to what the start (or chance) gave it.
        shares = np.bincount((sample[:, 0] > 0) * 2 + (sample[:, 1] > 0), minlength=4) / count
        assert np.abs(shares - 0.25).max() < 0.08


# Bounded densities: (log density, domain's faces, scipy's law)
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
# By a map every law works; by reflection those whose density does not vanish at the face, where the score is infinite.
WAYS = [(name, by) for name in BOUNDED for by in ("bijector", "mirror")] + [("truncated normal", "reflect")]
BOUNDED_FLOWS = {
    "Langevin": (flowrl.Langevin(), CHAINS, 1500, 0.01),
    "ALDI": (flowrl.ALDI(), CHAINS, 1500, 0.01),
    "SVGD": (flowrl.SVGD(), 200, 1500, 0.1),
    "Blob": (flowrl.Blob(flowrl.RBF(flowrl.FixedBandwidth(0.15))), 200, 2000, 0.02),
}


@pytest.mark.parametrize(("law", "by"), WAYS)
@pytest.mark.parametrize("method", BOUNDED_FLOWS)
def test_bounded_laws_through_every_method(method, law, by, key):
    log_prob, faces, exact = BOUNDED[law]
    flow, count, steps, step_size = BOUNDED_FLOWS[method]
    deterministic = count < CHAINS
    start = jnp.asarray(exact.ppf(np.random.default_rng(2).uniform(0.3, 0.7, (count, 1))), FLOAT)
    domain = flowrl.Box(*faces, by=by)
    if by == "reflect":
        step_size = step_size / 4
    solution = flowrl.transport(
        flowrl.Density(log_prob), start, flowrl.Budget(steps, step_size), flow=flow, domain=domain, key=key
    )
    sample = np.asarray(solution.particles, np.float64)[:, 0]
    assert np.asarray(domain.contains(solution.particles)).all()
    mean, variance, kurtosis = exact.stats(moments="mvk")
    deviation = np.sqrt(variance)
    print(method, law, by, (sample.mean() - mean) / deviation, sample.var() / variance)
    if deterministic:
        assert sample.mean() == pytest.approx(mean, abs=0.06 * deviation)
        assert sample.var() == pytest.approx(variance, rel=0.12)
    else:
        # Four and a half standard errors, and two per cent for the step.
        assert sample.mean() == pytest.approx(mean, abs=(4.5 / np.sqrt(count) + 0.02) * deviation)
        assert sample.var() == pytest.approx(variance, rel=4.5 * np.sqrt((kurtosis + 2) / count) + 0.03)


@pytest.mark.parametrize("method", ["Langevin", "ALDI", "SVGD"])
@pytest.mark.parametrize("by", ["bijector", "mirror"])
def test_the_dirichlet_law(method, by, key):
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
    print(method, by, (sample.mean(axis=0) - exact.mean()) / np.sqrt(variance), sample.var(axis=0) / variance)
    assert np.all(np.abs(sample.mean(axis=0) - exact.mean()) <= slack * np.sqrt(variance))
    np.testing.assert_allclose(sample.var(axis=0), variance, rtol=0.15 if count < CHAINS else 0.1)


@pytest.mark.parametrize("d", [1, 2, 10, 50])
@pytest.mark.parametrize("method", ["Langevin", "ALDI"])
def test_gaussians_within_the_monte_carlo_error(method, d, key):
    """Condition number 10, rotated; the variance of Euler's own stationary law is 1/(λ (1 − ελ/2)) for Langevin."""
    random = np.random.default_rng(d)
    rotation = np.linalg.qr(random.normal(size=(d, d)))[0]
    precision = np.geomspace(1, 10, d) if d > 1 else np.ones(1)
    matrix, mean = rotation * precision @ rotation.T, random.normal(size=d)

    def log_prob(pull, centre, x):
        return -0.5 * jnp.vdot(x - centre, pull @ (x - centre))

    target = flowrl.Density(log_prob, jnp.asarray(matrix, jnp.float32), jnp.asarray(mean, jnp.float32))
    step_size = 0.02
    flow, steps = (flowrl.Langevin(), 500) if method == "Langevin" else (flowrl.ALDI(), 500)
    start = jnp.asarray(2 * random.normal(size=(CHAINS, d)) + 1, jnp.float32)
    solution = flowrl.transport(target, start, flowrl.Budget(steps, step_size), flow=flow, key=key)
    sample = (np.asarray(solution.particles, np.float64) - mean) @ rotation * np.sqrt(precision)
    # In these coordinates the law is N(0, I), up to the bias of the step.
    bias = 1 / (1 - step_size * precision / 2) if method == "Langevin" else 1 / (1 - step_size / 2) * np.ones(d)
    print(method, d, np.abs(sample.mean(axis=0)).max() * np.sqrt(CHAINS), sample.var(axis=0) / bias)
    worst = scipy.stats.norm.ppf(1 - 1e-4 / d)
    assert np.abs(sample.mean(axis=0)).max() <= worst * np.sqrt(bias.max() / CHAINS) + np.exp(-step_size * steps) * 3
    assert np.abs(sample.var(axis=0) / bias - 1).max() <= worst * np.sqrt(2 / CHAINS) + 0.01
    off = np.corrcoef(sample.T).reshape(d, d) - np.eye(d)
    assert np.abs(off).max() <= scipy.stats.norm.ppf(1 - 1e-4 / d**2) / np.sqrt(CHAINS)


@pytest.mark.parametrize("flow", [flowrl.SVGD(), flowrl.KSDDescent(flowrl.IMQ(flowrl.FixedBandwidth(1.0)))])
def test_the_stein_discrepancy_falls_for_small_steps(flow):
    kernel = flowrl.IMQ(flowrl.FixedBandwidth(1.0))
    start = draw(5, (40, 2)) * 1.5 + 1
    target = flowrl.Density(PLANE["banana"])
    solution = flowrl.transport(target, start, flowrl.Budget(60, 0.02), flow=flow, save=tuple(range(0, 61, 10)))
    field_score = [
        np.asarray(jnp.stack([target.gradient(p, jnp.ones((), FLOAT), key=None) for p in x]))
        for x in solution.trajectory
    ]
    discrepancies = [
        float(jnp.mean(kernel.stein_gram(x, jnp.asarray(s), x, jnp.asarray(s))))
        for x, s in zip(solution.trajectory, field_score, strict=True)
    ]
    assert np.all(np.diff(discrepancies) < 0), discrepancies
    assert discrepancies[-1] < 0.5 * discrepancies[0]


def test_keys_and_numbers_are_drawn_in_the_dtype_of_the_particles(key):
    for dtype in {jnp.float32, FLOAT}:
        start = draw(6, (50, 2), dtype)
        moved = flowrl.transport(
            flowrl.Density(PLANE["ring"]), start, flowrl.Budget(3, 0.01), flow=flowrl.Langevin(), key=jr.fold_in(key, 1)
        )
        assert moved.particles.dtype == dtype
