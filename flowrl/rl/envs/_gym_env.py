"""Any gymnasium environment in this library's form: flat float32 observations, actions in [-1, 1], seeded.

The rules are those by which data are read, so a policy meets in the environment what it saw in the data:

- an observation that is not a vector is flattened as `gymnasium.spaces.flatten` does: the entries of a dictionary in
  the order of its space (alphabetical), goals included, one after the other;
- an action a in [-1, 1] becomes low + (a + 1) / 2 (high - low), per coordinate, with the limits of the environment.
"""

import importlib
from typing import Any

import numpy as np
from jaxtyping import Float

from flowrl._distribution import require
from flowrl.rl.envs._environment import Environment
from flowrl.rl.envs._isolation import quiet, simulator_log_off


def make(env_id: str, *, seed: int | None, **options: Any) -> Environment:
    """Make an environment by its gymnasium id ("module:Mine-v0" imports the module first) in this library's form."""
    require("gymnasium", extra="rl")
    import gymnasium

    try:
        with quiet(), simulator_log_off():
            # The checker would repeat in every worker what the environment's own tests have checked.
            env = gymnasium.make(env_id, disable_env_checker=True, **options)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, ModuleNotFoundError) as error:
        raise ValueError(f"gymnasium cannot make {env_id!r}: {error}") from error
    return adapt(env, env_id, seed=seed)


def check_registered(env_id: str) -> None:
    """Raise a ValueError if gymnasium knows no environment of this id, or its module cannot be imported."""
    require("gymnasium", extra="rl")
    import gymnasium

    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gymnasium.spec(name)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv, ModuleNotFoundError) as error:
        raise ValueError(f"gymnasium cannot make {env_id!r}: {error}") from error
    except gymnasium.error.Error:  # an id without a version, of which making takes the latest
        return


def adapt(env: Any, name: str, *, seed: int | None) -> Environment:
    """Wrap a `gymnasium.Env` in this library's form; `seed` is of the first `reset()` that is not given one."""
    require("gymnasium", extra="rl")
    import gymnasium

    if not isinstance(env, gymnasium.Env):
        raise TypeError(f"{name}: expected a gymnasium.Env, got {type(env).__name__}.")
    low, high = action_limits(env.action_space, name)
    size = flat_size(env.observation_space, name)
    dtype = env.action_space.dtype

    class SchemaEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Flattens observations, and takes actions in [-1, 1]."""

        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self.native_action_space = env.action_space
            with quiet():
                self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
                self.action_space = gymnasium.spaces.Box(-1.0, 1.0, low.shape, np.float32, seed=seed)
            self._first_seed = seed

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            if seed is None:
                seed, self._first_seed = self._first_seed, None
            observation, info = self.env.reset(seed=seed, options=options)
            return self._flat(observation), info

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            unit = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
            native = (low + (unit + 1) / 2 * (high - low)).astype(dtype)
            observation, reward, terminated, truncated, info = self.env.step(native)
            return self._flat(observation), float(reward), bool(terminated), bool(truncated), info

        def _flat(self, observation: Any) -> np.ndarray:
            return np.asarray(gymnasium.spaces.flatten(self.env.observation_space, observation), np.float32)

    return SchemaEnv(env)


def render_mode(render: bool) -> dict[str, Any]:  # noqa: FBT001  (one argument, which the name explains)
    """Return the options of `gymnasium.make` for an environment that can (or need not) draw itself."""
    return {"render_mode": "rgb_array"} if render else {}


def drawing(env: Environment, name: str, *, render: bool) -> Environment:
    """Return an environment that the caller made; raise a ValueError if it shall draw itself and cannot."""
    mode = getattr(env, "render_mode", None)
    if render and mode != "rgb_array":
        raise ValueError(f'{name}: its render_mode is {mode!r}, and frames need render_mode="rgb_array".')
    return env


def action_limits(space: Any, name: str) -> tuple[Float[np.ndarray, " act"], Float[np.ndarray, " act"]]:
    """Return the lowest and the highest action of a space, (act,) float64; refuse one without finite limits."""
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(
            f"{name}: the actions are {space}, expected a Box: discrete actions cannot be moved along a gradient."
        )
    if len(space.shape) != 1 or not space.shape[0] or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"{name}: the actions are {space}, expected a vector of floating-point numbers.")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise ValueError(
            f"{name}: the actions are within [{low}, {high}], expected finite limits: they are mapped to [-1, 1]. Give "
            "the environment limits with a wrapper."
        )
    return low, high


def to_unit(
    actions: np.ndarray, low: Float[np.ndarray, " act"], high: Float[np.ndarray, " act"], source: str
) -> Float[np.ndarray, "rows act"]:
    """Map actions (rows, act) from an environment's units to [-1, 1], as float64."""
    if np.issubdtype(actions.dtype, np.integer) or actions.dtype == np.bool_:
        raise ValueError(
            f"{source}: actions have dtype {actions.dtype}: discrete actions cannot be moved along a gradient."
        )
    if actions.ndim != 2 or actions.shape[1] != low.size:
        raise ValueError(
            f"{source}: actions has shape {actions.shape}, but the environment takes actions of shape {low.shape}."
        )
    # What lies outside the limits stays outside, for whoever reads the data to judge.
    return 2 * (actions.astype(np.float64) - low) / (high - low) - 1


def flat_size(space: Any, name: str) -> int:
    """Return the length of a flattened observation; refuse images and spaces without a fixed flat form."""
    import gymnasium

    spaces = gymnasium.spaces
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return sum(flat_size(part, name) for part in parts)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) >= 2:
        raise ValueError(f"{name}: the observations hold images ({space}), expected numbers that describe the state.")
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(f"{name}: observations of the kind {space} have no flat form of fixed length.")
    return int(spaces.flatdim(space))


def flatten_rows(space: Any, values: Any, rows: int) -> np.ndarray:
    """Flatten many observations (a leading axis of `rows` on every leaf), as `gymnasium.spaces.flatten` does one."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        return np.concatenate([flatten_rows(part, values[key], rows) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, gymnasium.spaces.Tuple):
        parts = zip(space.spaces, values, strict=True)
        return np.concatenate([flatten_rows(part, value, rows) for part, value in parts], axis=1)
    if isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.MultiBinary):
        return np.asarray(values).reshape(rows, -1)
    # One-hot codes.
    return np.stack([np.asarray(gymnasium.spaces.flatten(space, value)) for value in np.asarray(values)])
