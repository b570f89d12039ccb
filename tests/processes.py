"""Programs that are killed."""

import subprocess
import sys
import time
from pathlib import Path

#: Starts the console command.
PROGRAM = [sys.executable, "-m", "flowrl.scripts"]


def kill_at_first_checkpoint(words: list[str], out: Path) -> None:
    """Run a program until its first checkpoint is there, and end it by SIGKILL."""
    process = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoint.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert (out / "checkpoint.npz").exists(), "it came to no checkpoint"
    assert not (out / "results.csv").exists(), "it ended before it could be killed"
