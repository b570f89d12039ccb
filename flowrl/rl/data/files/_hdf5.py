"""Flat arrays of an HDF5 file that may come from anywhere."""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl._io import DamagedError, check_memory


def read_hdf5(path: Path, *, required: Sequence[str] = (), optional: Sequence[str] | None = None) -> dict[str, Any]:
    """Read arrays at the top level of a file (`optional`: if they are there; None: all) and nothing outside the file.

    A DamagedError names the file and the key.
    """
    require("h5py", extra="rl")
    import h5py

    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such hdf5 file", str(path))
    try:
        file: Any = h5py.File(path, "r")
    except OSError as error:
        raise DamagedError(
            f"{path}: not an HDF5 file, or a truncated one ({path.stat().st_size} bytes: {error}); get it again."
        ) from error
    with file:
        try:
            return _arrays(file, path, required, optional)
        except DamagedError:
            raise
        # h5py meets damage with errors of many kinds.
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{path}: damaged ({error}); get it again.") from error


def _arrays(file: Any, path: Path, required: Sequence[str], optional: Sequence[str] | None) -> dict[str, Any]:
    import h5py

    missing = [key for key in required if key not in file]
    if missing:
        raise DamagedError(f"{path}: missing {', '.join(missing)}; found {', '.join(sorted(file)) or 'no arrays'}.")
    wanted = list(file) if optional is None else [*required, *(key for key in optional if key in file)]
    arrays: dict[str, Any] = {}
    for key in wanted:
        link, array = file.get(key, getlink=True), file.get(key)
        if not isinstance(link, h5py.HardLink):
            raise DamagedError(f"{path}: {key} is a link to elsewhere, expected an array in this file.")
        if not isinstance(array, h5py.Dataset):
            if optional is None:  # a group, such as D4RL's "infos"
                continue
            raise DamagedError(f"{path}: {key} is not an array.")
        if array.external or array.is_virtual:
            raise DamagedError(f"{path}: {key} keeps its values in other files, expected them in this one.")
        if array.dtype.kind not in "biuf":
            raise DamagedError(f"{path}: {key} has dtype {array.dtype}, expected numbers.")
        arrays[key] = array
    # As stored, and then as float32 three times: selected, checked, and split.
    check_memory(sum(array.nbytes + 12 * array.size for array in arrays.values()), str(path))
    return {key: np.asarray(array[()]) for key, array in arrays.items()}
