"""Value Gradient Flow: a critic trained on transported particles.

The policy is never a network. Particles drawn from the reference μ(·|s) are transported toward exp(Q(s, ·)/α) until a
budget is spent; the set that arrives is the policy. Training bootstraps from it:

    y = Σ_{i<m} γ^i r_{t+i} + γ^m · mean_i Q_target(s', a_i),
    a_1, ..., a_N = transport(Boltzmann(Q, s'), samples of μ(·|s'), budget)

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026 (arXiv 2604.14265), algorithm 1.
"""

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
from flowrl._target import Boltzmann
from flowrl._transport import Transport
from flowrl.rl._algorithm import AbstractPretrained, AbstractState
from flowrl.rl._critic import AbstractAggregate, Critic, Mean, drive
from flowrl.rl._reference import FlowReference
from flowrl.rl._replay import Replay
from flowrl.rl._train import Trainable, copied, polyak


class VGF(AbstractPretrained):
    """The algorithm as a value: its parts and constants. See `flowrl.rl.presets` for named settings.

    Attributes:
        transport: how particles are moved, in training and in test; its domain is the box of actions [−1, 1].
        train_budget: L_train, ε, α. Its step size is in units of the reference's spread if `relative`.
        relative: measure budgets in units of the reference's within-state spread.
        particles: N, particles a state.
        target: makes the ensemble one number in the TD target.
        drive: makes it one number along whose gradient particles flow.
        selection: makes it one number by which test-time candidates are ranked.
        over_particles: the target is the mean over the N particles, or their maximum.
        frozen_reference: train the reference first, then freeze it and cache `samples` particles at every next state;
            otherwise it is trained along with the critic and sampled afresh.
        samples: M >= N, cached particles a state.
        polyak: τ, rate at which the target network follows.
        learning_rate: Adam's rate for the critic.
        reference_learning_rate: Adam's rate for the reference; decays as a cosine over `reference_updates` if frozen.
        reference_updates: updates of the reference before it is frozen.
        batch_size: transitions an update.
        hidden: widths of the critic's hidden layers.
        reference_hidden: widths of the reference's hidden layers.
        members: number of critics.
        reference_steps: K, Euler steps of a reference sample.
    """

    transport: Transport
    train_budget: Budget
    relative: bool = eqx.field(static=True, default=True)
    particles: int = eqx.field(static=True, default=8)
    target: AbstractAggregate = Mean()
    drive: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    over_particles: Literal["mean", "max"] = eqx.field(static=True, default="mean")
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
        if self.over_particles not in ("mean", "max"):
            raise ValueError(f"VGF: over_particles must be 'mean' or 'max', got {self.over_particles!r}.")
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

    def init(self, observation_size: int, action_size: int, *, key: Key) -> "VGFState":
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """
        reference_key, critic_key, run_key = jr.split(key, 3)
        reference = FlowReference(
            observation_size, action_size, self.reference_hidden, steps=self.reference_steps, key=reference_key
        )
        critic = Critic(observation_size, action_size, self.hidden, self.members, key=critic_key)
        return VGFState(
            reference=Trainable.start(reference, self._reference_optimiser),
            critic=Trainable.start(critic, self._critic_optimiser),
            target_critic=copied(critic),
            scale=jnp.ones(action_size, jnp.float32),
            reference_step=jnp.zeros((), jnp.int32),
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def pretrain(
        self, state: "VGFState", replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple["VGFState", dict[str, Array]]:
        """Fit the reference to the actions of a batch.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.
        """
        actions = replay.actions[rows]
        noise_key, time_key = jr.split(key)
        noise = jr.normal(noise_key, actions.shape, actions.dtype)
        time = jr.uniform(time_key, actions.shape[:1], actions.dtype)
        loss, gradient = eqx.filter_value_and_grad(reference_loss)(
            state.reference.network, replay.observations[rows], actions, noise, time
        )
        state = eqx.tree_at(
            lambda s: (s.reference, s.reference_step),
            state,
            (state.reference.updated(gradient, self._reference_optimiser), state.reference_step + 1),
        )
        return state, {"reference_loss": loss}

    def prepare(self, state: "VGFState", replay: Replay, *, key: Key, chunk: int = 2048) -> tuple["VGFState", Replay]:
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
        particles = _sample_rows(state.reference.network, replay.next_observations, self.samples, chunk, key)
        replay = eqx.tree_at(lambda r: r.particles, replay, particles, is_leaf=lambda x: x is None)
        if self.relative:
            state = eqx.tree_at(lambda s: s.scale, state, spread(particles))
        return state, replay

    def update(
        self, state: "VGFState", replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple["VGFState", dict[str, Array]]:
        """Make one TD update, and one of a reference that is trained along.

        Args:
            state: the current state.
            replay: the data, prepared.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, and the metrics `td_loss`, `value`, `displacement` (root mean square over states, particles
            and coordinates, in the budget's unit), `nonfinite` (particles frozen) and `failed` (sets whose transport
            failed).

        Raises:
            ValueError: the reference is frozen but its samples are not cached.
        """
        if self.frozen_reference:
            return self._critic_update(state, replay, rows, self._cached(replay, rows, key))
        particle_key, reference_key = jr.split(key)
        state, metrics = self.pretrain(state, replay, rows, reference_key)
        states = replay.next_observations[replay.bootstrap[rows]]
        noise = jr.normal(particle_key, (rows.shape[0], self.particles, replay.actions.shape[1]), states.dtype)
        start = jax.vmap(_samples, (None, 0, 0))(state.reference.network, states, noise)
        state, critic_metrics = self._critic_update(state, replay, rows, start)
        return state, metrics | critic_metrics

    def propose(self, state: "VGFState", observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one sample of the reference.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this sample.
        """
        noise = jr.normal(key, state.scale.shape, observation.dtype)
        return state.reference.network.sample(observation, noise)

    def improve(
        self,
        state: "VGFState",
        observation: Float[Array, " obs"],
        particles: Float[Array, "n act"],
        steps: int,
        step_size: Float[Array, ""],
    ) -> Solution:
        """Transport samples of the reference; temperature and displacement cap are those of the train budget.

        Args:
            state: the networks.
            observation: s, standardised.
            particles: samples of the reference.
            steps: L_test.
            step_size: ε, in the unit of length `state.scale`.
        """
        train = self.train_budget
        budget = Budget(steps, step_size, train.temperature, scale=state.scale, max_displacement=train.max_displacement)
        return transported(self, state.critic.network, observation, particles, budget, save=tuple(range(steps + 1)))

    def values(
        self, state: "VGFState", observation: Float[Array, " obs"], actions: Float[Array, "n act"]
    ) -> Float[Array, "members n"]:
        """Give Q_k(s, a).

        Args:
            state: the networks.
            observation: s, standardised.
            actions: candidates.
        """
        return jax.vmap(state.critic.network, (None, 0), 1)(observation, actions)

    def _critic_update(
        self, state: "VGFState", replay: Replay, rows: Int[Array, " batch"], start: Float[Array, "batch n act"]
    ) -> tuple["VGFState", dict[str, Array]]:
        next_observations = replay.next_observations[replay.bootstrap[rows]]
        budget = self.train_budget.rescaled(state.scale)
        critic = state.critic.network
        solution = jax.vmap(lambda s, a: transported(self, critic, s, a, budget))(next_observations, start)
        targets = td_target(
            self,
            state.target_critic,
            replay.returns[rows],
            replay.discounts[rows],
            next_observations,
            jax.lax.stop_gradient(solution.particles),
        )
        loss, gradient = eqx.filter_value_and_grad(critic_loss)(
            critic, replay.observations[rows], replay.actions[rows], jax.lax.stop_gradient(targets)
        )
        trained = state.critic.updated(gradient, self._critic_optimiser)
        slow = polyak(state.target_critic, trained.network, self.polyak)
        state = eqx.tree_at(lambda s: (s.critic, s.target_critic, s.step), state, (trained, slow, state.step + 1))
        metrics = {
            "td_loss": loss,
            "value": jnp.mean(targets),
            "displacement": jnp.sqrt(jnp.mean(solution.stats["displacement_rms"] ** 2) / start.shape[-1]),
            "nonfinite": jnp.sum(solution.stats["nonfinite"]).astype(loss.dtype),
            "failed": jnp.sum(solution.result != RESULTS.successful).astype(loss.dtype),
        }
        return state, metrics

    def _cached(self, replay: Replay, rows: Int[Array, " batch"], key: Key) -> Float[Array, "batch n act"]:
        """Give N of the M cached samples at the bootstrap states."""
        if replay.particles is None:
            raise ValueError("a frozen reference needs cached samples: prepare(state, replay, key=key) draws them.")
        # A random window: the samples of a state are distinct, and it is one gather.
        first = jr.randint(key, (rows.shape[0], 1), 0, self.samples)
        window = (first + jnp.arange(self.particles)[None]) % self.samples
        return replay.particles[replay.bootstrap[rows][:, None], window]

    @property
    def _critic_optimiser(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    @property
    def _reference_optimiser(self) -> optax.GradientTransformation:
        rate = self.reference_learning_rate
        return optax.adam(optax.cosine_decay_schedule(rate, self.reference_updates) if self.frozen_reference else rate)


class VGFState(AbstractState):
    """Everything that training changes.

    Attributes:
        reference: μ.
        critic: Q.
        target_critic: its Polyak average.
        scale: unit of length of the budgets, (act,): the reference's spread, or ones.
        reference_step: updates of the reference so far.
        step: updates of the critic so far.
        key: randomness to come.
    """

    reference: Trainable
    critic: Trainable
    target_critic: Critic
    scale: Float[Array, " act"]
    reference_step: Int[Array, ""]
    step: Int[Array, ""]
    key: Key


def value(
    critic: Critic, aggregate: AbstractAggregate, observation: Float[Array, " obs"], particles: Float[Array, "n act"]
) -> Float[Array, " n"]:
    """Give the aggregated value of each particle at one state.

    Args:
        critic: the ensemble.
        aggregate: how members become one number.
        observation: s, standardised.
        particles: actions.
    """
    return jax.vmap(lambda action: drive(critic, aggregate, observation, action))(particles)


def transported(
    vgf: VGF,
    critic: Critic,
    observation: Float[Array, " obs"],
    particles: Float[Array, "n act"],
    budget: Budget,
    *,
    save: tuple[int, ...] | None = None,
) -> Solution:
    """Transport the particles of one state along the critic.

    Args:
        vgf: the algorithm.
        critic: the ensemble that drives.
        observation: s, standardised.
        particles: samples of the reference, in [−1, 1].
        budget: the budget, with its `scale`.
        save: as in `flowrl.transport`.
    """
    target = Boltzmann(drive, critic, vgf.drive, observation)
    return vgf.transport(target, particles, budget, save=save, throw=False)


def reference_loss(
    reference: FlowReference,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    noise: Float[Array, "batch act"],
    time: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Give the flow-matching loss of a batch.

    Args:
        reference: μ.
        observations: s, standardised.
        actions: a.
        noise: standard normal.
        time: uniform on [0, 1].
    """
    return jnp.mean(jax.vmap(reference.loss)(observations, actions, noise, time))


def td_target(
    vgf: VGF,
    target_critic: Critic,
    returns: Float[Array, " batch"],
    discounts: Float[Array, " batch"],
    next_observations: Float[Array, "batch obs"],
    particles: Float[Array, "batch n act"],
) -> Float[Array, " batch"]:
    """Give y = returns + discounts · (mean or maximum over particles of the aggregated target value).

    Args:
        vgf: the algorithm.
        target_critic: the slow ensemble.
        returns: n-step returns.
        discounts: γ^m · mask.
        next_observations: bootstrap states.
        particles: transported particles there.
    """
    values = jax.vmap(lambda s, a: value(target_critic, vgf.target, s, a))(next_observations, particles)
    best = jnp.max(values, axis=1) if vgf.over_particles == "max" else jnp.mean(values, axis=1)
    return returns + discounts * best


def critic_loss(
    critic: Critic,
    observations: Float[Array, "batch obs"],
    actions: Float[Array, "batch act"],
    targets: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Give the TD loss: squared errors summed over members, averaged over the batch.

    Args:
        critic: the ensemble.
        observations: s, standardised.
        actions: a.
        targets: y.
    """
    values = jax.vmap(critic)(observations, actions)
    return jnp.mean(jnp.sum((values - targets[:, None]) ** 2, axis=1))


@eqx.filter_jit
def _sample_rows(reference: FlowReference, observations: Array, samples: int, chunk: int, key: Key) -> Array:
    rows, size = observations.shape
    padding = -rows % chunk
    chunks = jnp.concatenate([observations, jnp.zeros((padding, size), observations.dtype)]).reshape(-1, chunk, size)

    def one_chunk(arguments: tuple[Array, Array]) -> Array:
        index, block = arguments
        noise = jr.normal(jr.fold_in(key, index), (chunk, samples, reference.action_size), block.dtype)
        return jax.vmap(_samples, (None, 0, 0))(reference, block, noise)

    sampled = jax.lax.map(one_chunk, (jnp.arange(chunks.shape[0]), chunks))
    return sampled.reshape(-1, *sampled.shape[2:])[:rows]


def _samples(
    reference: FlowReference, observation: Float[Array, " obs"], noise: Float[Array, "n act"]
) -> Float[Array, "n act"]:
    return jax.vmap(lambda z: reference.sample(observation, z))(noise)
