"""The reference μ(a|s): the behaviour policy, learned from the data by a generative model."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.nn import MLP


class AbstractReference(eqx.Module):
    """A generative model of actions: a loss to fit it by, and a map from noise to actions."""

    @property
    @abc.abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one sample."""

    @abc.abstractmethod
    def times(self, key: Key, batch: int, dtype: jnp.dtype) -> Float[Array, " batch"] | Int[Array, " batch"]:
        """Draw the times at which `loss` compares.

        Args:
            key: randomness.
            batch: how many.
            dtype: of the actions.
        """

    @abc.abstractmethod
    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""] | Int[Array, ""],
    ) -> Float[Array, ""]:
        """Compute the loss of one action of the data, a mean over its coordinates.

        Args:
            observation: s, standardised.
            action: a.
            noise: standard normal.
            time: from `times`.
        """

    @abc.abstractmethod
    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, "..."]) -> Float[Array, " act"]:
        """Turn noise into an action in [−1, 1].

        Args:
            observation: s, standardised.
            noise: standard normal, of `noise_shape`.
        """


class AbstractReferenceModel(eqx.Module):
    """Which generative model a reference or a policy is, as a value that creates the network."""

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key) -> AbstractReference:
        """Create the network.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """


class FlowReference(AbstractReference):
    """A flow-matching model of the behaviour policy.

    A field w(s, x, t) is fitted to x₁ − x₀ on the straight path x_t = (1 − t) x₀ + t x₁ from noise x₀ to an action x₁;
    integrating it from noise by K Euler steps samples an action, clipped to [−1, 1].

    Attributes:
        field: the network w.
        steps: K >= 1.

    ??? cite "Source"
        Lipman et al., *Flow Matching for Generative Modeling*, ICLR 2023; Park et al., *Flow Q-Learning*, ICML 2025.
    """

    field: MLP
    steps: int = eqx.field(static=True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.field.layers[-1].bias.shape

    def times(self, key: Key, batch: int, dtype: jnp.dtype) -> Float[Array, " batch"]:
        return jr.uniform(key, (batch,), dtype)

    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        on_path = (1 - time) * noise + time * action
        return jnp.mean((self.field(observation, on_path, time[None]) - (action - noise)) ** 2)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        def euler(i: Array, x: Array) -> Array:
            time = (i / self.steps).astype(x.dtype)
            return x + self.field(observation, x, time[None]) / self.steps

        return jnp.clip(jax.lax.fori_loop(0, self.steps, euler, noise), -1, 1)


class FlowMatching(AbstractReferenceModel):
    """A `FlowReference`.

    Attributes:
        steps: K >= 1, Euler steps per sample.
    """

    steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check_fields(self, counts=("steps",))

    def init(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key) -> FlowReference:
        return FlowReference(MLP((observation_size, action_size, 1), action_size, hidden, key=key), self.steps)


class GaussianReference(AbstractReference):
    """A normal distribution whose mean and standard deviations depend on the state: one mode, and cheap.

    Its loss is the negative log likelihood up to a constant, in closed form: noise and time are unused.

    Attributes:
        network: computes the mean and the logarithms of the standard deviations.
    """

    network: MLP

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.network.layers[-1].bias.shape[0] // 2,)

    def times(self, key: Key, batch: int, dtype: jnp.dtype) -> Float[Array, " batch"]:
        del key
        return jnp.zeros(batch, dtype)

    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        del noise, time
        mean, log_std = self._moments(observation)
        return jnp.mean(0.5 * ((action - mean) * jnp.exp(-log_std)) ** 2 + log_std)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        mean, log_std = self._moments(observation)
        return jnp.clip(mean + jnp.exp(log_std) * noise, -1, 1)

    def _moments(self, observation: Array) -> tuple[Array, Array]:
        mean, log_std = jnp.split(self.network(observation), 2)
        # Narrower than any behaviour worth modelling, wider than the box of actions.
        return mean, jnp.clip(log_std, -5, 1)


class Gaussian(AbstractReferenceModel):
    """A `GaussianReference`."""

    def init(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key) -> GaussianReference:
        return GaussianReference(MLP((observation_size,), 2 * action_size, hidden, key=key))


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
        """Create the sampler.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            hidden: widths of the hidden layers.
            key: randomness of the weights.
        """
        self.network = MLP((observation_size, action_size), action_size, hidden, key=key)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one sample."""
        return self.network.layers[-1].bias.shape

    def loss(
        self, teacher: AbstractReference, observation: Float[Array, " obs"], noise: Float[Array, " act"]
    ) -> Float[Array, ""]:
        """Compute the distance to the teacher's sample from the same noise, the mean square over coordinates.

        Args:
            teacher: the reference; no gradient goes to it.
            observation: s, standardised.
            noise: standard normal.
        """
        sample = jax.lax.stop_gradient(teacher.sample(observation, noise))
        return jnp.mean((self.network(observation, noise) - sample) ** 2)

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, " act"]) -> Float[Array, " act"]:
        """Turn noise into an action in [−1, 1].

        Args:
            observation: s, standardised.
            noise: standard normal.
        """
        return jnp.clip(self.network(observation, noise), -1, 1)
