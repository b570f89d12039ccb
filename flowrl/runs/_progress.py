"""How far a long loop is, on one line of the terminal."""

import sys
from collections.abc import Callable


def progress_line(name: str) -> Callable[[int, int], None]:
    """Return a callback `show(done, total)` that writes how far a loop is to standard error.

    A terminal has one line, rewritten at each call. Where there is none, as in a log file, each tenth is a line.

    Args:
        name: what is counted, such as "evaluation (episodes)".
    """
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        text, terminal = f"{name}: {done:,} of {total:,}", sys.stderr.isatty()
        tenth = 10 * done // max(total, 1)
        if terminal or tenth != shown:
            begin, end = ("\r", "\n" if done == total else "") if terminal else ("", "\n")
            sys.stderr.write(f"{begin}{text}{end}")
            sys.stderr.flush()
        shown = tenth

    return show
