"""Offline RL on a task of OGBench: data made here, an agent, and the share of episodes that it solves."""

import jax

from flowrl import rl
from flowrl.runs import progress_line

name = "puzzle-3x3-play-singletask-task1-v0"
dataset = rl.data.load(name, rows=100_000, progress=progress_line("data (episodes)"))
agent = rl.learn(dataset, updates=10_000, key=jax.random.key(0), progress=progress_line("updates"))
ways = (rl.Policy("learned behaviour", 1), rl.Policy("best of 8", 8), rl.default_policy(agent.algorithm))
with rl.Lanes(name, 10) as lanes:  # environments side by side
    measured = rl.evaluate(agent, ways, lanes, episodes=20, seed=0, progress=progress_line("evaluation (episodes)"))
for way, solved in zip(ways, measured.scores("success"), strict=True):
    print(f"{way.name}: {100 * solved.mean():.0f} %")
