"""Move relaxed token logits toward a reward, no further than the budget allows, then read off the tokens."""

import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl

n, length, vocabulary = 16, 6, 20
embedding, wish = jr.normal(jr.key(0), (vocabulary, 4)), jr.normal(jr.key(1), (4,))


def reward(embedding, wish, logits):
    return jnp.sum(jax.nn.softmax(logits) @ embedding @ wish)


reference = 2 * jr.normal(jr.key(2), (n, length, vocabulary))
target, budget = flowrl.Boltzmann(reward, embedding, wish), flowrl.Budget(20, 2.0, 0.1, max_displacement=8.0)
solution = flowrl.transport(target, reference, budget)
best = flowrl.best_of_n(solution.particles, solution.values)
tokens = jnp.argmax(best.particle, axis=-1)
