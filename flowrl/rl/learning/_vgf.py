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
from flowrl._solution import RESULTS, Solution
from flowrl._target import AbstractTarget, Boltzmann, ValueGradient
from flowrl._transport import Transport
from flowrl.nn import MLP
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning._algorithm import AbstractPretrained, AbstractState, AbstractValueBased
from flowrl.rl.learning._losses import critic_loss, gradient_loss, td_target, value
from flowrl.rl.learning._reference_learner import ReferenceLearner, ReferenceState, sample_rows, sample_sets
from flowrl.rl.learning._train import Trainable, copied, polyak
from flowrl.rl.networks import AbstractAggregate, Critic, Mean, aggregated_value
from flowrl.sharding import over_states

#: Weights of the advantage-weighted reference are cut off here, as is usual for weights exp(A/β).
MAX_WEIGHT = 100.0


class VGFState(AbstractState):
    """Everything that training changes.

    Attributes:
        reference: μ.
        critic: Q.
        target_critic: its Polyak average.
        gradient: f, the network of its gradient, or None.
        scale: unit of length of the budgets, (act,): the reference's spread, or ones.
        reference_step: updates of the reference so far.
        step: updates of the critic so far.
        key: randomness to come.
    """

    reference: ReferenceState
    critic: Trainable[Critic]
    target_critic: Critic
    gradient: Trainable[MLP] | None
    scale: Float[Array, " act"]
    reference_step: Int[Array, ""]
    step: Int[Array, ""]
    key: Key


