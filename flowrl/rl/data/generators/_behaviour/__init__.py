"""Small behaviour policies that ship with the library, and how to act with them.

Each `.npz` beside this file is one snapshot of a soft actor-critic run (`flowrl behaviour`): a tanh-Gaussian
policy of 40 kilobytes. `provenance.json` says which command made it, how well it does, and its SHA-256. Acting is plain
NumPy: for one state at a time, dispatching a jitted call costs more than the arithmetic.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from flowrl._distribution import require
from flowrl._io import read_npz, write_npz
from flowrl.rl.envs import Environment, quiet, render_mode, simulator_log_off

# Where the shipped snapshots and their provenance stand.
FOLDER = Path(__file__).parent
# Limits of the log standard deviation, before the tanh. The trainer uses the same two numbers.
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Episode(NamedTuple):
    """One rollout of t steps, time on the leading axis.

    Attributes:
        observations: (t, obs).
        actions: (t, act).
        next_observations: (t, obs).
        rewards: (t,).
        masks: (t,), 0 where the environment truly terminated, else 1.
        terminals: (t,), 1 on the last row, however the episode ended.
    """

    observations: Float32[np.ndarray, "t obs"]
    actions: Float32[np.ndarray, "t act"]
    next_observations: Float32[np.ndarray, "t obs"]
    rewards: Float32[np.ndarray, " t"]
    masks: Float32[np.ndarray, " t"]
    terminals: Float32[np.ndarray, " t"]


@dataclasses.dataclass(frozen=True)
class TanhGaussian:
    """A tanh-squashed diagonal Gaussian policy over actions in [-1, 1], evaluated one state at a time.

    Attributes:
        kernels: one (in, out) float32 matrix per layer; the last has 2 act columns: means, then log deviations.
        biases: one (out,) float32 vector per layer.
    """

    kernels: tuple[Float32[np.ndarray, "_ _"], ...]
    biases: tuple[Float32[np.ndarray, " _"], ...]

    def __call__(
        self, observation: Float[np.ndarray, " obs"], rng: np.random.Generator | None = None
    ) -> Float32[np.ndarray, " act"]:
        """Return an action (act,) in [-1, 1]: drawn by `rng`, or without it the mode, tanh(mean)."""
        hidden = observation.astype(np.float32, copy=False)
        last = len(self.kernels) - 1
        for i, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            # einsum, not @: BLAS may split this product over threads, and then the bits (so, in a chaotic simulator,
            # whole trajectories) would depend on the number of threads that each worker was given.
            hidden = np.einsum("i,ij->j", hidden, kernel) + bias
            if i < last:
                hidden = np.maximum(hidden, np.float32(0))
        mean, log_std = np.split(hidden, 2)
        if rng is not None:
            noise = rng.standard_normal(mean.size, dtype=np.float32)
            mean = mean + np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)) * noise
        return np.tanh(mean)


def rollout(
    env: Environment, policy: TanhGaussian, seed: np.random.SeedSequence, *, stochastic: bool = True
) -> Episode:
    """Run one episode to its end; it depends on the seed alone. Without `stochastic` the policy acts by its mode."""
    reset_seed, noise_seed = seed.spawn(2)
    rng = np.random.default_rng(noise_seed) if stochastic else None
    observation, _ = env.reset(seed=int(reset_seed.generate_state(1)[0]))
    observations, actions, rewards = [np.asarray(observation, np.float32)], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = policy(observations[-1], rng)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(np.asarray(observation, np.float32))
        actions.append(action)
        rewards.append(reward)
    masks, terminals = np.ones(len(rewards), np.float32), np.zeros(len(rewards), np.float32)
    masks[-1], terminals[-1] = 0.0 if terminated else 1.0, 1.0
    stacked = np.stack(observations)
    return Episode(stacked[:-1], np.stack(actions), stacked[1:], np.asarray(rewards, np.float32), masks, terminals)


def make_mujoco(env_id: str, *, seed: int | None = None, render: bool = False) -> Environment:
    """Make a MuJoCo environment with float32 observations and gymnasium's own time limit.

    `seed` is of the first `reset()` that is not given one; later resets go on from there. None: not reproducible.
    """
    require("gymnasium", "mujoco", extra="rl")
    import gymnasium
    from gymnasium.utils import seeding

    with quiet(), simulator_log_off():
        # The checker would repeat in every worker what gymnasium's own tests have checked.
        inner = gymnasium.make(env_id, disable_env_checker=True, **render_mode(render))
        env = gymnasium.wrappers.DtypeObservation(inner, np.float32)
    if seed is not None:
        # What `reset(seed=seed)` would do, without a reset: the first `reset()` then gives that very episode.
        env.unwrapped.np_random, _ = seeding.np_random(seed)
        env.action_space.seed(seed)
    return env


def save_policy(path: Path, policy: TanhGaussian) -> None:
    """Write a policy as a float16 npz (half the size); the same weights give the same bytes.

    Whoever reports a return must measure the policy that `load_policy` gives back.
    """
    named = {f"kernel_{i}": kernel for i, kernel in enumerate(policy.kernels)}
    named |= {f"bias_{i}": bias for i, bias in enumerate(policy.biases)}
    write_npz(path, {name: array.astype(np.float16) for name, array in named.items()})


def load_policy(path: Path) -> TanhGaussian:
    """Read a policy that `save_policy` wrote; a ValueError names the file and the array that does not fit."""
    arrays = read_npz(path, required=("kernel_0", "bias_0"))
    layers = len(arrays) // 2
    expected = {f"{kind}_{i}" for kind in ("kernel", "bias") for i in range(layers)}
    if set(arrays) != expected:
        raise ValueError(f"{path}: got the arrays {sorted(arrays)}, expected {sorted(expected)}.")
    kernels = tuple(arrays[f"kernel_{i}"].astype(np.float32) for i in range(layers))
    biases = tuple(arrays[f"bias_{i}"].astype(np.float32) for i in range(layers))
    width = kernels[0].shape[0]
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        if kernel.ndim != 2 or bias.ndim != 1 or kernel.shape != (width, bias.size):
            raise ValueError(
                f"{path}: kernel_{i} has shape {kernel.shape} and bias_{i} {bias.shape}, expected ({width}, out) and "
                "(out,); restore the file."
            )
        width = bias.size
    return TanhGaussian(kernels, biases)


def provenance(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Read what is known of a folder's weights, by gymnasium id: command, seed, package versions, and "snapshots".

    The snapshots stand in order of training steps, each with file, steps, SHA-256 and measured returns.
    """
    return json.loads((folder / "provenance.json").read_text())
