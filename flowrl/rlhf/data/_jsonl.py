"""Lines of JSON, plain or gzipped, with messages that say where something is wrong."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file (gzipped if it ends in ".gz"), each with "file, line" for messages about it."""
    file = Path(path)
    number = 0
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, line {number}", _object(line, f"{file}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{file}, after line {number}: the gzip file is damaged or truncated ({error}).") from error


def field(row: dict[str, Any], name: str, where: str) -> Any:
    """Return a field of an object; `where` is for the message."""
    if name not in row:
        raise ValueError(f"{where}: no field {name!r}; found {', '.join(sorted(row)) or 'none'}.")
    return row[name]


def text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a field that must be a string."""
    value = field(row, name, where)
    if not isinstance(value, str):
        raise ValueError(f"{where}, field {name!r}: expected a string, got {kind(value)}.")
    return value


def kind(value: Any) -> str:
    """Name what a JSON value is."""
    names = {dict: "an object", list: "a list", type(None): "null", str: "a string", bool: "a boolean"}
    return names.get(type(value), f"the number {value}")


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error}).") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {kind(row)}.")
    return row
