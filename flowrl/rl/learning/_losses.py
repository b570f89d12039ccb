"""Values of particles, TD targets and losses, as functions of networks and batches."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl.nn import MLP
from flowrl.rl.networks import AbstractAggregate, AbstractCritic, aggregated_value


def value(
    critic: AbstractCritic,
    aggregate: AbstractAggregate,
    observation: Float[Array, " obs"],
    particles: Float[Array, "n act"],
) -> Float[Array, " n"]:
    """Compute the aggregated value of each particle at one state.

    Args:
        critic: the ensemble.
        aggregate: how members become one number.
        observation: s, standardised.
        particles: actions.
    """
    return jax.vmap(lambda action: aggregated_value(critic, aggregate, observation, action))(particles)


def td_target(
    target_critic: AbstractCritic,
    aggregate: AbstractAggregate,
    particle_aggregate: AbstractAggregate,
    returns: Float[Array, " batch"],
    discounts: Float[Array, " batch"],
    next_observations: Float[Array, "batch obs"],
    particles: Float[Array, "batch n act"],
) -> Float[Array, " batch"]:
    """Compute y = returns + discounts · (the particles' aggregated target values, made one number).

    Args:
        target_critic: the slow ensemble.
        aggregate: how its members become one number.
        particle_aggregate: how the values of a state's particles become one number.
        returns: n-step returns.
        discounts: γ^m · mask.
        next_observations: bootstrap states.
        particles: transported particles there.
    """
    values = jax.vmap(lambda s, a: value(target_critic, aggregate, s, a))(next_observations, particles)
    return returns + discounts * jax.vmap(particle_aggregate)(values)


def critic_loss(
    critic: AbstractCritic,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    targets: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Compute the TD loss: that of the critic, summed over members, averaged over the batch.

    Args:
        critic: the ensemble.
        observations: s, standardised.
        actions: a.
        targets: y.
    """
    return jnp.mean(jax.vmap(critic.loss)(observations, actions, targets))


def gradient_loss(
    network: MLP,
    critic: AbstractCritic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch n act"],
) -> Float[Array, ""]:
    """Compute |f(s, a) − ∇_a Q(s, a)|², the mean over coordinates, actions and states.

    Args:
        network: f.
        critic: the ensemble; no gradient of the loss goes to it.
        aggregate: how its members become one number.
        observations: s, standardised.
        actions: where the two are compared.
    """

    def error(observation: Array, action: Array) -> Array:
        slope = jax.grad(aggregated_value, argnums=3)(critic, aggregate, observation, action)
        return jnp.mean((network(observation, action) - jax.lax.stop_gradient(slope)) ** 2)

    return jnp.mean(jax.vmap(lambda s, a: jax.vmap(lambda x: error(s, x))(a))(observations, actions))
