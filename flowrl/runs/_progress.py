"""How far a long loop is, on one line of the terminal."""

import sys
import time
from collections.abc import Callable


def progress_line(name: str) -> Callable[[int, int], None]:
    """Return a callback `show(done, total)` that writes how far a loop is, and how fast, to standard error.

    A terminal has one line, rewritten at each call. Where there is none, as in a log file, each tenth is a line. The
    rate is the mean since the first call, which has none.

    Args:
        name: what is counted, such as "evaluation (episodes)".
    """
    shown, width = -1, 0
    first: tuple[int, float] | None = None

    def show(done: int, total: int) -> None:
        nonlocal shown, width, first
        text, terminal, now = f"{name}: {done:,} of {total:,}", sys.stderr.isatty(), time.monotonic()
        first = first or (done, now)
        if done > first[0] and now > first[1]:
            rate = (done - first[0]) / (now - first[1])
            text += f", {rate:,.0f} per second" if rate >= 10 else f", {rate:.2g} per second"
        tenth = 10 * done // max(total, 1)
        if terminal or tenth != shown:
            width = max(width, len(text))  # a shorter line leaves nothing of a longer one
            begin, end = ("\r", "\n" if done == total else "") if terminal else ("", "\n")
            sys.stderr.write(f"{begin}{text.ljust(width) if terminal else text}{end}")
            sys.stderr.flush()
        shown = tenth

    return show
