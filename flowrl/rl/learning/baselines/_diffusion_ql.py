"""Diffusion-QL: a diffusion policy that fits the data and climbs the critic through all its denoising steps."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import Trainable, copied, polyak
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic,
    AbstractActorCriticState,
    backup,
    check,
    critic_step,
    gather,
    magnitude,
)
from flowrl.rl.networks import AbstractAggregate, Critic, DiffusionPolicy, Mean, Minimum


class DiffusionQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        actor: π.
        target_actor: the average of its weights.
        critic: Q.
        target_critic: its Polyak average.
        step: updates so far.
        key: randomness to come.
    """

    actor: Trainable[DiffusionPolicy]
    target_actor: DiffusionPolicy
    critic: Trainable[Critic]
    target_critic: Critic
    step: Int[Array, ""]
    key: Key


class DiffusionQL(AbstractActorCritic[DiffusionQLState]):
    r"""A diffusion policy that fits the data and climbs the critic through all its denoising steps.

    $$\mathcal{L}_\pi = \mathbb{E}\,|\epsilon_\theta(s, x_t, t) - \varepsilon|^2 -
      \eta\, \frac{\mathbb{E}\,Q_i(s, \hat a)}{\mathbb{E}\,|Q_j(s, \hat a)|}, \qquad \hat a \sim \pi(\cdot|s)$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma \max_{i} \min_k \bar Q_k(s', a_i), \quad a_i \sim \bar\pi(\cdot|s')$$

    The law of x_t is that of `DiffusionPolicy`, t is uniform on 1, ..., T, ε is the noise in x_t, and |·|² the mean
    over coordinates. Of the members, Q_i is one at random and Q_j the next; the denominator is a constant to the
    gradient. Bars are averages of weights. The paper acts by softmax among 50 proposals.

    Attributes:
        eta: η, weight of the value against the fit to the data; the paper tunes it for each data set.
        backup_samples: actions sampled at a bootstrap state, of which the target takes the best; the paper has 10 for
            AntMaze, 1 elsewhere.
        actor_polyak: rate at which the target network of the policy follows it.
        target: makes the ensemble one number in the TD target.
        improvement: makes it one number along whose gradient proposals flow in test.
        selection: makes it one number by which candidates are ranked.
        polyak: rate at which the target network of the critic follows.
        learning_rate: Adam's rate.
        batch_size: transitions an update.
        hidden: widths of the hidden layers.
        members: number of critics.
        reference_steps: T, denoising steps.

    ??? cite "Source"
        Wang et al., *Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning*, ICLR 2023
        (arXiv 2208.06193). The original has Mish for ReLU, no LayerNorm, a sinusoidal embedding of t, and clips
        gradients; its average of the policy follows in each fifth update, here in each at a fifth of the rate; and it
        ranks proposals by the average of the critic, here by the critic itself.
    """

    eta: float = eqx.field(static=True, default=1.0)
    backup_samples: int = eqx.field(static=True, default=1)
    actor_polyak: float = eqx.field(static=True, default=0.001)
    target: AbstractAggregate = Minimum()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Minimum()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256, 256))
    members: int = eqx.field(static=True, default=2)
    reference_steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check(
            self,
            counts=("members", "reference_steps", "backup_samples"),
            at_least_zero=("eta",),
            fractions=("polyak", "actor_polyak"),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> DiffusionQLState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        actor_key, critic_key, run_key = jr.split(key, 3)
        actor = DiffusionPolicy(observation_size, action_size, self.hidden, steps=self.reference_steps, key=actor_key)
        critic = Critic(observation_size, action_size, self.hidden, self.members, key=critic_key)
        return DiffusionQLState(
            actor=Trainable.start(actor, self._optimiser),
            target_actor=copied(actor),
            critic=Trainable.start(critic, self._optimiser),
            target_critic=copied(critic),
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: DiffusionQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[DiffusionQLState, dict[str, Float[Array, ""]]]:
        """Update the critic and the policy.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metrics `td_loss`, `actor_loss`, `bc_loss`, `value` (mean target).
        """
        backup_key, noise_key, step_key, chain_key, member_key = jr.split(key, 5)
        batch = gather(replay, rows)
        (size, act), dtype = batch.actions.shape, batch.actions.dtype
        noise = jr.normal(backup_key, (size, self.backup_samples, self.reference_steps, act), dtype)
        sample = state.target_actor.sample
        actions = jax.vmap(lambda s, z: jax.vmap(lambda x: sample(s, x))(z))(batch.next_observations, noise)
        targets = backup(state.target_critic, self.target, batch, actions)
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        (loss, metrics), gradient = eqx.filter_value_and_grad(diffusion_ql_loss, has_aux=True)(
            state.actor.network,
            state.critic.network,
            batch.observations,
            batch.actions,
            jr.normal(noise_key, (size, act), dtype),
            jr.randint(step_key, (size,), 0, self.reference_steps),
            jr.normal(chain_key, (size, self.reference_steps, act), dtype),
            jr.randint(member_key, (), 0, self.members),
            self.eta,
        )
        actor = state.actor.updated(gradient, self._optimiser)
        state = dataclasses.replace(
            state,
            actor=actor,
            target_actor=polyak(state.target_actor, actor.network, self.actor_polyak),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {"td_loss": td_loss, "actor_loss": loss, "value": jnp.mean(targets), **metrics}

    def propose(self, state: DiffusionQLState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one sample of the policy.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this sample.
        """
        noise = jr.normal(key, (self.reference_steps, state.actor.network.action_size), observation.dtype)
        return state.actor.network.sample(observation, noise)

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)


def diffusion_ql_loss(
    actor: DiffusionPolicy,
    critic: Critic,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    steps: Int[Array, " batch"],
    chain: Float[Array, "batch steps act"],
    member: Int[Array, ""],
    eta: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Give the fit of the noise − η mean Q_i / mean |Q_j|.

    Args:
        actor: π.
        critic: the ensemble.
        observations: s, standardised.
        actions: a.
        noise: ε of the fit, standard normal.
        steps: t − 1 of the fit, in 0, ..., T − 1.
        chain: noise of the samples, standard normal.
        member: i.
        eta: η.

    Returns:
        The loss, and its first term as the metric `bc_loss`.
    """
    bc_loss = jnp.mean(jax.vmap(actor.loss)(observations, actions, noise, steps))
    values = jax.vmap(critic)(observations, jax.vmap(actor.sample)(observations, chain))
    other = (member + 1) % values.shape[1]
    value = jnp.mean(values[:, member]) / magnitude(values[:, other])
    return bc_loss - eta * value, {"bc_loss": bc_loss}
