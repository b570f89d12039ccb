"""A posterior of your own: write its log density, get draws, and a verdict on them."""

import jax
import jax.numpy as jnp

import flowrl

weight = jnp.array([2.1, 2.6, 3.2, 3.4, 3.9, 4.4])  # your data
economy = jnp.array([33.0, 29.5, 24.8, 22.1, 19.7, 15.9])


def log_prob(unknown):
    """Log density of intercept, slope and log noise, up to a constant: a wide prior, and a line through the data."""
    intercept, slope, log_noise = unknown
    prior = -0.5 * (intercept**2 + slope**2) / 100.0**2 - 0.5 * log_noise**2
    residual = (economy - intercept - slope * weight) / jnp.exp(log_noise)
    return prior - 0.5 * jnp.sum(residual**2) - economy.size * log_noise


samples = flowrl.sample(log_prob, 100, like=jnp.zeros(3), key=jax.random.key(0))
print(samples)  # what was spent, and whether it arrived
draws = samples.pooled()
print(draws.mean(axis=0), draws.std(axis=0))
