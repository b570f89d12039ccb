"""QAM: a flow cloned from the data, and a second one that adjoint matching tilts by the critic."""

import dataclasses
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
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
    FlowMatching,
    FlowReference,
    LowerConfidence,
    Mean,
    ScalarCritic,
    aggregated_value,
)


class QAMState(AbstractActorCriticState):
    """Everything that training changes.

    Attributes:
        reference: μ, the flow of the data and the average of its weights.
        actor: the tilted flow.
    """

    reference: ReferenceState
    actor: Trainable[FlowReference]
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    step: Int[Array, ""]
    key: Key


class QAM(AbstractActorCritic[QAMState], AbstractGenerative[QAMState]):
    r"""A second flow, learned by adjoint matching to sample μ(a|s) exp(τ Q(s, a)), the reference tilted by the critic.

    Along paths of the memoryless diffusion of the flow u that is learned, in K steps of length h = 1/K,

    $$x_{t+h} = x_t + h \Bigl(2 u(s, x_t, t) - \frac{x_t}{t + h}\Bigr) + \sqrt{h}\, \sigma_t\, \xi_t, \qquad
      \sigma_t = \sqrt{2\, \frac{1 - t + h}{t + h}}$$

    (the last step is one of the ODE of the reference w), the adjoint starts at −τ ∇ mean Q̄(s, clip(x₁)) and runs back
    by the derivative of the reference's drift, g_t = g_{t+h} + h J^T g_{t+h} with J that of 2 w(s, x, t + h) −
    x / (t + h); u regresses on both, with no gradient through the paths:

    $$\mathcal{L}_u = \mathbb{E} \sum_t \Bigl|\, \frac{2}{\sigma_t} \bigl(u(s, x_t, t) - w(s, x_t, t)\bigr) +
      \sigma_t\, g_t \Bigr|^2$$

    w is cloned from the data by flow matching, and enters by the average of its weights. The critic bootstraps from one
    sample of u, by the mean of the slow critics less κ of their standard deviations. A proposal is a sample of u.

    Attributes:
        inverse_temperature: τ > 0, in 1 / units of the value; tuned for each task.
        clip: largest norm of the gradient of u, > 0.
        reference_steps: K, steps per path and per sample.

    ??? cite "Source"
        Li and Levine, *Q-learning with Adjoint Matching*, 2026, after Domingo-Enrich et al., *Adjoint Matching*, ICLR
        2025; form and defaults are those of the authors' code (github.com/ColinQiyangLi/qam at f93efd2,
        agents/qam.py), there with GELUs, a TD loss that is a mean over members, and one clipped gradient for all
        networks.
    """

    inverse_temperature: float = eqx.field(static=True, default=0.3)
    clip: float = eqx.field(static=True, default=1.0)
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
            positive=("learning_rate", "inverse_temperature", "clip"),
            fractions=("polyak",),
            widths=("hidden",),
        )

    def init(self, observation_size: int, action_size: int, *, key: Key) -> QAMState:
        reference_key, actor_key, critic_key, run_key = jr.split(key, 4)
        critic, target_critic = self._start_critic(observation_size, action_size, critic_key)
        actor = self._model.init(observation_size, action_size, self.hidden, key=actor_key)
        return QAMState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            actor=Trainable.start(actor, self._actor_optimiser),
            critic=critic,
            target_critic=target_critic,
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def update(
        self, state: QAMState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[QAMState, dict[str, Float[Array, ""]]]:
        """Update the critic and both flows; metrics `td_loss`, `bc_loss`, `actor_loss` and `value`, the mean target."""
        backup_key, path_key, reference_key = jr.split(key, 3)
        batch = gather(replay, rows)
        (size, act), dtype = batch.actions.shape, batch.actions.dtype
        actor, reference = state.actor.network, state.reference.network
        assert isinstance(reference, FlowReference)
        actions = jax.vmap(actor.sample)(batch.next_observations, jr.normal(backup_key, (size, act), dtype))
        targets = backup(state.target_critic, self.target, batch, actions[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)

        def slope(observation: Array, action: Array) -> Array:
            def worth(x: Array) -> Array:
                return aggregated_value(state.target_critic, self.improvement, observation, jnp.clip(x, -1, 1))

            return self.inverse_temperature * jax.grad(worth)(action)

        noise = jr.normal(path_key, (size, self.reference_steps, act), dtype)
        paths = jax.vmap(lambda s, x: adjoint_path(actor, reference, slope, s, x))(batch.observations, noise)
        loss, gradient = eqx.filter_value_and_grad(adjoint_matching_loss)(actor, reference, batch.observations, *paths)
        fitted, metrics = self._learner.update(state.reference, batch.observations, batch.actions, reference_key)
        state = dataclasses.replace(
            state,
            reference=fitted,
            actor=state.actor.updated(gradient, self._actor_optimiser),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        learned = {"td_loss": td_loss, "bc_loss": metrics["reference_loss"], "actor_loss": loss}
        return state, {**learned, "value": jnp.mean(targets)}

    def noise_shape(self, state: QAMState) -> tuple[int, ...]:
        return state.actor.network.noise_shape

    def decode(
        self, state: QAMState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.actor.network.sample(observation, noise)

    @property
    def _model(self) -> FlowMatching:
        return FlowMatching(self.reference_steps)

    @property
    def _actor_optimiser(self) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.adam(self.learning_rate))

    @property
    def _learner(self) -> ReferenceLearner:
        return ReferenceLearner(self._model, self.hidden, self.learning_rate, updates=None, average=1 - self.polyak)


def memoryless_noise(time: Float[Array, ""] | float, step: float) -> Float[Array, ""]:
    """Return σ_t = √(2 (1 − t + h) / (t + h)), at which a path forgets where it started."""
    return jnp.sqrt(2 * (1 - time + step) / (time + step))


def adjoint_path(
    actor: FlowReference,
    reference: FlowReference,
    slope: Callable[[Array, Array], Array],
    observation: Float[Array, " obs"],
    noise: Float[Array, "steps act"],
) -> tuple[Float[Array, "steps act"], Float[Array, "steps act"]]:
    """Walk one path of the memoryless diffusion of a flow, and its adjoint back.

    Args:
        actor: u, whose diffusion is walked.
        reference: w, whose drift the adjoint follows.
        slope: τ ∇Q̄ at a state and the end of the path.
        observation: s, standardised.
        noise: standard normal; the first row is where the path starts.

    Returns:
        Points x_t and adjoints g_t at the times 0, h, ..., 1 − h.
    """
    steps = noise.shape[0]
    step = 1 / steps
    times = jnp.arange(steps, dtype=noise.dtype) / steps

    def forward(x: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        time, shock = now
        drift = 2 * actor.field(observation, x, time[None]) - x / (time + step)
        return x + step * drift + math.sqrt(step) * memoryless_noise(time, step) * shock, x

    last, before = jax.lax.scan(forward, noise[0], (times[:-1], noise[1:]))
    points = jnp.concatenate([before, last[None]])
    end = last + step * reference.field(observation, last, times[-1:])

    def back(adjoint: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        time, x = now
        _, pull = jax.vjp(lambda x: 2 * reference.field(observation, x, (time + step)[None]) - x / (time + step), x)
        adjoint = adjoint + step * pull(adjoint)[0]
        return adjoint, adjoint

    _, adjoints = jax.lax.scan(back, -slope(observation, end), (times, points), reverse=True)
    return points, adjoints


def adjoint_matching_loss(
    actor: FlowReference,
    reference: FlowReference,
    observations: Float[Array, "batch obs"],
    points: Float[Array, "batch steps act"],
    adjoints: Float[Array, "batch steps act"],
) -> Float[Array, ""]:
    """Compute Σ_t |2 (u − w) / σ_t + σ_t g_t|² on paths, averaged over a batch."""
    steps = points.shape[1]
    times = jnp.arange(steps, dtype=points.dtype) / steps

    def one(observation: Array, x: Array, time: Array, adjoint: Array) -> Array:
        sigma = memoryless_noise(time, 1 / steps)
        apart = actor.field(observation, x, time[None]) - reference.field(observation, x, time[None])
        return jnp.sum((2 * apart / sigma + sigma * adjoint) ** 2)

    over_times = jax.vmap(one, (None, 0, 0, 0))
    losses = jax.vmap(lambda s, x, g: jnp.sum(over_times(s, x, times, g)))(observations, points, adjoints)
    return jnp.mean(losses)
