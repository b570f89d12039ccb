"""Runs jobs that each leave a file, in this process or in several.

The helpers are started with `subprocess` rather than `multiprocessing`: its "spawn" would run the user's script again
in every worker unless that script is guarded by `if __name__ == "__main__"`, and its workers outlive a parent that was
killed.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flowrl.rl.data._worker import prepare

# Not `python -m`: this package imports that module, and runpy would warn that it runs a second time.
_PROGRAM = "from flowrl.rl.data._worker import main; main()"

#: Plain JSON values by name: what can travel to a worker.
Json = dict[str, Any]


def run(factory: str, arguments: Json, jobs: Sequence[Json], workers: int, done: Callable[[], object]) -> None:
    """Runs jobs in any order; what a finished job leaves stays, whatever happens afterwards.

    Args:
        factory: "module:function"; called once in each process, it returns the function that does one job.
        arguments: keyword arguments of the factory.
        jobs: keyword arguments of the jobs.
        workers: number of processes; 1 means this one.
        done: called here after every finished job.

    Raises:
        OSError: if a job raised one (in a worker: with the same errno).
        RuntimeError: if a job failed otherwise in a worker, or a worker died.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        work = prepare(factory, arguments) if jobs else None
        for job in jobs:
            assert work is not None
            work(**job)
            done()
        return
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowrl-")))
        selector = stack.enter_context(selectors.DefaultSelector())
        waiting = iter(jobs)
        for number in range(workers):
            job = next(waiting)
            log = folder / f"{number}.log"
            helper = stack.enter_context(_helper(log))
            _send(helper, {"factory": factory, "arguments": arguments})
            _send(helper, job)
            assert helper.stdout is not None
            selector.register(helper.stdout, selectors.EVENT_READ, (helper, log, job))
        while selector.get_map():
            for key, _ in selector.select():
                helper, log, job = key.data
                _receive(helper, log, job)
                done()
                following = next(waiting, None)
                if following is None:
                    selector.unregister(helper.stdout)
                else:
                    _send(helper, following)
                    selector.modify(helper.stdout, selectors.EVENT_READ, (helper, log, following))


@contextlib.contextmanager
def _helper(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a worker process, and ends it whatever happens."""
    root = str(Path(__file__).resolve().parents[3])
    given = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = {
        **os.environ,
        # The package may have been found through sys.path rather than installed.
        "PYTHONPATH": os.pathsep.join([root, *given]),
        # One thread a process: the matrices are tiny. And a simulator must not take the accelerator.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            # Not the user's directory: MuJoCo leaves its log there, and a file of theirs could hide a module.
            cwd=log.parent,
            # Ctrl-C is for the parent, which then ends its workers; they would only print a traceback each.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                # Closing flushes, and the reader is gone.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _send(helper: subprocess.Popen[bytes], message: Json) -> None:
    """Writes one line to a worker."""
    assert helper.stdin is not None
    # A worker that has just died is reported when its (empty) answer is read.
    with contextlib.suppress(BrokenPipeError):
        helper.stdin.write(json.dumps(message).encode() + b"\n")
        helper.stdin.flush()


def _receive(helper: subprocess.Popen[bytes], log: Path, job: Json) -> None:
    """Reads a worker's answer, and raises unless it says that the job is done."""
    assert helper.stdout is not None
    # An answer is one line, so a readable pipe holds all of it, or its end.
    line = helper.stdout.readline()
    what = ", ".join(f"{key} {value}" for key, value in job.items())
    if not line.endswith(b"\n"):
        code = helper.wait()
        words = log.read_text(errors="replace")[-2000:].strip()
        raise RuntimeError(
            f"a worker process died (exit status {code}) at {what}. What is finished is kept: the same call goes on "
            "from there; if memory ran out, give fewer workers." + (f"\nIts last words:\n{words}" if words else "")
        )
    answer = json.loads(line)
    if not answer["done"]:
        if answer["errno"] is not None:
            raise OSError(answer["errno"], f"{what}: {answer['message']}")
        raise RuntimeError(f"{what}: {answer['message']}\n{answer['traceback']}")
