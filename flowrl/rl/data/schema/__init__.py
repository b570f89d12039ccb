"""The form of every offline data set, and what a source of one provides."""

from flowrl.rl.data.schema._protocols import (
    OBSERVATION_PROTOCOLS as OBSERVATION_PROTOCOLS,
    REWARD_PROTOCOLS as REWARD_PROTOCOLS,
    RewardProtocol as RewardProtocol,
    apply_protocol as apply_protocol,
    reward_transform as reward_transform,
    trajectory_returns as trajectory_returns,
)
from flowrl.rl.data.schema._rewards import RewardTransform as RewardTransform
from flowrl.rl.data.schema._schema import (
    ACTION_TOLERANCE as ACTION_TOLERANCE,
    DataInfo as DataInfo,
    OfflineDataset as OfflineDataset,
    Transitions as Transitions,
    episode_ends as episode_ends,
    from_dict as from_dict,
)
from flowrl.rl.data.schema._scores import ReferenceScores as ReferenceScores
from flowrl.rl.data.schema._source import (
    AbstractLocalSource as AbstractLocalSource,
    AbstractPublishedSource as AbstractPublishedSource,
    AbstractSource as AbstractSource,
    Metric as Metric,
    Origin as Origin,
    Progress as Progress,
    Request as Request,
    check_origin as check_origin,
)
from flowrl.rl.data.schema._split import (
    DEFAULT_SHARE as DEFAULT_SHARE,
    describe_split as describe_split,
    split_episodes as split_episodes,
)
