"""Files that are whole or absent: atomic writes, deterministic npz, checksums, locks, room on the disk."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from flowrl._io._memory import check_memory

_MIB = 2**20
#: Deflate makes no file smaller than a 1032nd; an archive that claims more would fill the memory.
_MOST_INFLATED = 1032


class DamagedError(ValueError):
    """A file is damaged or foreign: truncated, changed, or not of the kind that its name promises."""


def parse_json(text: str | bytes) -> Any:
    """Read JSON of a file that others may have written; one nested too deeply is a ValueError as other damage is."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; a DamagedError names one that does not."""
    try:
        content = parse_json(path.read_text())
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON ({error}); the directory is damaged or foreign.") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} holds no JSON object; the directory is damaged or foreign.")
    return content


def read_table(path: Path, *, columns: Sequence[str] = (), numbers: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a CSV with a header, whose rows have these columns, some of them numbers; a DamagedError names file and row.

    Numbers may be missing (empty) only in columns that are not named.
    """
    try:
        lines = list(csv.reader(path.read_text().splitlines(), strict=True))
    except (ValueError, csv.Error) as error:
        raise DamagedError(f"{path} is no table ({error}); it is damaged or foreign.") from error
    head, *rows = lines or [[]]
    missing = [name for name in (*columns, *numbers) if name not in head]
    if missing:
        raise DamagedError(f"{path}: missing columns {', '.join(missing)}; it is damaged or foreign.")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise DamagedError(
                f"{path}: line {number} has {len(row)} entries under {len(head)} columns; it is damaged."
            )
        for name in numbers:
            try:
                float(row[head.index(name)])
            except ValueError as error:
                raise DamagedError(f"{path}: line {number}, {name}: {error}; it is damaged.") from error
    return [dict(zip(head, row, strict=True)) for row in rows]


def resolve_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the directory of generated data, by default flowrl/data in `$XDG_CACHE_HOME` or ~/.cache, not created."""
    if data_dir is not None:
        return Path(data_dir).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path there is to be ignored.
    root = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return root / "flowrl" / "data"


def make_dir(path: Path) -> None:
    """Create a directory with its parents and check that files can be written to it."""
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
    """Raise an OSError (ENOSPC) if fewer than `needed` bytes are free in an existing directory."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk space in {path}: about {needed / _MIB:.0f} MiB needed, {free / _MIB:.0f} MiB free; "
            "ask for fewer rows, or choose another place with data_dir",
        )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for it if another process has it."""
    # The kernel releases the lock when its holder ends, SIGKILL included, so no stale lock can remain. A file system
    # without such locks is an error: a soft lock (a file that says who holds it) would outlive its holder. The file
    # stays in place: removing it would race with a waiting process.
    with FileLock(path, fallback_to_soft=False):
        yield


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, or raise a BlockingIOError at once if another process has it."""
    try:
        held = FileLock(path, fallback_to_soft=False).acquire(blocking=False)
    except Timeout as error:
        raise BlockingIOError(errno.EAGAIN, f"another process is writing to {path.parent}.") from error
    with held:
        yield


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file beside `path`, and rename it to `path` once it is complete and on the disk.

    If the block raises (a full disk included), `path` is as it was before and nothing is left beside it.
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
    """Remove what killed writers have left beside their files; call it while nobody else writes there."""
    for half in directory.glob(".*.tmp"):
        half.unlink(missing_ok=True)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compress: bool = True) -> None:
    """Write an npz atomically; the same arrays give the same bytes."""
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        # `numpy.savez` leaves the time stamps to the zip library and the order to the caller; both are fixed here.
        for key in sorted(arrays):
            member = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = method
            member.create_system = 3
            member.external_attr = 0o600 << 16
            with archive.open(member, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(arrays[key], order="C"), allow_pickle=False)


def read_npz(path: Path, *, required: Sequence[str] = (), only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read an npz (of those keys in `only` that are there) without unpickling; a DamagedError names file and key."""
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
                try:
                    value = archive[key]
                except MemoryError as error:
                    # What the archive holds does fit, so it is the header of the array that claims too much.
                    raise DamagedError(f"{path}: {key} claims to hold more than it can ({error}).") from error
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
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Make a rename durable, where the system can open directories (Windows cannot)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
