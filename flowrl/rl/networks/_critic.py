"""The critic ensemble, and how its members are made one number.

The TD target, the improvement along the critic and the selection each choose their own aggregate: agreeing with the
pessimist when bootstrapping does not mean climbing along his gradient.
"""

import abc
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl._misc import check_count, check_number
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

    def __check_init__(self):
        check_number("LowerConfidence: kappa", self.kappa, lambda x: x >= 0, ">= 0")

    def __call__(self, values: Float[Array, "values ..."]) -> Float[Array, "..."]:
        mean = jnp.mean(values, axis=0)
        # The small constant keeps the gradient of the root finite where the members agree.
        variance = jnp.mean((values - mean[None]) ** 2, axis=0)
        return mean - self.kappa * jnp.sqrt(variance + 1e-12)


class AbstractCritic(eqx.Module):
    """An ensemble of members Q_k(s, a), with the loss that fits it to targets."""

    @abc.abstractmethod
    def __call__(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        """Compute Q_k(s, a) of every member.

        Args:
            observation: s.
            action: a.
        """

    @abc.abstractmethod
    def loss(
        self, observation: Float[Array, " obs"], action: Float[Array, " act"], target: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Compute the loss of one transition, summed over members.

        Args:
            observation: s.
            action: a.
            target: y, a constant to the gradient.
        """


class AbstractCriticModel(eqx.Module):
    """Which critic an algorithm trains, as a value: another architecture, or another loss, is another model."""

    @abc.abstractmethod
    def init(
        self, observation_size: int, action_size: int, hidden: Sequence[int], members: int, *, key: Key
    ) -> AbstractCritic:
        """Create the ensemble.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            members: number of networks.
            key: randomness of the weights.
        """


class Critic(AbstractCritic):
    """LayerNorm networks whose output is the value, fitted by squared errors.

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
        self.members = _networks(observation_size, action_size, hidden, members, 1, key)

    def __call__(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        return eqx.filter_vmap(lambda m: m(observation, action)[0])(self.members)

    def loss(
        self, observation: Float[Array, " obs"], action: Float[Array, " act"], target: Float[Array, ""]
    ) -> Float[Array, ""]:
        return jnp.sum((self(observation, action) - target) ** 2)


class ScalarCritic(AbstractCriticModel):
    """A `Critic`."""

    def init(self, observation_size: int, action_size: int, hidden: Sequence[int], members: int, *, key: Key) -> Critic:
        return Critic(observation_size, action_size, hidden, members, key=key)


class HistogramCritic(AbstractCritic):
    r"""LayerNorm networks whose output is a histogram of the return, fitted by its cross entropy to a smoothed target.

    Q is the mean of the histogram. The target y is a normal distribution of standard deviation `smoothing` around y,
    its mass in each bin between edges $e_j$ and $e_{j+1}$, brought to sum 1: gradients stay bounded however large y is.

    Attributes:
        members: one network whose arrays have a leading axis of members.
        edges: of the bins, (bins + 1,).
        smoothing: standard deviation of the targets, in the units of the value.

    ??? cite "Source"
        Farebrother et al., *Stop Regressing: Training Value Functions via Classification for Scalable Deep RL*, ICML
        2024 (HL-Gauss).
    """

    members: MLP
    edges: Float[Array, " edges"]
    smoothing: Float[Array, ""]

    def __call__(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, " members"]:
        edges = jax.lax.stop_gradient(self.edges)
        return jax.nn.softmax(self._logits(observation, action)) @ ((edges[1:] + edges[:-1]) / 2)

    def loss(
        self, observation: Float[Array, " obs"], action: Float[Array, " act"], target: Float[Array, ""]
    ) -> Float[Array, ""]:
        edges, smoothing = jax.lax.stop_gradient((self.edges, self.smoothing))
        below = jax.scipy.special.ndtr((edges - jnp.clip(target, edges[0], edges[-1])) / smoothing)
        mass = (below[1:] - below[:-1]) / (below[-1] - below[0])
        return -jnp.sum(jax.nn.log_softmax(self._logits(observation, action)) @ mass)

    def _logits(self, observation: Array, action: Array) -> Float[Array, "members bins"]:
        return eqx.filter_vmap(lambda m: m(observation, action))(self.members)


class Histogram(AbstractCriticModel):
    """A `HistogramCritic`.

    Attributes:
        low: lower end of the returns that are told apart, in the units of the rewards that are learned from.
        high: upper end, > `low`.
        bins: how many, >= 2.
    """

    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    bins: int = eqx.field(static=True, default=51)

    def __check_init__(self):
        check_count("Histogram: bins", self.bins, 2)
        ends = (self.low, self.high)
        check_number(
            "Histogram: low and high", ends, lambda x: -math.inf < x[0] < x[1] < math.inf, "low < high, both finite"
        )

    def init(
        self, observation_size: int, action_size: int, hidden: Sequence[int], members: int, *, key: Key
    ) -> HistogramCritic:
        networks = _networks(observation_size, action_size, hidden, members, self.bins, key)
        # Small outputs at first: a uniform histogram, whose mean is the middle of the range in every state.
        networks = eqx.tree_at(lambda m: m.layers[-1].weight, networks, replace_fn=lambda w: 0.01 * w)
        edges = jnp.linspace(self.low, self.high, self.bins + 1, dtype=jnp.float32)
        return HistogramCritic(networks, edges, 0.75 * (edges[1] - edges[0]))


def _networks(
    observation_size: int, action_size: int, hidden: Sequence[int], members: int, outputs: int, key: Key
) -> MLP:
    inputs = (observation_size, action_size)
    return stack(lambda k: MLP(inputs, outputs, hidden, layer_norm=True, key=k), members, key=key)


# The order of arguments is that of `flowrl.Boltzmann(aggregated_value, critic, aggregate, observation)`.
def aggregated_value(
    critic: AbstractCritic, aggregate: AbstractAggregate, observation: Array, action: Array
) -> Float[Array, ""]:
    """Compute the value of one action, the members made one number."""
    return aggregate(critic(observation, action))
