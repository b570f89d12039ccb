"""QC: Q-learning over chunks of actions, whose next chunk is the best of many that a cloned flow proposes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import (
    AbstractGenerative,
    ReferenceLearner,
    ReferenceState,
    Trainable,
    polyak,
    sample_sets,
    value,
)
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic,
    AbstractActorCriticState,
    Batch,
    backup,
    critic_step,
    gather,
)
from flowrl.rl.networks import AbstractAggregate, AbstractCritic, AbstractCriticModel, FlowMatching, Mean, ScalarCritic


class QCState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        reference: μ, the flow.
    """

    reference: ReferenceState
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class QC(AbstractActorCritic[QCState], AbstractGenerative[QCState]):
    r"""Q-learning whose policy is the best of N samples of a model of the data, in training as in acting.

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad y = \sum_{i<h} \gamma^i r_{t+i} +
      \gamma^h \operatorname{mean}_k \bar Q_k(s', a^*), \qquad
      a^* = \operatorname{argmax}_{a_i} \operatorname{mean}_k Q_k(s', a_i), \quad a_1, \dots, a_N \sim \mu(\cdot|s')$$

    $$\mathcal{L}_\mu = \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2, \qquad x_t = (1 - t)\, x_0 + t\, a$$

    with x₀ standard normal, t uniform on [0, 1] and the bar a Polyak average. An action is meant to be a chunk of h
    actions of the environment (`make_replay(chunk=5)`), whose n-step return is then no approximation: the whole chunk
    is what is valued. The policy is made when it acts, as the best of N (`Policy(name, 32)`).

    Attributes:
        particles: N, samples of the reference in a bootstrap state.
        reference_steps: K, Euler steps per sample of the reference.

    ??? cite "Source"
        Li, Zhou and Levine, *Reinforcement Learning with Action Chunking*, NeurIPS 2025 (arXiv 2507.07969), QC with
        best-of-N; defaults are those of the authors' code (github.com/ColinQiyangLi/qc at 48283b4), there with GELUs,
        and chunks that reach beyond the end of an episode masked where here they are left out.
    """

    particles: int = eqx.field(static=True, default=32)
    target: AbstractAggregate = Mean()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(512, 512, 512, 512))
    members: int = eqx.field(static=True, default=2)
    critic: AbstractCriticModel = ScalarCritic()
    reference_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "reference_steps", "particles"),
            positive=("learning_rate",),
            fractions=("polyak",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> QCState:
        reference_key, critic_key, run_key = jr.split(key, 3)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        return QCState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: QCState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[QCState, dict[str, Float[Array, ""]]]:
        """Update the critic and the reference; metrics `td_loss`, `bc_loss` and `value`, the mean target."""
        noise_key, reference_key = jr.split(key)
        batch = gather(replay, rows)
        shape = (batch.actions.shape[0], self.particles, *state.reference.noise_shape)
        noise = jr.normal(noise_key, shape, batch.actions.dtype)
        proposals = sample_sets(state.reference.sample, batch.next_observations, noise)
        chosen = best_proposal(state.critic.network, self.selection, batch, proposals)
        targets = backup(state.target_critic, self.target, batch, chosen[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        reference, fitted = self._learner.update(state.reference, batch.observations, batch.actions, reference_key)
        state = dataclasses.replace(
            state,
            reference=reference,
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {"td_loss": td_loss, "bc_loss": fitted["reference_loss"], "value": jnp.mean(targets)}

    def noise_shape(self, state: QCState) -> tuple[int, ...]:
        return state.reference.noise_shape

    def decode(
        self, state: QCState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.reference.sample(observation, noise)

    @property
    def _learner(self) -> ReferenceLearner:
        return ReferenceLearner(FlowMatching(self.reference_steps), self.hidden, self.learning_rate, updates=None)


def best_proposal(
    critic: AbstractCritic, aggregate: AbstractAggregate, batch: Batch, proposals: Float[Array, "batch n act"]
) -> Float[Array, "batch act"]:
    """Return the proposal of the highest value in each bootstrap state, by the critic that learns."""
    values = jax.vmap(lambda s, a: value(critic, aggregate, s, a))(batch.next_observations, proposals)
    return jnp.take_along_axis(proposals, jnp.argmax(values, axis=1)[:, None, None], axis=1)[:, 0]
