"""Offline data: made here, downloaded, or read from a file; checked, and with their origin written on them."""

from typing import TYPE_CHECKING

from flowrl._renamed import old_names as _old_names
from flowrl.rl.data._arrays import from_arrays as from_arrays, load_arrays as load_arrays
from flowrl.rl.data._load import (
    available as available,
    check_env as check_env,
    download as download,
    environments as environments,
    generate as generate,
    load as load,
    make_env as make_env,
    metric as metric,
    reference_scores as reference_scores,
)
from flowrl.rl.data.schema import (
    OBSERVATION_PROTOCOLS as OBSERVATION_PROTOCOLS,
    REWARD_PROTOCOLS as REWARD_PROTOCOLS,
    DataInfo as DataInfo,
    Metric as Metric,
    OfflineDataset as OfflineDataset,
    Origin as Origin,
    Progress as Progress,
    ReferenceScores as ReferenceScores,
    RewardProtocol as RewardProtocol,
    RewardTransform as RewardTransform,
    Transitions as Transitions,
    apply_protocol as apply_protocol,
    episode_ends as episode_ends,
    from_dict as from_dict,
    reward_transform as reward_transform,
    split_episodes as split_episodes,
    trajectory_returns as trajectory_returns,
)
from flowrl.rl.data.sources import EnvFactory as EnvFactory, name_of as name_of
from flowrl.rl.envs import Environment as Environment

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rl.data")
