"""A model of PyMC: its log density is one of a list of arrays, which is a PyTree."""

import jax
import jax.numpy as jnp
import pymc as pm
from pymc.sampling.jax import get_jaxified_graph, get_jaxified_logp

import flowrl

with pm.Model() as model:
    rate = pm.HalfNormal("rate", 2.0)
    pm.Poisson("count", rate, observed=[3, 1, 2])

start, free, named = model.initial_point(), model.value_vars, model.unobserved_value_vars
like = [jnp.asarray(start[value.name]) for value in free]
samples = flowrl.sample(get_jaxified_logp(model), 100, like=like, key=jax.random.key(0))
constrain = get_jaxified_graph(inputs=free, outputs=named)
sites = {value.name: x for value, x in zip(named, jax.vmap(jax.vmap(constrain))(*samples.draws), strict=True)}
