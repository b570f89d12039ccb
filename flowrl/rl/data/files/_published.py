"""Files that others have published: downloaded once, checked at every use, and never mistaken for anything else.

Neither OGBench nor D4RL publishes checksums. For the few files below, unrelated public projects report one and the same
digest of what they downloaded from the official host or a mirror, and a download must match it. For all others what can
be checked is checked (the size that the server announced, the CRC of every array of an npz, that an HDF5 file is
whole), and the digest of the first download is written down: a file that changes afterwards is refused.
"""

import dataclasses
import functools
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowrl._distribution import require
from flowrl._io import atomic_write, lock, make_dir, parse_json, sha256_file
from flowrl.rl.data.files import _store
from flowrl.rl.data.files._download import fetch
from flowrl.rl.data.schema import Progress

RECORD_NAME = "download.json"
_VERSION = 1

#: File name to (bytes, SHA-256). Read in public repositories: github.com/rollinpioneer/OG and ruio248/AM-MF
#: (cube-double), Mayyoungyoung/CA-OPEX and ksajan/ECE595-Causal-RL-Study (hopper_medium), easonhuo/drpo and a
#: reproduction of ADMPO (hopper_medium_replay).
KNOWN: dict[str, tuple[int, str]] = {
    "cube-double-play-v0.npz": (
        297_435_656,
        "a73d1a33d029cedb8bc170ef94791ec585fa2d9450096f4f2a02b8cfbcf608c9",
    ),
    "cube-double-play-v0-val.npz": (
        29_726_524,
        "b1fcdf4bd40750351a58d0d491d6be198366ce898f0c6a2e4cb5db331966013e",
    ),
    "hopper_medium-v2.hdf5": (
        152_756_557,
        "5bdf1bc4a713c82941de44633df669b36c89850b652a25985166796d25cf71a0",
    ),
    "hopper_medium_replay-v2.hdf5": (
        75_854_457,
        "e121c5f7c9857a307baa9edc6a2c3b48e85fedb9ac316ecddd0f48ca7ef4e39b",
    ),
}


@dataclasses.dataclass(frozen=True)
class Published:
    """A file that others have published.

    Attributes:
        name: of the file.
        urls: its addresses, in the order in which they are tried.
        asked: the user has named these addresses, so that one without encryption is taken too.
    """

    name: str
    urls: tuple[str, ...]
    asked: bool


def obtain(folder: Path, files: Sequence[Published], progress: Progress | None) -> None:
    """Download the files of a data set unless they are there, and check them against what is known of them."""
    if _complete(folder, files):
        return
    make_dir(folder)
    with lock(folder / ".lock"):
        # Another process may have downloaded them while this one waited.
        for file in files:
            record = _record(folder)
            path = folder / file.name
            if path.exists():
                _check_recorded(path, record)
                continue
            size, sha256 = KNOWN.get(file.name, (None, None))
            # One that was here before must come back the same.
            sha256 = sha256 or record.get(file.name, {}).get("sha256")
            fetch(
                file.urls,
                path,
                check=_check_file,
                record=functools.partial(_write_down, folder, file.name),
                size=size,
                sha256=sha256,
                plain=file.asked,
                progress=progress,
            )


def _write_down(folder: Path, name: str, part: Path, url: str) -> None:
    """Record a download that is about to get its name."""
    entry = {
        "sha256": sha256_file(part),
        "bytes": part.stat().st_size,
        "url": url,
        "checked": "known SHA-256" if name in KNOWN else "integrity only",
    }
    content = {"schema_version": _VERSION, "label": "published", "files": {**_record(folder), name: entry}}
    with atomic_write(folder / RECORD_NAME) as stream:
        stream.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def is_published(path: Path, sha256: str) -> bool:
    """Return whether a digest is the known one of a published file, or that of a download recorded beside it."""
    if path.name in KNOWN:
        return KNOWN[path.name][1] == sha256
    return _record(path.parent).get(path.name, {}).get("sha256") == sha256


def _complete(folder: Path, files: Sequence[Published]) -> bool:
    """Return whether all files are there and undamaged; needs no lock and no writable folder."""
    record = _record(folder)
    # Between a record and its file another process may be at work, which holds the lock.
    if not all(file.name in record and (folder / file.name).exists() for file in files):
        return False
    for file in files:
        _check_recorded(folder / file.name, record)
    return True


def _check_recorded(path: Path, record: dict[str, dict[str, Any]]) -> None:
    """Raise a ValueError unless a file is the one whose download was recorded."""
    if path.name not in record:
        raise ValueError(
            f"{path}: there, but not listed in {RECORD_NAME}: its origin is unknown. Delete it to download it, or load "
            "it by dataset_path."
        )
    found = sha256_file(path)
    expected = record[path.name].get("sha256")
    if found != expected:
        raise ValueError(
            f"{path}: SHA-256 is {found[:12]}..., but {RECORD_NAME} says {str(expected)[:12]}...: the file is damaged "
            "or was changed; delete it to download it again."
        )


def _record(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is known of the downloads in a folder: file name to digest, size and address."""
    path = folder / RECORD_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    advice = f"delete the folder {folder} to download the data again."
    try:
        content = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {advice}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise ValueError(f"{path}: schema_version is {version}, expected {_VERSION}; {advice}")
    files: Any = content.get("files")
    _store.check_names(files, path)
    if not all(isinstance(entry, dict) for entry in files.values()):
        raise ValueError(f"{path}: files must say of each file what is known of it; {advice}")
    return files


def _check_file(part: Path) -> None:
    """Raise a ValueError unless a file is whole, as far as that can be seen without a digest."""
    check: dict[str, Callable[[Path], None]] = {"npz": _check_npz, "hdf5": _check_hdf5}
    # The part of "x.npz" is called ".x.npz.1234abcd.part".
    check[part.name.split(".")[-3]](part)


def _check_npz(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"not an npz, or a truncated one ({error})") from error
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged (CRC)")


def _check_hdf5(path: Path) -> None:
    require("h5py", extra="rl")
    import h5py

    try:
        h5py.File(path, "r").close()
    except OSError as error:
        raise ValueError(f"not an HDF5 file, or a truncated one ({error})") from error
