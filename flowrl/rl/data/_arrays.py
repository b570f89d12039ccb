"""The user's own arrays and files, for any environment that `make_env` knows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl._misc import check_count, check_kind, check_number
from flowrl.rl.data._load import make_env
from flowrl.rl.data.schema import OfflineDataset, Request
from flowrl.rl.data.sources import (
    EnvFactory,
    EnvironmentForm,
    Units,
    dataset_from_arrays,
    dataset_from_file,
    name_of,
    read_file,
)


def from_arrays(
    arrays: Mapping[str, Any],
    *,
    env: str | EnvFactory | None = None,
    validation: Mapping[str, Any] | float | None = None,
    seed: int = Request.seed,
    actions: Units = "environment",
    ignore: Sequence[str] = (),
    source: str = "arrays",
) -> OfflineDataset:
    """Make a data set of a user's own arrays.

    Expected are `observations` (n, obs), `actions` (n, act), `rewards` (n,), the rows of a trajectory consecutive in
    time, and flags (n,) in one of these layouts:

    | given | a row's mask is 0 where | a trajectory ends where |
    |---|---|---|
    | `masks`, `terminals` (this library) | `masks` is 0 | `terminals` is 1 |
    | `terminals`, perhaps `timeouts` (D4RL) | `terminals` is 1 | either is 1 |
    | `terminations`, `truncations` (gymnasium) | `terminations` is 1 | either is 1 |
    | `dones`, perhaps `timeouts` | `dones` is 1 and `timeouts` is not | either is 1 |

    What is missing or inconsistent is repaired, and each repair is counted in `info.notes`:

    - without `next_observations`, they are the observations of the next row; the last row of a trajectory that did not
      truly end has none and is dropped;
    - where the next observation is not that of the next row, a trajectory ends, whatever the flags say;
    - the last row ends a trajectory.

    Args:
        arrays: by name, as above, and `next_observations` (n, obs) if known.
        env: the environment that policies are evaluated in: a name that `make_env` accepts, such as "gym:Pendulum-v1",
            or a function at the top level of a module that makes one. None: none.
        validation: held-out data in the same form, or a share of the trajectories to hold out; None means a twentieth.
        seed: of the choice of what is held out.
        actions: in the environment's own units (mapped to [-1, 1] by its limits), or already in [-1, 1].
        ignore: names in `arrays` that are not used; any other unknown name is an error.
        source: name of the data in messages.

    Returns:
        The data set; `info.name` is what `make_env` and `flowrl.rl.Lanes` take.

    Raises:
        ImportError: `env` is given and gymnasium is missing; the message names the extra.
        TypeError: `env` does not make a gymnasium environment, or an argument is of another kind.
        ValueError: the arrays do not fit each other or the environment, are not finite, hold discrete actions, or
            their flags are misplaced; the message says what and where.
    """
    check_kind("arrays", arrays, Mapping, "a dictionary of arrays by name, such as observations")
    if not isinstance(validation, Mapping) and validation is not None:
        check_number("validation", validation, lambda x: 0 <= x < 1, "a share of the trajectories in [0, 1)")
    _check(ignore, seed)
    return dataset_from_arrays(arrays, _form(env), validation, seed=seed, actions=actions, ignore=ignore, source=source)


def load_arrays(
    path: str | os.PathLike[str],
    *,
    env: str | EnvFactory | None = None,
    validation: float | None = None,
    seed: int = Request.seed,
    actions: Units = "environment",
    ignore: Sequence[str] = (),
) -> OfflineDataset:
    """Make a data set of a user's file: an npz, or an HDF5 with arrays at its top level; see `from_arrays`.

    Args:
        path: the file; if "x-val.npz" stands beside "x.npz", it is the validation split.
        env: as for `from_arrays`.
        validation: as for `from_arrays`; a number makes the split from `path`, whatever stands beside it.
        seed: as for `from_arrays`.
        actions: as for `from_arrays`.
        ignore: as for `from_arrays`.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryError: it does not fit into memory.
        ValueError: the file is damaged or holds Python objects, or as for `from_arrays`.
    """
    check_kind("path", path, (str, os.PathLike))
    _check(ignore, seed)
    path = Path(path).expanduser()
    arrays, held_out = read_file(path, validation)
    return dataset_from_file(path, arrays, _form(env), held_out, seed=seed, actions=actions, ignore=ignore)


def _check(ignore: Sequence[str], seed: int) -> None:
    check_count("seed", seed, 0)
    check_kind("ignore", ignore, (tuple, list), "names of arrays")


def _form(env: str | EnvFactory | None) -> EnvironmentForm | None:
    if env is None:
        return None
    name = name_of(env)
    return EnvironmentForm.of(make_env(name), name)
