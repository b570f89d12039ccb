"""Value Gradient Flow: a critic trained on transported particles.

The policy is never a network. Particles drawn from the reference μ(·|s) are transported toward exp(Q(s, ·)/α) until a
budget is spent; the set that arrives is the policy. Training bootstraps from it:

    y = Σ_{i<m} γ^i r_{t+i} + γ^m · mean_i Q_target(s', a_i),
    a_1, ..., a_N = transport(Boltzmann(Q, s'), samples of μ(·|s'), budget)

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026 (arXiv 2604.14265), algorithm 1.
"""

from typing import Any, Literal

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
from flowrl.rl._critic import AbstractAggregate, Critic, Mean, drive
from flowrl.rl._reference import FlowReference
from flowrl.rl._replay import Replay


class VGF(eqx.Module):
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


class VGFState(eqx.Module):
    """Everything that training changes; with the data and the algorithm it determines the rest of the run.

    Attributes:
        reference: μ.
        reference_optimiser: Adam's state.
        critic: Q.
        target_critic: its Polyak average.
        critic_optimiser: Adam's state.
        scale: unit of length of the budgets, (act,): the reference's spread, or ones.
        reference_step: updates of the reference so far.
        step: updates of the critic so far.
        key: randomness to come.
    """

    reference: FlowReference
    reference_optimiser: Any
    critic: Critic
    target_critic: Critic
    critic_optimiser: Any
    scale: Float[Array, " act"]
    reference_step: Int[Array, ""]
    step: Int[Array, ""]
    key: Key


def init(vgf: VGF, observation_size: int, action_size: int, *, key: Key) -> VGFState:
    """Make the state before the first update.

    Args:
        vgf: the algorithm.
        observation_size: coordinates of s.
        action_size: coordinates of a.
        key: randomness of the whole run.
    """
    reference_key, critic_key, run_key = jr.split(key, 3)
    reference = FlowReference(
        observation_size, action_size, vgf.reference_hidden, steps=vgf.reference_steps, key=reference_key
    )
    critic = Critic(observation_size, action_size, vgf.hidden, vgf.members, key=critic_key)
    return VGFState(
        reference=reference,
        reference_optimiser=_reference_optimiser(vgf).init(eqx.filter(reference, eqx.is_array)),
        critic=critic,
        # A copy: donated buffers must not be shared between two fields.
        target_critic=jax.tree.map(lambda x: jnp.array(x) if eqx.is_array(x) else x, critic),
        critic_optimiser=optax.adam(vgf.learning_rate).init(eqx.filter(critic, eqx.is_array)),
        scale=jnp.ones(action_size, jnp.float32),
        reference_step=jnp.zeros((), jnp.int32),
        step=jnp.zeros((), jnp.int32),
        key=run_key,
    )


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


@eqx.filter_jit(donate="all-except-first")
def _reference_interval(constant: tuple[VGF, Replay, int], state: VGFState) -> tuple[VGFState, dict[str, Array]]:
    vgf, replay, updates = constant

    def update(state: VGFState, _: None) -> tuple[VGFState, Array]:
        key, batch_key, loss_key = jr.split(state.key, 3)
        rows = jr.randint(batch_key, (vgf.batch_size,), 0, replay.actions.shape[0])
        state = eqx.tree_at(lambda s: s.key, state, key)
        return _reference_update(vgf, state, replay.observations[rows], replay.actions[rows], loss_key)

    state, losses = _scan(update, state, updates)
    return state, {"reference_loss": jnp.mean(losses)}


def _reference_update(
    vgf: VGF, state: VGFState, observations: Array, actions: Array, key: Key
) -> tuple[VGFState, Array]:
    noise_key, time_key = jr.split(key)
    noise = jr.normal(noise_key, actions.shape, actions.dtype)
    time = jr.uniform(time_key, actions.shape[:1], actions.dtype)
    loss, gradient = eqx.filter_value_and_grad(reference_loss)(state.reference, observations, actions, noise, time)
    updates, optimiser = _adam(_reference_optimiser(vgf), gradient, state.reference_optimiser)
    state = eqx.tree_at(
        lambda s: (s.reference, s.reference_optimiser, s.reference_step),
        state,
        (eqx.apply_updates(state.reference, updates), optimiser, state.reference_step + 1),
    )
    return state, loss


