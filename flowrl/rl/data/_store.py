"""Files of generated data: deterministic npz, atomic writes, checksums, a manifest, a lock, room on the disk."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from flowrl.rl.data._memory import check_memory

#: Raised by one whenever the manifest's fields change meaning.
SCHEMA_VERSION = 1

MANIFEST_NAME = "manifest.json"

# The packages whose versions can change what a generator produces; the first name is the distribution's, not the
# module's.
_VERSIONED = ("flowrl-transport", "gymnasium", "mujoco", "numpy", "ogbench")
# And those that read or evaluate what others have made.
_READERS = ("gymnasium-robotics", "h5py", "minari")

_MIB = 2**20


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
        _fsync_dir(path.parent)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free / _MIB
        raise OSError(errno.ENOSPC, f"the disk became full while writing {path} ({free:.0f} MiB free)") from error
    finally:
        # Only there if something went wrong: the rename has taken it away otherwise.
        beside.unlink(missing_ok=True)


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


def read_npz(path: Path, *, required: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz; nothing in the file is ever unpickled.

    Args:
        path: the file.
        required: keys that must be there.

    Returns:
        Key to array.

    Raises:
        FileNotFoundError: if there is no such file.
        MemoryError: if the arrays do not fit into memory.
        ValueError: naming the file (and the key), if it is truncated, not an npz, holds Python objects, or lacks a
            required key.
    """
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such npz file", str(path))
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path}: not an npz file, or a truncated one ({path.stat().st_size} bytes); delete it and make it again."
        )
    arrays: dict[str, np.ndarray] = {}
    key = ""
    try:
        with zipfile.ZipFile(path) as archive:
            # As stored, and then three times more: selected, checked, and split.
            check_memory(4 * sum(member.file_size for member in archive.infolist()), str(path))
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in required if name not in archive.files]
            if missing:
                found = ", ".join(sorted(archive.files)) or "no arrays"
                raise ValueError(f"{path}: missing {', '.join(missing)}; found {found}.")
            for key in archive.files:
                value = archive[key]
                if not isinstance(value, np.ndarray):
                    raise ValueError(f"{path}: {key} is not an array; is this an npz?")
                arrays[key] = value
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: {key or 'the file'} is damaged ({error}); delete the file and make it again."
        ) from error
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {key} cannot be read ({error}); expected an array of numbers.") from error
    return arrays


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*, readers: bool = False) -> dict[str, str]:
    """The versions of the packages that can change generated data; a package that is not installed is left out.

    Args:
        readers: those too that only read foreign files, or evaluate on them.
    """
    found: dict[str, str] = {}
    for name in (*_VERSIONED, *_READERS) if readers else _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What stands beside generated files: how they were made, and their checksums.

    Attributes:
        name: data-set name, such as "puzzle-3x3-play-v0".
        seed: the generator's seed.
        rows: training transitions (as loaded).
        val_rows: validation transitions (as loaded).
        parameters: everything else that the generator was told; JSON values only.
        versions: package name to version, at generation.
        success_timing: a note on when success is decided; None where it does not apply.
        files: file name to SHA-256.
        label: always "local": such data are not the published ones.
        schema_version: of this manifest.
    """

    name: str
    seed: int
    rows: int
    val_rows: int
    parameters: dict[str, Any]
    versions: dict[str, str]
    success_timing: str | None
    files: dict[str, str]
    label: str = "local"
    schema_version: int = SCHEMA_VERSION


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` atomically. Write it last: its presence says that the files are complete."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(directory / MANIFEST_NAME) as file:
        file.write(text.encode())


def read_manifest(directory: Path) -> Manifest | None:
    """Reads `manifest.json`.

    Args:
        directory: the folder of one generated data set.

    Returns:
        The manifest, or None if there is none (the data are missing or unfinished).

    Raises:
        ValueError: naming the file, if it is not a manifest of this schema version.
    """
    path = directory / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    advice = f"delete the folder {directory} to make the data again."
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {advice}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version is {version}, expected {SCHEMA_VERSION}; {advice}")
    expected = {field.name for field in dataclasses.fields(Manifest)}
    if set(content) != expected:
        wrong = ", ".join(sorted(set(content) ^ expected))
        raise ValueError(f"{path}: missing or unknown fields: {wrong}; {advice}")
    check_names(content["files"], path)
    return Manifest(**content)


def check_names(files: Any, path: Path) -> None:
    """Refuses a list of files that names one outside the folder it stands in.

    Args:
        files: what a manifest says: file name to what is known of it.
        path: the manifest.

    Raises:
        ValueError: naming the manifest and the entry.
    """
    if not isinstance(files, dict):
        raise ValueError(f"{path}: files is {files!r}, expected names and what is known of them.")
    for name in files:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(f"{path}: files names {name!r}, expected a file in the same folder.")


def validation_path(path: Path) -> Path:
    """Where the validation split stands (OGBench's loader expects it there): "x-val.npz" beside "x.npz"."""
    return path.with_name(f"{path.name.removesuffix('.npz')}-val.npz")


def is_complete(directory: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a folder holds exactly the data set that is wanted, complete and undamaged.

    Args:
        directory: the folder of one generated data set; it need not exist.
        wanted: some of the manifest's fields, and what they must be.

    Raises:
        ValueError: if there is another data set, or a damaged one.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        return False
    for field, value in wanted.items():
        found = getattr(manifest, field)
        if found != value:
            raise ValueError(
                f"{directory / MANIFEST_NAME}: {field} is {found}, expected {value}: the data were made by another "
                "recipe. Delete the folder to make them again, or choose another data_dir."
            )
    verify(directory, manifest)
    return True


def verify(directory: Path, manifest: Manifest) -> None:
    """Holds the files against their checksums.

    Raises:
        ValueError: naming the first file that is missing or differs.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{path}: missing, but listed in {MANIFEST_NAME}; delete {directory} to make it again.")
        found = sha256_file(path)
        if found != expected:
            raise ValueError(
                f"{path}: SHA-256 is {found[:12]}..., but {MANIFEST_NAME} says {expected[:12]}...: the file is damaged "
                f"or was changed; delete {directory} to make the data again."
            )


def _fsync_dir(path: Path) -> None:
    """Makes a rename durable; a system that cannot open directories (Windows) does without."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
