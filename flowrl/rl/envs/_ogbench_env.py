"""An environment to evaluate a policy in: seeded all the way down, float32 observations, no warning."""

from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl.rl.envs._environment import Environment
from flowrl.rl.envs._gym_env import render_mode
from flowrl.rl.envs._isolation import own_global_state, quiet


def evaluation_env(env_id: str, *, seed: int | None, render: bool = False) -> Environment:
    """Make an environment whose episodes are a function of the seed (of the first `reset()` that is not given one)."""
    # Left alone, OGBench's are not: its mazes draw from NumPy's global generator, so that one environment's episodes
    # depend on what every other one does in between, and its robot arms draw the actions that lead to `info["goal"]`
    # from an unseeded space. Here each environment has its own stream.
    require("gymnasium", "ogbench", extra="rl")
    import gymnasium

    class EvaluationEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
        """Owns a stream of NumPy's global generator, and the action space that the environment samples from."""

        def __init__(self, env: Any) -> None:
            super().__init__(env)
            inner = env.unwrapped
            self._actions = inner.action_space
            kind = type(inner)
            if isinstance(getattr(kind, "action_space", None), property):
                # A robot arm makes a new space (and a warning) at every access; give it one that can be seeded.
                actions = self._actions
                inner.__class__ = type(kind.__name__, (kind,), {"action_space": property(lambda _: actions)})
            self.action_space = self._actions
            shape = inner.observation_space.shape
            self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
            self._seed = seed
            self._state = np.random.RandomState().get_state()  # noqa: NPY002

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            if seed is None:
                seed, self._seed = self._seed, None
            with own_global_state():
                if seed is None:
                    np.random.set_state(self._state)  # noqa: NPY002
                else:
                    # Two streams from one seed must not be the same stream.
                    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002
                    self._actions.seed(seed)
                observation, info = self.env.reset(seed=seed, options=options)
                self._state = np.random.get_state()  # noqa: NPY002
            return np.asarray(observation, dtype=np.float32), info

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            with own_global_state():
                np.random.set_state(self._state)  # noqa: NPY002
                observation, reward, terminated, truncated, info = self.env.step(np.asarray(action))
                self._state = np.random.get_state()  # noqa: NPY002
            return np.asarray(observation, dtype=np.float32), float(reward), bool(terminated), bool(truncated), info

    with quiet(), own_global_state():
        return EvaluationEnv(gymnasium.make(env_id, disable_env_checker=True, **render_mode(render)))
