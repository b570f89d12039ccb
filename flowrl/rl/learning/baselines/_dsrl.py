"""DSRL: a reference cloned from the data, and an actor that chooses the noise from which it is decoded."""

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
)
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    AbstractReference,
    FlowMatching,
    LowerConfidence,
    Mean,
    ScalarCritic,
    SquashedGaussianActor,
    aggregated_value,
)


class EntropyWeight(eqx.Module):
    """The weight β of the entropy, learned.

    Attributes:
        log: log β.
    """

    log: Float[Array, ""]


class DSRLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        reference: μ, the flow and the average of its weights.
        noise_critic: P_k(s, z), the values of noise.
        actor: π over noise.
        entropy: β.
    """

    reference: ReferenceState
    noise_critic: Trainable[AbstractCritic]
    actor: Trainable[SquashedGaussianActor]
    entropy: Trainable[EntropyWeight]
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class DSRL(AbstractActorCritic[DSRLState], AbstractGenerative[DSRLState]):
    r"""A flow cloned from the data, and an actor that chooses its noise by what the decoded action is worth.

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma\, \bigl(\operatorname{mean}_k - \kappa \operatorname{std}_k\bigr)\, \bar Q_k(s', \mu(s', c\,w')),
      \quad w' \sim \pi(\cdot|s')$$

    $$\mathcal{L}_P = \sum_k \mathbb{E}_{z \sim N(0, I)}\, (P_k(s, z) - Q_k(s, \mu(s, z)))^2, \qquad
      \mathcal{L}_\pi = \mathbb{E}_{w \sim \pi(\cdot|s)}\, \bigl[\beta \log \pi(w|s) - \operatorname{mean}_k
      P_k(s, c\,w)\bigr]$$

    μ(s, z) is where K Euler steps of the cloned field, by the average of its weights, carry the noise z, clipped to
    [−1, 1]; π is a normal distribution squashed to [−1, 1], so that no noise beyond ±c is chosen; β follows the entropy
    to `entropy_target` per coordinate. A proposal is decoded from the standard normal noise of π.

    Attributes:
        noise_scale: c > 0, the largest noise; tuned for each task.
        entropy_target: of π over [−1, 1], per coordinate, in nats.
        reference_steps: K, Euler steps per sample of the flow.

    ??? cite "Source"
        Wagenmaker et al., *Steering Your Diffusion Policy with Latent Space Reinforcement Learning*, CoRL 2025 (arXiv
        2506.15799), in the form and with the defaults of Li and Levine's code for *Q-learning with Adjoint Matching*
        (github.com/ColinQiyangLi/qam at f93efd2, agents/dsrl.py), there with GELUs, and losses of the critics that are
        means over members.
    """

    noise_scale: float = eqx.field(static=True, default=1.0)
    entropy_target: float = eqx.field(static=True, default=-0.5)
    target: AbstractAggregate = LowerConfidence(0.5)
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(512, 512, 512, 512))
    members: int = eqx.field(static=True, default=10)
    critic: AbstractCriticModel = ScalarCritic()
    reference_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "reference_steps"),
            positive=("learning_rate", "noise_scale"),
            fractions=("polyak",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> DSRLState:
        reference_key, actor_key, noise_key, critic_key, run_key = jr.split(key, 5)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        noise_critic = ScalarCritic().init(observation_size, action_size, self.hidden, self.members, key=noise_key)
        actor = SquashedGaussianActor(observation_size, action_size, self.hidden, key=actor_key)
        return DSRLState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            noise_critic=Trainable.start(noise_critic, self._optimiser),
            actor=Trainable.start(actor, self._optimiser),
            entropy=Trainable.start(EntropyWeight(jnp.zeros((), jnp.float32)), self._optimiser),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: DSRLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[DSRLState, dict[str, Float[Array, ""]]]:
        """Update both critics, the flow, the actor and the weight of its entropy.

        Metrics: `td_loss`, `bc_loss`, `noise_loss`, `actor_loss`, `entropy` and `value`, the mean target.
        """
        backup_key, noise_key, actor_key, reference_key = jr.split(key, 4)
        batch = gather(replay, rows)
        shape, dtype = batch.actions.shape, batch.actions.dtype
        next_noise = jr.normal(backup_key, shape, dtype)
        actions = jax.vmap(lambda s, x: self.decode(state, s, x))(batch.next_observations, next_noise)
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        noise_loss, noise_gradient = eqx.filter_value_and_grad(noise_critic_loss)(
            state.noise_critic.network,
            state.critic.network,
            state.reference.network,
            batch.observations,
            jr.normal(noise_key, shape, dtype),
        )
        (loss, entropy), gradient = eqx.filter_value_and_grad(noise_actor_loss, has_aux=True)(
            state.actor.network,
            state.noise_critic.network,
            self.improvement,
            batch.observations,
            jr.normal(actor_key, shape, dtype),
            jnp.exp(state.entropy.network.log),
            self.noise_scale,
        )
        wanted = self.entropy_target * shape[1]
        slope = eqx.filter_grad(lambda weight: jnp.exp(weight.log) * (entropy - wanted))(state.entropy.network)
        reference, fitted = self._learner.update(state.reference, batch.observations, batch.actions, reference_key)
        state = dataclasses.replace(
            state,
            reference=reference,
            noise_critic=state.noise_critic.updated(noise_gradient, self._optimiser),
            actor=state.actor.updated(gradient, self._optimiser),
            entropy=state.entropy.updated(slope, self._optimiser),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        metrics = {"noise_loss": noise_loss, "actor_loss": loss, "entropy": entropy, "value": jnp.mean(targets)}
        return state, {"td_loss": td_loss, "bc_loss": fitted["reference_loss"], **metrics}

    def noise_shape(self, state: DSRLState) -> tuple[int, ...]:
        return state.reference.noise_shape

    def decode(
        self, state: DSRLState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        chosen, _ = state.actor.network.sample(observation, noise)
        return state.reference.sample(observation, self.noise_scale * chosen)

    @property
    def _learner(self) -> ReferenceLearner:
        model = FlowMatching(self.reference_steps)
        return ReferenceLearner(model, self.hidden, self.learning_rate, updates=None, average=1 - self.polyak)


def noise_critic_loss(
    noise_critic: AbstractCritic,
    critic: AbstractCritic,
    reference: AbstractReference,
    observations: Float[Array, "batch obs"],
    noise: Float[Array, "batch act"],
) -> Float[Array, ""]:
    """Compute Σ_k (P_k(s, z) − Q_k(s, μ(s, z)))², averaged over a batch; no gradient goes to Q and μ."""

    def error(observation: Array, z: Array) -> Array:
        worth = jax.lax.stop_gradient(critic(observation, reference.sample(observation, z)))
        return jnp.sum((noise_critic(observation, z) - worth) ** 2)

    return jnp.mean(jax.vmap(error)(observations, noise))


def noise_actor_loss(
    actor: SquashedGaussianActor,
    noise_critic: AbstractCritic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    noise: Float[Array, "batch act"],
    weight: Float[Array, ""],
    scale: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute β log π(w|s) − P(s, c w), averaged over a batch, and the entropy, a constant to the gradient."""

    def terms(observation: Array, x: Array) -> tuple[Array, Array]:
        chosen, log_prob = actor.sample(observation, x)
        return aggregated_value(noise_critic, aggregate, observation, scale * chosen), log_prob

    values, log_probs = jax.vmap(terms)(observations, noise)
    return jnp.mean(weight * log_probs - values), -jax.lax.stop_gradient(jnp.mean(log_probs))
