"""The best of a few policies, found by acting: sequential halving over a number of episodes."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from flowrl.rl.acting._evaluate import evaluate
from flowrl.rl.acting._lanes import Lanes
from flowrl.rl.acting._policy import Agent, Policy
from flowrl.rl.data import Metric


@dataclasses.dataclass(frozen=True)
class HalvingResult:
    """What sequential halving found.

    Attributes:
        policy: the last one left.
        means: mean score of each policy over the episodes it had, by name.
        episodes: episodes each policy had, by name; their sum was spent.
    """

    policy: Policy
    means: dict[str, float]
    episodes: dict[str, int]


def select_by_acting(
    agent: Agent,
    policies: tuple[Policy, ...],
    lanes: Lanes,
    *,
    episodes: int,
    metric: Metric,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> HalvingResult:
    r"""Find the best policy, such as the best L_test, with about `episodes` episodes in all.

    There are ⌈log₂ K⌉ rounds for K policies. Each spends an equal share, on the same new episodes for all policies
    left, and drops the worse half by the mean over all rounds so far; ties go to the policy named first. It chooses, it
    does not estimate: the winner's mean is biased upward, so report a score on episodes of another seed.

    Args:
        agent: networks and constants.
        policies: ways to act, at least two.
        lanes: environments.
        episodes: episodes to spend, at least K⌈log₂ K⌉.
        metric: how the environment is scored.
        seed: of the episodes; round r has those of the seed `seed + r` of `evaluate`.
        progress: called as `progress(done_episodes, total_episodes)` after every episode.

    Raises:
        ValueError: fewer than two policies, or too few episodes for one of each policy in each round.

    ??? cite "Source"
        Karnin, Koren and Somekh, *Almost Optimal Exploration in Multi-Armed Bandits*, ICML 2013, algorithm 1. There
        each round has its own mean; here all episodes a policy has had count.
    """
    if len(policies) < 2:
        raise ValueError(f"give at least two policies to choose from, got {len(policies)}.")
    rounds = math.ceil(math.log2(len(policies)))
    least = len(policies) * rounds
    if episodes < least:
        raise ValueError(f"{len(policies)} policies in {rounds} rounds need {least} episodes or more, got {episodes}.")
    left = list(policies)
    seen: dict[str, list[np.ndarray]] = {policy.name: [] for policy in policies}
    done = 0
    for number in range(rounds):
        each = episodes // (len(left) * rounds)

        def show(here: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + here, episodes)

        measured = evaluate(agent, tuple(left), lanes, episodes=each, seed=seed + number, progress=show)
        done += each * len(left)
        for policy, score in zip(left, measured.scores(metric), strict=True):
            seen[policy.name].append(score)
        left.sort(key=lambda policy: -_mean(seen[policy.name]))
        left = left[: math.ceil(len(left) / 2)]
    return HalvingResult(
        policy=left[0],
        means={name: _mean(x) for name, x in seen.items()},
        episodes={name: sum(len(part) for part in x) for name, x in seen.items()},
    )


def _mean(parts: list[np.ndarray]) -> float:
    return float(np.concatenate(parts).mean())
