"""Offline data: made on this machine or read from a file, checked, and with their origin written on them."""

from flowrl.rl.data._load import (
    available as available,
    environments as environments,
    generate as generate,
    load as load,
    make_env as make_env,
    metric as metric,
)
from flowrl.rl.data._schema import (
    DataInfo as DataInfo,
    OfflineDataset as OfflineDataset,
    Transitions as Transitions,
    episode_ends as episode_ends,
    from_dict as from_dict,
)
from flowrl.rl.data._source import Environment as Environment, Metric as Metric, Progress as Progress, Source as Source
