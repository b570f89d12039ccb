"""Files that are whole or absent: atomic writes, deterministic npz, checksums, locks, room on the disk."""

import contextlib
import errno
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from flowrl._io._memory import check_memory

_MIB = 2**20
#: Deflate makes no file smaller than a 1032nd; an archive that claims more would fill the memory.
_MOST_INFLATED = 1032


class DamagedError(ValueError):
    """A file is damaged or foreign: truncated, changed, or not of the kind that its name promises."""


def resolve_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """The directory that holds generated data; it is not created here.

    Args:
        data_dir: the user's choice; None means `$XDG_CACHE_HOME/flowrl/data`, or `~/.cache/flowrl/data`.

    Returns:
        An absolute path.
    """
    if data_dir is not None:
        return Path(data_dir).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return root / "flowrl" / "data"


def make_dir(path: Path) -> None:
    """Creates a directory (and its parents) and makes sure that files can be written to it.

    Raises:
        OSError: naming the directory, if it cannot be made or written to.
    """
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to the data directory {path} ({error.strerror}); choose another with data_dir"
        ) from error


def check_space(path: Path, needed: int) -> None:
    """Refuses to start writing what will not fit.

    Args:
        path: an existing directory.
        needed: estimated number of bytes.

    Raises:
        OSError: (ENOSPC) naming the needed and the free MiB and the path.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space in {path}: about {needed / _MIB:.0f} MiB needed, {free / _MIB:.0f} MiB free; "
            "ask for fewer rows, or choose another place with data_dir",
        )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, waiting for it if another process has it.

    The kernel releases the lock when its holder ends, SIGKILL included, so no stale lock can remain.

    Args:
        path: the lock file; made if missing, and left in place (removing it would race with a waiting process).

    Raises:
        OSError: if the file cannot be opened, or the platform has no POSIX file locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("generating data needs POSIX file locks (Linux, macOS or WSL)") from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, or refuses at once if another process has it.

    Args:
        path: the lock file, in the directory that is not to be shared; made if missing, and left in place.

    Raises:
        BlockingIOError: another process holds it.
        OSError: as for `lock`.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError("runs need POSIX file locks (Linux, macOS or WSL)") from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"another process is writing to {path.parent}.") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file beside `path` for writing, and renames it to `path` once it is complete and on the disk.

    If the block raises (a full disk included), `path` is as it was before and nothing is left beside it.

    Args:
        path: the final path; its directory exists.

    Yields:
        A binary file, readable and seekable too.

    Raises:
        OSError: if the disk is full, naming the path and the free MiB.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        fsync_dir(path.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free / _MIB
        raise OSError(errno.ENOSPC, f"the disk became full while writing {path} ({free:.0f} MiB free)") from error
    finally:
        # Only there if something went wrong: the rename has taken it away otherwise.
        beside.unlink(missing_ok=True)


def remove_halves(directory: Path) -> None:
    """Removes what writers that were killed have left beside their files; call it while nobody else writes there.

    Args:
        directory: where `atomic_write` was at work; it exists.
    """
    for half in directory.glob(".*.tmp"):
        half.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Writes an npz atomically; the same arrays give the same bytes.

    `numpy.savez` leaves the time stamps to the zip library and the order to the caller; both are fixed here.

    Args:
        path: the final path.
        arrays: key to array, any shapes; no object arrays.
        compress: deflate the members (small but slow), or store them.

    Raises:
        OSError: if the disk is full, naming the path.
    """
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for key in sorted(arrays):
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = method
            member.create_system = 3
            member.external_attr = 0o600 << 16
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(arrays[key], order="C"), allow_pickle=False)


def read_npz(path: Path, *, required: Sequence[str] = (), only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of an npz; nothing in the file is ever unpickled.

    Args:
        path: the file.
        required: keys that must be there.
        only: keys that are read, of those that are there; None reads all.

    Returns:
        Key to array.

    Raises:
        FileNotFoundError: if there is no such file.
        MemoryError: if the arrays do not fit into memory.
        DamagedError: (a ValueError) naming the file (and the key), if it is truncated, not an npz, holds Python
            objects, or lacks a required key.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such npz file", str(path))
    if not zipfile.is_zipfile(path):
        raise DamagedError(
            f"{path}: not an npz file, or a truncated one ({path.stat().st_size} bytes); delete it and make it again."
        )
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if only is None or m.filename.removesuffix(".npy") in only]
        if any(member.file_size > _MOST_INFLATED * (1 + member.compress_size) for member in members):
            raise DamagedError(f"{path}: claims to hold more than it can; it is damaged or foreign.")
        # As stored, and then three times more: selected, checked, and split.
        check_memory(4 * sum(member.file_size for member in members), str(path))
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in required if name not in archive.files]
            if missing:
                found = ", ".join(sorted(archive.files)) or "no arrays"
                raise DamagedError(f"{path}: missing {', '.join(missing)}; found {found}.")
            for key in archive.files if only is None else [key for key in archive.files if key in only]:
                value = archive[key]
                if not isinstance(value, np.ndarray):
                    raise DamagedError(f"{path}: {key} is not an array; is this an npz?")
                arrays[key] = value
    # A flag that says "encrypted" is a RuntimeError, a place before the beginning or behind a bad sector an OSError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise DamagedError(
            f"{path}: {key or 'the file'} is damaged ({error}); delete the file and make it again."
        ) from error
    except ValueError as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path}: {key} cannot be read ({error}); expected an array of numbers.") from error
    return arrays


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Makes a rename durable; a system that cannot open directories (Windows) does without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
