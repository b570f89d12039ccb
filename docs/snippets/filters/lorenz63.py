"""Filter the Lorenz-63 system by transports, beside an ensemble Kalman filter and a bootstrap particle filter.

python docs/snippets/filters/lorenz63.py docs/results/lorenz63.csv
"""

import csv
import functools
import sys

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy import stats

import flowrl

PARTICLES, CYCLES, BURN_IN = 100, 80, 20
INTERVAL, SUBSTEPS = 0.25, 10  # between observations
MODEL_NOISE, OBSERVATION_NOISE = 0.5, 2.0  # standard deviations, of each coordinate


# --8<-- [start:model]
def slope(x):
    return jnp.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])


def forecast(x, key):
    """Return the state (3,) one interval later, with model noise."""
    dt = INTERVAL / SUBSTEPS

    def runge_kutta(x, _):
        k1 = slope(x)
        k2 = slope(x + dt / 2 * k1)
        k3 = slope(x + dt / 2 * k2)
        return x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + dt * k3)), None

    x, _ = jax.lax.scan(runge_kutta, x, length=SUBSTEPS)
    return x + MODEL_NOISE * jr.normal(key, (3,))


def observed(x):
    return x


# --8<-- [end:model]


# --8<-- [start:transports]
def problem(particles, y):
    """Return the posterior of a state: the particles stand for its prior, their mean and covariance for the values."""
    return flowrl.InverseProblem(observed, y, OBSERVATION_NOISE, particles.mean(axis=0), jnp.cov(particles.T))


def kalman_flow(particles, y, key):
    del key
    budget, solver = flowrl.Budget(1, None), flowrl.Diffrax(diffrax.Bosh3())
    target = problem(particles, y)
    return flowrl.transport(target, particles, budget, flow=flowrl.EKI(), solver=solver, throw=False).particles


def fisher_rao_flow(particles, y, key):
    del key
    flow = flowrl.KFRFlow(flowrl.RBF() + 0.1 * flowrl.Linear() * flowrl.Linear(), regularisation=1e-3)
    budget = flowrl.Budget(1, None, scale=particles.std(axis=0))
    solver = flowrl.Diffrax(diffrax.Bosh3(), max_steps=256)
    posterior = problem(particles, y)
    target = flowrl.Tilted(posterior.log_prior, posterior.log_likelihood)
    return flowrl.transport(target, particles, budget, flow=flow, solver=solver, throw=False).particles


# --8<-- [end:transports]


# --8<-- [start:others]
def bootstrap(particles, y, key):
    """Weigh each particle by its likelihood, and resample systematically."""
    misfit = jax.vmap(observed)(particles) - y[None]
    weights = jax.nn.softmax(-0.5 * jnp.sum(misfit**2, axis=1) / OBSERVATION_NOISE**2)
    places = (jnp.arange(float(PARTICLES)) + jr.uniform(key)) / PARTICLES
    ancestors = jnp.searchsorted(jnp.cumsum(weights), places).clip(0, PARTICLES - 1)
    return particles[ancestors]


def kalman_filter(particles, y, key):
    """Move each particle by Kalman's gain toward an observation with noise of its own."""
    predicted = jax.vmap(observed)(particles)
    x, g = particles - particles.mean(axis=0)[None], predicted - predicted.mean(axis=0)[None]
    covariance = g.T @ g / (PARTICLES - 1) + OBSERVATION_NOISE**2 * jnp.eye(3)
    gain = jnp.linalg.solve(covariance, g.T @ x / (PARTICLES - 1)).T
    noisy = y[None] + OBSERVATION_NOISE * jr.normal(key, predicted.shape)
    return particles + (noisy - predicted) @ gain.T


# --8<-- [end:others]


# --8<-- [start:filter]
@functools.partial(jax.jit, static_argnames=("analysis", "cycles", "burn_in"))
def error(analysis, key, cycles=CYCLES, burn_in=BURN_IN):
    """Return the root mean square error of the particles' mean after burn-in, all cycles in one scan."""
    start_key, prior_key, scan_key = jr.split(key, 3)
    truth, _ = jax.lax.scan(lambda x, k: (forecast(x, k), None), jnp.array([1.0, 1.0, 25.0]), jr.split(start_key, 40))
    particles = truth[None] + OBSERVATION_NOISE * jr.normal(prior_key, (PARTICLES, 3))

    def cycle(carry, key):
        truth, particles = carry
        truth_key, model_key, noise_key, analysis_key = jr.split(key, 4)
        truth = forecast(truth, truth_key)
        particles = jax.vmap(forecast)(particles, jr.split(model_key, PARTICLES))
        y = observed(truth) + OBSERVATION_NOISE * jr.normal(noise_key, (3,))
        particles = analysis(particles, y, analysis_key)
        return (truth, particles), jnp.mean((particles.mean(axis=0) - truth) ** 2)

    _, squared = jax.lax.scan(cycle, (truth, particles), jr.split(scan_key, cycles))
    return jnp.sqrt(squared[burn_in:].mean())


FILTERS = {
    "bootstrap particle filter": bootstrap,
    "EnKF, stochastic": kalman_filter,
    "EKI": kalman_flow,
    "KFRFlow": fisher_rao_flow,
}
# --8<-- [end:filter]


def compare(seeds):
    """Return by name the errors of each filter (seeds,); truth and noise are those of the seed, whatever the filter."""
    keys = jr.split(jr.key(0), seeds)
    return {name: jax.lax.map(functools.partial(error, analysis), keys) for name, analysis in FILTERS.items()}


def rows(errors):
    """Return a row of each filter: means over seeds, each with half the width of its 95 % interval by Student."""

    def interval(values):
        return f"{values.mean():.3f}", f"{stats.t.ppf(0.975, values.size - 1) * stats.sem(values):.3f}"

    errors = {name: np.asarray(values, np.float64) for name, values in errors.items()}
    table, first = [], next(iter(errors.values()))
    for name, values in errors.items():
        (rmse, half), (excess, excess_half) = interval(values), interval(values - first)
        row = {"filter": name, "rmse": rmse, "half_width_95": half, "worst_seed": f"{values.max():.3f}"}
        row |= {"excess": excess, "excess_half_width_95": excess_half}  # over the first filter, seed by seed
        table.append(row | {"seeds": values.size, "particles": PARTICLES, "cycles": CYCLES, "jax": jax.__version__})
    return table


if __name__ == "__main__":
    table = rows(compare(10))
    with open(sys.argv[1], "w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
