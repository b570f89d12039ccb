"""Behaviour cloning: the reference alone."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractGenerative, AbstractState, ReferenceLearner, ReferenceState
from flowrl.rl.networks import AbstractReferenceModel, FlowMatching


class BCState(AbstractState):
    """Everything that training changes.

    Attributes:
        reference: μ.
    """

    reference: ReferenceState
    step: Int[Array, ""]
    key: Key


class BC(AbstractGenerative[BCState]):
    r"""Behaviour cloning by a generative model; one proposal is the policy.

    $$\mathcal{L}_\mu = \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2, \qquad x_t = (1 - t)\, x_0 + t\, a$$

    for the flow, x₀ standard normal and t uniform on [0, 1]; the negative log likelihood for the normal distribution.
    There is no critic: nothing ranks the proposals, and none can be moved.

    Attributes:
        model: the generative model.
        learning_rate: Adam's rate.
        batch_size: transitions per update.
        hidden: widths of the hidden layers.

    ??? cite "Source"
        The flow and the defaults: Park et al., *Flow Q-Learning*, ICML 2025 (arXiv 2502.02538), eq. 5.
    """

    model: AbstractReferenceModel = FlowMatching(10)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(512, 512, 512, 512))

    def __check_init__(self):
        check_fields(self, counts=("batch_size",), positive=("learning_rate",), widths=("hidden",))

    def init(self, observation_size: int, action_size: int, *, key: Key) -> BCState:
        reference_key, run_key = jr.split(key)
        reference = self._learner.init(observation_size, action_size, key=reference_key)
        return BCState(reference=reference, step=jnp.zeros((), jnp.int32), key=run_key)

    def update(
        self, state: BCState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[BCState, dict[str, Float[Array, ""]]]:
        """Fit the reference to the actions of a batch; the metric is `bc_loss`."""
        reference, metrics = self._learner.update(state.reference, replay.observations[rows], replay.actions[rows], key)
        state = dataclasses.replace(state, reference=reference, step=state.step + 1)
        return state, {"bc_loss": metrics["reference_loss"]}

    def noise_shape(self, state: BCState) -> tuple[int, ...]:
        return state.reference.noise_shape

    def decode(
        self, state: BCState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.reference.sample(observation, noise)

    @property
    def _learner(self) -> ReferenceLearner:
        return ReferenceLearner(self.model, self.hidden, self.learning_rate, updates=None)
