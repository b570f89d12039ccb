"""Run the cells of a matrix, several at a time, and gather their rows."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from flowrl._io import atomic_write, only_one
from flowrl.scripts._console import progress
from flowrl.scripts.experiments._matrix import Cell, Matrix, cells
from flowrl.scripts.experiments._rows import gather, read_rows

#: Has the kernel kill a cell whose runner was killed (1 is PR_SET_PDEATHSIG, 9 SIGKILL), and becomes the command it is
#: given. The cell would go on unseen otherwise, and hold its run directory. Only Linux has this.
_LEASH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run_matrix(matrix: Matrix, passed_on: tuple[str, ...]) -> int:
    """Run what is not done yet; return the number of cells that failed."""
    console = Console(stderr=True)
    todo = cells(matrix, passed_on)
    known = {
        f"{row['env']}/{row['algorithm']}/{row['variant']}/seed{row['seed']}": row
        for path in matrix.known
        for row in read_rows((path,))
    }
    states = {cell: "known" if cell.name in known else cell.state(matrix.out) for cell in todo}
    if matrix.dry_run:
        for cell, state in states.items():
            print(f"{state:>6}  {cell.name}  {shlex.join(cell.options)}")
    differing = {cell.name: cell.differs(known[cell.name]) for cell in todo if cell.name in known}
    other = [f"{name} ({', '.join(options)})" for name, options in differing.items() if options]
    other += [cell.name for cell, state in states.items() if state == "done" and cell.changed(matrix.out)]
    if other:
        raise ValueError(f"finished with other options: {', '.join(other)}; name a --variant, or give another --out.")
    if matrix.dry_run:
        return 0
    waiting = [cell for cell, state in states.items() if state not in ("known", "done")]
    matrix.out.mkdir(parents=True, exist_ok=True)
    with only_one(matrix.out / ".lock"):
        failed = _work_off(waiting, matrix, len(todo), console)
    console.print(f"{len(todo) - len(failed)} of {len(todo)} cells are done; rows are in {matrix.out / 'rows.csv'}")
    return len(failed)


def _work_off(waiting: list[Cell], matrix: Matrix, total: int, console: Console) -> list[Cell]:
    """Run cells, as many at a time as was asked for; give those that failed."""
    failed: list[Cell] = []
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    gather(matrix.out)
    # Cells take many minutes: a speed measured over rich's usual 30 s would never be there.
    with progress(console, over=1e7) as bars, _ended(running):
        done = total - len(waiting)
        bar = bars.add_task("cells", total=total, completed=done, rate="")
        while waiting or running:
            while waiting and len(running) < matrix.jobs:
                cell = waiting.pop(0)
                running[cell] = _start(cell, matrix)
            time.sleep(0.2)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                if running.pop(cell).returncode:
                    failed.append(cell)
                    log = cell.path(matrix.out) / "log.txt"
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                    text = escape(f"{cell.name}; the end of {log}:\n{tail}")
                    console.print(f"[red]failed[/red] {text}", highlight=False)
                gather(matrix.out)
                done += 1
                bars.update(bar, completed=done)
    return failed


def _start(cell: Cell, matrix: Matrix) -> subprocess.Popen[bytes]:
    path = cell.path(matrix.out)
    path.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # Seeds run the same programs: compile them once.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str((matrix.out / "cache").resolve()))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if matrix.jobs > 1:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with atomic_write(path / "options.json") as file:
        file.write((json.dumps(cell.options) + "\n").encode())
    with (path / "log.txt").open("ab") as log:
        # A session of its own: Ctrl-C reaches this program alone, which then ends its children.
        return subprocess.Popen(
            [sys.executable, "-c", _LEASH, *cell.command(matrix.out, matrix.jobs)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


@contextlib.contextmanager
def _ended(running: dict[Cell, subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the children when this program ends, unless by SIGKILL; their checkpoints stay."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # What nohup ignores stays ignored.
    signals = [x for x in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(x) == signal.SIG_DFL]
    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
