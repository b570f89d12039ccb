"""Checks of memory: what does not fit is refused before the machine starts to swap or kills the process."""

import contextlib
import os
from pathlib import Path

_MIB = 2**20


def available_memory() -> int | None:
    """Return the bytes of memory that this process may still take; None where the system does not say."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    # A container may be allowed less than the machine has.
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if not found:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(found)) if found else None


def check_memory(needed: int, source: str) -> None:
    """Raise a MemoryError if `needed` bytes (all copies included) do not fit; `source` is what is to be read."""
    free = available_memory()
    if free is not None and needed > free:
        raise MemoryError(
            f"{source}: reading it needs about {needed / _MIB:.0f} MiB of memory, {free / _MIB:.0f} MiB are free. "
            "Data sets are held in memory as a whole: use a smaller one (fewer trajectories), or a larger machine."
        )
