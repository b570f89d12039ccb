"""How a posterior is sampled: flows with the steps that they are given, and NUTS with its gradients counted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.infer import NUTS

import flowrl
from flowrl.scripts.posterior._models import Problem

DEFAULT_STEP = {"svgd": 3.0, "preconditioned": 0.3, "langevin": 0.002, "aldi": 0.01}


def transport_of(flow: str) -> flowrl.Transport:
    """Return the flow of this name with its solver."""
    if flow == "svgd":
        # Adagrad's steps fall, so the particles come to rest; they begin large, since its sums begin at 0.1.
        return flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    euler = {
        "preconditioned": flowrl.SVGD(flowrl.Preconditioned()),
        "langevin": flowrl.Langevin(),
        "aldi": flowrl.ALDI(),
    }
    return flowrl.Transport(euler[flow])


def step_sizes(flow: str, steps: int, step_size: float) -> Float[Array, ""] | Float[Array, " steps"]:
    """Return Adagrad's rate, or Euler's steps: small at first, while the particles are too wide, in full after 60."""
    if flow == "svgd":
        return jnp.asarray(step_size)
    # A tenth of 600 steps, whatever their number.
    return jnp.asarray(flowrl.ramp(step_size, 600)(np.arange(steps)))


def starts(start: str, posterior: flowrl.NumpyroPosterior, n: int, key: PRNGKeyArray) -> PyTree:
    """Draw n particles from the prior, or each unconstrained coordinate between -2 and 2."""
    particles = posterior.initial(n, key)
    if start == "prior":
        return particles
    keys = jr.split(key, len(particles))
    return {
        name: jr.uniform(own, leaf.shape, leaf.dtype, -2.0, 2.0)
        for own, (name, leaf) in zip(keys, particles.items(), strict=True)
    }


class Chains(NamedTuple):
    """What NUTS gave; iterations begin with those of the warm-up."""

    particles: PyTree  # unconstrained coordinates, leaves (chains, iterations, ...)
    leapfrogs: Float[Array, "chains iterations"]  # steps of the integrator, one gradient each

    def draws(self, warmup: int) -> PyTree:
        """Return all after the warm-up as one set."""
        return jax.tree.map(lambda x: x[:, warmup:].reshape(-1, *x.shape[2:]), self.particles)


def nuts(problem: Problem, warmup: int, draws: int) -> Callable[[PRNGKeyArray], Chains]:
    """Compile numpyro's NUTS, all its settings at their defaults, into one function of keys (chains,)."""
    kernel = NUTS(problem.model)

    def chain(key: PRNGKeyArray) -> Chains:
        state = kernel.init(key, warmup, None, (), problem.data)

        def step(state: Any, _: None) -> tuple[Any, Chains]:
            state = kernel.sample(state, (), problem.data)
            return state, Chains(state.z, state.num_steps)

        return jax.lax.scan(step, state, None, warmup + draws)[1]

    return jax.jit(lambda keys: jax.lax.map(chain, keys))
