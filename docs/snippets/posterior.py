"""Sample the posterior of a Bayesian logistic regression with two weights."""

import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl

inputs = jr.normal(jr.key(0), (100, 2))
labels = jr.bernoulli(jr.key(1), jax.nn.sigmoid(inputs @ jnp.array([1.5, -1.0])))


def log_posterior(inputs, labels, weights):
    margins = jnp.where(labels, 1, -1) * (inputs @ weights)
    return jnp.sum(jax.nn.log_sigmoid(margins)) - 0.5 * jnp.sum(weights**2)


target = flowrl.Density(log_posterior, inputs, labels)
prior = jr.normal(jr.key(2), (100, 2))
posterior = flowrl.transport(target, prior, flowrl.Budget(steps=300, step_size=0.05))
mean, deviation = posterior.particles.mean(axis=0), posterior.particles.std(axis=0)