class VGF(AbstractPretrained[VGFState], AbstractValueBased[VGFState]):
    r"""The algorithm as a value: its parts and constants. See `flowrl.rl.presets` for named settings.

    With `advantage_temperature` β the reference is fitted to the data weighted by

    $$w = \min\bigl(e^{A(s, a)/β}, 100\bigr), \qquad A(s, a) = Q(s, a) - \operatorname{mean}_i Q(s, a_i), \quad
      a_i \sim μ(·|s)$$

    so that a data set full of bad behaviour does not hold the particles back.

    Attributes:
        transport: how particles are moved, in training and in test; its domain is the box of actions [−1, 1].
        train_budget: L_train, ε, α. Its step size is in units of the reference's spread if `relative`.
        relative: measure budgets in units of the reference's within-state spread.
        particles: N, particles a state.
        target: makes the ensemble one number in the TD target.
        improvement: makes it one number along whose gradient particles flow.
        selection: makes it one number by which test-time candidates are ranked.
        over_particles: the target is the mean over the N particles, or their maximum.
        amortized: let particles follow a network f(s, a) fitted to ∇_a Q (aggregated by `improvement`) at the actions of the
            "data" or at the "particles" before and after their transport; "no" differentiates the critic.
        reference: "flow" for a flow-matching model, "gaussian" for a normal law.
        one_step: distil a sampler of one step from the reference, and sample by it.
        reference_average: decay in [0, 1) of an exponential moving average of the reference's weights; 0 for none.
        advantage_temperature: β > 0 in the units of the value, or None to weigh all data the same. It needs the critic,
            and so a reference that is not frozen.
        frozen_reference: train the reference first, then freeze it and cache `samples` particles at every next state;
            otherwise it is trained along with the critic and sampled afresh.
        samples: M >= N, cached particles a state.
        polyak: τ, rate at which the target network follows.
        learning_rate: Adam's rate for the critic and f.
        reference_learning_rate: Adam's rate for the reference; decays as a cosine over `reference_updates` if frozen.
        reference_updates: updates of the reference before it is frozen.
        batch_size: transitions an update.
        hidden: widths of the hidden layers of the critic and f.
        reference_hidden: widths of the reference's hidden layers.
        members: number of critics.
        reference_steps: K, Euler steps of a reference sample.
    """

    transport: Transport
    train_budget: Budget
    relative: bool = eqx.field(static=True, default=True)
    particles: int = eqx.field(static=True, default=8)
    target: AbstractAggregate = Mean()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    over_particles: Literal["mean", "max"] = eqx.field(static=True, default="mean")
    amortized: Literal["no", "data", "particles"] = eqx.field(static=True, default="no")
    reference: Literal["flow", "gaussian"] = eqx.field(static=True, default="flow")
    one_step: bool = eqx.field(static=True, default=False)
    reference_average: float = eqx.field(static=True, default=0.0)
    advantage_temperature: float | None = eqx.field(static=True, default=None)
    frozen_reference: bool = eqx.field(static=True, default=True)
    samples: int = eqx.field(static=True, default=8)
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=3e-4)
    reference_learning_rate: float = eqx.field(static=True, default=1e-3)
    reference_updates: int = eqx.field(static=True, default=8000)
    batch_size: int = eqx.field(static=True, default=256)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    reference_hidden: tuple[int, ...] = eqx.field(static=True, default=(256, 256))
    members: int = eqx.field(static=True, default=2)
    reference_steps: int = eqx.field(static=True, default=5)

    def __check_init__(self):
        for name in ("particles", "samples", "batch_size", "members", "reference_steps", "reference_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"VGF: {name} must be >= 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "reference_learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"VGF: {name} must be > 0, got {getattr(self, name)}.")
        if not 0 < self.polyak <= 1:
            raise ValueError(f"VGF: polyak must be in (0, 1], got {self.polyak}.")
        if not 0 <= self.reference_average < 1:
            raise ValueError(f"VGF: reference_average must be in [0, 1), got {self.reference_average}.")
        for name, known in (
            ("over_particles", ("mean", "max")),
            ("amortized", ("no", "data", "particles")),
            ("reference", ("flow", "gaussian")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"VGF: {name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.advantage_temperature is not None:
            if not 0 < self.advantage_temperature < float("inf"):
                raise ValueError(f"VGF: advantage_temperature must be > 0, got {self.advantage_temperature}.")
            if self.frozen_reference:
                raise ValueError("VGF: advantage weights need the critic; set frozen_reference=False, relative=False.")
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

    @property
    def pretraining(self) -> int:
        """Updates of the reference alone: `reference_updates` if it is frozen after them, else 0."""
        return self.reference_updates if self.frozen_reference else 0

    def pretrained(self, state: VGFState) -> Int[Array, ""]:
        return state.reference_step

    def init(self, observation_size: int, action_size: int, *, key: Key) -> VGFState:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        reference_key, critic_key, run_key, gradient_key = jr.split(key, 4)
        critic = Critic(observation_size, action_size, self.hidden, self.members, key=critic_key)
        gradient = None
        if self.amortized != "no":
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
        """Fit the reference to the actions of a batch.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.
        """
        return self._reference_update(state, replay, over_states(rows), key, None)

    def prepare(self, state: VGFState, replay: Replay, *, key: Key, chunk: int = 2048) -> tuple[VGFState, Replay]:
        """Sample a frozen reference at every next state, and measure its spread.

        Args:
            state: its reference is sampled.
            replay: the data.
            key: randomness; the same key gives the same cache.
            chunk: rows sampled at a time.

        Returns:
            The state with the budgets' unit of length, and the data with `samples` particles a state.
        """
        if not self.frozen_reference:
            return state, replay
        size = replay.actions.shape[1]
        particles = sample_rows(state.reference, replay.next_observations, size, self.samples, chunk, key)
        replay = eqx.tree_at(lambda r: r.particles, replay, particles, is_leaf=lambda x: x is None)
        if self.relative:
            state = eqx.tree_at(lambda s: s.scale, state, spread(particles))
        return state, replay

    def update(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[VGFState, dict[str, Float[Array, ""]]]:
        """Make one TD update, and one of what is trained along: the reference if it is not frozen, f if there is one.

        Args:
            state: the current state.
            replay: the data, prepared.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metrics `td_loss`, `value`, `displacement` (root mean square over states, particles
            and coordinates, in the budget's unit), `nonfinite` (particles frozen), `failed` (sets whose transport
            failed), and the losses of what is trained along.

        Raises:
            ValueError: the reference is frozen but its samples are not cached.
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

    def propose(self, state: VGFState, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one sample of the reference.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this sample.
        """
        return state.reference.sample(observation, jr.normal(key, state.scale.shape, observation.dtype))

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
        """Give Q_k(s, a).

        Args:
            state: the networks.
            observation: s, standardised.
            actions: candidates.
        """
        return jax.vmap(state.critic.network, (None, 0), 1)(observation, actions)

    def with_live_reference(self, state: VGFState) -> tuple["VGF", VGFState]:
        """Give the algorithm whose reference learns on along with the critic, for data that keep changing.

        The unit of length stays what it was; the reference's optimiser starts anew, at a constant rate.

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
            self.over_particles,
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
        self, critic: Critic, gradient: Trainable | None, observation: Float[Array, " obs"]
    ) -> AbstractTarget:
        """Give what the particles of one state flow toward: the ensemble, or f in the place of its gradient."""
        if gradient is not None:
            return ValueGradient(gradient.network, observation)
        return Boltzmann(aggregated_value, critic, self.improvement, observation)

    def _weights(
        self, state: VGFState, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> Float[Array, " batch"] | None:
        """Give the weight of each transition in the reference's loss."""
        if self.advantage_temperature is None:
            return None
        observations = replay.observations[rows]
        values = jax.vmap(lambda s, a: value(state.target_critic, self.improvement, s, a))
        baseline = jnp.mean(values(observations, self._fresh(state, observations, key)), axis=1)
        advantages = values(observations, replay.actions[rows][:, None])[:, 0] - baseline
        return jnp.minimum(jnp.exp(advantages / self.advantage_temperature), MAX_WEIGHT)

    def _fresh(self, state: VGFState, observations: Float[Array, "batch obs"], key: Key) -> Float[Array, "batch n act"]:
        """Draw N samples of the reference in every state."""
        shape = (observations.shape[0], self.particles, state.scale.shape[0])
        return sample_sets(state.reference.sample, observations, jr.normal(key, shape, observations.dtype))

    def _cached(self, replay: Replay, rows: Int[Array, " batch"], key: Key) -> Float[Array, "batch n act"]:
        """Give N of the M cached samples at the bootstrap states."""
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
        return ReferenceLearner(
            kind=self.reference,
            hidden=self.reference_hidden,
            steps=self.reference_steps,
            learning_rate=self.reference_learning_rate,
            decay_updates=self.reference_updates if self.frozen_reference else None,
            average=self.reference_average,
            one_step=self.one_step,
        )
