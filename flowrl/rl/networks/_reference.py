"""The reference μ(a|s): the behaviour policy, learned from the data."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.nn import MLP


class AbstractReference(eqx.Module):
    """A model of the behaviour policy: a loss to fit it by, and a map from noise to actions."""

    @property
    @abc.abstractmethod
    def action_size(self) -> int:
        """Coordinates of an action."""

    @abc.abstractmethod
    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        """Give the loss of one sample.

        Args:
            observation: s.
            action: a, from the data.
            noise: standard normal.
            time: uniform on [0, 1].
        """

    @abc.abstractmethod
    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Turn noise into an action.

        Args:
            observation: s.
            noise: standard normal.

        Returns:
            An action in [−1, 1].
        """


class FlowReference(AbstractReference):
    """A flow-matching model of the behaviour policy.

    A field w(s, x, t) is fitted to x₁ − x₀ on the straight path x_t = (1 − t) x₀ + t x₁ from noise x₀ to an action x₁;
    integrating it from noise by K Euler steps samples an action, clipped to [−1, 1].

    Attributes:
        field: the network w.
        steps: K.

    ??? cite "Source"
        Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023; Park et al., *Flow Q-Learning*, ICML 2025.
    """

    field: MLP
    steps: int = eqx.field(static=True)

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, steps: int = 5, key: Key):
        """Make the model.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            steps: K >= 1, Euler steps of a sample.
            key: randomness of the weights.
        """
        self.field = MLP((observation_size, action_size, 1), action_size, hidden, key=key)
        self.steps = steps

    @property
    def action_size(self) -> int:
        return self.field.layers[-1].bias.shape[0]

    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        """Give the flow-matching loss of one sample, the mean square over coordinates.

        Args:
            observation: s.
            action: x₁.
            noise: x₀, standard normal.
            time: t in [0, 1].
        """
        on_path = (1 - time) * noise + time * action
        return jnp.mean((self.field(observation, on_path, time[None]) - (action - noise)) ** 2)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Integrate the field from noise.

        Args:
            observation: s.
            noise: x₀, standard normal.

        Returns:
            An action in [−1, 1].
        """

        def euler(i: Array, x: Array) -> Array:
            time = (i / self.steps).astype(x.dtype)
            return x + self.field(observation, x, time[None]) / self.steps

        return jnp.clip(jax.lax.fori_loop(0, self.steps, euler, noise), -1, 1)


class GaussianReference(AbstractReference):
    """A normal law whose mean and standard deviations depend on the state: one mode, and cheap.

    Attributes:
        network: gives the mean and the logarithms of the standard deviations.
    """

    network: MLP

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key):
        """Make the model.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size,), 2 * action_size, hidden, key=key)

    @property
    def action_size(self) -> int:
        return self.network.layers[-1].bias.shape[0] // 2

    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        """Give the negative log likelihood of one action up to a constant, the mean over coordinates.

        Args:
            observation: s.
            action: a.
            noise: unused: the likelihood is in closed form.
            time: unused.
        """
        del noise, time
        mean, log_std = self._moments(observation)
        return jnp.mean(0.5 * ((action - mean) * jnp.exp(-log_std)) ** 2 + log_std)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Give mean + standard deviation · noise, clipped.

        Args:
            observation: s.
            noise: standard normal.

        Returns:
            An action in [−1, 1].
        """
        mean, log_std = self._moments(observation)
        return jnp.clip(mean + jnp.exp(log_std) * noise, -1, 1)

    def _moments(self, observation: Array) -> tuple[Array, Array]:
        mean, log_std = jnp.split(self.network(observation), 2)
        # Narrower than any behaviour worth modelling, wider than the box of actions.
        return mean, jnp.clip(log_std, -5, 1)


class OneStepReference(eqx.Module):
    """A sampler of a reference in one evaluation of a network, distilled from the reference.

    It is fitted to the reference's own samples, |g(s, z) − sample(s, z)|², for the same noise z.

    Attributes:
        network: g.

    ??? cite "Source"
        Park et al., *Flow Q-Learning*, ICML 2025: its distillation loss, without the Q term.
    """

    network: MLP

    def __init__(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key):
        """Make the sampler.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size, action_size), action_size, hidden, key=key)

    @property
    def action_size(self) -> int:
        """Coordinates of an action."""
        return self.network.layers[-1].bias.shape[0]

    def loss(
        self, teacher: AbstractReference, observation: Float[Array, " obs"], noise: Float[Array, " act"]
    ) -> Float[Array, ""]:
        """Give the distance to the teacher's sample from the same noise, the mean square over coordinates.

        Args:
            teacher: the reference; no gradient goes to it.
            observation: s.
            noise: standard normal.
        """
        sample = jax.lax.stop_gradient(teacher.sample(observation, noise))
        return jnp.mean((self.network(observation, noise) - sample) ** 2)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Turn noise into an action.

        Args:
            observation: s.
            noise: standard normal.

        Returns:
            An action in [−1, 1].
        """
        return jnp.clip(self.network(observation, noise), -1, 1)
