"""Evaluation in lockstep: every policy on the same episodes, with the same reference samples.

Lanes take the next (policy, episode) pair from their block's queue as soon as they are free. An episode's start and
randomness depend on its number alone, so the results of two policies are paired, and do not depend on the order of the
queues. For the same reason an episode whose environment was lost is played again, and every episode counts.
"""

import warnings
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl._misc import check_count, check_kind
from flowrl.rl.acting._lanes import Lanes, LanesError, refuse_unusable
from flowrl.rl.acting._policy import Agent, Policy, PolicyTable, act
from flowrl.rl.data import Metric, ReferenceScores


class Evaluation(NamedTuple):
    """What every policy did in every episode.

    Attributes:
        returns: undiscounted sums of rewards, (policies, episodes).
        successes: 1 where the task was solved at the end, (policies, episodes).
        lengths: steps, (policies, episodes).
        displacements: root mean square over the episode of the chosen actions' displacement, in the budget's unit of
            length, (policies, episodes).
        attempts: how often the episode was begun, (policies, episodes); more than once where environments were lost.
    """

    returns: np.ndarray
    successes: np.ndarray
    lengths: np.ndarray
    displacements: np.ndarray
    attempts: np.ndarray

    def scores(self, metric: Metric, reference: ReferenceScores | None = None) -> np.ndarray:
        """Return the score of every episode, (policies, episodes): 0 or 100 for success, else the return.

        Args:
            metric: how this environment is scored.
            reference: the returns between which the benchmark normalises; None leaves returns as they are.

        Raises:
            ValueError: `metric` is neither "success" nor "return".
        """
        if metric not in ("success", "return"):
            raise ValueError(f"metric must be 'success' or 'return', got {metric!r}.")
        if metric == "success":
            return 100 * self.successes
        return self.returns if reference is None else reference.score(self.returns)


def evaluate(
    agent: Agent,
    policies: tuple[Policy, ...],
    lanes: Lanes,
    *,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> Evaluation:
    """Run every policy on the same episodes.

    If an environment raises, or its process dies or does not answer, a warning says so with the seeds; all environments
    are made again, and open episodes are played again, with the same result as if nothing had happened. An
    episode that loses its environment twice is an error.

    Args:
        agent: networks and constants.
        policies: ways to act.
        lanes: environments; all are used.
        episodes: number of episodes per policy, >= 1.
        seed: of the evaluation; episode e resets to the seed `seed * 100_000 + e` for every policy.
        progress: called as `progress(done_episodes, total_episodes)`.

    Returns:
        The `Evaluation`.

    Raises:
        RuntimeError: an environment failed twice in one episode, or an action, a reward or an observation was not
            finite; the message says where.
        TypeError: an argument is of another kind.
        ValueError: no episodes, or policies that cannot be evaluated together.
    """
    check_kind("agent", agent, Agent, "Agent(algorithm, state, standardizer) or load_agent(run) makes one")
    check_kind("policies", policies, tuple, "give several as (Policy(...), Policy(...))")
    check_kind("lanes", lanes, Lanes, "Lanes(env_name, size) makes them")
    check_count("episodes", episodes)
    check_count("seed", seed, 0)
    for each in policies:
        check_kind("each policy", each, Policy, 'such as Policy("best-of-8", 8)')
    for each in policies:
        each.check(agent.algorithm)
    table = PolicyTable(policies, lanes.size)
    key = jr.key(seed)
    total = len(policies) * episodes
    waiting = [deque((p, e) for e in range(episodes) for p in block.policies) for block in table.blocks]
    queues = {lane: queue for block, queue in zip(table.blocks, waiting, strict=True) for lane in block.lanes}
    shape = (len(policies), episodes)
    zeros, counts = (lambda: np.zeros(shape)), (lambda: np.zeros(shape, int))
    result = Evaluation(zeros(), zeros(), counts(), zeros(), counts())
    lost = counts()
    size = agent.standardizer.mean.shape[0]
    policy, episode, time = (np.zeros(lanes.size, np.int32) for _ in range(3))
    observations = np.zeros((lanes.size, size), np.float32)
    active = np.zeros(lanes.size, bool)
    # What each lane is about to do: a chunk of actions, by lane, and how many of them are left.
    plan: dict[int, np.ndarray] = {}
    left, displacement = np.zeros(lanes.size, int), np.zeros(lanes.size)
    done = 0

    def assign(free: list[int]) -> None:
        seeds = {}
        for lane in free:
            if queues[lane]:
                left[lane] = 0
                policy[lane], episode[lane] = queues[lane].popleft()
                time[lane], active[lane] = 0, True
                result.attempts[policy[lane], episode[lane]] += 1
                seeds[lane] = seed * 100_000 + int(episode[lane])
        for lane, observation in lanes.reset(seeds).items() if seeds else ():
            refuse_unusable(f"lane {lane}, episode {episode[lane]}, reset", observation, 0.0, size)
            observations[lane] = observation

    def plans() -> dict[int, np.ndarray]:
        planless = active & (left == 0)
        if planless.any():
            lane_arrays = (jnp.asarray(policy), jnp.asarray(observations), jnp.asarray(episode), jnp.asarray(time))
            acted = act(agent, table, *lane_arrays, key)
            chunks = np.asarray(acted.action).reshape(lanes.size, agent.chunk, -1)
            plan.update((int(lane), chunks[lane]) for lane in np.flatnonzero(planless))
            displacement[planless] = np.asarray(acted.displacement)[planless]
            left[planless] = agent.chunk
        running = [int(lane) for lane in np.flatnonzero(active)]
        actions = {lane: plan[lane][agent.chunk - left[lane]].astype(np.float32) for lane in running}
        left[running] -= 1
        broken = [lane for lane in running if not np.isfinite(actions[lane]).all()]
        if broken:
            lane = broken[0]
            raise RuntimeError(
                f"{policies[policy[lane]].name} gave a non-finite action in episode {episode[lane]}, step {time[lane]}:"
                " the networks have diverged."
            )
        return actions

    def again(error: LanesError) -> list[int]:
        for lane in error.lanes:
            lost[policy[lane], episode[lane]] += active[lane]
        if (lost > 1).any():
            raise error
        reason = str(error).partition("\n")[0]  # what follows is the worker's traceback
        warnings.warn(f"{reason} - the environments are made again, and open episodes are played again.", stacklevel=3)
        lanes.restart()
        for lane in np.flatnonzero(active)[::-1]:  # so that the first lane gets its own episode back
            at = (int(policy[lane]), int(episode[lane]))
            result.returns[at] = result.displacements[at] = 0
            queues[lane].appendleft(at)
        active[:] = False
        return list(range(lanes.size))

    free = list(range(lanes.size))
    while free or active.any():
        try:
            assign(free)
            free = []
            if not active.any():
                break
            stepped = lanes.step(plans())
        except LanesError as error:
            free = again(error)
            continue
        for lane, step in stepped.items():
            at = (policy[lane], episode[lane])
            where = f"lane {lane}, episode {episode[lane]}, step {time[lane]}"
            refuse_unusable(where, step.observation, step.reward, size)
            observations[lane] = step.observation
            time[lane] += 1
            result.returns[at] += step.reward
            result.displacements[at] += float(displacement[lane]) ** 2
            if step.done:
                result.successes[at] = step.success
                result.lengths[at] = time[lane]
                result.displacements[at] = np.sqrt(result.displacements[at] / time[lane])
                active[lane] = False
                free.append(lane)
                done += 1
                if progress is not None:
                    progress(done, total)
    return result
