"""Policies that are a network of the state alone: one action, or a distribution around it."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.nn import MLP


class DeterministicActor(eqx.Module):
    """One action per state: π(s) = tanh(network(s)).

    Attributes:
        network: computes the action before the squashing.
    """

    network: MLP

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key):
        """Create the actor.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size,), action_size, hidden, key=key)

    def __call__(self, observation: Float[Array, " obs"]) -> Float[Array, " act"]:
        """Compute π(s), in [−1, 1].

        Args:
            observation: s, standardised.
        """
        return jnp.tanh(self.network(observation))


class GaussianActor(eqx.Module):
    """A normal distribution with mean tanh(network(s)) and standard deviations that do not depend on the state.

    Attributes:
        network: computes the mean before the squashing.
        log_std: logarithms of the standard deviations, (act,); clipped to [−5, 2] where they are used.
    """

    network: MLP
    log_std: Float[Array, " act"]

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key):
        """Create the actor, with standard deviations of 1.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size,), action_size, hidden, key=key)
        self.log_std = jnp.zeros(action_size, jnp.float32)

    def log_prob(self, observation: Float[Array, " obs"], action: Float[Array, " act"]) -> Float[Array, ""]:
        """Compute log π(a|s), summed over the coordinates.

        Args:
            observation: s, standardised.
            action: a.
        """
        mean, log_std = self._moments(observation)
        whitened = (action - mean) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * whitened**2 + log_std + 0.5 * math.log(2 * math.pi))

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Return mean + standard deviation · noise, clipped to [−1, 1]; no noise gives the mean.

        Args:
            observation: s, standardised.
            noise: standard normal.
        """
        mean, log_std = self._moments(observation)
        return jnp.clip(mean + jnp.exp(log_std) * noise, -1, 1)

    def _moments(self, observation: Array) -> tuple[Array, Array]:
        return jnp.tanh(self.network(observation)), jnp.clip(self.log_std, -5, 2)


class SquashedGaussianActor(eqx.Module):
    """A normal distribution squashed by tanh, its mean and standard deviations both of the state.

    Attributes:
        network: computes the mean and the logarithms of the standard deviations, clipped to [−20, 2].
    """

    network: MLP

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key):
        """Create the actor.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of what is drawn.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size,), 2 * action_size, hidden, key=key)

    def sample(
        self, observation: Float[Array, " obs"], noise: Float[Array, " act"]
    ) -> tuple[Float[Array, " act"], Float[Array, ""]]:
        """Return a draw w = tanh(mean + standard deviation · noise), and log π(w|s).

        Args:
            observation: s, standardised.
            noise: standard normal.
        """
        mean, log_std = jnp.split(self.network(observation), 2)
        log_std = jnp.clip(log_std, -20, 2)
        drawn = mean + jnp.exp(log_std) * noise
        # log(1 − tanh²u) in a form that does not cancel where |u| is large.
        slope = 2 * (math.log(2) - drawn - jax.nn.softplus(-2 * drawn))
        log_prob = -jnp.sum(0.5 * noise**2 + log_std + 0.5 * math.log(2 * math.pi) + slope)
        return jnp.tanh(drawn), log_prob