@eqx.filter_jit(donate="all-except-first")
def _critic_interval(constant: tuple[VGF, Replay, int], state: VGFState) -> tuple[VGFState, dict[str, Array]]:
    vgf, replay, updates = constant

    def update(state: VGFState, _: None) -> tuple[VGFState, dict[str, Array]]:
        key, batch_key, particle_key, reference_key = jr.split(state.key, 4)
        rows = jr.randint(batch_key, (vgf.batch_size,), 0, replay.actions.shape[0])
        state = eqx.tree_at(lambda s: s.key, state, key)
        metrics = {}
        if not vgf.frozen_reference:
            state, metrics["reference_loss"] = _reference_update(
                vgf, state, replay.observations[rows], replay.actions[rows], reference_key
            )
        start = _start_particles(vgf, state.reference, replay, rows, particle_key)
        state, critic_metrics = critic_update(vgf, state, replay, rows, start)
        return state, metrics | critic_metrics

    state, metrics = _scan(update, state, updates)
    return state, jax.tree.map(jnp.mean, metrics)


def critic_update(
    vgf: VGF, state: VGFState, replay: Replay, rows: Int[Array, " batch"], start: Float[Array, "batch n act"]
) -> tuple[VGFState, dict[str, Array]]:
    """Make one TD update on given rows and given reference samples.

    Args:
        vgf: the algorithm.
        state: the current state.
        replay: the data.
        rows: rows of the batch.
        start: reference samples at the bootstrap state of every row.

    Returns:
        The next state, and the metrics `td_loss`, `value`, `displacement` (root mean square over states, particles and
        coordinates, in the budget's unit), `nonfinite` (particles frozen) and `failed` (sets whose transport failed).
    """
    next_observations = replay.next_observations[replay.bootstrap[rows]]
    budget = vgf.train_budget.rescaled(state.scale)
    solution = jax.vmap(lambda s, a: transported(vgf, state.critic, s, a, budget))(next_observations, start)
    particles = jax.lax.stop_gradient(solution.particles)
    targets = jax.lax.stop_gradient(
        td_target(vgf, state.target_critic, replay.returns[rows], replay.discounts[rows], next_observations, particles)
    )
    loss, gradient = eqx.filter_value_and_grad(critic_loss)(
        state.critic, replay.observations[rows], replay.actions[rows], targets
    )
    updates, optimiser = _adam(optax.adam(vgf.learning_rate), gradient, state.critic_optimiser)
    critic = eqx.apply_updates(state.critic, updates)
    target_critic = jax.tree.map(
        lambda slow, new: slow + vgf.polyak * (new - slow) if eqx.is_array(slow) else slow, state.target_critic, critic
    )
    state = eqx.tree_at(
        lambda s: (s.critic, s.target_critic, s.critic_optimiser, s.step),
        state,
        (critic, target_critic, optimiser, state.step + 1),
    )
    metrics = {
        "td_loss": loss,
        "value": jnp.mean(targets),
        "displacement": jnp.sqrt(jnp.mean(solution.stats["displacement_rms"] ** 2) / start.shape[-1]),
        "nonfinite": jnp.sum(solution.stats["nonfinite"]).astype(loss.dtype),
        "failed": jnp.sum(solution.result != RESULTS.successful).astype(loss.dtype),
    }
    return state, metrics


def train_reference(vgf: VGF, state: VGFState, replay: Replay, updates: int) -> tuple[VGFState, dict[str, Array]]:
    """Train the reference for some updates in one compiled call.

    Args:
        vgf: the algorithm.
        state: the current state; its buffers are given away.
        replay: the data.
        updates: number of updates; each number compiles its own program.

    Returns:
        The next state, and mean metrics over the interval.
    """
    return _reference_interval((vgf, replay, updates), state)


