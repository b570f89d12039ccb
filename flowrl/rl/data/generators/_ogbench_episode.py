"""One episode of a generated OGBench data set, as a function of (data set, seed, split, index) alone.

The episode does not depend on which process collects it, nor on what that process collected before: that is what makes
generation parallel, resumable and reproducible.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowrl.rl.data.generators._ogbench_recipes import Recipe
from flowrl.rl.envs import own_global_state, quiet

#: Attempts at an episode that stays inside the visible part of the scene; about one in ten fails, so this never ends.
_MAX_ATTEMPTS = 100


class Collector:
    """An environment in which episodes are collected.

    OGBench's oracles and mazes draw from NumPy's *global* generator; every episode seeds it, and the caller's state is
    restored afterwards.
    """

    def __init__(self, name: str, recipe: Recipe) -> None:
        import gymnasium
        import ogbench  # noqa: F401  registers the environments

        self._name = name
        self._recipe = recipe
        options: dict[str, Any] = {"mode": "data_collection"} if recipe.family == "arm" else {}
        with quiet():
            self._env = gymnasium.make(
                recipe.env_id,
                terminate_at_goal=False,
                # The last row of the file only serves as the next observation of the row before it. Truncation is
                # ours to decide: the episode's length is an argument of `episode`.
                max_episode_steps=recipe.steps + 1,
                disable_env_checker=True,
                **options,
            )

    def episode(self, seed: int, split: str, index: int, steps: int) -> dict[str, np.ndarray]:
        """Collect one episode; a shorter one is the beginning of a longer one (of a scene: usually).

        Return OGBench's keys and dtypes, each with `steps + 1` rows: observations, actions, qpos, qvel (float32),
        terminals (bool, true on the last row only) and, where the environment has them, button_states (int64).
        """
        with quiet(), own_global_state():
            for attempt in range(_MAX_ATTEMPTS):
                digest = hashlib.sha256(f"{self._name}/{seed}/{split}/{index}/{attempt}".encode()).digest()
                words = np.random.SeedSequence(int.from_bytes(digest, "big")).generate_state(2)
                np.random.seed(int(words[0]))  # noqa: NPY002  OGBench draws from the global generator
                rows = list(self._rows(int(words[1]), steps + 1))
                columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
                if "scene" not in self._recipe.env_id or _cube_stays_visible(columns["qpos"]):
                    break
            else:
                raise RuntimeError(f"{self._name}: no usable episode {split}/{index} in {_MAX_ATTEMPTS} attempts.")
        arrays = {
            key: value.astype(np.int64 if key == "button_states" else np.float32) for key, value in columns.items()
        }
        arrays["terminals"] = np.arange(steps + 1) == steps
        return arrays

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _rows(self, seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Step the environment `count` times."""
        return (self._arm_rows if self._recipe.family == "arm" else self._maze_rows)(seed, count)

    def _arm_rows(self, seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Set a robot arm one task after another, each carried out by an oracle."""
        recipe, env = self._recipe, self._env
        oracles = _oracles(env, recipe)
        observation, info = env.reset(seed=seed)
        stack = np.random.uniform(*recipe.stack)  # noqa: NPY002
        # In "noisy" data each episode has its own noise level.
        level = np.random.uniform(0.0, recipe.noise) if recipe.style == "noisy" else 0.0  # noqa: NPY002
        deviations = level * np.array([1.0, 1.0, 1.0, 3.0, 10.0])
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        for _ in range(count):
            if np.random.uniform() < recipe.random_actions:  # noqa: NPY002
                # Not env.action_space.sample(): these environments make a new, unseeded space at every access.
                action = np.random.uniform(-1.0, 1.0, 5)  # noqa: NPY002
            else:
                action = np.asarray(oracle.select_action(observation, info))
                if recipe.style == "noisy":
                    action = action + np.random.normal(0.0, deviations)  # noqa: NPY002
            action = np.clip(action, -1.0, 1.0)
            following, _, _, _, info = env.step(action)
            if oracle.done:
                task_observation, task_info = env.unwrapped.set_new_target(p_stack=stack)  # pyright: ignore
                oracle = oracles[task_info["privileged/target_task"]]
                oracle.reset(task_observation, task_info)
            row = {
                "observations": observation,
                "actions": action,
                "qpos": info["prev_qpos"],
                "qvel": info["prev_qvel"],
            }
            if "prev_button_states" in info:
                row["button_states"] = info["prev_button_states"]
            yield row
            observation = following

    def _maze_rows(self, seed: int, count: int) -> Iterator[dict[str, np.ndarray]]:
        """Let a point mass follow the shortest path to its goal, with noise."""
        recipe, env, maze = self._recipe, self._env, self._env.unwrapped
        free, corners = _cells(maze.maze_map)  # pyright: ignore
        start = free[np.random.randint(len(free))]  # noqa: NPY002
        if recipe.style == "stitch":
            near = _cells_at_distance(maze.maze_map, start, 4)  # pyright: ignore
            goal = near[np.random.randint(len(near))] if near else start  # noqa: NPY002
        else:
            goal = corners[np.random.randint(len(corners))]  # noqa: NPY002
        env.action_space.seed(seed)
        observation, info = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        for _ in range(count):
            position = maze.get_xy()  # pyright: ignore
            subgoal, _ = maze.get_oracle_subgoal(position, maze.cur_goal_xy)  # pyright: ignore
            direction = subgoal - position
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = np.clip(direction + np.random.normal(0.0, recipe.noise, 2), -1.0, 1.0)  # noqa: NPY002
            following, _, _, _, info = env.step(action)
            if info["success"] and recipe.style == "navigate":
                goal = corners[np.random.randint(len(corners))]  # noqa: NPY002
                # set_goal(goal_ij=...) would move the goal marker to NaN; given as coordinates it does not.
                maze.set_goal(goal_xy=maze.add_noise(maze.ij_to_xy(goal)))  # pyright: ignore
            yield {
                "observations": observation,
                "actions": action,
                "qpos": info["prev_qpos"],
                "qvel": info["prev_qvel"],
            }
            observation = following


def _oracles(env: Any, recipe: Recipe) -> dict[str, Any]:
    """Return the scripted policies of an environment by kind of task; made again for every episode."""
    env_id = recipe.env_id
    kinds = ("cube", "button", "drawer", "window") if "scene" in env_id else ("button",)
    kinds = ("cube",) if "cube" in env_id else kinds
    options: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    if "puzzle" in env_id:
        options["button"]["gripper_always_closed"] = True
    if recipe.style == "play":
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        classes = (CubePlanOracle, ButtonPlanOracle, DrawerPlanOracle, WindowPlanOracle)
        common: dict[str, Any] = {"noise": recipe.noise, "noise_smoothing": 0.5}
    else:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        classes = (CubeMarkovOracle, ButtonMarkovOracle, DrawerMarkovOracle, WindowMarkovOracle)
        common = {"min_norm": 0.4}
        if "scene" in env_id:
            options["cube"]["max_step"] = 100
    by_kind = dict(zip(("cube", "button", "drawer", "window"), classes, strict=True))
    return {kind: by_kind[kind](env=env, **common, **options[kind]) for kind in kinds}


def _cube_stays_visible(qpos: np.ndarray) -> bool:
    """Return whether a scene's cube never leaves the table sideways, other than into the drawer (z from 6 to 8 cm)."""
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not bool(np.any(y >= 0.29) or np.any((y <= -0.3) & ~in_drawer))


def _cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the free cells (0) of a maze with walls (1) all around, and those of them that are not mere corridor."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze == 0)]
    corners = []
    for i, j in free:
        vertical = (maze[i - 1, j], maze[i + 1, j])
        horizontal = (maze[i, j - 1], maze[i, j + 1])
        if (vertical, horizontal) not in (((0, 0), (1, 1)), ((1, 1), (0, 0))):
            corners.append((i, j))
    return free, corners


def _cells_at_distance(maze: np.ndarray, start: tuple[int, int], distance: int) -> list[tuple[int, int]]:
    """Return the free cells whose shortest path from `start` has this many steps, in a fixed order."""
    seen, frontier = {start}, [start]
    for _ in range(distance):
        following: list[tuple[int, int]] = []
        for i, j in frontier:
            for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
                if maze[cell] == 0 and cell not in seen:
                    seen.add(cell)
                    following.append(cell)
        frontier = following
    return frontier
