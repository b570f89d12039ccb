"""Acting in several environments side by side, for the rows that it gives.

Everything random depends on the number of the episode and the time in it. So a run is taken up again by playing the
episodes that were open once more, with the actions that were taken: any environment that its seed and the actions
determine comes back to where it was.
"""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._misc import check_count, check_kind, check_number
from flowrl.rl.acting._lanes import Lanes, StepResult, refuse_unusable
from flowrl.rl.acting._policy import Agent, Decision, Policy, PolicyTable, act
from flowrl.rl.data import RewardTransform
from flowrl.rl.data.replay import Rows, Standardizer, Windows

# Folded into the key of a collector, so that it shares none with a training or an evaluation of the same seed.
_TAG = 0x636F6C6C


@dataclasses.dataclass(frozen=True)
class FinishedEpisode:
    """An episode that ended.

    Attributes:
        return_: undiscounted sum of the environment's own rewards.
        success: 1 where the task was solved at the end.
        length: steps.
    """

    return_: float
    success: float
    length: int


@dataclasses.dataclass(frozen=True)
class PendingActions:
    """What the environments are to do in one step.

    Attributes:
        actions: (lanes, act).
        displacement: of the actions before exploration, as in `Decision`, (lanes,).
        steps: L of the policy, (lanes,).
    """

    actions: Float[np.ndarray, "lanes act"]
    displacement: Float[np.ndarray, " lanes"]
    steps: Int[np.ndarray, " lanes"]


@dataclasses.dataclass
class _Episode:
    """The open episode of a lane."""

    number: int
    observation: np.ndarray
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    total: float = 0.0


