"""IDQL: the values of IQL, and a generative model of the data whose samples are ranked by them."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_fields
from flowrl.nn import MLP
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractGenerative, ReferenceLearner, ReferenceState, Trainable
from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic, AbstractActorCriticState, gather
from flowrl.rl.learning.baselines._implicit import implicit_step
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    FlowMatching,
    Minimum,
    ScalarCritic,
)


class IDQLState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        reference: μ.
        value: V.
    """

    reference: ReferenceState
    value: Trainable[MLP]
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class IDQL(AbstractActorCritic[IDQLState], AbstractGenerative[IDQLState]):
    r"""Samples of a model of the data, ranked by the critic of IQL: what the paper of FQL calls IFQL.

    $$\mathcal{L}_V = \mathbb{E}\,\bigl|\tau - 1(u < 0)\bigr|\, u^2, \quad u = \min_k \bar Q_k(s, a) - V(s), \qquad
      \mathcal{L}_Q = \sum_k \mathbb{E}\,\bigl(Q_k(s, a) - r - \gamma V(s')\bigr)^2$$

    $$\mathcal{L}_\mu = \mathbb{E}\,|w(s, x_t, t) - (a - x_0)|^2, \qquad x_t = (1 - t)\, x_0 + t\, a$$

    with x₀ standard normal, t uniform on [0, 1] and the bar a Polyak average. Nothing but the data trains μ. The policy
    is made when it acts: of N samples of μ(·|s) it takes the one with the largest min Q (`Policy(name, N)`), or one
    with probability ∝ exp(min Q / temperature) (by the stage `Softmax`, its temperature in spreads of the values).

    Attributes:
        expectile: τ in (0, 1): near 1, V is the value of the best action of the data in a state.
        reference_average: decay in [0, 1) of an exponential moving average of the reference's weights; 0 for none.
        reference_steps: K, Euler steps per sample of the reference.

    ??? cite "Source"
        Hansen-Estruch et al., *IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies*, 2023
        (arXiv 2304.10573); defaults are those for locomotion, for AntMaze the paper has τ = 0.9. There the model is a
        diffusion model of a residual network, here a flow of a plain one: IFQL in section 5.1 of Park et al., *Flow
        Q-Learning*, ICML 2025 (arXiv 2502.02538). The weights |τ − 1(Q < V)| of samples are not offered.
    """

    expectile: float = eqx.field(static=True, default=0.7)
    reference_average: float = eqx.field(static=True, default=0.999)
    target: AbstractAggregate = Minimum()
    improvement: AbstractAggregate = Minimum()
    selection: AbstractAggregate = Minimum()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    members: int = eqx.field(static=True, default=2)
    critic: AbstractCriticModel = ScalarCritic()
    reference_steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        check_fields(
            self,
            counts=("batch_size", "members", "reference_steps"),
            positive=("learning_rate",),
            fractions=("polyak", "expectile"),
            decays=("reference_average",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> IDQLState:
        reference_key, value_key, critic_key, run_key = jr.split(key, 4)
        value = MLP((observation_size,), 1, self.hidden, layer_norm=True, key=value_key)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        return IDQLState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            value=Trainable.start(value, self._optimiser),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: IDQLState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[IDQLState, dict[str, Float[Array, ""]]]:
        """Update V, Q and the reference; metrics `td_loss`, `value_loss`, `bc_loss` and `value`, the mean target."""
        batch = gather(replay, rows)
        (value, critic, target_critic), metrics, _ = implicit_step(
            state.value,
            state.critic,
            state.target_critic,
            batch,
            self.target,
            self.expectile,
            self._optimiser,
            self.polyak,
        )
        reference, fitted = self._learner.update(state.reference, batch.observations, batch.actions, key)
        state = dataclasses.replace(
            state,
            reference=reference,
            value=value,
            critic=critic,
            target_critic=target_critic,
            step=state.step + 1,
        )
        return state, {**metrics, "bc_loss": fitted["reference_loss"]}

    def noise_shape(self, state: IDQLState) -> tuple[int, ...]:
        return state.reference.noise_shape

    def decode(
        self, state: IDQLState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.reference.sample(observation, noise)

    @property
    def _learner(self) -> ReferenceLearner:
        model = FlowMatching(self.reference_steps)
        return ReferenceLearner(model, self.hidden, self.learning_rate, updates=None, average=self.reference_average)
