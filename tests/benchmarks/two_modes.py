"""A bandit with two good actions: which policies keep both?

    python tests/benchmarks/two_modes.py --out docs/img/two_modes.png

The data lie around (±0.45, 0), the reward is highest at (±0.75, 0), outside the data. A policy that has one mode per
state must give one of them up, or stand between them, where there are neither data nor reward.
"""

import argparse
import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure

import flowrl
from flowrl.nn import MLP
from flowrl.rl import (
    AbstractAggregate,
    Agent,
    Critic,
    FlowMatching,
    Gaussian,
    Mean,
    Policy,
    PolicyTable,
    ReferenceLearner,
    Standardizer,
    Trainable,
    Uniform,
    act,
    fit,
    make_replay,
)
from flowrl.rl.baselines import AbstractActorCritic, FQLState
from flowrl.rl.data import Transitions
from flowrl.rl.learning import baselines, copied, polyak, presets
from flowrl.rl.learning.baselines import backup, critic_step, gather

BEST, DATA = 0.75, 0.45
SIZES = {"hidden": (64, 64), "batch_size": 128, "learning_rate": 1e-3}


def reward(actions):
    """Return exp(−|a − nearest best|² / 2·0.25²) for actions (n, 2)."""
    nearest = np.stack([np.sign(actions[:, 0]) * BEST, np.zeros(len(actions))], axis=1)
    return np.exp(-((actions - nearest) ** 2).sum(axis=1) / (2 * 0.25**2))


def bandit(seed: int, rows: int = 4000) -> Transitions:
    """Draw logged actions with their rewards; one state, one step."""
    rng = np.random.default_rng(seed)
    centres = np.stack([rng.choice([-DATA, DATA], rows), np.zeros(rows)], axis=1)
    actions = np.clip(centres + 0.1 * rng.normal(size=(rows, 2)), -1, 1).astype(np.float32)
    rewards = (reward(actions) + 0.05 * rng.normal(size=rows)).astype(np.float32)
    zeros, ones = np.zeros((rows, 1), np.float32), np.ones(rows, np.float32)
    return Transitions(zeros, actions, rewards, zeros, 0 * ones, ones)


class Residual(AbstractActorCritic):
    """A sample of a flow model of the data and a normal residual on it, μ-sample + Φ tanh(m + σ z), that climbs Q.

    With `sees_action` m and σ depend on the state and on the sample, as the perturbation of BCQ does (there without
    noise, and with Φ = 0.05); otherwise on the state alone: one residual for all modes.

    Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without Exploration", ICML 2019
    (arXiv 1812.02900).
    """

    sees_action: bool = eqx.field(static=True)
    reach: float = eqx.field(static=True, default=0.5)
    target: AbstractAggregate = Mean()
    improvement: AbstractAggregate = Mean()
    selection: AbstractAggregate = Mean()
    polyak: float = eqx.field(static=True, default=0.005)
    learning_rate: float = eqx.field(static=True, default=1e-3)
    batch_size: int = eqx.field(static=True, default=128)
    hidden: tuple[int, ...] = eqx.field(static=True, default=(64, 64))
    members: int = eqx.field(static=True, default=2)

    def init(self, observation_size, action_size, *, key):
        reference_key, actor_key, critic_key, run_key = jr.split(key, 4)
        inputs = (observation_size, action_size) if self.sees_action else (observation_size,)
        critic = Critic(observation_size, action_size, self.hidden, self.members, key=critic_key)
        return FQLState(
            reference=self._learner.init(observation_size, action_size, key=reference_key),
            actor=Trainable.start(MLP(inputs, 2 * action_size, self.hidden, key=actor_key), self._optimiser),
            critic=Trainable.start(critic, self._optimiser),
            target_critic=copied(critic),
            step=jnp.zeros((), jnp.int32),
            key=run_key,
        )

    def act(self, actor, reference, observation, key):
        base_key, residual_key = jr.split(key)
        base = jax.lax.stop_gradient(reference.sample(observation, jr.normal(base_key, (2,), jnp.float32)))
        mean, log_std = jnp.split(actor(observation, base) if self.sees_action else actor(observation), 2)
        noise = jnp.exp(jnp.clip(log_std, -5, 2)) * jr.normal(residual_key, (2,), jnp.float32)
        return jnp.clip(base + self.reach * jnp.tanh(mean + noise), -1, 1)

    def update(self, state, replay, rows, key):
        batch = gather(replay, rows)
        backup_key, reference_key, actor_key = jr.split(key, 3)
        reference = state.reference.network

        def acted(actor, observations, key):
            return jax.vmap(lambda s, k: self.act(actor, reference, s, k))(observations, jr.split(key, len(rows)))

        def loss(actor):
            actions = acted(actor, batch.observations, actor_key)
            return -jnp.mean(jax.vmap(state.critic.network)(batch.observations, actions))

        after = acted(state.actor.network, batch.next_observations, backup_key)
        targets = backup(state.target_critic, self.target, batch, after[:, None])
        critic, td_loss = critic_step(state.critic, self._optimiser, batch, targets)
        fitted, _ = self._learner.update(state.reference, batch.observations, batch.actions, reference_key)
        state = dataclasses.replace(
            state,
            reference=fitted,
            actor=state.actor.updated(eqx.filter_grad(loss)(state.actor.network), self._optimiser),
            critic=critic,
            target_critic=polyak(state.target_critic, critic.network, self.polyak),
            step=state.step + 1,
        )
        return state, {"td_loss": td_loss}

    def propose(self, state, observation, key):
        return self.act(state.actor.network, state.reference.network, observation, key)

    @property
    def _optimiser(self):
        return optax.adam(self.learning_rate)

    @property
    def _learner(self):
        return ReferenceLearner(FlowMatching(5), self.hidden, self.learning_rate, updates=None)


