"""The critic ensemble, and how its members are made one number.

The TD target, the improvement along the critic and the selection each choose their own aggregate: agreeing with the
pessimist when bootstrapping does not mean climbing along his gradient.
"""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.nn import MLP, stack


class AbstractAggregate(eqx.Module):
    """A rule that makes several values one: of the members of an ensemble, or of the particles of a state."""

    @abc.abstractmethod
    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        """Aggregate over the leading axis.

        Args:
            values: one per member or particle.
        """


class Mean(AbstractAggregate):
    """The mean."""

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        return jnp.mean(values, axis=0)


class Minimum(AbstractAggregate):
    """The smallest; of the members, clipped double Q-learning."""

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        return jnp.min(values, axis=0)


class Maximum(AbstractAggregate):
    """The largest; of the particles, an optimistic target."""

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        return jnp.max(values, axis=0)


class First(AbstractAggregate):
    """The first alone, whatever the others say."""

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        return values[0]


class LowerConfidence(AbstractAggregate):
    """Mean − κ standard deviation.

    Attributes:
        kappa: κ >= 0.
    """

    kappa: float = 1.0

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
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
        """Create the ensemble.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            members: number of networks.
            key: randomness of the weights.
        """
        # All algorithms create their critics here: another architecture is another network in this place.
        self.members = stack(
            lambda k: MLP((observation_size, action_size), 1, hidden, layer_norm=True, key=k), members, key=key
        )

    def __call__(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        """Compute Q_k(s, a) of every member.

        Args:
            observation: s.
            action: a.
        """
        return eqx.filter_vmap(lambda m: m(observation, action)[0])(self.members)


# The order of arguments is that of `flowrl.Boltzmann(aggregated_value, critic, aggregate, observation)`.
def aggregated_value(
    critic: Critic, aggregate: AbstractAggregate, observation: Array, action: Array
) -> Float[Array, ""]:
    """Compute the value of one action, the members made one number."""
    return aggregate(critic(observation, action))
