"""Value Gradient Flow: a critic trained on transported particles.

The policy is never a network. Particles drawn from the reference μ(·|s) are transported toward exp(Q(s, ·)/α) until a
budget is spent; the set that arrives is the policy. Training bootstraps from it:

    y = Σ_{i<m} γ^i r_{t+i} + γ^m · mean_i Q_target(s', a_i),
    a_1, ..., a_N = transport(Boltzmann(Q, s'), samples of μ(·|s'), budget)

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026 (arXiv 2604.14265), algorithm 1.
"""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

from flowrl._budget import Budget, spread
from flowrl._custom_types import Key
from flowrl._misc import check_count, check_fields, concrete
from flowrl._solution import RESULTS, Solution
from flowrl._solver import AbstractStepSolver
from flowrl._supports import supports
from flowrl._target import AbstractTarget, Boltzmann, ValueGradient
from flowrl._transport import Transport
from flowrl.nn import MLP
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning._algorithm import AbstractGenerative, AbstractPretrained, AbstractState, AbstractValueBased
from flowrl.rl.learning._losses import critic_loss, gradient_loss, td_target, value
from flowrl.rl.learning._reference_learner import ReferenceLearner, ReferenceState, sample_rows, sample_sets
from flowrl.rl.learning._train import Trainable, copied, polyak
from flowrl.rl.networks import (
    AbstractAggregate,
    AbstractCritic,
    AbstractCriticModel,
    Mean,
    ScalarCritic,
    aggregated_value,
)
from flowrl.sharding import over_states

#: Weights of the advantage-weighted reference are cut off here, as is usual for weights exp(A/β).
MAX_WEIGHT = 100.0
#: Rows whose particles are sampled at a time: it bounds the memory of the sampling networks.
_ROWS_AT_ONCE = 2048


class VGFState(AbstractState):
    """Everything that training changes.

    Attributes:
        reference: μ.
        critic: Q.
        target_critic: its Polyak average.
        gradient: f, the network of its gradient, or None.
        scale: unit of length of the budgets, (act,): the reference's spread, or ones.
        reference_step: updates of the reference so far.
    """

    reference: ReferenceState
    critic: Trainable[AbstractCritic]
    target_critic: AbstractCritic
    gradient: Trainable[MLP] | None
    scale: Float[Array, " act"]
    reference_step: Int[Array, ""]
    step: Int[Array, ""]
    key: Key


