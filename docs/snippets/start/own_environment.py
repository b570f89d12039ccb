"""Offline RL on an environment and data of your own: arrays in, an agent out, and ways to act compared."""

import gymnasium
import jax
import numpy as np

from flowrl import rl
from flowrl.runs import progress_line

env, rng = gymnasium.make("Pendulum-v1"), np.random.default_rng(0)
rows = {name: [] for name in ("observations", "actions", "rewards", "terminations", "truncations")}
for episode in range(50):  # or arrays that you have: the rows of an episode one after another
    (observation, _), over = env.reset(seed=episode), False
    while not over:
        action = np.clip(np.sign(observation[2:]) + rng.normal(size=1), -2, 2)
        after, *outcome, _ = env.step(action)  # reward, terminated, truncated
        for column, entry in zip(rows.values(), (observation, action, *outcome), strict=True):
            column.append(entry)
        observation, over = after, any(outcome[1:])
dataset = rl.data.from_arrays({name: np.array(column) for name, column in rows.items()}, env="gym:Pendulum-v1")

agent = rl.learn(dataset, updates=2000, discount=0.97, key=jax.random.key(0), progress=progress_line("updates"))
ways = (rl.Policy("learned behaviour", 1), rl.Policy("best of 8", 8), rl.default_policy(agent.algorithm))
with rl.Lanes("gym:Pendulum-v1", 6) as lanes:  # environments side by side
    measured = rl.evaluate(agent, ways, lanes, episodes=10, seed=0)
for way, returns in zip(ways, measured.scores("return"), strict=True):
    print(f"{way.name}: {returns.mean():.0f} +- {returns.std() / 10**0.5:.0f}")
env = rl.data.make_env("gym:Pendulum-v1", seed=1)  # takes actions in [-1, 1], as the agent gives them
print(env.step(agent(env.reset()[0], key=jax.random.key(1))))
