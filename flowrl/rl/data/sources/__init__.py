"""Where data sets come from: OGBench, D4RL, Minari, a user's own arrays."""

from flowrl.rl.data.sources._arrays import (
    EnvFactory as EnvFactory,
    from_arrays as from_arrays,
    load_arrays as load_arrays,
    name_of as name_of,
)