class VGF(AbstractPretrained[VGFState], AbstractValueBased[VGFState], AbstractGenerative[VGFState]):
    r"""The algorithm as a value: its parts and constants. See `flowrl.rl.presets` for named settings.

    With `advantage_temperature` β the reference is fitted to the data weighted by

    $$w = \min\bigl(e^{A(s, a)/β}, 100\bigr), \qquad A(s, a) = Q(s, a) - \operatorname{mean}_i Q(s, a_i), \quad
      a_i \sim μ(·|s)$$

    so that a data set full of bad behaviour does not hold the particles back.

    Attributes:
        transport: how particles are moved, in training and in test: a deterministic flow by a solver that goes step by
            step; its domain is the box of actions [−1, 1].
        train_budget: L_train, ε, α. Its step size is in units of the reference's spread if `relative`.
        relative: measure budgets in units of the reference's within-state spread.
        particles: N, particles per state.
        target: makes the ensemble one number in the TD target.
        improvement: makes it one number along whose gradient particles flow.
        selection: makes it one number by which test-time candidates are ranked.
        particle_aggregate: makes the target values of the N particles one number.
        amortized: let particles follow a network f(s, a) fitted to ∇_a Q (aggregated by `improvement`) at the actions
            of the "data", or at the "particles" before and after their transport; None differentiates the critic.
        reference: which model the reference is, and how it is fitted; a frozen one for `reference.updates`, one that
            is not frozen at a constant rate.
        advantage_temperature: β > 0 in the units of the value, or None to weigh all data the same. It needs the critic,
            and so a reference that is not frozen.
        frozen_reference: train the reference first, then freeze it and cache `samples` particles at every next state;
            otherwise it is trained along with the critic and sampled again in each update.
        samples: M >= N, cached particles per state.
        polyak: τ, rate at which the target network follows.
        learning_rate: Adam's rate for the critic and f.
        batch_size: transitions per update.
        hidden: widths of the hidden layers of the critic and f.
        members: number of critics.
        critic: what they are, and by which loss they are fitted.
    """

    transport: Transport
    train_budget: Budget
    relative: bool = eqx.field(static=True, default=True)
    particles: int = eqx.field(static=True, default=8)
    target: AbstractAggregate = Mean()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    particle_aggregate: AbstractAggregate = Mean()
    amortized: Literal["data", "particles"] | None = eqx.field(static=True, default=None)
    reference: ReferenceLearner = ReferenceLearner()
    advantage_temperature: float | None = eqx.field(static=True, default=None)
    frozen_reference: bool = eqx.field(static=True, default=True)
    samples: int = eqx.field(static=True, default=8)
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    members: int = eqx.field(static=True, default=2)
    critic: AbstractCriticModel = ScalarCritic()

    def __check_init__(self):
        check_fields(
            self,
            counts=("particles", "samples", "batch_size", "members"),
            positive=("learning_rate", "advantage_temperature"),
            fractions=("polyak",),
            widths=("hidden",),
            kinds=dict.fromkeys(("target", "improvement", "selection", "particle_aggregate"), AbstractAggregate)
            | {"critic": AbstractCriticModel},
        )
        check_count("VGF: particles", self.particles)
        if self.amortized not in (None, "data", "particles"):
            raise ValueError(f"VGF: amortized must be 'data', 'particles' or None, got {self.amortized!r}.")
        if not isinstance(self.reference, ReferenceLearner):
            raise TypeError(f"VGF: reference must be a ReferenceLearner(model, ...), got {self.reference!r}.")
        if self.advantage_temperature is not None and self.frozen_reference:
            raise ValueError("VGF: advantage weights need the critic; set frozen_reference=False, relative=False.")
        if self.frozen_reference and self.reference.updates is None:
            raise ValueError("VGF: a reference that is frozen needs updates before: give its learner `updates`.")
        if self.frozen_reference and self.samples < max(self.particles, 2):
            raise ValueError(
                f"VGF: samples ({self.samples}) must be at least 2 and at least particles ({self.particles}): the "
                "particles of a state are distinct cached samples, and their spread is measured."
            )
        if self.relative and not self.frozen_reference:
            raise ValueError("VGF: relative budgets need the spread of a frozen reference; set relative=False.")
        if self.train_budget.scale is not None:
            raise ValueError("VGF: the scale of the train budget is set by `relative`; leave it out of the budget.")
        if self.train_budget.temperature is not None and self.train_budget.temperature.ndim:
            raise ValueError("VGF: a temperature schedule over the steps of one transport is not supported here.")
        self._check_transport()

    def _check_transport(self) -> None:
        """Refuse what `update` or `improve` could not run, before anything is trained."""
        transport, temperature = self.transport, self.train_budget.temperature
        target = Boltzmann(aggregated_value) if self.amortized is None else ValueGradient(aggregated_value)
        support = supports(transport.flow, transport.solver, transport.domain, target)
        if not support:
            raise ValueError(f"VGF: {support.reason}")
        name, traits = type(transport.flow).__name__, transport.flow.traits
        if traits.stochastic:
            raise ValueError(f"VGF: {name} is stochastic, and no key reaches the transport; take SVGD() or Ascent().")
        if not isinstance(transport.solver, AbstractStepSolver):
            solver = type(transport.solver).__name__
            raise ValueError(f"VGF: test budgets are read off step by step, which {solver} cannot save; take Euler().")
        if traits.temperature == "none" and temperature is not None:
            raise ValueError(f"VGF: {name} has no entropy, so the train budget must leave temperature=None.")
        known = None if temperature is None else concrete(temperature)
        if traits.temperature == "positive" and known is not None and not (known > 0).all():
            raise ValueError(f"VGF: {name} divides by the temperature of the train budget, so it must be > 0.")

    @property
    def pretraining(self) -> int:
        return self._learner.updates or 0

    def pretrained(self, state: VGFState) -> Int[Array, ""]:
        return state.reference_step

    def init(self, observation_size: int, action_size: int, *, key: Key) -> VGFState:
        reference_key, critic_key, run_key, gradient_key = jr.split(key, 4)
        critic = self.critic.init(observation_size, action_size, self.hidden, self.members, key=critic_key)
        gradient = None
        if self.amortized is not None:
            network = MLP((observation_size, action_size), action_size, self.hidden, layer_norm=True, key=gradient_key)
            gradient = Trainable.start(network, self._optimiser)
        return VGFState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            critic=Trainable.start(critic, self._optimiser),
            target_critic=copied(critic),
            gradient=gradient,
            scale=jnp.ones(action_size, jnp.float32),
            reference_step=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def pretrain(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[VGFState, dict[str, Float[Array, ""]]]:
        return self._reference_update(state, replay, over_states(rows), key, None)

    def prepare(self, state: VGFState, replay: Replay, *, key: Key) -> tuple[VGFState, Replay]:
        """Sample a frozen reference at every next state, and measure its spread. The same key gives the same cache."""
        if not self.frozen_reference:
            return state, replay
        particles = sample_rows(state.reference, replay.next_observations, self.samples, _ROWS_AT_ONCE, key)
        replay = eqx.tree_at(lambda r: r.particles, replay, particles, is_leaf=lambda x: x is None)
        if self.relative:
            state = eqx.tree_at(lambda s: s.scale, state, spread(particles))
        return state, replay

    def update(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[VGFState, dict[str, Float[Array, ""]]]:
        """Do one TD update, and one of what is trained along: the reference if it is not frozen, f if there is one.

        The data are those of `prepare`; a frozen reference without cached samples is a ValueError.
        """
        metrics, rows = {}, over_states(rows)
        if self.frozen_reference:
            start = self._cached(replay, rows, key)
        else:
            particle_key, reference_key, weight_key = jr.split(key, 3)
            weights = self._weights(state, replay, rows, weight_key)
            state, metrics = self._reference_update(state, replay, rows, reference_key, weights)
            next_observations = replay.next_observations[replay.bootstrap[rows]]
            start = self._fresh(state, next_observations, particle_key)
        state, critic_metrics = self._critic_update(state, replay, rows, start)
        return state, metrics | critic_metrics

    def noise_shape(self, state: VGFState) -> tuple[int, ...]:
        return state.reference.noise_shape

    def decode(
        self, state: VGFState, observation: Float[Array, " obs"], noise: Float[Array, "..."]
    ) -> Float[Array, " act"]:
        return state.reference.sample(observation, noise)

    def improve(
        self, state: VGFState, observation: Float[Array, " obs"], particles: Float[Array, "n act"], budget: Budget
    ) -> Solution:
        target = self._direction(state.critic.network, state.gradient, observation)
        save = tuple(range(budget.bound + 1))
        return self.transport(target, particles, budget.rescaled(state.scale), save=save, throw=False)

    def unit(self, state: VGFState) -> Float[Array, " act"]:
        return state.scale

    def values(
        self, state: VGFState, observation: Float[Array, " obs"], actions: Float[Array, "n act"]
    ) -> Float[Array, "members n"]:
        return jax.vmap(state.critic.network, (None, 0), 1)(observation, actions)

    def with_live_reference(self, state: VGFState) -> tuple["VGF", VGFState]:
        """Return the algorithm whose reference learns on along with the critic, for data that keep changing.

        The unit of length stays what it was; the reference's optimiser starts again, at a constant rate.

        Args:
            state: with a frozen reference.

        Raises:
            ValueError: the reference is not frozen.
        """
        if not self.frozen_reference:
            raise ValueError("the reference already learns along with the critic.")
        live = dataclasses.replace(self, frozen_reference=False, relative=False)
        return live, dataclasses.replace(state, reference=live._learner.restarted(state.reference))

    def _reference_update(
        self,
        state: VGFState,
        replay: Replay,
        rows: Int[Array, " batch"],
        key: Key,
        weights: Float[Array, " batch"] | None,
    ) -> tuple[VGFState, dict[str, Float[Array, ""]]]:
        reference, metrics = self._learner.update(
            state.reference, replay.observations[rows], replay.actions[rows], key, weights
        )
        state = eqx.tree_at(lambda s: (s.reference, s.reference_step), state, (reference, state.reference_step + 1))
        return state, metrics

    def _critic_update(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], start: Float[Array, "batch n act"]
    ) -> tuple[VGFState, dict[str, Float[Array, ""]]]:
        next_observations = replay.next_observations[replay.bootstrap[rows]]
        budget = self.train_budget.rescaled(state.scale)
        critic = state.critic.network

        def transported(observation: Array, particles: Array) -> Solution:
            target = self._direction(critic, state.gradient, observation)
            return self.transport(target, particles, budget, throw=False)

        solution = jax.vmap(transported)(next_observations, start)
        particles = jax.lax.stop_gradient(solution.particles)
        targets = td_target(
            state.target_critic,
            self.target,
            self.particle_aggregate,
            replay.returns[rows],
            replay.discounts[rows],
            next_observations,
            particles,
        )
        loss, gradient = eqx.filter_value_and_grad(critic_loss)(
            critic, replay.observations[rows], replay.actions[rows], jax.lax.stop_gradient(targets)
        )
        metrics = {
            "td_loss": loss,
            "value": jnp.mean(targets),
            "displacement": jnp.sqrt(jnp.mean(solution.stats["displacement_rms"] ** 2) / start.shape[-1]),
            "nonfinite": jnp.sum(solution.stats["nonfinite"]).astype(loss.dtype),
            "failed": jnp.sum(solution.result != RESULTS.successful).astype(loss.dtype),
        }
        amortized = state.gradient
        if amortized is not None:
            at_data = self.amortized == "data"
            states = replay.observations[rows] if at_data else next_observations
            actions = replay.actions[rows][:, None] if at_data else jnp.concatenate([start, particles], axis=1)
            metrics["gradient_loss"], slope = eqx.filter_value_and_grad(gradient_loss)(
                amortized.network, critic, self.improvement, states, actions
            )
            amortized = amortized.updated(slope, self._optimiser)
        trained = state.critic.updated(gradient, self._optimiser)
        slow = polyak(state.target_critic, trained.network, self.polyak)
        state = eqx.tree_at(
            lambda s: (s.critic, s.target_critic, s.gradient, s.step),
            state,
            (trained, slow, amortized, state.step + 1),
            is_leaf=lambda x: x is None,
        )
        return state, metrics

    def _direction(
        self, critic: AbstractCritic, gradient: Trainable[MLP] | None, observation: Float[Array, " obs"]
    ) -> AbstractTarget:
        """Return what the particles of one state flow toward: the ensemble, or f in the place of its gradient."""
        if gradient is not None:
            return ValueGradient(gradient.network, observation)
        return Boltzmann(aggregated_value, critic, self.improvement, observation)

    def _weights(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> Float[Array, " batch"] | None:
        """Return the weight of each transition in the reference's loss."""
        if self.advantage_temperature is None:
            return None
        observations = replay.observations[rows]
        values = jax.vmap(lambda s, a: value(state.target_critic, self.improvement, s, a))
        baseline = jnp.mean(values(observations, self._fresh(state, observations, key)), axis=1)
        advantages = values(observations, replay.actions[rows][:, None])[:, 0] - baseline
        return jnp.minimum(jnp.exp(advantages / self.advantage_temperature), MAX_WEIGHT)

    def _fresh(self, state: VGFState, observations: Float[Array, "batch obs"], key: Key) -> Float[Array, "batch n act"]:
        """Draw N samples of the reference in every state."""
        shape = (observations.shape[0], self.particles, *state.reference.noise_shape)
        return sample_sets(state.reference.sample, observations, jr.normal(key, shape, observations.dtype))

    def _cached(self, replay: Replay, rows: Int[Array, " batch"], key: Key) -> Float[Array, "batch n act"]:
        """Return N of the M cached samples at the bootstrap states."""
        if replay.particles is None:
            raise ValueError("a frozen reference needs cached samples: prepare(state, replay, key=key) draws them.")
        # A random window: the samples of a state are distinct, and it is one gather.
        first = jr.randint(key, (rows.shape[0], 1), 0, self.samples)
        window = (first + jnp.arange(self.particles)[None]) % self.samples
        return replay.particles[replay.bootstrap[rows][:, None], window]

    @property
    def _optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    @property
    def _learner(self) -> ReferenceLearner:
        return self.reference if self.frozen_reference else dataclasses.replace(self.reference, updates=None)
