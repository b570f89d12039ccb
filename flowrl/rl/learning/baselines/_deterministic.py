"""What TD3+BC and ReBRAC share: a deterministic actor, smoothed targets, and an actor that learns less often."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.learning import Trainable, copied, polyak
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCriticState, Batch, critic_step
from flowrl.rl.networks import AbstractCritic, AbstractCriticModel, DeterministicActor


class DeterministicState(AbstractActorCriticState):
    """Everything that the training of TD3+BC and ReBRAC changes.

    Attributes:
        actor: π.
        target_actor: its Polyak average.
    """

    actor: Trainable[DeterministicActor]
    target_actor: DeterministicActor
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


def start(
    observation_size: int,
    action_size: int,
    hidden: tuple[int, ...],
    members: int,
    model: AbstractCriticModel,
    optimiser: optax.GradientTransformation,
    key: Key,
) -> DeterministicState:
    """Return the state before the first update."""
    actor_key, critic_key, run_key = jr.split(key, 3)
    actor = DeterministicActor(observation_size, action_size, hidden, key=actor_key)
    critic = model.init(observation_size, action_size, hidden, members, key=critic_key)
    return DeterministicState(
        actor=Trainable.start(actor, optimiser),
        target_actor=copied(actor),
        critic=Trainable.start(critic, optimiser),
        target_critic=copied(critic),
        step=jnp.zeros((), jnp.int32),
        key=run_key,
    )


def smoothed(
    actor: DeterministicActor, observations: Float[Array, "batch obs"], noise: float, limit: float, key: Key
) -> Float[Array, "batch act"]:
    """Compute clip(π(s) + clip(σ z, −c, c), −1, 1): a value must hold around an action, not at one point."""
    actions = jax.vmap(actor)(observations)
    shift = jnp.clip(noise * jr.normal(key, actions.shape, actions.dtype), -limit, limit)
    return jnp.clip(actions + shift, -1, 1)


def delayed_update(
    state: DeterministicState,
    batch: Batch,
    targets: Float[Array, " batch"],
    actor_loss: Callable[[DeterministicActor], tuple[Array, dict[str, Array]]],
    optimiser: optax.GradientTransformation,
    rate: float,
    delay: int,
) -> tuple[DeterministicState, dict[str, Float[Array, ""]]]:
    """Update the critic; in every `delay`-th update also the actor and both target networks."""
    critic, td_loss = critic_step(state.critic, optimiser, batch, targets)
    slow = (state.actor, state.target_actor, state.target_critic)
    dynamic, static = eqx.partition(slow, eqx.is_array)

    def learn(dynamic: Any) -> Any:
        actor, target_actor, target_critic = eqx.combine(dynamic, static)
        measured, gradient = eqx.filter_value_and_grad(actor_loss, has_aux=True)(actor.network)
        actor = actor.updated(gradient, optimiser)
        target_actor = polyak(target_actor, actor.network, rate)
        target_critic = polyak(target_critic, critic.network, rate)
        return eqx.filter((actor, target_actor, target_critic), eqx.is_array), measured

    def measure(dynamic: Any) -> Any:
        return dynamic, actor_loss(eqx.combine(dynamic, static)[0].network)

    dynamic, (loss, metrics) = jax.lax.cond((state.step + 1) % delay == 0, learn, measure, dynamic)
    actor, target_actor, target_critic = eqx.combine(dynamic, static)
    metrics = {"td_loss": td_loss, "actor_loss": loss, "value": jnp.mean(targets), **metrics}
    state = dataclasses.replace(
        state,
        actor=actor,
        target_actor=target_actor,
        critic=critic,
        target_critic=target_critic,
        step=state.step + 1,
    )
    return state, metrics
