"""Offline data: made here, downloaded, or read from a file; checked, and with their origin written on them."""

from flowrl.rl.data._arrays import (
    EnvFactory as EnvFactory,
    from_arrays as from_arrays,
    load_arrays as load_arrays,
    name_of as name_of,
)
from flowrl.rl.data._load import (
    available as available,
    download as download,
    environments as environments,
    generate as generate,
    load as load,
    make_env as make_env,
    metric as metric,
    reference as reference,
)
from flowrl.rl.data._protocols import (
    OBSERVATION_PROTOCOLS as OBSERVATION_PROTOCOLS,
    REWARD_PROTOCOLS as REWARD_PROTOCOLS,
    RewardProtocol as RewardProtocol,
    apply_protocol as apply_protocol,
    reward_transform as reward_transform,
    trajectory_returns as trajectory_returns,
)
from flowrl.rl.data._rewards import RewardTransform as RewardTransform
from flowrl.rl.data._schema import (
    DataInfo as DataInfo,
    OfflineDataset as OfflineDataset,
    Transitions as Transitions,
    episode_ends as episode_ends,
    from_dict as from_dict,
)
from flowrl.rl.data._scores import Reference as Reference
from flowrl.rl.data._source import (
    Environment as Environment,
    Metric as Metric,
    Origin as Origin,
    Progress as Progress,
    Request as Request,
    Source as Source,
)
from flowrl.rl.data._split import split_episodes as split_episodes
