"""Gymnasium environments that need no simulator, in a module that other processes can import."""

import os
import pathlib
import signal
import time

import gymnasium
import numpy as np


def _box(size):
    return gymnasium.spaces.Box(-np.inf, np.inf, (size,))


class Goals(gymnasium.Env):
    """A point on a line: dictionary observations, an action whose coordinates have different limits, a true end."""

    def __init__(self):
        parts = {"observation": _box(2), "achieved_goal": _box(1), "desired_goal": _box(1)}
        self.observation_space = gymnasium.spaces.Dict({**parts, "mode": gymnasium.spaces.Discrete(3)})
        self.action_space = gymnasium.spaces.Box(np.float32([-1, 0]), np.float32([1, 4]))

    def _observe(self):
        x = np.float32([self.x])
        parts = {"observation": np.float32([self.x, self.t]), "achieved_goal": x, "desired_goal": x + 1}
        return {**parts, "mode": np.int64(self.t % 3)}

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        return self._observe(), {}

    def step(self, action):
        self.x, self.t = self.x + float(action[0]), self.t + 1
        return self._observe(), float(action[1]), self.t == 5, False, {"success": self.t == 5}


class Unlimited(Goals):
    """Actions without limits."""

    def __init__(self):
        super().__init__()
        self.action_space = _box(2)


class Drawn(Goals):
    """Draws how far it has come, as one grey value."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.full((8, 12, 3), 40 * self.t, np.uint8)


class Fragile(Goals):
    """Fails at its third step, once for every file that does not exist yet; FLOWRL_FRAGILE says how, and names it."""

    def step(self, action):
        how, *files = os.environ["FLOWRL_FRAGILE"].split(os.pathsep)
        missing = [file for file in files if not pathlib.Path(file).exists()]
        if self.t == 2 and missing:
            pathlib.Path(missing[0]).touch()
            if how == "raises":
                raise ValueError("the simulator is unstable")
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return super().step(action)


class FragileSeeds(Goals):
    """Raises at the third step of an episode, once for every file named by its seed that does not exist yet."""

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return super().reset(seed=seed, options=options)

    def step(self, action):
        files = [pathlib.Path(file) for file in os.environ["FLOWRL_FRAGILE"].split(os.pathsep)]
        if self.t == 2 and (mine := [file for file in files if file.name == str(self.seed) and not file.exists()]):
            mine[0].touch()
            raise ValueError("the simulator is unstable")
        return super().step(action)


def fragile():
    return gymnasium.wrappers.TimeLimit(Fragile(), 8)


def fragile_seeds():
    return gymnasium.wrappers.TimeLimit(FragileSeeds(), 8)


def drawn():
    return Drawn("rgb_array")


def goals():
    return gymnasium.wrappers.TimeLimit(Goals(), 8)


def register():
    for name, entry, limit in (
        ("FlowrlGoals-v0", "rl.environments:Goals", 8),
        ("FlowrlPendulum-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", 30),
    ):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry, max_episode_steps=limit)


def unmakeable():
    raise RuntimeError("no licence")


def narrow():
    env = Goals()
    env.observation_space, env.action_space = _box(3), gymnasium.spaces.Box(-0.5, 0.5, (1,))
    return env
