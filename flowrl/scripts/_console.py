"""How programs show what they do, and how they end: progress bars, and one line when they are stopped."""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowrl._io import resolve_dir

_FILE = 240  # columns of a table in a redirected log; rich takes 80 there, which leaves a wide table five each


class Terminated(KeyboardInterrupt):
    """SIGTERM: it ends a program as Ctrl-C does, so that what is open is closed."""


def end_well(
    main: Callable[[], Any], command: Sequence[str], out: Path | None = None, *, verb: str = "go on"
) -> NoReturn:
    """Run a program to its end: its exit status, an error in one line, or the command that goes on after a stop.

    Args:
        main: the program; what it returns is the exit status if it is a number.
        command: the words that started it.
        out: its run directory, for a program that goes on from there by --resume.
        verb: what the same command does after a stop; "start again" for a program that keeps nothing.
    """

    def terminate(*_: object) -> NoReturn:
        raise Terminated

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # what is ignored stays ignored
        signal.signal(signal.SIGTERM, terminate)
    keep_programs()
    try:
        status = main()
    except KeyboardInterrupt as stop:
        number = 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        words = list(command)
        if out is not None and (out / "config.json").exists() and "--resume" not in words:
            words.append("--resume")
        print(f"stopped; to {verb}: {shlex.join(words)}", file=sys.stderr)
        sys.exit(number)
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(status if isinstance(status, int) else 0)


def keep_programs() -> None:
    """Keep compiled programs in the user's cache directory for the next start, 2 GB at most.

    A directory that JAX has been told of (JAX_COMPILATION_CACHE_DIR) is left as it is.
    """
    # With a bound JAX locks the cache; without one, processes read what others are still writing.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(resolve_dir(None).parent / "programs"))
        jax.config.update("jax_compilation_cache_max_size", 2 * 1024**3)


def wide_console() -> Console:
    """Make a console for tables: as wide as the terminal, and in a file, which has no width, as wide as they need."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_FILE)


def progress(console: Console) -> Progress:
    """Make the bars; use it as a context manager."""
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[rate]}"), console=console)


def bar(bars: Progress, name: str) -> Callable[[int, int], None]:
    """Make a progress callback that opens its bar at the first call."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task(name, total=total, rate=""))
        bars.update(tasks[0], completed=done)

    return show


def training_bar(bars: Progress) -> Callable[[Any], None]:
    """Make the progress callback of `flowrl.rl.fit`: a bar for each phase, with its rate."""
    tasks: dict[str, Any] = {}

    def show(progress: Any) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bars.add_task(f"{progress.phase} (updates)", total=progress.total, rate="")
        bars.update(tasks[progress.phase], completed=progress.done, rate=f"{progress.rate:.0f} updates/s")

    return show


def online_bar(bars: Progress) -> Callable[[Any], None]:
    """Make the progress callback of `flowrl.rl.finetune`: a bar with both rates."""
    show = None

    def advance(progress: Any) -> None:
        nonlocal show
        if show is None:
            show = bars.add_task("acting and learning (steps)", total=progress.total, rate="")
        rate = f"{progress.steps_per_second:.0f} steps/s, {progress.updates_per_second:.0f} updates/s"
        bars.update(show, completed=progress.done, rate=rate)

    return advance
