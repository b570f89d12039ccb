"""FQL: a flow cloned from the data, and a one-step policy distilled from it that climbs the critic."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractGenerative, ReferenceLearner, ReferenceState, Trainable, polyak
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic,
    AbstractActorCriticState,
    backup,
    critic_step,
    gather,
    magnitude,
)
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    AbstractReference,
    FlowMatching,
    Mean,
    OneStepReference,
    ScalarCritic,
    aggregated_value,
)


class FQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        reference: μ, the flow.
        actor: g, the one-step policy.
    """

    reference: ReferenceState
    actor: Trainable[OneStepReference]
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class FQL(AbstractActorCritic[FQLState], AbstractGenerative[FQLState]):
    r"""A flow cloned from the data, and a one-step policy distilled from it that climbs the critic.

    $$\mathcal{L}_g = \alpha\, \mathbb{E}\,|g(s, z) - \mu(s, z)|^2 - \mathbb{E}\,\operatorname{mean}_k Q_k(s, g(s, z)),
      \qquad \mathcal{L}_\mu = \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma\, \operatorname{mean}_k \bar Q_k(s', g(s', z))$$

    μ(s, z) is where K Euler steps of the field w carry the noise z, clipped to [−1, 1]; no gradient of the first loss
    goes to it. g is clipped to [−1, 1] wherever Q sees it. x₀ and z are standard normal, x_t = (1 − t) x₀ + t a with t
    uniform on [0, 1], |·|² is the mean over coordinates, and the bar a Polyak average.

    Attributes:
        alpha: α, weight of the distillation against the value, in the units of the value; tuned for each task.
        normalise: divide Q by the mean of |Q|, so that α has no units.
        reference_steps: K, Euler steps per sample of the flow.

    ??? cite "Source"
        Park, Li and Levine, *Flow Q-Learning*, ICML 2025 (arXiv 2502.02538), eqs. 1, 5, 7 and 9, algorithm 1; defaults
        are those of the authors' code. There networks have GELUs, and LayerNorm after them in the critic.
    """

    alpha: float = eqx.field(static=True, default=10.0)
    normalise: bool = eqx.field(static=True, default=False)
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
            counts=("batch_size", "members", "reference_steps"),
            positive=("learning_rate",),
            at_least_zero=("alpha",),
            fractions=("polyak",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> FQLState:
        reference_key, actor_key, critic_key, run_key = jr.split(key, 4)
        actor = OneStepReference(observation_size, action_size, self.hidden, key=actor_key)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        return FQLState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            actor=Trainable.start(actor, self._optimiser),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: FQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[FQLState, dict[str, Float[Array, ""]]]:
        """Update the critic, the flow and the one-step policy.

        Metrics: `td_loss`, `bc_loss`, `actor_loss`, `distillation_loss` and `value`, the mean target.
        """
        backup_key, reference_key, actor_key = jr.split(key, 3)
        batch = gather(replay, rows)
        shape, dtype = batch.actions.shape, batch.actions.dtype
        actor = state.actor.network
        actions = jax.vmap(actor.sample)(batch.next_observations, jr.normal(backup_key, shape, dtype))
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        (loss, metrics), gradient = eqx.filter_value_and_grad(fql_loss, has_aux=True)(
            actor,
            state.reference.network,
            state.critic.network,
            self.improvement,
            batch.observations,
            jr.normal(actor_key, shape, dtype),
            self.alpha,
            normalise=self.normalise,
        )
        reference, fitted = self._learner.update(state.reference, batch.observations, batch.actions, reference_key)
        metrics = {"td_loss": td_loss, "bc_loss": fitted["reference_loss"], "actor_loss": loss, **metrics}
        state = dataclasses.replace(
            state,
            reference=reference,
            actor=state.actor.updated(gradient, self._optimiser),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {**metrics, "value": jnp.mean(targets)}

    def noise_shape(self, state: FQLState) -> tuple[int, ...]:
        return state.actor.network.noise_shape

    def decode(
        self, state: FQLState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.actor.network.sample(observation, noise)

    @property
    def _learner(self) -> ReferenceLearner:
        return ReferenceLearner(FlowMatching(self.reference_steps), self.hidden, self.learning_rate, updates=None)


def fql_loss(
    actor: OneStepReference,
    reference: AbstractReference,
    critic: AbstractCritic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    noise: Float[Array, "batch act"],
    alpha: float,
    *,
    normalise: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Compute α · distillation − mean Q, and the metric `distillation_loss`; no gradient goes to the reference."""
    distillation = jnp.mean(jax.vmap(lambda s, z: actor.loss(reference, s, z))(observations, noise))
    chosen = jax.vmap(actor.sample)(observations, noise)
    values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, chosen)
    value = jnp.mean(values) / magnitude(values) if normalise else jnp.mean(values)
    return alpha * distillation - value, {"distillation_loss": distillation}
