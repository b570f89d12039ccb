"""A new target: a value that can be evaluated but not differentiated, smoothed by Gaussian noise."""

# --8<-- [start:target]
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl


class Smoothed(flowrl.AbstractTarget):
    """V_σ(x) = E[V(x + σu)], u standard normal: its gradient is E[u V(x + σu)] / σ, which asks for values alone."""

    function: Callable = eqx.field(static=True)  # part of the program: another function compiles again
    args: tuple  # of arrays: new ones do not
    sigma: jax.Array = eqx.field(converter=jnp.asarray)  # an array, so that a new number does not compile again
    pairs: int = eqx.field(static=True, default=16)

    knows: ClassVar[frozenset] = frozenset({"value", "gradient"})
    stochastic: ClassVar[bool] = True  # gradient() is given a key, so transport() asks for one
    needs_positive_temperature: ClassVar[bool] = False  # at α = 0 the value is still there

    def value(self, particle):
        """V itself: particles are ranked by it."""
        return self.function(*self.args, particle)

    def scaled_log_density(self, particle, temperature, *, key):
        """U(x, α) = V, as for Boltzmann: the distribution is ∝ exp(V/α)."""
        del temperature, key
        return self.value(particle)

    def gradient(self, particle, temperature, *, key):
        """Antithetic pairs: the mean of u (V(x + σu) − V(x − σu)) / 2σ."""
        del temperature
        noise = jr.normal(key, (self.pairs, *particle.shape), particle.dtype)
        sigma = self.sigma.astype(particle.dtype)
        gains = jax.vmap(lambda u: self.value(particle + sigma * u) - self.value(particle - sigma * u))(noise)
        return jnp.tensordot(gains, noise, 1) / (2 * sigma * self.pairs)


# --8<-- [end:target]
# --8<-- [start:use]
def score(goal, x):  # a staircase: its gradient is zero wherever it exists
    return -jnp.sum(jnp.floor(4 * jnp.abs(x - goal))) / 4


goal, start = jnp.array([1.0, -2.0]), jr.normal(jr.key(0), (50, 2))
budget = flowrl.Budget(steps=200, step_size=0.05)
blind = flowrl.transport(flowrl.Boltzmann(score, goal), start, budget, flow=flowrl.Ascent())
target = Smoothed(score, (goal,), 0.3)
solution = flowrl.transport(target, start, budget, flow=flowrl.Ascent(), key=jr.key(1))


# --8<-- [end:use]
# --8<-- [start:function]
def log_prob(data, x):  # Student's t for noise, a normal prior
    location, log_width = x[0], x[1]
    residuals = (data - location) / jnp.exp(log_width)
    return jnp.sum(-2.5 * jnp.log1p(residuals**2 / 4) - log_width) - 0.5 * jnp.sum(x**2)


data = jnp.array([0.1, 0.3, 0.2, 9.0])
robust = flowrl.transport(flowrl.Density(log_prob, data), start, flowrl.Budget(500, 0.1))
# --8<-- [end:function]


# --8<-- [start:density]
class Robust(flowrl.AbstractValueTarget):
    """The same distribution as a class; its gradient is inherited."""

    data: jax.Array = eqx.field(converter=jnp.asarray)  # an array: new data do not compile again
    needs_positive_temperature: ClassVar[bool] = True  # the scaled log density below is zero at α = 0

    def value(self, particle):
        """Log p(x), up to a constant."""
        return log_prob(self.data, particle)

    def scaled_log_density(self, particle, temperature, *, key):
        """U(x, α) = α log p(x), as for Density; of a value it would be the value itself, as for Boltzmann."""
        del key
        return temperature * self.value(particle)


as_a_class = flowrl.transport(Robust(data), start, flowrl.Budget(500, 0.1))
# --8<-- [end:density]
