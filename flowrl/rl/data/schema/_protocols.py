"""What the literature does to rewards and observations before it learns, under names that a result row can carry."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from flowrl._misc import check_kind
from flowrl.rl.data.schema._rewards import RewardTransform
from flowrl.rl.data.schema._schema import OfflineDataset, Transitions


@dataclasses.dataclass(frozen=True)
class RewardProtocol:
    """A named rule for rewards.

    Attributes:
        equation: what a reward r becomes.
        source: who uses it, and where it is published.
        measure: the scale and the shift, from the training split.
    """

    equation: str
    source: str
    measure: Callable[[Transitions], tuple[float, float]]


def trajectory_returns(data: Transitions) -> Float[np.ndarray, " trajectories"]:
    """Compute the undiscounted sum of rewards of every trajectory, in order.

    Args:
        data: transitions; `terminals` end the trajectories.
    """
    ends = np.flatnonzero(np.asarray(data.terminals))
    totals = np.concatenate([[0.0], np.cumsum(np.asarray(data.rewards, np.float64))[ends]])
    return np.diff(totals)


def _unit_std(data: Transitions) -> tuple[float, float]:
    spread = float(np.std(np.asarray(data.rewards, np.float64)))
    # Rounding leaves a constant a spread of its own, in the last digits.
    if not spread > 1e-6 * float(np.abs(data.rewards).max()):
        raise ValueError(
            f"the rewards are constant ({float(data.rewards[0]):g}), and the protocol 'unit_std' divides by their "
            "spread; use 'none'."
        )
    return 1 / spread, 0.0


def _locomotion(data: Transitions) -> tuple[float, float]:
    returns = trajectory_returns(data)
    spread = float(returns.max() - returns.min())
    if not spread > 1e-6 * float(np.abs(returns).max()):
        raise ValueError(
            f"all returns are equal ({returns[0]:g}, {len(returns)} trajectories), and the protocol 'd4rl_locomotion' "
            "divides by their range; use 'none' or 'unit_std'."
        )
    return 1000 / spread, 0.0


REWARD_PROTOCOLS: dict[str, RewardProtocol] = {
    "none": RewardProtocol("r", "OGBench (Park et al. 2025, arXiv 2410.20092)", lambda _: (1.0, 0.0)),
    "unit_std": RewardProtocol("r / std(r)", "the default of this library's examples for dense rewards", _unit_std),
    "d4rl_locomotion": RewardProtocol(
        "1000 r / (best - worst return of a trajectory)",
        "D4RL's locomotion tasks: IQL (Kostrikov et al. 2021, arXiv 2110.06169), VGF (arXiv 2604.14265). Their code "
        "cuts a trajectory after 1000 rows of a file from which the last row of each was dropped; here it ends where "
        "it ends.",
        _locomotion,
    ),
    "antmaze": RewardProtocol(
        "r - 1",
        "D4RL's antmaze tasks: IQL (Kostrikov et al. 2021, arXiv 2110.06169), VGF (arXiv 2604.14265)",
        lambda _: (1.0, -1.0),
    ),
}
"""By name; `apply_protocol` accepts these and no others."""

OBSERVATION_PROTOCOLS: dict[str, str] = {"none": "s", "standard": "(s - mean) / max(std, 0.001)"}
"""Name to equation, for an observation s; `flowrl.rl.Standardizer.fit` accepts these and no others. "standard" is per
coordinate, as in TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860)."""


def reward_transform(protocol: str, data: Transitions) -> RewardTransform:
    """Measure the scale and the shift of a protocol.

    Args:
        protocol: one of `REWARD_PROTOCOLS`.
        data: the training split, with the environment's own rewards.

    Returns:
        The transform, for data and for rewards met online.

    Raises:
        ValueError: the name is unknown, or the protocol divides by a spread that is zero.
    """
    if not isinstance(protocol, str) or protocol not in REWARD_PROTOCOLS:
        raise ValueError(f"unknown reward protocol {protocol!r}, expected one of {', '.join(REWARD_PROTOCOLS)}.")
    return RewardTransform(protocol, *REWARD_PROTOCOLS[protocol].measure(data))


def apply_protocol(dataset: OfflineDataset, *, rewards: str) -> OfflineDataset:
    """Transform the rewards of both splits, by a scale and a shift that are measured on the training split alone.

    Observations stay as they are: a policy has to normalise those that it meets, so `flowrl.rl.Standardizer` does it.

    Args:
        dataset: with the environment's own rewards.
        rewards: one of `REWARD_PROTOCOLS`.

    Returns:
        Another data set; `info.reward_transform` is to be used on rewards met online too.

    Raises:
        TypeError: `dataset` is something else.
        ValueError: the name is unknown, a protocol was applied before, or the protocol divides by zero here.
    """
    check_kind("dataset", dataset, OfflineDataset, "data.load or data.from_arrays makes one")
    before = dataset.info.reward_transform.protocol
    if before != "none":
        raise ValueError(f"the rewards already follow the protocol {before!r}; start from the data as loaded.")
    transform = reward_transform(rewards, dataset.train)

    def changed(split: Transitions) -> Transitions:
        fields: dict[str, Any] = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
        return Transitions(**{**fields, "rewards": transform(split.rewards)})

    info = dataclasses.replace(dataset.info, reward_transform=transform)
    validation = None if dataset.validation is None else changed(dataset.validation)
    return OfflineDataset(changed(dataset.train), validation, info)
