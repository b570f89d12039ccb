"""ReBRAC: TD3+BC with penalties of their own for the actor and the critic."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic, backup, check, gather, magnitude
from flowrl.rl.learning.baselines._deterministic import DeterministicState, delayed_update, smoothed, start
from flowrl.rl.networks import AbstractAggregate, Critic, DeterministicActor, Minimum, aggregated_value


class ReBRAC(AbstractActorCritic[DeterministicState]):
    r"""TD3+BC with a penalty on the actor and another in the TD target.

    $$\mathcal{L}_\pi = \mathbb{E}\bigl[\beta_1 |\pi(s) - a|^2 - \lambda \min_k Q_k(s, \pi(s))\bigr], \qquad
      \lambda = \frac{1}{\mathbb{E}\,|\min_k Q_k(s, \pi(s))|}$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma \bigl(\min_k \bar Q_k(s', \hat a) - \beta_2 |\hat a - a'|^2\bigr), \quad
      \hat a = \operatorname{clip}\bigl(\bar\pi(s') + \operatorname{clip}(\sigma z, -c, c), -1, 1\bigr)$$

    a' is the action that the data took in s', |·|² the sum over coordinates, λ a constant to the gradient and z
    standard normal. The actor and the Polyak averages, with a bar, are updated once in `delay` updates of the critic.
    All proposals in a state are the same action.

    At the end of a trajectory no action of the data in s' is known, and the penalty is left out; so it is where fewer
    steps follow than a chunk of actions has.

    Attributes:
        actor_penalty: β₁ >= 0; the paper tunes it for each data set, from 0.0005 to 1.
        critic_penalty: β₂ >= 0; the paper tunes it for each data set, from 0 to 0.1 and more.
        noise: σ, standard deviation of the smoothing of target actions, in the units of the action.
        noise_limit: c, where that noise is cut off.
        delay: updates of the critic for one of the actor and of the target networks.
        target: makes the ensemble one number in the TD target.
        improvement: makes it one number in the actor's loss, and along whose gradient proposals flow in test.
        selection: makes it one number by which candidates are ranked.
        polyak: τ, rate at which the target networks follow.
        learning_rate: Adam's rate.
        batch_size: transitions an update.
        hidden: widths of the hidden layers.
        members: number of critics.

    ??? cite "Source"
        Tarasov et al., *Revisiting the Minimalist Approach to Offline Reinforcement Learning*, NeurIPS 2023
        (arXiv 2305.09836).
    """

    actor_penalty: float = eqx.field(static=True, default=1.0)
    critic_penalty: float = eqx.field(static=True, default=1.0)
    noise: float = eqx.field(static=True, default=0.2)
    noise_limit: float = eqx.field(static=True, default=0.5)
    delay: int = eqx.field(static=True, default=2)
    target: AbstractAggregate = Minimum()
    improvement: AbstractAggregate = Minimum()
    selection: AbstractAggregate = Minimum()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    batch_size: int = eqx.field(static=True, default=1024)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256, 256))
    members: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        check(
            self,
            counts=("members", "delay"),
            at_least_zero=("actor_penalty", "critic_penalty", "noise", "noise_limit"),
            fractions=("polyak",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> DeterministicState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        return start(observation_size, action_size, self.hidden, self.members, self._optimiser, key)

    def update(
        self, state: DeterministicState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[DeterministicState, dict[str, Float[Array, ""]]]:
        """Update the critic and, when it is due, the actor.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metrics `td_loss`, `actor_loss`, `bc_loss`, `value` (mean target).
        """
        batch = gather(replay, rows)
        actions = smoothed(state.target_actor, batch.next_observations, self.noise, self.noise_limit, key)
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        penalty = next_action_distance(actions, *next_actions(replay, rows))
        targets = targets - self.critic_penalty * batch.discounts * penalty

        def loss(actor: DeterministicActor) -> tuple[Array, dict[str, Array]]:
            return rebrac_loss(
                actor, state.critic.network, self.improvement, batch.observations, batch.actions, self.actor_penalty
            )

        return delayed_update(state, batch, targets, loss, self._optimiser, self.polyak, self.delay)

    def propose(self, state: DeterministicState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Give π(s).

        Args:
            state: the networks.
            observation: s, standardised.
            key: unused: the policy is deterministic.
        """
        del key
        return state.actor.network(observation)

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)


def next_actions(replay: Replay, rows: Int[Array, " batch"]) -> tuple[Float[Array, "batch act"], Bool[Array, " batch"]]:
    """Give the actions that the data took in the bootstrap states, and whether they are known.

    Args:
        replay: the data.
        rows: rows of the batch.

    Returns:
        Actions, of no meaning where they are not known.
    """
    following = replay.following[rows]
    return replay.actions[following], following >= 0


def next_action_distance(
    actions: Float[Array, "batch act"], data: Float[Array, "batch act"], known: Bool[Array, " batch"]
) -> Float[Array, " batch"]:
    """Give |â' − a'|², the sum over coordinates; 0 where a' is not known.

    Args:
        actions: â', of the policy.
        data: a', of the data.
        known: whether there is one.
    """
    return jnp.where(known, jnp.sum((actions - data) ** 2, axis=1), 0)


def rebrac_loss(
    actor: DeterministicActor,
    critic: Critic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    penalty: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Give mean [β₁ |π(s) − a|² − λ Q(s, π(s))].

    Args:
        actor: π.
        critic: the ensemble.
        aggregate: makes its members one number.
        observations: s, standardised.
        actions: a.
        penalty: β₁.

    Returns:
        The loss, and the mean of |π(s) − a|² as the metric `bc_loss`.
    """
    chosen = jax.vmap(actor)(observations)
    values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, chosen)
    bc_loss = jnp.mean(jnp.sum((chosen - actions) ** 2, axis=1))
    return penalty * bc_loss - jnp.mean(values) / magnitude(values), {"bc_loss": bc_loss}
