"""From a numpyro model to ArviZ's table, without a step size, a number of steps or a start."""

import arviz_stats
import jax
import numpyro
import numpyro.distributions as dist

import flowrl


def model(errors, effects):
    mean, spread = numpyro.sample("mean", dist.Normal(0, 5)), numpyro.sample("spread", dist.HalfCauchy(5))
    unit = numpyro.sample("unit", dist.Normal(0, 1).expand([8]).to_event(1))
    numpyro.sample("effects", dist.Normal(mean + spread * unit, errors), obs=effects)


data = jax.numpy.array([[15, 10, 16, 11, 9, 11, 10, 18], [28, 8, -3, 7, -1, 1, 18, 12.0]])
posterior = flowrl.from_numpyro(model, *data, key=jax.random.key(0))
samples = flowrl.sample(posterior, 100, key=jax.random.key(1))
table = arviz_stats.summary(samples.to_arviz(), var_names=["mean", "spread"])
