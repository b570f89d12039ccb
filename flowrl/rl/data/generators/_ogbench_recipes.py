"""Which OGBench data sets can be made without an expert policy, and with which parameters.

The numbers are those of OGBench's published data sets, so that ours differ only in size, seeds and simulator version.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the episodes of one data set are collected; JSON values only, because it travels to worker processes.

    Attributes:
        env_id: gymnasium id of the environment without a fixed task.
        family: "arm" (scripted robot-arm oracles) or "maze" (point mass following the shortest path).
        style: "play" (open-loop plans with correlated noise), "noisy" (closed loop with white noise),
            "navigate" (one goal after another), or "stitch" (one nearby goal, then stay).
        steps: transitions in one episode, as loaded; the file holds one row more.
        noise: arm: scale of the plan's noise, or upper end of the episode's action noise; maze: action noise.
        random_actions: probability that an action is drawn uniformly instead (arm).
        stack: range from which each episode's probability of stacking cubes is drawn (arm).
        bytes_per_row: generous size of a row in memory, to see beforehand whether the data will fit on the disk.
    """

    env_id: str
    family: Literal["arm", "maze"]
    style: Literal["play", "noisy", "navigate", "stitch"]
    steps: int = 1000
    noise: float = 0.1
    random_actions: float = 0.0
    stack: tuple[float, float] = (0.5, 0.5)
    bytes_per_row: int = 1024


def _recipes() -> dict[str, Recipe]:
    """Return data-set name to recipe."""
    # Environment, range of stacking probabilities, share of random actions in the noisy variant.
    arms: tuple[tuple[str, tuple[float, float], float], ...] = (
        ("cube-single", (0.0, 0.0), 0.1),
        ("cube-double", (0.0, 0.25), 0.1),
        ("cube-triple", (0.05, 0.35), 0.1),
        ("cube-quadruple", (0.1, 0.5), 0.1),
        ("scene", (0.5, 0.5), 0.1),
        ("puzzle-3x3", (0.5, 0.5), 0.2),
        ("puzzle-4x4", (0.5, 0.5), 0.2),
        ("puzzle-4x5", (0.5, 0.5), 0.2),
        ("puzzle-4x6", (0.5, 0.5), 0.2),
    )
    found: dict[str, Recipe] = {}
    for env, stack, random_actions in arms:
        found[f"{env}-play-v0"] = Recipe(f"{env}-v0", "arm", "play", stack=stack)
        found[f"{env}-noisy-v0"] = Recipe(f"{env}-v0", "arm", "noisy", stack=stack, random_actions=random_actions)
    for size in ("medium", "large", "giant", "teleport"):
        env, steps = f"pointmaze-{size}", 2000 if size == "giant" else 1000
        found[f"{env}-navigate-v0"] = Recipe(f"{env}-v0", "maze", "navigate", steps=steps, noise=0.5, bytes_per_row=128)
        found[f"{env}-stitch-v0"] = Recipe(f"{env}-v0", "maze", "stitch", steps=200, noise=0.5, bytes_per_row=128)
    return found


RECIPES = _recipes()
