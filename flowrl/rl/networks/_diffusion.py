"""A denoising diffusion model of actions, with few steps."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.nn import MLP
from flowrl.rl.networks._reference import AbstractReference, AbstractReferenceModel


class DiffusionPolicy(AbstractReference):
    r"""Actions by denoising: a network guesses the noise in an action, and T steps take it out.

    The variance-preserving schedule, for t = 1, ..., T:

    $$\beta_t = 1 - \exp\Bigl(-\frac{0.1}{T} - \frac{(10 - 0.1)(2t - 1)}{2 T^2}\Bigr), \qquad
      \bar\alpha_t = \prod_{u \le t} (1 - \beta_u)$$

    The network is fitted to the noise ε in an action of the data, and one step back takes a part of its guess out:

    $$\mathcal{L} = \mathbb{E}\,|\epsilon_\theta(s, x_t, t) - \varepsilon|^2, \qquad
      x_t = \sqrt{\bar\alpha_t}\, a + \sqrt{1 - \bar\alpha_t}\, \varepsilon$$

    $$x_{t-1} = \frac{\sqrt{\bar\alpha_{t-1}}\, \beta_t\, \hat a + \sqrt{1 - \beta_t}\, (1 - \bar\alpha_{t-1})\, x_t}
      {1 - \bar\alpha_t} + \sqrt{\frac{1 - \bar\alpha_{t-1}}{1 - \bar\alpha_t} \beta_t}\; z, \qquad
      \hat a = \operatorname{clip}\Bigl(\frac{x_t - \sqrt{1 - \bar\alpha_t}\, \epsilon_\theta(s, x_t, t)}
      {\sqrt{\bar\alpha_t}}, -1, 1\Bigr)$$

    with z standard normal. The last step adds no noise, and its action lies in [−1, 1] by itself.

    The step enters the network as a unit vector, so that each has a learned shift of the first layer.

    Attributes:
        network: of s, x and the step.
        steps: T >= 1.

    ??? cite "Source"
        Ho et al., *Denoising Diffusion Probabilistic Models*, NeurIPS 2020; the schedule is that of Wang et al.,
        *Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning*, ICLR 2023.
    """

    network: MLP
    steps: int = eqx.field(static=True)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.steps, *self.network.layers[-1].bias.shape)

    def times(self, key: Key, batch: int, dtype: jnp.dtype) -> Int[Array, " batch"]:
        """Draw t − 1, uniform on 0, ..., T − 1."""
        del dtype
        return jr.randint(key, (batch,), 0, self.steps)

    def loss(
        self,
        observation: Float[Array, " obs"],
        action: Float[Array, " act"],
        noise: Float[Array, " act"],
        time: Int[Array, ""],
    ) -> Float[Array, ""]:
        kept = self._schedule()[1][time].astype(noise.dtype)
        noised = jnp.sqrt(kept) * action + jnp.sqrt(1 - kept) * noise
        return jnp.mean((self._noise(observation, noised, time) - noise) ** 2)

    def denoise(
        self,
        observation: Float[Array, " obs"],
        noised: Float[Array, " act"],
        step: Int[Array, ""],
        noise: Float[Array, " act"],
    ) -> Float[Array, " act"]:
        """Take one step back, from x_t to x_{t−1}.

        Args:
            observation: s, standardised.
            noised: x_t.
            step: t − 1, in 0, ..., T − 1.
            noise: z, standard normal; without effect in the last step, 0.
        """
        beta, kept, before = (x[step].astype(noised.dtype) for x in self._schedule())
        clean = (noised - jnp.sqrt(1 - kept) * self._noise(observation, noised, step)) / jnp.sqrt(kept)
        clean = jnp.clip(clean, -1, 1)
        mean = (jnp.sqrt(before) * beta * clean + jnp.sqrt(1 - beta) * (1 - before) * noised) / (1 - kept)
        return mean + jnp.sqrt((1 - before) / (1 - kept) * beta) * noise

    def sample(self, observation: Float[Array, " obs"], noise: Float[Array, "steps act"]) -> Float[Array, " act"]:
        """Turn noise into an action: x_T, and what all steps but the last add. All steps can be differentiated."""

        def back(noised: Array, step_and_noise: tuple[Array, Array]) -> tuple[Array, None]:
            return self.denoise(observation, noised, *step_and_noise), None

        added = jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])])
        action, _ = jax.lax.scan(back, noise[0], (jnp.arange(self.steps)[::-1], added))
        return action

    def _noise(self, observation: Array, noised: Array, step: Array) -> Array:
        return self.network(observation, noised, jax.nn.one_hot(step, self.steps, dtype=noised.dtype))

    def _schedule(self) -> tuple[Array, Array, Array]:
        """Return β_t, ᾱ_t and ᾱ_{t−1} for all t."""
        t = np.arange(1, self.steps + 1)
        beta = 1 - np.exp(-0.1 / self.steps - 0.5 * (10 - 0.1) * (2 * t - 1) / self.steps**2)
        kept = np.cumprod(1 - beta)
        before = np.concatenate([np.ones(1), kept[:-1]])
        return jnp.asarray(beta), jnp.asarray(kept), jnp.asarray(before)


class Denoising(AbstractReferenceModel):
    """A `DiffusionPolicy`.

    Attributes:
        steps: T >= 1, denoising steps per sample.
    """

    steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check_fields(self, counts=("steps",))

    def init(self, observation_size: int, action_size: int, hidden: Sequence[int], *, key: Key) -> DiffusionPolicy:
        return DiffusionPolicy(
            MLP((observation_size, action_size, self.steps), action_size, hidden, key=key), self.steps
        )
