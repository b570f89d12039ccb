"""Train a behaviour policy with soft actor-critic and save small snapshots of its actor on the way.

Soft actor-critic as in Haarnoja et al. 2018 (arXiv:1812.05905): twin critics, a tanh-Gaussian actor, and an entropy
coefficient tuned towards an entropy of minus the action dimension. The snapshots are the behaviour policies of the
local locomotion data sets (`flowrl.rl.data`); this script made those that ship with the library:

    flowrl behaviour --env HalfCheetah-v5 --steps 45000 --out flowrl/rl/data/generators/_behaviour
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

# A private module: the script and the library must agree on the form of the weights, and nobody else needs to.
from flowrl.rl.data import Environment
from flowrl.rl.data.generators import _behaviour


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a soft actor-critic policy and save snapshots of its actor."""

    env: str = "HalfCheetah-v5"
    """Gymnasium id; actions must live in [-1, 1]."""
    steps: int = 45_000
    """Environment steps, and (after the random ones) gradient updates: one per step."""
    seed: int = 0
    """Seeds the networks, the exploration, the replay sampling and the environment."""
    out: pathlib.Path = pathlib.Path("behaviour")
    """Folder for the snapshots and provenance.json (merged with what other environments left there)."""
    snapshot_every: int = 5_000
    """Steps between snapshots. There is one at step 0 and one at the end too."""
    stop_return: float | None = None
    """Stop early, at a snapshot, once the mean return of the last ten training episodes reaches this."""
    random_steps: int = 1_000
    """Uniformly random actions before learning starts."""
    width: int = 128
    """Units in each of the two hidden layers of the actor and of the critics."""
    learning_rate: float = 1e-3
    """Adam's learning rate, for actor, critics and entropy coefficient alike."""
    batch_size: int = 256
    """Transitions per update."""
    discount: float = 0.99
    """Discount of future rewards."""
    tau: float = 0.005
    """Rate at which the target critics follow the critics."""
    chunk: int = 20
    """Environment steps taken with one actor before as many updates run in one dispatch."""
    eval_episodes: int = 20
    """Episodes per snapshot behind the returns in provenance.json."""


class Networks(NamedTuple):
    """All that gradients change."""

    actor: eqx.nn.MLP  # obs_dim -> 2 act_dim
    critics: eqx.nn.MLP  # obs_dim + act_dim -> scalar; every leaf has a leading axis of 2
    log_alpha: Array  # scalar


class State(NamedTuple):
    """All that an update changes."""

    networks: Networks
    target_critics: eqx.nn.MLP
    opt_state: optax.OptState


class Batch(NamedTuple):
    """B transitions; (K, B, ...) for the K updates of one dispatch."""

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    masks: Array


def init(config: Config, obs_dim: int, act_dim: int, tx: optax.GradientTransformation, key: PRNGKeyArray) -> State:
    """Create the networks and the optimiser's state."""
    actor_key, critic_key = jax.random.split(key)
    actor = eqx.nn.MLP(obs_dim, 2 * act_dim, config.width, 2, key=actor_key)
    critics = eqx.filter_vmap(lambda k: eqx.nn.MLP(obs_dim + act_dim, "scalar", config.width, 2, key=k))(
        jax.random.split(critic_key)
    )
    networks = Networks(actor, critics, jnp.zeros(()))
    target_critics = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, critics)  # two donated buffers, not one
    return State(networks, target_critics, tx.init(eqx.filter(networks, eqx.is_inexact_array)))


