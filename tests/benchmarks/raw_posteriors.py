"""`flowrl.sample` as it comes on posteriors written down as a user writes them: raw units, no reparametrisation.

    python tests/benchmarks/raw_posteriors.py [--seeds 2]

Eight of them, by a bare `log_prob` and a start of zeros' shape. Printed: what the verdict says, for each seed. Two have
coordinates that differ in size by five orders of magnitude, one is a horseshoe; nothing here is tuned on any of them.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.stats import t as student

import flowrl

RNG = np.random.default_rng(0)


def logistic():
    """A logistic regression on an age and an income, not standardised."""
    covariates = np.stack([np.ones(200), RNG.normal(50, 15, 200), RNG.normal(120_000, 40_000, 200)], axis=1)
    chance = 1 / (1 + np.exp(6 - 0.08 * covariates[:, 1] - 1.5e-5 * covariates[:, 2]))
    x, y = jnp.asarray(covariates, jnp.float32), jnp.asarray(RNG.random(200) < chance, jnp.float32)

    def log_prob(weights):
        logits = x @ weights
        return jnp.sum(y * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum((weights / jnp.array([10, 1, 1.0])) ** 2)

    return log_prob, jnp.zeros(3)


def poisson():
    """Counts that grow exponentially with a covariate."""
    x = jnp.asarray(RNG.normal(0, 3, 100), jnp.float32)
    y = jnp.asarray(RNG.poisson(np.exp(1 + 0.6 * np.asarray(x))), jnp.float32)

    def log_prob(weights):
        rate = weights[0] + weights[1] * x
        return jnp.sum(y * rate - jnp.exp(rate)) - 0.5 * jnp.sum(weights**2) / 100

    return log_prob, jnp.zeros(2)


def hierarchical():
    """Twenty groups with means of their own, non-centred."""
    group = RNG.integers(0, 20, 300)
    y = jnp.asarray(RNG.normal(1.3, 0.3, 20)[group] + RNG.normal(0, 0.8, 300), jnp.float32)

    def log_prob(p):
        residual = (y - p["mean"] - jnp.exp(p["log_spread"]) * p["unit"][group]) * jnp.exp(-p["log_noise"])
        prior = p["mean"] ** 2 / 25 + p["log_spread"] ** 2 + p["log_noise"] ** 2 + jnp.sum(p["unit"] ** 2)
        return -0.5 * jnp.sum(residual**2) - y.size * p["log_noise"] - 0.5 * prior

    return log_prob, {"mean": 0.0, "log_spread": 0.0, "log_noise": 0.0, "unit": jnp.zeros(20)}


def gaussian_process():
    """Length, height and noise of a Gaussian process."""
    x = jnp.linspace(0, 10, 40)
    y = jnp.asarray(np.sin(np.asarray(x)) + RNG.normal(0, 0.2, 40), jnp.float32)

    def log_prob(logs):
        length, height, noise = jnp.exp(logs)
        covariance = height**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2) + (noise**2 + 1e-4) * jnp.eye(40)
        root = jnp.linalg.cholesky(covariance)
        white = solve_triangular(root, y, lower=True)
        return -0.5 * white @ white - jnp.sum(jnp.log(jnp.diag(root))) - 0.5 * jnp.sum(logs**2)

    return log_prob, jnp.zeros(3)


def outliers():
    """A line with Student noise of unknown degrees of freedom."""
    x = RNG.normal(size=80)
    y = jnp.asarray(3 + 2 * x + 0.5 * RNG.standard_t(2, 80), jnp.float32)
    x = jnp.asarray(x, jnp.float32)

    def log_prob(p):
        residual = (y - p[0] - p[1] * x) * jnp.exp(-p[2])
        return jnp.sum(student.logpdf(residual, 1 + jnp.exp(p[3])) - p[2]) - 0.5 * jnp.sum(p**2) / 9

    return log_prob, jnp.zeros(4)


def unequal():
    """A normal distribution around 1000, of deviations 0.01, 1 and 50."""
    return lambda x: -0.5 * jnp.sum(((x - 1000) / jnp.array([0.01, 1.0, 50.0])) ** 2), jnp.zeros(3)


def autoregression():
    """Memory and noise of a series of two hundred values."""
    series = np.zeros(200)
    for i in range(1, 200):
        series[i] = 0.9 * series[i - 1] + RNG.normal()
    y = jnp.asarray(series, jnp.float32)

    def log_prob(p):
        residual = (y[1:] - jnp.tanh(p[0]) * y[:-1]) * jnp.exp(-p[1])
        return -0.5 * jnp.sum(residual**2) - 199 * p[1] - 0.5 * jnp.sum(p**2)

    return log_prob, jnp.zeros(2)


def horseshoe():
    """A regression with five of fifty weights that are not zero, under a horseshoe prior."""
    x = RNG.normal(size=(100, 50))
    y = jnp.asarray(3 * x[:, :5].sum(axis=1) + RNG.normal(size=100), jnp.float32)
    x = jnp.asarray(x, jnp.float32)

    def log_prob(p):
        weights = p["unit"] * jnp.exp(p["log_local"] + p["log_all"])
        prior = jnp.sum(0.5 * p["unit"] ** 2 + jax.nn.softplus(2 * p["log_local"]) - p["log_local"])
        return -0.5 * jnp.sum((y - x @ weights) ** 2) - prior - jax.nn.softplus(2 * p["log_all"]) + p["log_all"]

    return log_prob, {"unit": jnp.zeros(50), "log_local": jnp.zeros(50), "log_all": 0.0}


CASES = (logistic, poisson, hierarchical, gaussian_process, outliers, unequal, autoregression, horseshoe)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    for case in CASES:
        log_prob, like = case()
        for seed in range(options.seeds):
            began = time.perf_counter()
            samples = flowrl.sample(log_prob, 100, like=like, key=jr.key(seed))
            seconds = time.perf_counter() - began
            acceptance = float(samples.stats["acceptance"])
            print(
                f"{case.__name__} {seed}: {seconds:.0f} s, acceptance {acceptance:.2f}, {samples.verdict}", flush=True
            )
