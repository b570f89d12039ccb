"""ReBRAC, and TD3+BC as a setting of it: a deterministic policy that climbs the critic and stays near the data."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic, backup, gather, magnitude
from flowrl.rl.learning.baselines._deterministic import DeterministicState, delayed_update, smoothed, start
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    DeterministicActor,
    First,
    Minimum,
    ScalarCritic,
    aggregated_value,
)


def squared_distance(chosen: Float[Array, "batch act"], actions: Float[Array, "batch act"]) -> Float[Array, ""]:
    """Compute the squared Euclidean distance, averaged over a batch.

    Args:
        chosen: actions of the policy.
        actions: of the data.
    """
    return jnp.mean(jnp.sum((chosen - actions) ** 2, axis=1))


def mean_square(chosen: Float[Array, "batch act"], actions: Float[Array, "batch act"]) -> Float[Array, ""]:
    """Compute the mean square of the difference over coordinates and batch.

    Args:
        chosen: actions of the policy.
        actions: of the data.
    """
    return jnp.mean((chosen - actions) ** 2)


class ReBRAC(AbstractActorCritic[DeterministicState]):
    r"""A deterministic policy with a penalty on the actor and another in the TD target.

    $$\mathcal{L}_\pi = \mathbb{E}\bigl[\beta_1 |\pi(s) - a|^2 - \lambda \min_k Q_k(s, \pi(s))\bigr], \qquad
      \lambda = \frac{\alpha}{\mathbb{E}\,|\min_k Q_k(s, \pi(s))|}$$

    $$\mathcal{L}_Q = \sum_k \mathbb{E}\,(Q_k(s, a) - y)^2, \qquad
      y = r + \gamma \bigl(\min_k \bar Q_k(s', \hat a) - \beta_2 |\hat a - a'|^2\bigr), \quad
      \hat a = \operatorname{clip}\bigl(\bar\pi(s') + \operatorname{clip}(\sigma z, -c, c), -1, 1\bigr)$$

    a' is the action that the data took in s', |·|² the sum over coordinates, λ a constant to the gradient and z
    standard normal. The actor and the Polyak averages, with a bar, are updated once in `delay` updates of the critic.
    All proposals in a state are the same action.

    At the end of a trajectory no action of the data in s' is known, and the penalty is left out; so it is where fewer
    steps follow than a chunk of actions has.

    Attributes:
        alpha: α > 0, weight of the value in the actor's loss.
        actor_penalty: β₁ >= 0; the paper tunes it for each data set, from 0.0005 to 1.
        critic_penalty: β₂ >= 0; the paper tunes it for each data set, from 0 to 0.1 and more.
        distance: |·|² of the actor's loss, of the policy's actions and those of a batch.
        noise: σ, standard deviation of the smoothing of target actions, in the units of the action.
        noise_limit: c, where that noise is cut off.
        delay: updates of the critic per update of the actor and of the target networks.

    ??? cite "Source"
        Tarasov et al., *Revisiting the Minimalist Approach to Offline Reinforcement Learning*, NeurIPS 2023
        (arXiv 2305.09836).
    """

    alpha: float = eqx.field(static=True, default=1.0)
    actor_penalty: float = eqx.field(static=True, default=1.0)
    critic_penalty: float = eqx.field(static=True, default=1.0)
    distance: Callable[[Array, Array], Array] = eqx.field(static=True, default=squared_distance)
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
    critic: AbstractCriticModel = ScalarCritic()

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "delay"),
            positive=("learning_rate", "alpha"),
            at_least_zero=("actor_penalty", "critic_penalty", "noise", "noise_limit"),
            fractions=("polyak",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> DeterministicState:
        return start(observation_size, action_size, self.hidden, self.members, self.critic, self._optimiser, key)

    def update(
        self, state: DeterministicState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[DeterministicState, dict[str, Float[Array, ""]]]:
        """Update the critic and, when it is due, the actor.

        Metrics: `td_loss`, `actor_loss`, `bc_loss` (the distance) and `value`, the mean target.
        """
        batch = gather(replay, rows)
        actions = smoothed(state.target_actor, batch.next_observations, self.noise, self.noise_limit, key)
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        penalty = next_action_distance(actions, *next_actions(replay, rows))
        targets = targets - self.critic_penalty * batch.discounts * penalty

        def loss(actor: DeterministicActor) -> tuple[Array, dict[str, Array]]:
            return rebrac_loss(
                actor,
                state.critic.network,
                self.improvement,
                self.distance,
                batch.observations,
                batch.actions,
                self.actor_penalty,
                self.alpha,
            )

        return delayed_update(state, batch, targets, loss, self._optimiser, self.polyak, self.delay)

    def propose(self, state: DeterministicState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        del key
        return state.actor.network(observation)


def td3_bc(**fields: object) -> ReBRAC:
    r"""Return TD3+BC: no penalty in the TD target, and an actor that climbs the first critic.

    $$\mathcal{L}_\pi = -\lambda\, \mathbb{E}\, Q_1(s, \pi(s)) + \mathbb{E}\,|\pi(s) - a|^2, \qquad
      \lambda = \frac{\alpha}{\mathbb{E}\,|Q_1(s, \pi(s))|}, \qquad \alpha = 2.5$$

    Here |·|² is the mean over coordinates.

    Args:
        fields: other fields of `ReBRAC`.

    ??? cite "Source"
        Fujimoto and Gu, *A Minimalist Approach to Offline Reinforcement Learning*, NeurIPS 2021 (arXiv 2106.06860);
        the smoothing, the delay and the two critics are those of Fujimoto et al., *Addressing Function Approximation
        Error in Actor-Critic Methods*, ICML 2018 (arXiv 1802.09477). The original has no LayerNorm.
    """
    setting = {
        "alpha": 2.5,
        "critic_penalty": 0.0,
        "distance": mean_square,
        "improvement": First(),
        "learning_rate": 3e-4,
        "batch_size": 256,
        "hidden": (256, 256),
    }
    return ReBRAC(**setting | fields)  # pyright: ignore[reportArgumentType]


def next_actions(replay: Replay, rows: Int[Array, " batch"]) -> tuple[Float[Array, "batch act"], Bool[Array, " batch"]]:
    """Return the data's actions in the bootstrap states, and whether they are known: elsewhere they mean nothing."""
    following = replay.following[rows]
    return replay.actions[following], following >= 0


def next_action_distance(
    actions: Float[Array, "batch act"], data: Float[Array, "batch act"], known: Bool[Array, " batch"]
) -> Float[Array, " batch"]:
    """Compute |â' − a'|², the sum over coordinates; 0 where a' is not known."""
    return jnp.where(known, jnp.sum((actions - data) ** 2, axis=1), 0)


def rebrac_loss(
    actor: DeterministicActor,
    critic: AbstractCritic,
    aggregate: AbstractAggregate,
    distance: Callable[[Array, Array], Array],
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    penalty: float,
    alpha: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Compute β₁ |π(s) − a|² − λ mean Q(s, π(s)), and the distance as the metric `bc_loss`."""
    chosen = jax.vmap(actor)(observations)
    values = jax.vmap(lambda s, a: aggregated_value(critic, aggregate, s, a))(observations, chosen)
    bc_loss = distance(chosen, actions)
    return penalty * bc_loss - alpha * jnp.mean(values) / magnitude(values), {"bc_loss": bc_loss}
