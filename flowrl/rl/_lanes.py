"""Environments in a few processes, stepped in lockstep.

Not `gymnasium.vector`: its asynchronous form wants one process an environment (150 MB each for OGBench), and neither
form can leave a finished lane alone, which here would cost as much as an unfinished one.
"""

import contextlib
import multiprocessing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import NamedTuple

import numpy as np


class Stepped(NamedTuple):
    """What one lane's step gave.

    Attributes:
        observation: the next observation (obs,).
        reward: r.
        done: the episode is over, by its end or by its time limit.
        success: the environment says that the task is solved; False where it says nothing.
    """

    observation: np.ndarray
    reward: float
    done: bool
    success: bool


class Lanes:
    """A fixed number of environments of one name, spread over processes. A context manager.

    Construction returns at once; the environments are made while the caller goes on.

    Attributes:
        size: number of lanes.
    """

    def __init__(self, env_name: str, size: int, *, workers: int = 2):
        """Start the processes.

        Args:
            env_name: as for `flowrl.rl.data.make_env`.
            size: number of lanes >= 1.
            workers: number of processes >= 1.

        Raises:
            ValueError: a number is out of range.
        """
        if size < 1 or workers < 1:
            raise ValueError(f"size and workers must be >= 1, got {size} and {workers}.")
        self.size = size
        workers = min(workers, size)
        context = multiprocessing.get_context("spawn")  # a fork would copy JAX's threads in an unknown state
        self._owner = [lane % workers for lane in range(size)]
        self._pipes: list[Connection] = []
        self._processes = []
        for worker in range(workers):
            ours, theirs = context.Pipe()
            lanes = [lane for lane in range(size) if lane % workers == worker]
            process = context.Process(target=_serve, args=(theirs, env_name, lanes), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Lanes":
        """Use as a context manager."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the processes."""
        self.close()

    def reset(self, seeds: dict[int, int]) -> dict[int, np.ndarray]:
        """Start episodes.

        Args:
            seeds: lane -> seed of the episode.

        Returns:
            Lane -> first observation (obs,).

        Raises:
            RuntimeError: a process died or its environment raised; the message says which lane and why.
        """
        return self._ask("reset", seeds)

    def step(self, actions: dict[int, np.ndarray]) -> dict[int, Stepped]:
        """Step some lanes.

        Args:
            actions: lane -> action (act,).

        Returns:
            Lane -> what the step gave.

        Raises:
            RuntimeError: a process died or its environment raised; the message says which lane and why.
        """
        return self._ask("step", actions)

    def close(self) -> None:
        """Stop the processes; safe to call twice."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # the process may be gone already
                pipe.send(("close", {}))
            pipe.close()
        self._pipes = []
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self._processes = []

    def _ask(self, what: str, request: dict) -> dict:
        answer: dict = {}
        asked = []
        for worker, pipe in enumerate(self._pipes):
            part = {lane: x for lane, x in request.items() if self._owner[lane] == worker}
            if part:
                self._send(worker, pipe, (what, part))
                asked.append((worker, pipe))
        for worker, pipe in asked:
            answer |= self._receive(worker, pipe)
        return answer

    def _send(self, worker: int, pipe: Connection, message: tuple) -> None:
        try:
            pipe.send(message)
        except (BrokenPipeError, OSError) as error:
            raise RuntimeError(self._death(worker)) from error

    def _receive(self, worker: int, pipe: Connection) -> dict:
        try:
            kind, payload = pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(self._death(worker)) from error
        if kind == "error":
            raise RuntimeError(f"evaluation environment: {payload}")
        return payload

    def _death(self, worker: int) -> str:
        process = self._processes[worker]
        process.join(timeout=1)
        return (
            f"evaluation process {worker} died (exit code {process.exitcode}); out of memory is the usual cause: use "
            "fewer lanes."
        )


def _serve(pipe: Connection, env_name: str, lanes: list[int]) -> None:
    """Run in the child: make the environments, then answer until told to stop."""
    from flowrl.rl import data

    try:
        envs = {lane: data.make_env(env_name, seed=lane) for lane in lanes}
    except Exception as error:
        pipe.send(("error", f"could not make {env_name}: {type(error).__name__}: {error}"))
        return
    while True:
        try:
            what, request = pipe.recv()
        except EOFError:
            return
        if what == "close":
            return
        answer: dict = {}
        lane = -1
        try:
            for lane, argument in request.items():
                if what == "reset":
                    answer[lane] = envs[lane].reset(seed=argument)[0]
                else:
                    observation, reward, terminated, truncated, info = envs[lane].step(argument)
                    done, success = bool(terminated or truncated), bool(info.get("success", False))
                    answer[lane] = Stepped(observation, float(reward), done, success)
            pipe.send(("ok", answer))
        except Exception as error:
            pipe.send(("error", f"{env_name}, lane {lane}, {what}: {type(error).__name__}: {error}"))
