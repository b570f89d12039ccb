"""Act with a Q-function: improve candidate actions in a batch of states, then take the best of each."""

import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl


def q(state, action):
    return -jnp.sum((action - jnp.tanh(state)) ** 2)


@jax.jit
def act(states, candidates, budget):
    def one(state, actions):
        moved = flowrl.transport(flowrl.Boltzmann(q, state), actions, budget, domain=flowrl.Box(-1, 1), throw=False)
        return flowrl.best_of_n(moved.particles, moved.values).particle

    return jax.vmap(one)(states, candidates)


states, candidates = jr.normal(jr.key(0), (32, 3)), jr.uniform(jr.key(1), (32, 8, 3), minval=-1, maxval=1)
cautious = act(states, candidates, flowrl.Budget(jnp.array(1), 0.2, 0.0, max_steps=10))
bold = act(states, candidates, flowrl.Budget(jnp.array(10), 0.5, 0.0, max_steps=10))  # the same compiled program
