"""Runs jobs that each leave a shard file, in this process or in several.

A worker is a Python process in `main`: it reads JSON lines, first the name and the arguments of a factory, then one job
a line, and answers each with a line. It ends when its input does, so it cannot outlive a parent that was killed. Why
`subprocess` and not `multiprocessing`: see `_pool.py`.
"""

import concurrent.futures
import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

#: Plain JSON values by name: what travels to a worker.
Json = dict[str, Any]

# Not `python -m`: the package imports this module, which runpy would then warn about running a second time.
_PROGRAM = "from flowrl.rl.data._episodes import main; main()"


def run(factory: str, arguments: Json, jobs: Sequence[Json], workers: int, done: Callable[[], object]) -> None:
    """Runs jobs; whatever a job leaves is on the disk when it is done.

    Args:
        factory: "module:function"; called once in each process with `arguments`, it returns the function that does
            one job.
        arguments: keyword arguments of the factory.
        jobs: keyword arguments of the jobs.
        workers: number of processes; 1 means this one.
        done: called in this thread after every job.

    Raises:
        OSError: if a shard could not be written.
        RuntimeError: if a job failed in a worker, or a worker died. The shards of finished jobs stay.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        work = _make(factory, arguments) if jobs else None
        for job in jobs:
            assert work is not None
            work(**job)
            done()
        return
    idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()

    def ask(job: Json, log: IO[bytes]) -> None:
        helper = idle.get()
        try:
            _ask(helper, job, log)
        finally:
            # Put back even if it is dead: a thread that waited for it in vain would never end.
            idle.put(helper)

    # Innermost last: on an error the queue is emptied first, then the workers are killed, which unblocks the threads.
    with concurrent.futures.ThreadPoolExecutor(workers) as threads, contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        for _ in range(workers):
            helper = stack.enter_context(_helper(log))
            _send(helper, {"factory": factory, "arguments": arguments})
            idle.put(helper)
        futures = [threads.submit(ask, job, log) for job in jobs]
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        for future in concurrent.futures.as_completed(futures):
            future.result()
            done()


def _make(factory: str, arguments: Json) -> Callable[..., object]:
    """Looks a factory up and calls it."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


@contextlib.contextmanager
def _helper(log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Starts a worker process, and ends it whatever happens; what it prints goes to `log`."""
    root = str(Path(__file__).resolve().parents[3])
    environment = {
        **os.environ,
        # The package may have been found through sys.path rather than installed.
        "PYTHONPATH": os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path),
        # One thread a process: the matrices are tiny. And a simulator must not take the accelerator.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment,
        text=True,
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


def _send(helper: subprocess.Popen[str], message: Json) -> None:
    """Writes one line to a worker."""
    assert helper.stdin is not None
    # A worker that has just died is reported when its (empty) answer is read.
    with contextlib.suppress(BrokenPipeError):
        helper.stdin.write(json.dumps(message) + "\n")
        helper.stdin.flush()


def _ask(helper: subprocess.Popen[str], job: Json, log: IO[bytes]) -> None:
    """Gives a worker one job, waits for its answer, and raises unless that says the job is done."""
    assert helper.stdout is not None
    _send(helper, job)
    line = helper.stdout.readline()
    if not line.endswith("\n"):
        # pread, because all workers and threads share the file's position.
        words = os.pread(log.fileno(), 10_000, max(0, os.fstat(log.fileno()).st_size - 2000)).decode(errors="replace")
        raise RuntimeError(
            f"{job}: a worker process died (exit status {helper.wait()}). Finished episodes are kept: the same call "
            "goes on from there; if memory ran out, with fewer workers."
            + (f"\nIts last words:\n{words}" if words else "")
        )
    answer = json.loads(line)
    if answer["errno"] is not None:
        raise OSError(answer["errno"], f"{job}: {answer['message']}")
    if not answer["done"]:
        raise RuntimeError(f"{job}: {answer['message']}\n{answer['traceback']}")


def main() -> None:
    """Answers jobs until standard input ends."""
    # Only answers may go to the pipe: whatever a library prints goes to standard error instead.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    assignment = json.loads(sys.stdin.readline())
    work: Callable[..., object] | None = None
    for line in sys.stdin:
        try:
            work = work or _make(assignment["factory"], assignment["arguments"])
            work(**json.loads(line))
            answer: Json = {"done": True, "errno": None}
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None
            answer = {"done": False, "errno": number, "message": str(error), "traceback": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
