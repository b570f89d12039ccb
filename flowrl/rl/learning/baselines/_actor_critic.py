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
from flowrl._domain import Box
from flowrl._flow import Ascent
from flowrl._solution import Solution
from flowrl._solver import Optax
from flowrl._target import Boltzmann
from flowrl._transport import Transport
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import (
    AbstractAlgorithm,
    AbstractState,
    AbstractValueBased,
    Trainable,
    critic_loss,
    td_target,
)
from flowrl.rl.networks import AbstractAggregate, Critic, aggregated_value


@functools.cache
def _transport() -> Transport:
    """Make it once, since an optimiser made anew would compile anew; but no arrays when this module is imported."""
    with jax.ensure_compile_time_eval():  # asked for while tracing, and kept beyond it
        return Transport(Ascent(), Optax(), Box(-1.0, 1.0))


class AbstractActorCriticState(AbstractState):
    """The state of a baseline with a critic.

    Attributes:
        critic: Q.
        target_critic: its Polyak average.
    """

    critic: AbstractVar[Trainable[Critic]]
    target_critic: AbstractVar[Critic]


S = TypeVar("S", bound=AbstractActorCriticState)


class AbstractActorCritic(AbstractValueBased[S]):
    """A baseline with a critic: its proposals can be transported along that critic, as those of VGF are.

    The proposals climb, each by itself, along the gradient of the ensemble aggregated by `improvement`, with the steps
    of Adam in the units of the action, within the box of actions: `flowrl.rl.presets.default` in test. So the test
    budget of a `Policy` asks of every baseline what a flow along its critic adds to it.

    Attributes:
        improvement: makes the values of the ensemble the number that an actor climbs in training, and the proposals in
            test.
    """

    improvement: AbstractVar[AbstractAggregate]

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


class Batch(NamedTuple):
    """What updates read of the data.

    Attributes:
        observations: s, (batch, obs).
        actions: a, (batch, act).
        returns: n-step returns, (batch,).
        discounts: γ^m · mask, (batch,).
        next_observations: s', the states from which values are bootstrapped, (batch, obs).
    """

    observations: Array
    actions: Array
    returns: Array
    discounts: Array
    next_observations: Array


def gather(replay: Replay, rows: Int[Array, " batch"]) -> Batch:
    """Give the rows of a batch.

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
    target_critic: Critic, aggregate: AbstractAggregate, batch: Batch, actions: Float[Array, "batch n act"]
) -> Float[Array, " batch"]:
    """Give y = returns + discounts · the largest value of the actions given in a bootstrap state; mostly there is one.

    Args:
        target_critic: the slow ensemble.
        aggregate: makes its members one number.
        batch: the data.
        actions: in the bootstrap states.
    """
    return td_target(target_critic, aggregate, "max", batch.returns, batch.discounts, batch.next_observations, actions)


def critic_step(
    critic: Trainable, optimiser: optax.GradientTransformation, batch: Batch, targets: Float[Array, " batch"]
) -> tuple[Trainable, Float[Array, ""]]:
    """Take one step on the TD loss.

    Args:
        critic: the ensemble.
        optimiser: its optimiser.
        batch: states and actions.
        targets: y; no gradient goes through it.

    Returns:
        The ensemble after the step and the loss before it.
    """
    loss, gradient = eqx.filter_value_and_grad(critic_loss)(
        critic.network, batch.observations, batch.actions, jax.lax.stop_gradient(targets)
    )
    return critic.updated(gradient, optimiser), loss


def magnitude(values: Float[Array, " batch"]) -> Float[Array, ""]:
    """Give the mean of |Q| over a batch, as a constant to the gradient and never 0.

    Args:
        values: Q.
    """
    return jax.lax.stop_gradient(jnp.maximum(jnp.mean(jnp.abs(values)), 1e-6))


def check(
    algorithm: AbstractAlgorithm,
    *,
    counts: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    at_least_zero: tuple[str, ...] = (),
    fractions: tuple[str, ...] = (),
) -> None:
    """Refuse fields that make no sense. Every algorithm has a `batch_size`, a `learning_rate` and `hidden`.

    Args:
        algorithm: whose fields.
        counts: fields >= 1.
        positive: fields > 0.
        at_least_zero: fields >= 0.
        fractions: fields in (0, 1].

    Raises:
        ValueError: one of them is out of range.
    """
    infinity = float("inf")
    for names, good, text in (
        (("batch_size", *counts), lambda x: x >= 1, ">= 1"),
        (("learning_rate", *positive), lambda x: 0 < x < infinity, "> 0"),
        (at_least_zero, lambda x: 0 <= x < infinity, ">= 0"),
        (fractions, lambda x: 0 < x <= 1, "in (0, 1]"),
        (("hidden",), lambda x: all(width >= 1 for width in x), "widths >= 1"),
    ):
        for name in names:
            if not good(getattr(algorithm, name)):
                raise ValueError(f"{type(algorithm).__name__}: {name} must be {text}, got {getattr(algorithm, name)}.")
