"""The reference μ(a|s): the behaviour policy, learned by conditional flow matching."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Key
from flowrl.nn import MLP


class FlowReference(eqx.Module):
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
        """Coordinates of an action."""
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
        """Turn noise into an action.

        Args:
            observation: s.
            noise: standard normal.

        Returns:
            An action in [−1, 1].
        """

        def euler(i: Array, x: Array) -> Array:
            time = (i / self.steps).astype(x.dtype)
            return x + self.field(observation, x, time[None]) / self.steps

        return jnp.clip(jax.lax.fori_loop(0, self.steps, euler, noise), -1, 1)
