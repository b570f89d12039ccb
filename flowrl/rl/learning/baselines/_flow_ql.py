"""FlowQL: a flow policy that fits the data and climbs the critic through all its Euler steps."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import Trainable, copied, polyak, reference_loss
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic,
    AbstractActorCriticState,
    backup,
    check,
    critic_step,
    gather,
    magnitude,
)
from flowrl.rl.networks import AbstractAggregate, Critic, FlowReference, Mean, aggregated_value


class FlowQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        actor: π.
        critic: Q.
        target_critic: its Polyak average.
        step: updates so far.
        key: randomness to come.
    """

    actor: Trainable[FlowReference]
    critic: Trainable[Critic]
    target_critic: Critic
    step: Int[Array, ""]
    key: Key


class FlowQL(AbstractActorCritic[FlowQLState]):
    r"""A flow policy that fits the data and climbs the critic through all its Euler steps: FBRAC in the paper of FQL.

    $$\mathcal{L}_\pi = \alpha\, \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2 - \mathbb{E}\,\operatorname{mean}_k
      Q_k(s, \pi(s, z)), \qquad x_t = (1 - t)\, x_0 + t\, a$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma\, \operatorname{mean}_k \bar Q_k(s', \pi(s', z))$$

    π(s, z) is where K Euler steps of the field w carry the noise z, clipped to [−1, 1]: the gradient of Q goes through
    all of them. x₀ and z are standard normal, t is uniform on [0, 1], |·|² the mean over coordinates, and the bar a
    Polyak average.

    Attributes:
        alpha: α, weight of the fit to the data against the value, in the units of the value; tuned for each task.
        normalise: divide Q by the mean of |Q|, so that α has no units.
        target: makes the ensemble one number in the TD target.
        improvement: makes it one number in the actor's loss, and along whose gradient proposals flow in test.
        selection: makes it one number by which candidates are ranked.
        polyak: rate at which the target network follows.
        learning_rate: Adam's rate.
        batch_size: transitions an update.
        hidden: widths of the hidden layers.
        members: number of critics.
        reference_steps: K, Euler steps of a sample.

    ??? cite "Source"
        Park et al., *Flow Q-Learning*, ICML 2025 (arXiv 2502.02538), eq. 6; defaults are those of FQL. There networks
        have GELUs, and LayerNorm after them in the critic.
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
    reference_steps: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        check(self, counts=("members", "reference_steps"), at_least_zero=("alpha",), fractions=("polyak",))

    def init(self, observation_size: int, action_size: int, *, key: Key) -> FlowQLState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        actor_key, critic_key, run_key = jr.split(key, 3)
        actor = FlowReference(observation_size, action_size, self.hidden, steps=self.reference_steps, key=actor_key)
        critic = Critic(observation_size, action_size, self.hidden, self.members, key=critic_key)
        return FlowQLState(
            actor=Trainable.start(actor, self._optimiser),
            critic=Trainable.start(critic, self._optimiser),
            target_critic=copied(critic),
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: FlowQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[FlowQLState, dict[str, Float[Array, ""]]]:
        """Update the critic and the policy.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metrics `td_loss`, `actor_loss`, `bc_loss`, `value` (mean target).
        """
        backup_key, noise_key, time_key, start_key = jr.split(key, 4)
        batch = gather(replay, rows)
        shape, dtype = batch.actions.shape, batch.actions.dtype
        actor = state.actor.network
        actions = jax.vmap(actor.sample)(batch.next_observations, jr.normal(backup_key, shape, dtype))
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        (loss, metrics), gradient = eqx.filter_value_and_grad(flow_ql_loss, has_aux=True)(
            actor,
            state.critic.network,
            self.improvement,
            batch.observations,
            batch.actions,
            jr.normal(noise_key, shape, dtype),
            jr.uniform(time_key, shape[:1], dtype),
            jr.normal(start_key, shape, dtype),
            self.alpha,
            normalise=self.normalise,
        )
        state = dataclasses.replace(
            state,
            actor=state.actor.updated(gradient, self._optimiser),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {"td_loss": td_loss, "actor_loss": loss, "value": jnp.mean(targets), **metrics}

    def propose(self, state: FlowQLState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one sample of the policy.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this sample.
        """
        return state.actor.network.sample(
            observation, jr.normal(key, (state.actor.network.action_size,), observation.dtype)
        )

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)


def flow_ql_loss(
    actor: FlowReference,
    critic: Critic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    time: Float[Array, " batch"],
    begin: Float[Array, "batch act"],
    alpha: float,
    *,
    normalise: bool,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Give α · flow matching − mean Q.

    Args:
        actor: π.
        critic: the ensemble.
        aggregate: makes its members one number.
        observations: s, standardised.
        actions: a.
        noise: x₀ of the fit, standard normal.
        time: t of the fit, uniform on [0, 1].
        begin: noise of the samples, standard normal.
        alpha: α.
        normalise: divide Q by the mean of |Q|.

    Returns:
        The loss, and the flow-matching loss as the metric `bc_loss`.
    """
    bc_loss = reference_loss(actor, observations, actions, noise, time)
    sampled = jax.vmap(actor.sample)(observations, begin)
    values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, sampled)
    value = jnp.mean(values) / magnitude(values) if normalise else jnp.mean(values)
    return alpha * bc_loss - value, {"bc_loss": bc_loss}
