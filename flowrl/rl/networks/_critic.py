"""The critic ensemble, and how its members are made one number.

The TD target, the drive of the flow and the selection each choose their own aggregate: agreeing with the pessimist when
bootstrapping does not mean driving along his gradient.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.nn import MLP, stack


class AbstractAggregate(eqx.Module):
    """A rule that turns the members' values into one."""

    @abc.abstractmethod
    def __call__(self, values: Float[Array, "members ..."]) -> Float[Array, "..."]:
        """Aggregate over the leading axis.

        Args:
            values: one value a member.
        """


class Mean(AbstractAggregate):
    """The mean of the members."""

    def __call__(self, values: Float[Array, "members ..."]) -> Float[Array, "..."]:
        """Give the mean over the leading axis.

        Args:
            values: one value a member.
        """
        return jnp.mean(values, axis=0)


class Minimum(AbstractAggregate):
    """The smallest of the members (clipped double Q-learning)."""

    def __call__(self, values: Float[Array, "members ..."]) -> Float[Array, "..."]:
        """Give the minimum over the leading axis.

        Args:
            values: one value a member.
        """
        return jnp.min(values, axis=0)


class LowerConfidence(AbstractAggregate):
    """Mean − κ standard deviation of the members.

    Attributes:
        kappa: κ >= 0.
    """

    kappa: float = 1.0

    def __call__(self, values: Float[Array, "members ..."]) -> Float[Array, "..."]:
        """Give mean − κ std over the leading axis.

        Args:
            values: one value a member.
        """
        mean = jnp.mean(values, axis=0)
        # The small constant keeps the gradient of the root finite where the members agree.
        variance = jnp.mean((values - mean[None]) ** 2, axis=0)
        return mean - self.kappa * jnp.sqrt(variance + 1e-12)


class Critic(eqx.Module):
    """An ensemble of LayerNorm networks Q_k(s, a).

    Attributes:
        members: one network whose arrays have a leading axis of members.
    """

    members: MLP

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], members: int, *, key: Key):
        """Make the ensemble.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            members: number of networks.
            key: randomness of the weights.
        """
        self.members = stack(
            lambda k: MLP((observation_size, action_size), 1, hidden, layer_norm=True, key=k), members, key=key
        )

    def __call__(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        """Give Q_k(s, a) of every member.

        Args:
            observation: s.
            action: a.
        """
        return eqx.filter_vmap(lambda m: m(observation, action)[0])(self.members)


def aggregated_value(
    critic: Critic, aggregate: AbstractAggregate, observation: Array, action: Array
) -> Float[Array, ""]:
    """Give the aggregated value, in the order `flowrl.Boltzmann(aggregated_value, critic, aggregate, state)` wants.

    Args:
        critic: the ensemble.
        aggregate: how members become one number.
        observation: s.
        action: a.
    """
    return aggregate(critic(observation, action))