class Collector:
    """Acting in lanes, for the n-step rows of what happens.

    Attributes:
        lanes: the environments.
        standardizer: constants of the observations.
        steps: environment steps so far, over all lanes.
        most_rows: rows that one step of all lanes may give at most, padding included.
    """

    def __init__(
        self,
        lanes: Lanes,
        standardizer: Standardizer,
        *,
        discount: float,
        n_step: int,
        rewards: RewardTransform,
        seed: int = 0,
    ):
        """Make a collector. Nothing is reset before the first step.

        Args:
            lanes: environments, all of which are used.
            standardizer: that of the data set.
            discount: γ in [0, 1].
            n_step: n >= 1.
            rewards: what was done to the rewards of the data set.
            seed: of the episodes and of all that is random in acting.

        Raises:
            TypeError: an argument is of another kind.
            ValueError: a number is out of range.
        """
        check_kind("lanes", lanes, Lanes, "Lanes(env_name, size) makes them")
        check_kind("standardizer", standardizer, Standardizer, "that of the data set")
        check_kind("rewards", rewards, RewardTransform, "info.reward_transform of the data set")
        check_number("discount", discount, lambda x: 0 <= x <= 1, "in [0, 1]")
        check_count("n_step", n_step)
        check_count("seed", seed, 0)
        self.lanes, self.standardizer, self.steps = lanes, standardizer, 0
        self.most_rows = lanes.size * n_step
        self._seed, self._width = seed, standardizer.mean.shape[0]
        self._key = jr.fold_in(jr.key(seed), _TAG)
        self._windows = Windows(lanes.size, standardizer, discount=discount, n_step=n_step, rewards=rewards)
        self._episodes: list[_Episode] = []
        self._next = 0
        self._table: tuple[Policy, PolicyTable] | None = None
        # What `start` sent to the environments and `finish` has not read; it outlives a failed step in a checkpoint.
        self._pending: PendingActions | None = None

    def start(self, agent: Agent, policy: Policy, exploration: float = 0.0) -> PendingActions:
        """Choose an action in every lane and let the environments begin to step; `finish` must follow.

        After `restore`, actions that had been chosen and whose step failed are the ones to be taken.

        Args:
            agent: networks and constants.
            policy: how to act.
            exploration: standard deviation >= 0 of normal noise on the actions, which are clipped to [−1, 1].

        Returns:
            What the environments are to do.

        Raises:
            FloatingPointError: an action is not finite.
            RuntimeError: an environment could not be reset.
        """
        if not self._episodes:
            self._episodes = self._reset(range(self.lanes.size))
        if self._pending is None:
            self._pending = self._choose(agent, policy, exploration)
        self.lanes.start(dict(enumerate(self._pending.actions)))
        return self._pending

    def _choose(self, agent: Agent, policy: Policy, exploration: float) -> PendingActions:
        """Choose an action in every lane."""
        if self._table is None or self._table[0] != policy:
            policy.check(agent.algorithm)
            self._table = policy, PolicyTable((policy,), self.lanes.size)
        acted = _explore(
            agent,
            self._table[1],
            jnp.asarray(np.stack([episode.observation for episode in self._episodes])),
            jnp.asarray([episode.number for episode in self._episodes], jnp.int32),
            jnp.asarray([len(episode.actions) for episode in self._episodes], jnp.int32),
            jnp.asarray(exploration, jnp.float32),
            self._key,
        )
        actions = np.asarray(acted.action)
        if not np.isfinite(actions).all():
            raise FloatingPointError(f"{policy.name} gave a non-finite action: the networks have diverged.")
        return PendingActions(actions, np.asarray(acted.displacement), np.full(self.lanes.size, policy.steps))

    def finish(self) -> tuple[Rows | None, list[FinishedEpisode]]:
        """Wait for the environments, and begin new episodes where one ended.

        Returns:
            The rows whose windows were closed, or None, and the episodes that ended.

        Raises:
            RuntimeError: an environment failed, or gave a number that is not finite or an observation of another
                size. `arrays` then gives the moment before this step, with the actions that were asked for.
        """
        if self._pending is None:
            raise RuntimeError("finish() without start(): no environment was asked to step.")
        actions, stepped = self._pending.actions, self.lanes.finish()
        for lane, step in stepped.items():
            self._refuse_unusable(lane, step)
        over = [lane for lane, step in stepped.items() if step.done]
        fresh = self._reset(over)
        finished = []
        for lane, step in stepped.items():
            episode = self._episodes[lane]
            self._add(lane, episode, actions[lane], step)
            if step.done:
                finished.append(FinishedEpisode(episode.total, float(step.success), len(episode.actions)))
        for lane, episode in zip(over, fresh, strict=True):
            self._episodes[lane] = episode
        self.steps, self._pending = self.steps + len(stepped), None
        return self._windows.take(), finished

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint must hold to go on from here."""
        lengths = [len(episode.actions) for episode in self._episodes]
        pending = {} if self._pending is None else dataclasses.asdict(self._pending)
        taken = [action for episode in self._episodes for action in episode.actions]
        return {
            "collector/counters": np.asarray([self.steps, self._next]),
            "collector/episodes": np.asarray([episode.number for episode in self._episodes], np.int64),
            "collector/lengths": np.asarray(lengths, np.int64),
            "collector/actions": np.stack(taken) if taken else np.zeros((0, 0), np.float32),
            "collector/observations": np.stack([e.observation for e in self._episodes] or [np.zeros(self._width)]),
            **{f"collector/asked/{name}": x for name, x in pending.items()},
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Play the open episodes of a checkpoint again.

        Args:
            arrays: from `arrays`, of a collector with the same arguments.

        Raises:
            RuntimeError: an environment failed.
            ValueError: the arrays are of other lanes, or an environment does not come back to where it was: its seed
                and the actions do not determine it.
        """
        try:
            counters, numbers, lengths, taken, expected = (
                arrays[f"collector/{name}"] for name in ("counters", "episodes", "lengths", "actions", "observations")
            )
        except KeyError as error:
            raise ValueError(f"the checkpoint does not say what the environments did: {error} is missing.") from error
        if numbers.shape[0] not in (0, self.lanes.size):
            raise ValueError(f"the checkpoint is of {numbers.shape[0]} environments, here are {self.lanes.size}.")
        self.steps, self._next = (int(x) for x in counters)
        prefix = "collector/asked/"
        pending = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
        self._pending = PendingActions(**pending) if pending else None
        if not numbers.size:
            return
        self._episodes = self._reset(range(self.lanes.size), [int(x) for x in numbers])
        plans = np.split(taken, np.cumsum(lengths)[:-1])
        for time in range(int(lengths.max(initial=0))):
            stepped = self.lanes.step({lane: plan[time] for lane, plan in enumerate(plans) if time < len(plan)})
            for lane, step in stepped.items():
                self._refuse_unusable(lane, step)
                self._add(lane, self._episodes[lane], plans[lane][time], step)
        # What was closed on the way is in the buffer already.
        self._windows.take()
        for lane, episode in enumerate(self._episodes):
            if not np.array_equal(episode.observation, expected[lane]):
                raise ValueError(
                    f"lane {lane} did not come back to where it was after {lengths[lane]} steps: the environment is "
                    "not determined by its seed and the actions, and the run cannot go on exactly. Start a new run."
                )

    def _refuse_unusable(self, lane: int, step: StepResult) -> None:
        episode = self._episodes[lane]
        where = f"lane {lane}, episode {episode.number}, step {len(episode.actions)}"
        refuse_unusable(where, step.observation, step.reward, self._width)

    def _add(self, lane: int, episode: _Episode, action: np.ndarray, step: StepResult) -> None:
        """Add a step to its episode and to the open windows."""
        self._windows.add(
            lane,
            episode.observation,
            action,
            step.reward,
            step.observation,
            terminated=step.terminated,
            truncated=step.truncated,
        )
        episode.observation = step.observation
        episode.actions.append(action)
        episode.total += step.reward

    def _reset(self, lanes: Sequence[int], numbers: list[int] | None = None) -> list[_Episode]:
        """Begin episodes; without numbers, the next ones in order of the lanes."""
        if not lanes:
            return []
        if numbers is None:
            numbers = list(range(self._next, self._next + len(lanes)))
        # Seeds of this kind are met nowhere else, not in evaluations either.
        seeds = [int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0]) >> 1 for number in numbers]
        first = self.lanes.reset(dict(zip(lanes, seeds, strict=True)))
        for lane, number in zip(lanes, numbers, strict=True):
            refuse_unusable(f"lane {lane}, episode {number}, reset", first[lane], 0.0, self._width)
        self._next = max(self._next, *(number + 1 for number in numbers))
        return [_Episode(number, first[lane]) for lane, number in zip(lanes, numbers, strict=True)]


@eqx.filter_jit
def _explore(
    agent: Agent,
    table: PolicyTable,
    observations: Float[Array, "lanes obs"],
    episodes: Int[Array, " lanes"],
    times: Int[Array, " lanes"],
    exploration: Float[Array, ""],
    key: Key,
) -> Decision:
    act_key, noise_key = jr.split(key)
    policy = jnp.zeros(episodes.shape[0], jnp.int32)
    acted = act(agent, table, policy, observations, episodes, times, act_key)

    def noise(episode: Array, time: Array) -> Array:
        return jr.normal(jr.fold_in(jr.fold_in(noise_key, episode), time), acted.action.shape[1:], acted.action.dtype)

    actions = acted.action + exploration * jax.vmap(noise)(episodes, times)
    return eqx.tree_at(lambda a: a.action, acted, jnp.clip(actions, -1, 1))
