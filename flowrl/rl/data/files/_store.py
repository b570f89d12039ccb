"""Files of generated data: deterministic npz, atomic writes, checksums, a manifest, a lock, room on the disk."""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl._io import atomic_write, parse_json, sha256_file

#: Incremented whenever the manifest's fields change meaning.
SCHEMA_VERSION = 1

MANIFEST_NAME = "manifest.json"

# The packages whose versions can change what a generator produces; the first name is the distribution's, not the
# module's.
_VERSIONED = ("flowrl-transport", "gymnasium", "mujoco", "numpy", "ogbench")
# And those that read or evaluate what others have made.
_READERS = ("gymnasium-robotics", "h5py", "minari")

_MIB = 2**20


def versions(*, readers: bool = False) -> dict[str, str]:
    """Return the versions of the installed packages that can change generated data (`readers`: or its reading)."""
    found: dict[str, str] = {}
    for name in (*_VERSIONED, *_READERS) if readers else _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What stands beside generated files: how they were made, and the SHA-256 of each.

    `rows` and `val_rows` count transitions as loaded; `parameters` is everything else that the generator was told, JSON
    values only.
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
    """Write `manifest.json` atomically; as the last file, because its presence says that the others are complete."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_write(directory / MANIFEST_NAME) as file:
        file.write(text.encode())


def read_manifest(directory: Path) -> Manifest | None:
    """Read the manifest of a folder; None if there is none (the data are missing or unfinished)."""
    path = directory / MANIFEST_NAME
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    advice = f"delete the folder {directory} to make the data again."
    try:
        content = parse_json(text)
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
    """Raise a ValueError if a manifest (at `path`) names a file outside the folder it stands in."""
    if not isinstance(files, dict):
        raise ValueError(f"{path}: files is {files!r}, expected names and what is known of them.")
    for name in files:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise ValueError(f"{path}: files names {name!r}, expected a file in the same folder.")


def validation_path(path: Path) -> Path:
    """Return the path of the validation split, "x-val.npz" beside "x.npz", where OGBench's loader expects it."""
    return path.with_name(f"{path.name.removesuffix('.npz')}-val.npz")


def is_complete(directory: Path, wanted: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the data set whose manifest has these fields, undamaged.

    Another data set, or a damaged one, is a ValueError.
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
    """Raise a ValueError that names the first file that is missing or differs from its checksum."""
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
