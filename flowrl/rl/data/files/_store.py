"""Files of generated data: deterministic npz, atomic writes, checksums, a manifest, a lock, room on the disk."""

import contextlib
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl._io import _files

#: Raised by one whenever the manifest's fields change meaning.
SCHEMA_VERSION = 1

MANIFEST_NAME = "manifest.json"

# The packages whose versions can change what a generator produces; the first name is the distribution's, not the
# module's.
_VERSIONED = ("flowrl-transport", "gymnasium", "mujoco", "numpy", "ogbench")
# And those that read or evaluate what others have made.
_READERS = ("gymnasium-robotics", "h5py", "minari")

_MIB = 2**20


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
    with _files.atomic_write(directory / MANIFEST_NAME) as file:
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
        found = _files.sha256_file(path)
        if found != expected:
            raise ValueError(
                f"{path}: SHA-256 is {found[:12]}..., but {MANIFEST_NAME} says {expected[:12]}...: the file is damaged "
                f"or was changed; delete {directory} to make the data again."
            )
