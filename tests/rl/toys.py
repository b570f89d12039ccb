"""Small problems with known answers, and environments that need no simulator."""

import numpy as np

from flowrl.rl import Lanes, StepResult
from flowrl.rl.data import Transitions


def transitions(observations, actions, rewards, next_observations, masks, terminals) -> Transitions:
    arrays = (observations, actions, rewards, next_observations, masks, terminals)
    return Transitions(*(np.asarray(x, np.float32) for x in arrays))


def chain(rows: int, seed: int = 0) -> Transitions:
    """States 0, 1, 2 in turn, then the end; r = −(a − 1/2)², actions uniform on [−1, 1].

    Whatever is done, the next state is the next of the chain, so values are sums of expected rewards.
    """
    rng = np.random.default_rng(seed)
    place = np.arange(rows) % 3
    actions = rng.uniform(-1, 1, (rows, 1))
    onehot = np.eye(4)
    last = place == 2
    return transitions(
        onehot[place],
        actions,
        -((actions[:, 0] - 0.5) ** 2),
        onehot[place + 1],
        1 - last,
        last | (np.arange(rows) == rows - 1),
    )


def bandit(rows: int, seed: int = 0) -> Transitions:
    """One step; the best action is 0.6 everywhere, the data are N(−0.2, 0.2²); r = −|a − 0.6|²."""
    rng = np.random.default_rng(seed)
    actions = np.clip(rng.normal(-0.2, 0.2, (rows, 2)), -1, 1)
    states = rng.normal(size=(rows, 3))
    rewards = -((actions - 0.6) ** 2).sum(axis=1)
    return transitions(states, actions, rewards, states, np.zeros(rows), np.ones(rows))


class ToyLanes(Lanes):
    """Episodes of random states of random length; the reward is −|a − 0.6|². No processes."""

    def __init__(self, size: int, *, fail_at: int | None = None):
        self.size = size
        self.fail_at = fail_at
        self.calls = 0
        self.rngs: dict[int, np.random.Generator] = {}
        self.left: dict[int, int] = {}

    def reset(self, seeds):
        out = {}
        for lane, seed in seeds.items():
            self.rngs[lane] = np.random.default_rng(seed)
            self.left[lane] = int(self.rngs[lane].integers(3, 9))
            out[lane] = self.rngs[lane].normal(size=3).astype(np.float32)
        return out

    def step(self, actions):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("evaluation environment: the toy broke")
        out = {}
        for lane, action in actions.items():
            self.left[lane] -= 1
            reward = -float(((np.asarray(action) - 0.6) ** 2).sum())
            observation = self.rngs[lane].normal(size=3).astype(np.float32)
            out[lane] = StepResult(observation, reward, self.left[lane] == 0, False, reward > -0.1)
        return out

    def start(self, actions):
        self.asked = actions

    def finish(self):
        return self.step(self.asked)

    def close(self):
        """Nothing to stop."""