def train_critic(vgf: VGF, state: VGFState, replay: Replay, updates: int) -> tuple[VGFState, dict[str, Array]]:
    """Train the critic (and a reference that is not frozen) for some updates in one compiled call.

    Args:
        vgf: the algorithm.
        state: the current state; its buffers are given away.
        replay: the data, with cached particles if the reference is frozen.
        updates: number of updates; each number compiles its own program.

    Returns:
        The next state, and mean metrics over the interval.

    Raises:
        ValueError: the reference is frozen but its samples are not cached.
    """
    if vgf.frozen_reference and replay.particles is None:
        raise ValueError("a frozen reference needs cached samples: call cache_particles(vgf, state, replay, key=key).")
    return _critic_interval((vgf, replay, updates), state)


def cache_particles(
    vgf: VGF, state: VGFState, replay: Replay, *, key: Key, chunk: int = 2048
) -> tuple[Replay, VGFState]:
    """Sample the frozen reference at every next state, and measure its spread.

    Args:
        vgf: the algorithm; `vgf.samples` samples a state are drawn.
        state: its reference is sampled.
        replay: the data.
        key: randomness; give the same key again to get the same cache after a restart.
        chunk: rows sampled at a time.

    Returns:
        The data with particles, and the state with the budgets' unit of length.
    """
    particles = _sample_rows(state.reference, replay.next_observations, vgf.samples, chunk, key)
    replay = eqx.tree_at(lambda r: r.particles, replay, particles, is_leaf=lambda x: x is None)
    if vgf.relative:
        state = eqx.tree_at(lambda s: s.scale, state, spread(particles))
    return replay, state


@eqx.filter_jit
def _sample_rows(reference: FlowReference, observations: Array, samples: int, chunk: int, key: Key) -> Array:
    rows, size = observations.shape
    padding = -rows % chunk
    chunks = jnp.concatenate([observations, jnp.zeros((padding, size), observations.dtype)]).reshape(-1, chunk, size)

    def one_chunk(arguments: tuple[Array, Array]) -> Array:
        index, block = arguments
        noise = jr.normal(jr.fold_in(key, index), (chunk, samples, _action_size(reference)), block.dtype)
        return jax.vmap(lambda s, x: jax.vmap(lambda z: reference.sample(s, z))(x))(block, noise)

    sampled = jax.lax.map(one_chunk, (jnp.arange(chunks.shape[0]), chunks))
    return sampled.reshape(-1, *sampled.shape[2:])[:rows]


def _start_particles(vgf: VGF, reference: FlowReference, replay: Replay, rows: Array, key: Key) -> Array:
    """Draw N reference samples at the bootstrap states, cached or fresh."""
    at = replay.bootstrap[rows]
    if not vgf.frozen_reference:
        noise = jr.normal(key, (rows.shape[0], vgf.particles, _action_size(reference)), replay.actions.dtype)
        states = replay.next_observations[at]
        return jax.vmap(lambda s, x: jax.vmap(lambda z: reference.sample(s, z))(x))(states, noise)
    assert replay.particles is not None
    # A random window of N of the M cached samples: distinct, and one gather.
    first = jr.randint(key, (rows.shape[0], 1), 0, vgf.samples)
    window = (first + jnp.arange(vgf.particles)[None]) % vgf.samples
    return replay.particles[at[:, None], window]


def _action_size(reference: FlowReference) -> int:
    return reference.field.layers[-1].bias.shape[0]


def _reference_optimiser(vgf: VGF) -> optax.GradientTransformation:
    rate = vgf.reference_learning_rate
    return optax.adam(optax.cosine_decay_schedule(rate, vgf.reference_updates) if vgf.frozen_reference else rate)


def _adam(optimiser: optax.GradientTransformation, gradient: Any, state: Any) -> tuple[Any, Any]:
    # Adam raises a float to an int32 power, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        return optimiser.update(gradient, state)


def _scan(update: Any, state: VGFState, updates: int) -> tuple[VGFState, Any]:
    dynamic, static = eqx.partition(state, eqx.is_array)

    def body(dynamic: Any, _: None) -> tuple[Any, Any]:
        new, out = update(eqx.combine(dynamic, static), None)
        return eqx.filter(new, eqx.is_array), out

    dynamic, out = jax.lax.scan(body, dynamic, None, length=updates)
    return eqx.combine(dynamic, static), out
