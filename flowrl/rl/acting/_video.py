"""Episodes as moving pictures."""

import os
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl._distribution import require
from flowrl._io import atomic_write
from flowrl.rl.acting._policy import Agent, Policy, PolicyTable, act
from flowrl.rl.data import make_env


def record_video(
    agent: Agent,
    policy: Policy,
    env_name: str,
    path: str | os.PathLike[str],
    *,
    episodes: int = 1,
    seed: int = 0,
    every: int = 2,
    frames_per_second: int = 25,
) -> Path:
    """Run a policy and write what it looks like as an animated GIF.

    The episodes are those that `evaluate` with the same seed begins with: the same starts, the same candidates.

    Args:
        agent: networks and constants.
        policy: the way to act.
        env_name: as for `flowrl.rl.data.make_env`; it must be able to draw itself (MuJoCo without a screen:
            MUJOCO_GL=egl or osmesa in the environment of the process).
        path: the file, ending in .gif.
        episodes: number of episodes, one after the other.
        seed: of the evaluation.
        every: steps of the environment between two frames.
        frames_per_second: of the GIF, at most 50.

    Returns:
        The path.

    Raises:
        ImportError: naming the extra, if Pillow is missing.
        RuntimeError: the environment cannot draw: no graphics library, or no frame came.
        ValueError: another ending, or a number out of range.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ValueError(f"the video's file must end in .gif, got {path.name}.")
    if min(episodes, every) < 1 or not 1 <= frames_per_second <= 50:
        raise ValueError("episodes and every must be >= 1, and frames_per_second in [1, 50].")
    require("PIL", extra="plot")  # Pillow comes with matplotlib
    from PIL import Image

    policy.check(agent.algorithm)
    table, key, zero = PolicyTable((policy,), 1), jr.key(seed), jnp.zeros(1, jnp.int32)
    env = make_env(env_name, render=True)
    frames = []
    try:
        for episode in range(episodes):
            (observation, _), time, over = env.reset(seed=seed * 100_000 + episode), 0, False
            plan: list[np.ndarray] = []
            while not over:
                if time % every == 0:
                    frames.append(_frame(env, env_name))
                if not plan:
                    states, now = jnp.asarray(observation, jnp.float32)[None], jnp.asarray([time], jnp.int32)
                    acted = act(agent, table, zero, states, zero + episode, now, key)
                    plan = list(np.asarray(acted.action[0]).reshape(agent.chunk, -1))
                observation, _, terminated, truncated, _ = env.step(plan.pop(0))
                time, over = time + 1, terminated or truncated
            frames.append(_frame(env, env_name))
    finally:
        env.close()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with atomic_write(path) as file:
        first.save(
            file, format="GIF", save_all=True, append_images=rest, duration=round(1000 / frames_per_second), loop=0
        )
    return path


def _frame(env, env_name: str) -> np.ndarray:
    try:
        frame = env.render()
    except Exception as error:  # each graphics library has its own
        raise RuntimeError(
            f"{env_name} could not be drawn ({type(error).__name__}: {error}). Without a screen MuJoCo needs "
            "MUJOCO_GL=egl (or osmesa) in the environment of the process, and that library on the machine."
        ) from error
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.dtype != np.uint8:
        raise RuntimeError(
            f"{env_name}.render() gave {type(frame).__name__}, expected a uint8 array (height, width, 3)."
        )
    return frame
