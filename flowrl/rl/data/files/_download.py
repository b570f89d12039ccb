"""Download of one file from the first of several mirrors that has it, resumed where an earlier attempt was cut off."""

import contextlib
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowrl._io import check_space, fsync_dir, parse_json, sha256_file
from flowrl.rl.data.schema import Progress

_CHUNK = 2**20
# Attempts in a row that bring nothing; a connection that was cut off half-way is resumed at once.
_ATTEMPTS = 5
# Answers that another attempt will not change: the mirror does not have the file, or does not give it to us.
_FINAL = frozenset({400, 401, 403, 404, 405, 410, 451})
# Nobody stands between this machine and itself.
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class _RefusedError(Exception):
    """A mirror did not give the file; the message says why."""


class _DroppedError(Exception):
    """The connection broke; another attempt may succeed."""


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    check: Callable[[Path], object],
    record: Callable[[Path, str], object],
    size: int | None = None,
    sha256: str | None = None,
    plain: bool = False,
    progress: Progress | None = None,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> None:
    """Download a file, check it, and only then give it its name.

    Args:
        urls: http(s) addresses of the same file, in the order in which they are tried.
        path: in an existing directory.
        check: raises a `ValueError` if the part, once complete, is not what it should be.
        record: called with the part and its address when it has been checked and is on the disk, and before it gets
            its name: a process that is killed leaves no file of which nothing is known.
        size: bytes of the file; None if not known.
        sha256: of the file; None if not known.
        plain: take a file whose SHA-256 is not known over a connection that is not encrypted, too. Nothing vouches for
            what comes over it, so addresses with http://, and those that lead to one, are refused otherwise, but for
            those of this machine.
        progress: called as `progress(bytes_so_far, bytes_in_all)`; the latter is 0 if the server does not say.
        pause: seconds before another attempt if the last one brought nothing; doubled each time.
        timeout: seconds without an answer after which a connection counts as broken.
    """
    reasons: list[str] = []
    # Each mirror's part is hidden beside `path`. It is resumed, also by a later process (an HTTP range, as long as the
    # server says that its file is still the same), and removed in the end.
    parts = {url: path.with_name(f".{path.name}.{_digest(url)[:8]}.part") for url in urls}
    for url, part in parts.items():
        try:
            opener = _opener(url, plain=plain or sha256 is not None)
            _receive(opener, url, part, progress, pause=pause, timeout=timeout)
            _verify(part, check, size, sha256)
        except _RefusedError as error:
            reasons.append(f"  {url}: {error}")
            continue
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        record(part, url)
        os.replace(part, path)
        fsync_dir(path.parent)
        for leftover in parts.values():
            _remove(leftover)
        return
    raise OSError(f"could not download {path.name} from any mirror:\n" + "\n".join(reasons))


class _NeverPlain(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to an address that is not encrypted."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        _refuse_plain(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(url: str, *, plain: bool) -> urllib.request.OpenerDirector:
    """Return what opens addresses; it takes those without encryption only if `plain`."""
    if plain:
        return urllib.request.build_opener()
    _refuse_plain(url)
    return urllib.request.build_opener(_NeverPlain)


def _refuse_plain(url: str) -> None:
    address = urllib.parse.urlsplit(url)
    if address.scheme == "http" and address.hostname not in _HERE:
        raise _RefusedError(
            f"{address.scheme}://{address.hostname} is not encrypted, and no SHA-256 of the file is known, so nothing "
            "would vouch for what comes; to take it all the same, give the folder that holds it as one of `mirrors`"
        )


def _receive(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    progress: Progress | None,
    *,
    pause: float,
    timeout: float,
) -> None:
    """Ask one server for what is missing until the part is complete."""
    if not url.startswith(("http://", "https://")):
        raise _RefusedError("expected an address that begins with http:// or https://")
    failure, idle = "", 0
    while idle < _ATTEMPTS:
        if idle:
            time.sleep(pause * 2 ** (idle - 1))
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(opener, url, part, progress, timeout)
            return
        except urllib.error.HTTPError as error:
            failure = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code == 416:  # what is there is not a beginning of the server's file
                _remove(part)
            elif error.code in _FINAL:
                raise _RefusedError(failure) from error
        except _DroppedError as error:
            failure = str(error)
        idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
    raise _RefusedError(f"{failure} ({_ATTEMPTS} attempts brought nothing more; what has arrived is kept)")


def _attempt(
    opener: urllib.request.OpenerDirector, url: str, part: Path, progress: Progress | None, timeout: float
) -> None:
    """Make one request; return if the part is then complete."""
    have = part.stat().st_size if part.exists() else 0
    known = _known(part)
    if have and have == known.get("total"):
        return
    headers = {"User-Agent": "flowrl", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("validator"):
            # Otherwise the answer is the whole of the new file.
            headers["If-Range"] = known["validator"]
    with _broken_connections():
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    with response:
        length = response.headers.get("Content-Length")
        rest = int(length) if length and length.isdigit() else None
        resumed = response.status == 206 and _starts_at(response.headers.get("Content-Range"), have)
        if response.status == 206 and not resumed:
            raise _DroppedError(f"sent {response.headers.get('Content-Range')} where byte {have} was asked for")
        have = have if resumed else 0
        total = None if rest is None else have + rest
        if resumed and total != known.get("total", total):
            _remove(part)
            raise _DroppedError("the file on the server has another size than before")
        if rest is not None:
            check_space(part.parent, rest)
        etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
        # A weak tag ("W/...") does not promise the same bytes, so it cannot vouch for a range.
        validator = etag if etag and not etag.startswith("W/") else modified
        _note(part).write_text(json.dumps({"validator": validator, "total": total}))
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total or 0)
    if total is not None and have != total:
        raise _DroppedError(f"the connection was dropped after {have} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    with _broken_connections():
        return response.read(_CHUNK)


@contextlib.contextmanager
def _broken_connections() -> Iterator[None]:
    """Turn all failures of a connection into one exception; an answer with an HTTP error stays what it is."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except urllib.error.URLError as error:
        raise _DroppedError(f"no connection: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(f"{type(error).__name__}: {error}") from error


def _verify(part: Path, check: Callable[[Path], object], size: int | None, sha256: str | None) -> None:
    """Remove a part that is complete and still wrong, and say so."""
    found = part.stat().st_size
    try:
        if size is not None and found != size:
            raise ValueError(f"it has {found} bytes, expected {size}")
        if sha256 is not None and (digest := sha256_file(part)) != sha256:
            raise ValueError(f"its SHA-256 is {digest}, expected {sha256}")
        check(part)
    except ValueError as error:
        _remove(part)
        raise _RefusedError(f"what it sent ({found} bytes) is not the file and was deleted: {error}") from error


def _starts_at(content_range: str | None, byte: int) -> bool:
    """Return whether a `Content-Range` header begins at a byte."""
    return content_range is not None and content_range.startswith(f"bytes {byte}-")


def _note(part: Path) -> Path:
    """Return the path of the note of what the server said of the file."""
    return part.with_suffix(".json")


def _known(part: Path) -> dict[str, Any]:
    """Return what the server said of the file; nothing if the note cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        content = parse_json(_note(part).read_text())
        if isinstance(content, dict):
            return {key: value for key, value in content.items() if value is not None}
    return {}


def _remove(part: Path) -> None:
    """Remove a part and its note."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
