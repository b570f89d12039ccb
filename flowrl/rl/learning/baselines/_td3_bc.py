"""TD3+BC: a deterministic policy that climbs the critic and stays near the actions of the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic, backup, check, gather, magnitude
from flowrl.rl.learning.baselines._deterministic import DeterministicState, delayed_update, smoothed, start
from flowrl.rl.networks import AbstractAggregate, Critic, DeterministicActor, Minimum, aggregated_value


class First(AbstractAggregate):
    """The first member alone, whatever the others say."""

    def __call__(self, values: Float[Array, "members ..."]) -> Float[Array, "..."]:
        """Give the first along the leading axis.

        Args:
            values: one value a member.
        """
        return values[0]


class TD3BC(AbstractActorCritic[DeterministicState]):
    r"""A deterministic policy that climbs the critic and stays near the actions of the data.

    $$\mathcal{L}_\pi = -\lambda\, \mathbb{E}\, Q_1(s, \pi(s)) + \mathbb{E}\,|\pi(s) - a|^2, \qquad
      \lambda = \frac{\alpha}{\mathbb{E}\,|Q_1(s, \pi(s))|}$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad y = r + \gamma \min_k \bar Q_k\bigl(s',
      \operatorname{clip}(\bar\pi(s') + \operatorname{clip}(\sigma z, -c, c), -1, 1)\bigr)$$

    |·|² is the mean over coordinates, λ a constant to the gradient and z standard normal. The actor and the Polyak
    averages, with a bar, are updated once in `delay` updates of the critic. All proposals in a state are the same
    action.

    Attributes:
        alpha: α, weight of the value against the distance to the data.
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
        Fujimoto and Gu, *A Minimalist Approach to Offline Reinforcement Learning*, NeurIPS 2021 (arXiv 2106.06860);
        the smoothing, the delay and the two critics are those of Fujimoto et al., *Addressing Function Approximation
        Error in Actor-Critic Methods*, ICML 2018 (arXiv 1802.09477). The original has no LayerNorm.
    """

    alpha: float = eqx.field(static=True, default=2.5)
    noise: float = eqx.field(static=True, default=0.2)
    noise_limit: float = eqx.field(static=True, default=0.5)
    delay: int = eqx.field(static=True, default=2)
    target: AbstractAggregate = Minimum()
    improvement: AbstractAggregate = First()
    selection: AbstractAggregate = Minimum()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    members: int = eqx.field(static=True, default=2)

    def __check_init__(self):
        check(
            self,
            counts=("members", "delay"),
            positive=("alpha",),
            at_least_zero=("noise", "noise_limit"),
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

        def loss(actor: DeterministicActor) -> tuple[Array, dict[str, Array]]:
            return td3_bc_loss(
                actor, state.critic.network, self.improvement, batch.observations, batch.actions, self.alpha
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


def td3_bc_loss(
    actor: DeterministicActor,
    critic: Critic,
    aggregate: AbstractAggregate,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    alpha: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Give −λ mean Q(s, π(s)) + mean |π(s) − a|².

    Args:
        actor: π.
        critic: the ensemble.
        aggregate: makes its members one number.
        observations: s, standardised.
        actions: a.
        alpha: λ = α / mean |Q|.

    Returns:
        The loss, and its second term as the metric `bc_loss`.
    """
    chosen = jax.vmap(actor)(observations)
    values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, chosen)
    bc_loss = jnp.mean((chosen - actions) ** 2)
    return bc_loss - alpha * jnp.mean(values) / magnitude(values), {"bc_loss": bc_loss}
