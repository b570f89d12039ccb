"""The baselines by name, for a command line."""

import dataclasses
from collections.abc import Callable

from flowrl.rl.learning import AbstractAlgorithm
from flowrl.rl.learning.baselines._bc import BC
from flowrl.rl.learning.baselines._diffusion_ql import DiffusionQL
from flowrl.rl.learning.baselines._flow_ql import FlowQL
from flowrl.rl.learning.baselines._fql import FQL
from flowrl.rl.learning.baselines._idql import IDQL
from flowrl.rl.learning.baselines._iql import IQL
from flowrl.rl.learning.baselines._rebrac import ReBRAC
from flowrl.rl.learning.baselines._td3_bc import TD3BC

ALGORITHMS: dict[str, Callable[..., AbstractAlgorithm]] = {
    "bc": BC,
    "td3_bc": TD3BC,
    "rebrac": ReBRAC,
    "iql": IQL,
    "idql": IDQL,
    "diffusion_ql": DiffusionQL,
    "flow_ql": FlowQL,
    "fql": FQL,
}
"""The baselines by the names of command lines; each takes its own fields as keywords."""

#: Fields that most baselines have, and that a command line may set for all.
_COMMON = ("hidden", "batch_size", "learning_rate", "members", "polyak", "reference_steps")


def make(name: str, **options: object) -> AbstractAlgorithm:
    """Make a baseline by its name.

    Args:
        name: one of `ALGORITHMS`.
        options: fields of the algorithm. `hidden`, `batch_size`, `learning_rate`, `members`, `polyak` and
            `reference_steps` may be given to all: those an algorithm has no use for are left out.

    Raises:
        ValueError: no algorithm has this name, or a field makes no sense.
        TypeError: the algorithm has no such field.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"no baseline is called {name!r}; there are {', '.join(ALGORITHMS)}.")
    cls = ALGORITHMS[name]
    fields = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = set(options) - set(fields) - set(_COMMON)
    if unknown:
        raise TypeError(f"{name} has no fields {sorted(unknown)}; it has {fields}.")
    return cls(**{option: given for option, given in options.items() if option in fields})
