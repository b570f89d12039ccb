"""Value Gradient Flow on your own data: `python examples/custom_data.py --data mine.npz --env gym:Pendulum-v1`."""

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium
import jax.random as jr
import numpy as np
import tyro

from flowrl.rl import Agent, Lanes, Policy, Standardizer, data, evaluate, fit, make_replay, report
from flowrl.rl.learning import presets


@dataclasses.dataclass(frozen=True)
class Config:
    """Train on an npz of observations, actions, rewards and flags (docs/tutorials/data.md), and act."""

    data: Path | None = None
    """The file; default: 100 episodes of a weak controller, recorded on the spot."""
    env: str = "gym:Pendulum-v1"
    """The environment: gym:ID, or factory:MODULE:FUNCTION for one of yours."""
    updates: int = 4000
    """Updates of the critic."""


def record(path: Path) -> None:
    """Let a weak, noisy controller swing the pendulum, and write what happened."""
    rng, env = np.random.default_rng(0), gymnasium.make("Pendulum-v1")
    columns = {name: [] for name in ("observations", "actions", "rewards", "terminations", "truncations")}
    for episode in range(100):
        observation, over = env.reset(seed=episode)[0], False
        while not over:
            push = np.sign(observation[2]) if observation[0] < 0.7 else -3 * observation[1]
            action = np.clip(push + rng.normal(size=1), -2, 2).astype(np.float32)
            after, *outcome, _ = env.step(action)
            for column, entry in zip(columns.values(), (observation, action, *outcome), strict=True):
                column.append(entry)
            observation, over = after, any(outcome[1:])
    arrays: dict[str, Any] = {name: np.asarray(column, np.float32) for name, column in columns.items()}
    np.savez(path, **arrays)


if __name__ == "__main__":
    config = tyro.cli(Config)
    path = config.data or Path("runs/pendulum.npz")
    if config.data is None:
        path.parent.mkdir(exist_ok=True)
        record(path)
    dataset = data.apply_protocol(data.load_arrays(path, env=config.env), rewards="unit_std", observations="standard")
    print(*dataset.info.notes, sep="\n")
    standardizer = Standardizer.fit(dataset.train.observations)
    replay = make_replay(dataset.train, standardizer, discount=0.97)
    vgf = presets.default(1, 0.3, hidden=(128, 128), reference_hidden=(128, 128), reference_updates=2000)
    state = fit(vgf, replay, updates=config.updates, interval=1000, key=jr.key(0))
    policies = Policy("behaviour", 8, select="uniform"), Policy("best-of-8", 8), Policy("VGF L=3", 8, 3, 0.5)
    with Lanes(dataset.info.name, 12) as lanes:
        measured = evaluate(Agent(vgf, state, standardizer), policies, lanes, episodes=16, seed=0)
    print(report.markdown(report.summarise(policies, measured, "return", baseline="best-of-8"), "return"))
