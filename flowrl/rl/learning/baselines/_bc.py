"""Behaviour cloning: the reference alone."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractAlgorithm, AbstractState, ReferenceLearner, ReferenceState
from flowrl.rl.learning.baselines._actor_critic import check


class BCState(AbstractState):
    """Everything that training changes.

    Attributes:
        reference: μ.
        step: updates so far.
        key: randomness to come.
    """

    reference: ReferenceState
    step: Int[Array, ""]
    key: Key


class BC(AbstractAlgorithm[BCState]):
    r"""Behaviour cloning by a generative model; one proposal is the policy.

    $$\mathcal{L}_\mu = \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2, \qquad x_t = (1 - t)\, x_0 + t\, a$$

    for the flow, x₀ standard normal and t uniform on [0, 1]; the negative log likelihood for the normal law. There is
    no critic: nothing ranks the proposals, and none can be moved.

    Attributes:
        reference: "flow" for a flow-matching model, "gaussian" for a normal law.
        learning_rate: Adam's rate.
        batch_size: transitions an update.
        hidden: widths of the hidden layers.
        reference_steps: K, Euler steps of a sample of the flow.

    ??? cite "Source"
        The flow and the defaults: Park et al., *Flow Q-Learning*, ICML 2025 (arXiv 2502.02538), eq. 5.
    """

    reference: Literal["flow", "gaussian"] = eqx.field(static=True, default="flow")
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(512, 512, 512, 512))
    reference_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check(self, counts=("reference_steps",))
        if self.reference not in ("flow", "gaussian"):
            raise ValueError(f"BC: reference must be 'flow' or 'gaussian', got {self.reference!r}.")

    def init(self, observation_size: int, action_size: int, *, key: Key) -> BCState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        reference_key, run_key = jr.split(key)
        reference = self._learner.init(observation_size, action_size, key=reference_key)
        return BCState(reference=reference, step=jnp.zeros((), jnp.int32), key=run_key)

    def update(
        self, state: BCState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[BCState, dict[str, Float[Array, ""]]]:
        """Fit the reference to the actions of a batch.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metric `bc_loss`.
        """
        reference, metrics = self._learner.update(state.reference, replay.observations[rows], replay.actions[rows], key)
        state = dataclasses.replace(state, reference=reference, step=state.step + 1)
        return state, {"bc_loss": metrics["reference_loss"]}

    def propose(self, state: BCState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one sample of the reference.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this sample.
        """
        return state.reference.sample(observation, jr.normal(key, (state.reference.action_size,), observation.dtype))

    @property
    def _learner(self) -> ReferenceLearner:
        return reference_learner(self.reference, self.hidden, self.reference_steps, self.learning_rate)


def reference_learner(
    kind: Literal["flow", "gaussian"],
    hidden: tuple[int, ...],
    steps: int,
    learning_rate: float,
    average: float = 0.0,
) -> ReferenceLearner:
    """Give the learner of a reference that is trained along with the rest, at a constant rate.

    Args:
        kind: "flow" or "gaussian".
        hidden: widths of the hidden layers.
        steps: K.
        learning_rate: Adam's rate.
        average: decay of the average of its weights, 0 for none.
    """
    return ReferenceLearner(
        kind=kind,
        hidden=hidden,
        steps=steps,
        learning_rate=learning_rate,
        decay_updates=None,
        average=average,
        one_step=False,
    )