def sample(actor: eqx.nn.MLP, observations: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Draw one action per state: (B, obs_dim) -> actions (B, act_dim) and their log densities (B,)."""
    mean, log_std = jnp.split(jax.vmap(actor)(observations), 2, axis=-1)
    log_std = jnp.clip(log_std, _behaviour.LOG_STD_MIN, _behaviour.LOG_STD_MAX)
    noise = jax.random.normal(key, mean.shape)
    raw = mean + jnp.exp(log_std) * noise
    # log(1 - tanh(x)^2), written so that it does not cancel for large |x|.
    log_jacobian = 2 * (jnp.log(2.0) - raw - jax.nn.softplus(-2 * raw))
    log_density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi) - log_jacobian
    return jnp.tanh(raw), log_density.sum(-1)


def evaluate(critics: eqx.nn.MLP, observations: Array, actions: Array) -> Array:
    """Return both critics at B state-action pairs: (2, B)."""
    inputs = jnp.concatenate([observations, actions], -1)
    return eqx.filter_vmap(lambda critic: jax.vmap(critic)(inputs))(critics)


def loss(networks: Networks, batch: Batch, targets: Array, act_dim: int, key: PRNGKeyArray) -> Array:
    """Return critic, actor and entropy losses in one scalar; stop_gradient keeps each to its own network."""
    frozen = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, networks)
    actions, log_density = sample(networks.actor, batch.observations, key)
    critic = jnp.mean((evaluate(networks.critics, batch.observations, batch.actions) - targets) ** 2, -1).sum()
    value = evaluate(frozen.critics, batch.observations, actions).min(0)
    actor = jnp.mean(jnp.exp(frozen.log_alpha) * log_density - value)
    entropy = networks.log_alpha * jax.lax.stop_gradient(act_dim - log_density.mean())
    return critic + actor + entropy


@eqx.filter_jit(donate="all-except-first")
def update(statics: tuple[Config, optax.GradientTransformation], state: State, batches: Batch, key: PRNGKeyArray):
    """Do K updates in one dispatch; `batches` has leaves (K, B, ...)."""
    config, tx = statics
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays: Any, inputs: tuple[Batch, PRNGKeyArray]) -> tuple[Any, None]:
        state: State = eqx.combine(arrays, static)
        batch, key = inputs
        next_key, actor_key = jax.random.split(key)
        networks = state.networks
        next_actions, next_log_density = sample(networks.actor, batch.next_observations, next_key)
        next_values = evaluate(state.target_critics, batch.next_observations, next_actions).min(0)
        soft_values = next_values - jnp.exp(networks.log_alpha) * next_log_density
        targets = batch.rewards + config.discount * batch.masks * soft_values
        grads = eqx.filter_grad(loss)(networks, batch, targets, batch.actions.shape[-1], actor_key)
        updates, opt_state = tx.update(grads, state.opt_state)
        networks = eqx.apply_updates(networks, updates)
        target_critics = jax.tree.map(
            lambda old, new: old + config.tau * (new - old) if eqx.is_inexact_array(old) else old,
            state.target_critics,
            networks.critics,
        )
        return eqx.filter(State(networks, target_critics, opt_state), eqx.is_array), None

    keys = jax.random.split(key, batches.rewards.shape[0])
    arrays, _ = jax.lax.scan(step, arrays, (batches, keys))
    return eqx.combine(arrays, static)


def as_numpy(actor: eqx.nn.MLP) -> _behaviour.TanhGaussian:
    """Return the actor as the NumPy policy that acts and is saved; equinox keeps (out, in) weights, it (in, out)."""
    kernels = tuple(np.ascontiguousarray(np.asarray(layer.weight).T) for layer in actor.layers)
    return _behaviour.TanhGaussian(kernels, tuple(np.asarray(layer.bias) for layer in actor.layers))


def returns(env: Environment, policy: _behaviour.TanhGaussian, episodes: int, *, stochastic: bool) -> dict[str, float]:
    """Return mean and standard error of the return over `episodes` episodes, and their mean length."""
    runs = [
        _behaviour.rollout(env, policy, np.random.SeedSequence(entropy=(1, i)), stochastic=stochastic)
        for i in range(episodes)
    ]
    totals = np.array([run.rewards.sum() for run in runs], np.float64)
    return {
        "mean": round(float(totals.mean()), 1),
        "standard_error": round(float(totals.std(ddof=1) / np.sqrt(episodes)), 1),
        "mean_length": round(float(np.mean([len(run.rewards) for run in runs])), 1),
    }


def train(config: Config, env: Environment, save: Any) -> int:
    """Train; call `save(step, actor)` at every snapshot; return the number of environment steps taken."""
    obs_dim, act_dim = env.observation_space.shape[0], env.action_space.shape[0]  # pyright: ignore
    tx = optax.adam(config.learning_rate)
    key = jax.random.key(config.seed)
    key, init_key = jax.random.split(key)
    state = init(config, obs_dim, act_dim, tx, init_key)
    rng = np.random.default_rng(config.seed)
    widths = Batch(obs_dim, act_dim, 0, obs_dim, 0)  # pyright: ignore
    replay = Batch(*(np.zeros((config.steps, w) if w else config.steps, np.float32) for w in widths))  # pyright: ignore
    finished, total, started = [], 0.0, time.perf_counter()
    observation, _ = env.reset(seed=config.seed)
    policy = as_numpy(state.networks.actor)
    save(0, policy)
    for step in range(1, config.steps + 1):
        random = step <= config.random_steps
        action = rng.uniform(-1, 1, act_dim).astype(np.float32) if random else policy(observation, rng)
        next_observation, reward, terminated, truncated, _ = env.step(action)
        # A time limit is not the end of the task: only `terminated` stops the bootstrap.
        row = Batch(observation, action, reward, next_observation, not terminated)  # pyright: ignore
        for column, value in zip(replay, row, strict=True):
            column[step - 1] = value  # pyright: ignore
        observation, total = next_observation, total + float(reward)
        if terminated or truncated:
            finished.append(total)
            observation, total = env.reset()[0], 0.0
        if step > config.random_steps and step % config.chunk == 0:
            rows = rng.integers(step, size=(config.chunk, config.batch_size))
            key, update_key = jax.random.split(key)
            batches = Batch(*(jnp.asarray(column[rows]) for column in replay))
            state = update((config, tx), state, batches, update_key)
            policy = as_numpy(state.networks.actor)
        recent = float(np.mean(finished[-10:])) if finished else float("nan")
        if step % config.snapshot_every == 0 or step == config.steps:
            alpha = float(jnp.exp(state.networks.log_alpha))
            seconds = time.perf_counter() - started
            print(f"step {step:7d}  return {recent:8.1f}  alpha {alpha:.4f}  {seconds:6.1f} s", flush=True)
            save(step, policy)
            if config.stop_return is not None and recent >= config.stop_return:
                return step
    return config.steps


def describe(config: Config, files: dict[int, str], seconds: float, argv: Sequence[str]) -> dict[str, Any]:
    """Measure every snapshot as it was saved, and return its provenance."""
    env = _behaviour.make_mujoco(config.env)
    snapshots = []
    for step, name in files.items():
        path = config.out / name
        policy = _behaviour.load_policy(path)
        entry = {"file": name, "steps": step, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        entry["stochastic_return"] = returns(env, policy, config.eval_episodes, stochastic=True)
        entry["mode_return"] = returns(env, policy, config.eval_episodes, stochastic=False)
        print(step, entry["stochastic_return"], entry["mode_return"], flush=True)
        snapshots.append(entry)
    packages = ("jax", "equinox", "optax", "numpy", "gymnasium", "mujoco")
    return {
        "command": shlex.join(["flowrl", *argv[1:]]),
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "seed": config.seed,
        "steps": max(files),
        "training_seconds": round(seconds, 1),
        "eval_episodes": config.eval_episodes,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "snapshots": snapshots,
    }


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is trained."""
    counts = ("steps", "snapshot_every", "width", "batch_size", "chunk")
    for name, least in {**dict.fromkeys(counts, 1), "seed": 0, "random_steps": 0, "eval_episodes": 2}.items():
        if getattr(config, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}.")
    for name, good, expected in (
        ("learning_rate", 0 < config.learning_rate < math.inf, "> 0"),
        ("discount", 0 <= config.discount <= 1, "in [0, 1]"),
        ("tau", 0 < config.tau <= 1, "in (0, 1]"),
    ):
        if not good:
            raise ValueError(f"--{name.replace('_', '-')} must be {expected}, got {getattr(config, name)}.")


def main(config: Config) -> None:
    """Train, save, measure, and record where the weights came from."""
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    files: dict[int, str] = {}

    def save(step: int, policy: _behaviour.TanhGaussian) -> None:
        files[step] = f"{config.env.lower()}-{step:07d}.npz"
        _behaviour.save_policy(config.out / files[step], policy)

    env = _behaviour.make_mujoco(config.env)
    box = env.action_space
    if not isinstance(box, gymnasium.spaces.Box) or not (np.all(box.low == -1) and np.all(box.high == 1)):
        raise ValueError(f"--env {config.env}: got actions in {box}, expected a box [-1, 1]; rescale the environment.")
    started = time.perf_counter()
    train(config, env, save)
    entry = describe(config, files, time.perf_counter() - started, sys.argv)
    path = config.out / "provenance.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(known | {config.env: entry}, indent=1, sort_keys=True) + "\n")
    beside.replace(path)
