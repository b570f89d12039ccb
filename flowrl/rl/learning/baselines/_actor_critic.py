"""What the baselines with a critic share: a batch, the critic's update and values, and the flow along it in test."""

import functools
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._domain import Box
from flowrl._flow import Ascent
from flowrl._solution import Solution
from flowrl._solver import Optax
from flowrl._target import Boltzmann
from flowrl._transport import Transport
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import (
    AbstractState,
    AbstractValueBased,
    Trainable,
    copied,
    critic_loss,
    td_target,
)
from flowrl.rl.networks import AbstractAggregate, AbstractCritic, AbstractCriticModel, Maximum, aggregated_value


@functools.cache
def _transport() -> Transport:
    """Return one object, since another optimiser would compile again; no arrays are made when this is imported."""
    with jax.ensure_compile_time_eval():  # asked for while tracing, and kept beyond it
        return Transport(Ascent(), Optax(), Box(-1.0, 1.0))


class AbstractActorCriticState(AbstractState):
    """The state of a baseline with a critic.

    Attributes:
        critic: Q.
        target_critic: its Polyak average.
    """

    critic: AbstractVar[Trainable[AbstractCritic]]
    target_critic: AbstractVar[AbstractCritic]


S = TypeVar("S", bound=AbstractActorCriticState)


class AbstractActorCritic(AbstractValueBased[S]):
    """A baseline with a critic: its proposals can be transported along that critic, as those of VGF are.

    The proposals climb, each by itself, along the gradient of the ensemble aggregated by `improvement`, with the steps
    of Adam in the units of the action, within the box of actions: `flowrl.rl.presets.default` in test. So the test
    budget of a `Policy` asks of every baseline what a flow along its critic adds to it.

    All of them have the fields below, each with defaults of its own.

    Attributes:
        target: makes the ensemble one number where others learn from its values: in the TD target, in V, in weights.
        improvement: makes it the number along whose gradient proposals flow in test, and that an actor climbs.
        selection: makes it the number by which candidates are ranked.
        polyak: rate in (0, 1] at which the target networks follow.
        learning_rate: Adam's rate.
        batch_size: transitions per update.
        hidden: widths of the hidden layers of all networks.
        members: number of critics.
        critic: what they are, and by which loss they are fitted.
    """

    target: AbstractVar[AbstractAggregate]
    improvement: AbstractVar[AbstractAggregate]
    polyak: AbstractVar[float]
    learning_rate: AbstractVar[float]
    hidden: AbstractVar[tuple[int, ...]]
    members: AbstractVar[int]
    critic: AbstractVar[AbstractCriticModel]

    def improve(
        self, state: S, observation: Float[Array, " obs"], particles: Float[Array, "n act"], budget: Budget
    ) -> Solution:
        target = Boltzmann(aggregated_value, state.critic.network, self.improvement, observation)
        save = tuple(range(budget.bound + 1))
        return _transport()(target, particles, budget, save=save, throw=False)

    def values(
        self, state: S, observation: Float[Array, " obs"], actions: Float[Array, "n act"]
    ) -> Float[Array, "members n"]:
        return jax.vmap(state.critic.network, (None, 0), 1)(observation, actions)

    def unit(self, state: S) -> Float[Array, ""]:
        del state
        return jnp.ones((), jnp.float32)

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def _start_critic(
        self, observation_size: int, action_size: int, key: Key
    ) -> tuple[Trainable[AbstractCritic], AbstractCritic]:
        """Return the ensemble with its optimiser's state, and its slow copy."""
        critic = self.critic.init(observation_size, action_size, self.hidden, self.members, key=key)
        return Trainable.start(critic, self._optimiser), copied(critic)


class Batch(NamedTuple):
    """What updates read of the data.

    Attributes:
        observations: s, standardised.
        actions: a.
        returns: n-step returns.
        discounts: γ^m · mask.
        next_observations: states from which values are bootstrapped.
    """

    observations: Float[Array, "batch obs"]
    actions: Float[Array, "batch act"]
    returns: Float[Array, " batch"]
    discounts: Float[Array, " batch"]
    next_observations: Float[Array, "batch obs"]


def gather(replay: Replay, rows: Int[Array, " batch"]) -> Batch:
    """Return the rows of a batch.

    Args:
        replay: the data.
        rows: which.
    """
    return Batch(
        replay.observations[rows],
        replay.actions[rows],
        replay.returns[rows],
        replay.discounts[rows],
        replay.next_observations[replay.bootstrap[rows]],
    )


def backup(
    target_critic: AbstractCritic, aggregate: AbstractAggregate, batch: Batch, actions: Float[Array, "batch n act"]
) -> Float[Array, " batch"]:
    """Compute y = returns + discounts · the largest value of the actions in a bootstrap state; mostly there is one.

    Args:
        target_critic: the slow ensemble.
        aggregate: makes its members one number.
        batch: the data.
        actions: n in each bootstrap state.
    """
    return td_target(
        target_critic, aggregate, Maximum(), batch.returns, batch.discounts, batch.next_observations, actions
    )


def critic_step(
    critic: Trainable[AbstractCritic],
    optimiser: optax.GradientTransformation,
    batch: Batch,
    targets: Float[Array, " batch"],
) -> tuple[Trainable[AbstractCritic], Float[Array, ""]]:
    """Return the ensemble after one step on the TD loss, and the loss before it.

    Args:
        critic: the ensemble with its optimiser's state.
        optimiser: the one that it was started with.
        batch: the data.
        targets: y.
    """
    loss, gradient = eqx.filter_value_and_grad(critic_loss)(
        critic.network, batch.observations, batch.actions, jax.lax.stop_gradient(targets)
    )
    return critic.updated(gradient, optimiser), loss


def magnitude(values: Float[Array, " batch"]) -> Float[Array, ""]:
    """Compute the mean of |Q| over a batch, as a constant to the gradient and never 0."""
    return jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.abs(values)), 1e-6))
