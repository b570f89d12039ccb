"""IQL: values of the best actions of the data by expectile regression, and the policy by weighted cloning."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.nn import MLP
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractGenerative, Trainable
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic, AbstractActorCriticState, gather
from flowrl.rl.learning.baselines._implicit import implicit_step
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    GaussianActor,
    Minimum,
    ScalarCritic,
)


class IQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        actor: π.
        value: V.
    """

    actor: Trainable[GaussianActor]
    value: Trainable[MLP]
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class IQL(AbstractActorCritic[IQLState], AbstractGenerative[IQLState]):
    r"""Implicit Q-learning: no action outside the data is ever asked for.

    $$\mathcal{L}_V = \mathbb{E}\,\bigl|\tau - 1(u < 0)\bigr|\, u^2, \quad u = \min_k \bar Q_k(s, a) - V(s), \qquad
      \mathcal{L}_Q = \sum_k \mathbb{E}\,\bigl(Q_k(s, a) - r - \gamma V(s')\bigr)^2$$

    $$\mathcal{L}_\pi = -\mathbb{E}\bigl[\min(e^{\beta u}, 100)\, \log \pi(a|s)\bigr]$$

    The policy is a normal distribution, u a constant to its gradient, and the bar a Polyak average.

    Attributes:
        expectile: τ in (0, 1): near 1, V is the value of the best action of the data in a state.
        inverse_temperature: β >= 0, in units of 1 / value; 0 clones all data the same.
        max_weight: where the weights are cut off.
        temperature: factor >= 0 on the policy's standard deviations when it acts; with 0 all proposals are its mean.
        decay_updates: updates over which the actor's rate falls to 0 as a cosine (the source: over the whole run), or
            None for a constant rate.

    ??? cite "Source"
        Kostrikov et al., *Offline Reinforcement Learning with Implicit Q-Learning*, ICLR 2022 (arXiv 2110.06169);
        defaults are those for locomotion, for AntMaze the paper has τ = 0.9 and β = 10. The original has no LayerNorm.
    """

    expectile: float = eqx.field(static=True, default=0.7)
    inverse_temperature: float = eqx.field(static=True, default=3.0)
    max_weight: float = eqx.field(static=True, default=100.0)
    temperature: float = eqx.field(static=True, default=0.0)
    decay_updates: int | None = eqx.field(static=True, default=None)
    target: AbstractAggregate = Minimum()
    improvement: AbstractAggregate = Minimum()
    selection: AbstractAggregate = Minimum()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    members: int = eqx.field(static=True, default=2)
    critic: AbstractCriticModel = ScalarCritic()

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "decay_updates"),
            positive=("learning_rate", "max_weight"),
            at_least_zero=("inverse_temperature", "temperature"),
            fractions=("polyak", "expectile"),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> IQLState:
        actor_key, value_key, critic_key, run_key = jr.split(key, 4)
        actor = GaussianActor(observation_size, action_size, self.hidden, key=actor_key)
        value = MLP((observation_size,), 1, self.hidden, layer_norm=True, key=value_key)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        return IQLState(
            actor=Trainable.start(actor, self._actor_optimiser),
            value=Trainable.start(value, self._optimiser),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: IQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[IQLState, dict[str, Float[Array, ""]]]:
        """Update V, Q and the policy; metrics `td_loss`, `value_loss`, `actor_loss` and `value`, the mean target."""
        del key
        batch = gather(replay, rows)
        (value, critic, target_critic), metrics, advantages = implicit_step(
            state.value,
            state.critic,
            state.target_critic,
            batch,
            self.target,
            self.expectile,
            self._optimiser,
            self.polyak,
        )
        weights = advantage_weights(advantages, self.inverse_temperature, self.max_weight)
        loss, gradient = eqx.filter_value_and_grad(weighted_cloning_loss)(
            state.actor.network, batch.observations, batch.actions, weights
        )
        state = dataclasses.replace(
            state,
            actor=state.actor.updated(gradient, self._actor_optimiser),
            value=value,
            critic=critic,
            target_critic=target_critic,
            step=state.step + 1,
        )
        return state, {**metrics, "actor_loss": loss}

    def noise_shape(self, state: IQLState) -> tuple[int, ...]:
        return state.actor.network.log_std.shape

    def decode(
        self, state: IQLState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        """Return an action of the policy, its standard deviations times `temperature`."""
        return state.actor.network.sample(observation, self.temperature * noise)

    @property
    def _actor_optimiser(self) -> optax.GradientTransformation:
        rate, updates = self.learning_rate, self.decay_updates
        return optax.adam(rate if updates is None else optax.cosine_decay_schedule(rate, updates))


def advantage_weights(
    advantages: Float[Array, " batch"], inverse_temperature: float, max_weight: float
) -> Float[Array, " batch"]:
    """Compute min(exp(β A), limit), constants to the gradient."""
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(inverse_temperature * advantages), max_weight))


def weighted_cloning_loss(
    actor: GaussianActor,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    weights: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Compute −mean w log π(a|s)."""
    return -jnp.mean(weights * jax.vmap(actor.log_prob)(observations, actions))
