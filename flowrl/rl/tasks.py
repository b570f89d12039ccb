"""Tasks of the VGF paper at full size, as data: what to load, what to train, and what that costs.

The paper's table of settings per task was not published with its code. What stands here is what the authors' scripts
hold (github.com/ryanxhr/vgf at 3ec8f9b): for OGBench those of the amortized variant, for D4RL one setting for all
tasks. No score of the paper has been reproduced with them: that takes a GPU.
"""

import dataclasses
from typing import Any, Literal

from flowrl.rl.learning import VGF, presets
from flowrl.rl.networks import FlowMatching, Mean, Minimum


@dataclasses.dataclass(frozen=True)
class PaperTask:
    """One task at full size.

    Attributes:
        env: name for `flowrl.rl.data.load(env, origin="published")`.
        preset: the setting it starts from.
        steps: L_train.
        step_size: ε, learning rate of the particles' Adam, in the units of the action.
        temperature: α, for the preset "authors"; the amortized one has no kernel and so no α.
        aggregate: makes the ensemble one number in the TD target and in selection.
        discount: γ.
        rewards: name of the reward protocol.
        sizes: coordinates of an observation and of an action.
        updates: of the critic.
        episodes: of an evaluation.
    """

    env: str
    preset: Literal["authors", "amortized"]
    steps: int
    step_size: float
    temperature: float | None
    aggregate: Literal["mean", "min"]
    discount: float
    rewards: str
    sizes: tuple[int, int]
    updates: int = 1_000_000
    episodes: int = 50

    def algorithm(self, **changes: object) -> VGF:
        """Return the algorithm: four layers of 512, batches of 256.

        Args:
            changes: other fields of `VGF`.
        """
        aggregate = Mean() if self.aggregate == "mean" else Minimum()
        settings: dict[str, Any] = {"target": aggregate, "selection": aggregate, **changes}
        if self.preset == "amortized":
            return presets.amortized(self.steps, self.step_size, **settings)
        assert self.temperature is not None
        return presets.authors(self.steps, self.step_size, self.temperature, **settings)


_SIZES = {
    "halfcheetah": (17, 6),
    "hopper": (11, 3),
    "walker2d": (17, 6),
    "antmaze": (29, 8),
    "humanoidmaze": (69, 21),
    "antsoccer": (42, 8),
    "cube-single": (28, 5),
    "cube-double": (37, 5),
    "scene": (40, 5),
    "puzzle-3x3": (55, 5),
    "puzzle-4x4": (83, 5),
}


def _sizes(name: str) -> tuple[int, int]:
    return next(sizes for prefix, sizes in _SIZES.items() if name.startswith(prefix))


def _ogbench(
    env: str, discount: float, steps: int, step_size: float, aggregate: Literal["mean", "min"] = "mean"
) -> PaperTask:
    return PaperTask(env, "amortized", steps, step_size, None, aggregate, discount, "none", _sizes(env))


def _d4rl(name: str) -> PaperTask:
    rewards = "antmaze" if name.startswith("antmaze") else "d4rl_locomotion"
    return PaperTask(f"d4rl:{name}-v2", "authors", 5, 0.1, 0.1, "min", 0.99, rewards, _sizes(name))


_LOCOMOTION = [
    f"{body}-{kind}"
    for body in ("halfcheetah", "hopper", "walker2d")
    for kind in ("medium", "medium-replay", "medium-expert")
]
_MAZES = ["umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse"]

PAPER_TASKS: dict[str, PaperTask] = {
    **{name: _d4rl(name) for name in _LOCOMOTION},
    **{f"antmaze-{maze}": _d4rl(f"antmaze-{maze}") for maze in _MAZES},
    "antmaze-large-navigate": _ogbench("antmaze-large-navigate-singletask-task1-v0", 0.995, 5, 0.1, "min"),
    "antmaze-giant-navigate": _ogbench("antmaze-giant-navigate-singletask-task1-v0", 0.995, 5, 0.1, "min"),
    "humanoidmaze-large": _ogbench("humanoidmaze-large-navigate-singletask-task1-v0", 0.995, 1, 0.05),
    "antsoccer-arena": _ogbench("antsoccer-arena-navigate-singletask-task4-v0", 0.995, 2, 0.05),
    "cube-single": _ogbench("cube-single-play-singletask-task2-v0", 0.99, 1, 0.05),
    "scene": _ogbench("scene-play-singletask-task2-v0", 0.99, 1, 0.1),
    "humanoidmaze-medium": _ogbench("humanoidmaze-medium-navigate-singletask-task1-v0", 0.995, 1, 0.05),
    "cube-double": _ogbench("cube-double-play-singletask-task2-v0", 0.99, 1, 0.05),
    "puzzle-3x3": _ogbench("puzzle-3x3-play-singletask-task4-v0", 0.99, 5, 0.1),
    "puzzle-4x4": _ogbench("puzzle-4x4-play-singletask-task4-v0", 0.99, 5, 0.1),
}
"""By short name: the nine locomotion and six maze tasks of D4RL, and the default task of ten OGBench environments."""


def flops_per_update(vgf: VGF, observation_size: int, action_size: int) -> float:
    """Count the floating-point operations of the matrix products of one update.

    A product of an (n, p) and a (p, q) matrix counts 2npq; a gradient with respect to inputs alone counts its network
    twice, one with respect to weights three times. At OGBench's cube-double with L = 1 the preset "authors" has
    70 · 10⁹, as XLA counts for the authors' code.

    Args:
        vgf: the algorithm, its reference a `FlowMatching` model.
        observation_size: coordinates of s.
        action_size: coordinates of a.

    Raises:
        TypeError: the reference is another model, whose cost is not known here.
    """

    def forward(inputs: int, hidden: tuple[int, ...], outputs: int) -> float:
        sizes = (inputs, *hidden, outputs)
        return 2.0 * sum(a * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))

    if not isinstance(vgf.reference.model, FlowMatching):
        raise TypeError(f"the reference must be a FlowMatching model, got {vgf.reference.model!r}.")
    steps = vgf.reference.model.steps
    critic = vgf.members * forward(observation_size + action_size, vgf.hidden, 1)
    reference = forward(observation_size + action_size + 1, vgf.reference.hidden, action_size)
    slope = forward(observation_size + action_size, vgf.hidden, action_size)
    rows = vgf.batch_size * vgf.particles
    step = 2 * critic if vgf.amortized is None else slope
    total = rows * (int(vgf.train_budget.bound) * step + critic) + 3 * vgf.batch_size * critic
    if not vgf.frozen_reference:
        total += rows * steps * reference + 3 * vgf.batch_size * reference
    if vgf.amortized is not None:
        fitted = vgf.batch_size if vgf.amortized == "data" else 2 * rows
        total += fitted * (2 * critic + 3 * slope)
    return total