def learners():
    """Name each algorithm with the policy by which it acts."""
    flow, gaussian = (ReferenceLearner(model, (64, 64), updates=2000) for model in (FlowMatching(), Gaussian()))
    flowing = Policy("flow", 8, (flowrl.Budget(3, 0.2), Uniform()))
    proposal = Policy("proposal", 1)
    return {
        "cloned flow": (baselines.BC(hidden=(64, 64), batch_size=128), proposal),
        "VGF, L = 3": (presets.default(0, reference=flow, **SIZES), flowing),
        "VGF, Gaussian reference": (presets.default(0, reference=gaussian, **SIZES), flowing),
        "IQL, its normal distribution": (baselines.IQL(temperature=1.0, **SIZES), proposal),
        "TD3+BC": (baselines.td3_bc(**SIZES), proposal),
        "Gaussian residual": (Residual(sees_action=False), proposal),
        "residual that sees the sample": (Residual(sees_action=True), proposal),
        "the same of BCQ's size, 0.05": (Residual(sees_action=True, reach=0.05), proposal),
        "FQL": (baselines.FQL(alpha=10.0, **SIZES), proposal),
    }


def actions_of(algorithm, policy: Policy, seed: int, draws: int = 500) -> np.ndarray:
    """Train, then act many times in the one state."""
    data = bandit(seed)
    replay = make_replay(data, Standardizer.fit(data.observations, "none"), discount=0.0)
    state = fit(algorithm, replay, updates=3000, interval=1000, key=jr.key(seed))
    agent = Agent(algorithm, state, Standardizer.fit(data.observations, "none"))
    zeros, episodes = jnp.zeros(draws, jnp.int32), jnp.arange(draws, dtype=jnp.int32)
    observations = jnp.zeros((draws, 1), jnp.float32)
    table = PolicyTable((policy,), draws)
    return np.asarray(act(agent, table, zeros, observations, episodes, zeros, jr.key(seed + 100)).action)


def summary(actions: np.ndarray) -> tuple[float, float, float]:
    """Return the share of the lesser mode, the share in the void between the modes, and the mean reward."""
    right = np.mean(actions[:, 0] > 0)
    return min(right, 1 - right), float(np.mean(np.abs(actions[:, 0]) < 0.2)), float(reward(actions).mean())


def main() -> None:
    """Print the table and draw the first seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("two_modes.png"))
    options = parser.parse_args()
    figure = Figure(figsize=(11, 8.4), layout="constrained")
    panels = figure.subplots(3, 3, sharex=True, sharey=True).ravel()
    logged = bandit(0).actions
    print("| policy | share of the lesser mode | between the modes | mean reward |\n|---|---|---|---|")
    for panel, (name, (algorithm, policy)) in zip(panels, learners().items(), strict=True):
        drawn = [actions_of(algorithm, policy, seed) for seed in range(options.seeds)]
        columns = np.array([summary(actions) for actions in drawn]).T
        cells = " | ".join(f"{column.mean():.2f} ({', '.join(f'{x:.2f}' for x in column)})" for column in columns)
        print(f"| {name} | {cells} |", flush=True)
        panel.scatter(*logged[:400].T, s=4, color="0.8", label="data")
        panel.scatter(*drawn[0][:200].T, s=8, color="C0", label="policy")
        panel.scatter([-BEST, BEST], [0, 0], marker="x", color="C3", label="best")
        panel.set(title=f"{name}: reward {columns[2][0]:.2f}", xlim=(-1.05, 1.05), ylim=(-0.6, 0.6))
    panels[0].legend(loc="upper center", ncols=3, fontsize="small")
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
