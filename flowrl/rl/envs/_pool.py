"""Work in other processes: jobs that each leave a file (`run`), or a process that is asked again and again (`Worker`).

The processes are started with `subprocess` rather than `multiprocessing`: its "spawn" would run the user's script again
in every worker unless that script is guarded by `if __name__ == "__main__"`, and its workers outlive a parent that was
killed; its "fork" would copy JAX's threads in an unknown state.
"""

import contextlib
import os
import pickle
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowrl.rl.envs._worker import Answer, prepare

# Not `python -m`: this package imports that module, and runpy would warn that it runs a second time.
_PROGRAM = "from flowrl.rl.envs._worker import main; main()"

#: Values by name; plain ones, or NumPy arrays.
Values = dict[str, Any]


def run(factory: str, arguments: Values, jobs: Sequence[Values], workers: int, done: Callable[[], object]) -> None:
    """Run jobs in any order; what a finished job has written stays, whatever happens afterwards.

    Args:
        factory: "module:function"; called once in each process, it returns the function that does one job.
        arguments: keyword arguments of the factory.
        jobs: keyword arguments of the jobs.
        workers: number of processes; 1 means this one.
        done: called here after every finished job.

    Raises:
        OSError: a job raised one (in a worker: with the same errno).
        RuntimeError: a job failed otherwise in a worker, or a worker died.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        work = prepare(factory, arguments) if jobs else None
        for job in jobs:
            assert work is not None
            work(**job)
            done()
        return
    advice = "What is finished is kept: the same call goes on from there; if memory ran out, give fewer workers."
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowrl-")))
        selector = stack.enter_context(selectors.DefaultSelector())
        waiting = iter(jobs)
        for number in range(workers):
            worker = stack.enter_context(
                contextlib.closing(Worker(factory, arguments, log=folder / f"{number}.log", advice=advice))
            )
            job = next(waiting)
            worker.send(job)
            selector.register(worker, selectors.EVENT_READ, job)
        while selector.get_map():
            for key, _ in selector.select():
                worker: Any = key.fileobj
                worker.receive(", ".join(f"{name} {value}" for name, value in key.data.items()))
                done()
                following = next(waiting, None)
                if following is None:
                    selector.unregister(worker)
                else:
                    worker.send(following)
                    selector.modify(worker, selectors.EVENT_READ, following)


class Worker:
    """A process that does one job after another; it ends when it is closed, or when this process ends."""

    def __init__(self, factory: str, arguments: Values, *, log: Path, advice: str) -> None:
        """Start the process and return at once; that the factory failed is reported by the first `receive`.

        `log` takes what the process prints, and its folder is the process's working directory; `advice` is for the
        message that the process died.
        """
        self._log = log
        self._advice = advice
        root = str(Path(__file__).resolve().parents[3])
        given = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        environment = {
            **os.environ,
            # The package may have been found through sys.path rather than installed.
            "PYTHONPATH": os.pathsep.join([root, *given]),
            # One thread per process: the matrices are tiny. And a simulator must not take the accelerator.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
        }
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers = self._process.stdout
        self._asked = time.monotonic()
        self._send((factory, arguments, [os.path.abspath(folder) for folder in sys.path]))

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when there is an answer."""
        return self._answers.fileno()

    def send(self, job: Values) -> None:
        """Send the process a job: keyword arguments of the function that the factory returned."""
        self._asked = time.monotonic()
        self._send(job)

    def receive(self, what: str, *, timeout: float | None = None) -> Any:
        """Wait for the answer to the oldest job that was sent and not yet answered, and return it.

        Args:
            what: name of the job in messages.
            timeout: seconds from the last `send` on; None waits as long as the process lives.

        Raises:
            OSError: the job raised one; with the same errno.
            RuntimeError: the job raised anything else, the process died, or there was no answer in time.
        """
        if timeout is not None and not self._ready(timeout):
            raise RuntimeError(
                f"{what}: no answer from a worker process within {timeout:g} s: it is stuck, or the machine is busy. "
                f"If it is busy, give a longer timeout or fewer workers.{self._last_words()}"
            )
        try:
            answer: Answer = pickle.load(self._answers)
        except (EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise RuntimeError(
                f"a worker process died (exit status {code}) at {what}. {self._advice}{self._last_words()}"
            ) from error
        if answer.failure is not None:
            message, trace = answer.failure
            if answer.errno is not None:
                raise OSError(answer.errno, f"{what}: {message}")
            raise RuntimeError(f"{what}: {message}\n{trace}")
        return answer.value

    def close(self) -> None:
        """End the process, whatever it is doing; safe to call twice."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        # Closing flushes, and the reader is gone.
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()

    def _send(self, message: Any) -> None:
        # A worker that has just died is reported when its (empty) answer is read.
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(message, self._requests)
            self._requests.flush()

    def _ready(self, timeout: float) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            return bool(selector.select(max(0.0, self._asked + timeout - time.monotonic())))

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace")[-2000:].strip()
        return f"\nIts last words:\n{words}" if words else ""
