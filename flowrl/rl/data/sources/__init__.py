"""Where data sets come from: OGBench, D4RL, Minari, this machine, a user's own arrays.

A new source is a file here with a class of `flowrl.rl.data.schema.AbstractSource`, and a line in `SOURCES` of
`flowrl/rl/data/_load.py`.
"""

from flowrl.rl.data.sources._arrays import (
    EnvironmentForm as EnvironmentForm,
    Units as Units,
    dataset_from_arrays as dataset_from_arrays,
    dataset_from_file as dataset_from_file,
    read_file as read_file,
)
from flowrl.rl.data.sources._d4rl import D4RL as D4RL
from flowrl.rl.data.sources._d4rl_names import REFERENCES as REFERENCES
from flowrl.rl.data.sources._locomotion import Locomotion as Locomotion
from flowrl.rl.data.sources._minari import Minari as Minari
from flowrl.rl.data.sources._ogbench import OGBench as OGBench
from flowrl.rl.data.sources._own import EnvFactory as EnvFactory, Own as Own, name_of as name_of
