"""Value Gradient Flow on your own data: `python examples/custom_data.py --data mine.npz --env gym:Pendulum-v1`."""

import argparse
from pathlib import Path

import jax.random as jr
import numpy as np

from flowrl import Budget, rl
from flowrl.rl import Policy, Uniform, data, report

try:
    import gymnasium
except ImportError as missing:
    raise SystemExit(f'{missing.name} is missing: pip install -e ".[rl]"') from missing


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
    np.savez(path, allow_pickle=False, **{name: np.asarray(column, np.float32) for name, column in columns.items()})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="npz file (docs/tutorials/data.md); default: a weak controller's episodes"
    )
    parser.add_argument("--env", default="gym:Pendulum-v1", help="gym:ID, or factory:MODULE:FUNCTION for one of yours")
    parser.add_argument("--updates", type=int, default=4000, help="of the critic")
    config = parser.parse_args()
    path = config.data or Path("runs/pendulum.npz")
    if config.data is None:
        path.parent.mkdir(exist_ok=True)
        record(path)
    dataset = data.load_arrays(path, env=config.env)
    print(*dataset.info.notes, sep="\n")
    vgf = rl.presets.small("return", config.updates, hidden=(128, 128))
    agent = rl.learn(dataset, vgf, updates=config.updates, discount=0.97, key=jr.key(0))
    flowing = Policy("VGF L=3", 8, Budget(3, 0.5))
    policies = Policy("behaviour", 8, Uniform()), Policy("best-of-8", 8), flowing
    with rl.Lanes(dataset.info.name, 12) as lanes:
        measured = rl.evaluate(agent, policies, lanes, episodes=16, seed=0)
    print(report.markdown(report.summarise(policies, measured, "return", baseline="best-of-8"), "return"))
