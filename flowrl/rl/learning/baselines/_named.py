"""The baselines by name, for a command line."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from flowrl.rl.learning import AbstractAlgorithm
from flowrl.rl.learning.baselines._bc import BC
from flowrl.rl.learning.baselines._dsrl import DSRL
from flowrl.rl.learning.baselines._fql import FQL
from flowrl.rl.learning.baselines._generative_ql import diffusion_ql, flow_ql
from flowrl.rl.learning.baselines._idql import IDQL
from flowrl.rl.learning.baselines._iql import IQL
from flowrl.rl.learning.baselines._qam import QAM
from flowrl.rl.learning.baselines._qc import QC
from flowrl.rl.learning.baselines._rebrac import ReBRAC, td3_bc
from flowrl.rl.networks import FlowMatching


def _bc(*, reference_steps: int = 10, **fields: object) -> BC:
    return BC(**{"model": FlowMatching(reference_steps)} | fields)  # pyright: ignore[reportArgumentType]


ALGORITHMS: dict[str, Callable[..., AbstractAlgorithm[Any]]] = {
    "bc": _bc,
    "td3_bc": td3_bc,
    "rebrac": ReBRAC,
    "iql": IQL,
    "idql": IDQL,
    "diffusion_ql": diffusion_ql,
    "flow_ql": flow_ql,
    "fql": FQL,
    "qc": QC,
    "dsrl": DSRL,
    "qam": QAM,
}
"""The baselines by the names of command lines; each takes its own fields as keywords."""

#: Fields that most baselines have, and that a command line may set for all.
_COMMON = ("hidden", "batch_size", "learning_rate", "members", "polyak", "reference_steps")


def make(name: str, **options: object) -> AbstractAlgorithm[Any]:
    """Create a baseline by its name.

    Args:
        name: one of `ALGORITHMS`.
        options: fields of the algorithm. `hidden`, `batch_size`, `learning_rate`, `members`, `polyak` and
            `reference_steps` may be given to all: those an algorithm has no use for are left out.

    Raises:
        ValueError: no algorithm has this name, or a field is out of range.
        TypeError: the algorithm has no such field.
    """
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ValueError(f"no baseline is called {name!r}; there are {', '.join(ALGORITHMS)}.")
    known = _options(ALGORITHMS[name])
    unknown = set(options) - set(known) - set(_COMMON)
    if unknown:
        raise TypeError(f"{name} has no fields {sorted(unknown)}; it has {known}.")
    return ALGORITHMS[name](**{option: given for option, given in options.items() if option in known})


def _options(build: Callable[..., AbstractAlgorithm[Any]]) -> list[str]:
    """Return the keywords of a class, or of a setting: its own and the fields of what it returns."""
    signature = inspect.signature(build)
    own = [name for name, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    made = build if inspect.isclass(build) else signature.return_annotation
    return list(dict.fromkeys(own + [field.name for field in dataclasses.fields(made)]))
