"""The form of every offline data set, and what a source of one provides."""

from flowrl.rl.data.schema._rewards import RewardTransform as RewardTransform
from flowrl.rl.data.schema._schema import (
    DataInfo as DataInfo,
    OfflineDataset as OfflineDataset,
    Transitions as Transitions,
    episode_ends as episode_ends,
    from_dict as from_dict,
)
from flowrl.rl.data.schema._scores import ReferenceScores as ReferenceScores
from flowrl.rl.data.schema._source import (
    Metric as Metric,
    Origin as Origin,
    Progress as Progress,
    Request as Request,
    Source as Source,
)
from flowrl.rl.data.schema._split import (
    DEFAULT_SHARE as DEFAULT_SHARE,
    describe_split as describe_split,
    split_episodes as split_episodes,
)
