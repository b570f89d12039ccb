"""How programs show what they do, and how they end: progress bars, and one line when they are stopped."""

import contextlib
import dataclasses
import datetime
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowrl._io import resolve_dir

_FILE = 240  # columns of a table in a redirected log; rich takes 80 there, which leaves a wide table five each
#: Seconds between two lines of a loop where there is no terminal.
PAUSE = 30.0


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


class Lines:
    """Plain lines for a log file, as a scheduler of jobs keeps it: how far a loop is, how fast, and what is left.

    A loop has a line when it begins to move, one at most every `pause` seconds, and one at its end.
    """

    def __init__(
        self, write: Callable[[str], object], *, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic
    ):
        self._write, self._pause, self._clock = write, pause, clock
        self._tasks: list[_Task] = []

    def add_task(self, description: str, *, total: float | None, completed: int = 0, **fields: Any) -> TaskID:
        """Begin to show a loop, as `rich.progress.Progress` does."""
        now = self._clock()
        self._tasks.append(_Task(description, total or 0, completed, now, now - self._pause, fields.get("rate", "")))
        return TaskID(len(self._tasks) - 1)

    def update(self, task_id: TaskID, *, completed: float, **fields: Any) -> None:
        """Show how far it is."""
        task, now = self._tasks[task_id], self._clock()
        task.done, task.rate = completed, fields.get("rate", task.rate)
        if completed >= task.total or now - task.shown >= self._pause:
            task.shown = now
            self._write(task.line(now))


@dataclasses.dataclass
class _Task:
    name: str
    total: float
    first: float
    begun: float
    shown: float
    rate: str
    done: float = 0

    def line(self, now: float) -> str:
        """Return how far the loop is; a rate that the loop does not know itself is its mean so far."""
        words = [f"{self.name}: {self.done:,.0f} of {self.total:,.0f}"]
        if self.total:
            words[0] += f" ({self.done / self.total:.0%})"
        made, seconds = self.done - self.first, now - self.begun
        if made > 0 and seconds > 0:
            rate = made / seconds
            words += [self.rate or (f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"), f"{_span(seconds)} so far"]
            if self.done < self.total:
                words.append(f"{_span((self.total - self.done) / rate)} left")
        return ", ".join(words)


#: How far the loops of a program are: bars on a terminal, lines elsewhere.
Bars = Progress | Lines


def _span(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def progress(console: Console, *, over: float = 30.0) -> Iterator[Bars]:
    """Show how far loops are: bars where the console is a terminal, lines with the time of day where it is a file.

    Args:
        console: where.
        over: seconds over which a bar measures its speed.
    """
    if not console.is_terminal:
        yield Lines(lambda line: console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True))
        return
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    rate = TextColumn("{task.fields[rate]}")
    with Progress(*columns, TimeRemainingColumn(), rate, console=console, speed_estimate_period=over) as bars:
        yield bars


def bar(bars: Bars, name: str) -> Callable[[int, int], None]:
    """Make a progress callback that opens its bar at the first call."""
    tasks: list[TaskID] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task(name, total=total, rate=""))
        bars.update(tasks[0], completed=done)

    return show


def training_bar(bars: Bars) -> Callable[[Any], None]:
    """Make the progress callback of `flowrl.rl.fit`: a bar for each phase, with its rate."""
    tasks: dict[str, TaskID] = {}

    def show(progress: Any) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bars.add_task(f"{progress.phase} (updates)", total=progress.total, rate="")
        bars.update(tasks[progress.phase], completed=progress.done, rate=f"{progress.rate:.0f} updates/s")

    return show


def online_bar(bars: Bars) -> Callable[[Any], None]:
    """Make the progress callback of `flowrl.rl.finetune`: a bar with both rates."""
    show = None

    def advance(progress: Any) -> None:
        nonlocal show
        if show is None:
            show = bars.add_task("acting and learning (steps)", total=progress.total, rate="")
        rate = f"{progress.steps_per_second:.0f} steps/s, {progress.updates_per_second:.0f} updates/s"
        bars.update(show, completed=progress.done, rate=rate)

    return advance
