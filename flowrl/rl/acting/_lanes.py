"""Environments in a few processes, stepped in lockstep.

Not `gymnasium.vector`: its asynchronous form wants one process per environment (150 MB each for OGBench), and neither
form can leave a finished lane alone, which here would cost as much as an unfinished one.
"""

import contextlib
import tempfile
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from flowrl._misc import check_count, check_number
from flowrl.rl.data import check_env, make_env
from flowrl.rl.envs import Worker


class StepResult(NamedTuple):
    """What one lane's step gave.

    Attributes:
        observation: the next observation (obs,).
        reward: r.
        terminated: the task has ended: what follows is worth 0.
        truncated: the episode was cut off, by a time limit; what would have followed has a value.
        success: the environment says that the task is solved; False where it says nothing.
    """

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    success: bool

    @property
    def done(self) -> bool:
        """Whether the episode is over, by its end or by its time limit."""
        return self.terminated or self.truncated


def refuse_unusable(where: str, observation: np.ndarray, reward: float, width: int) -> None:
    """Check that a step gave an observation of `width` coordinates and finite numbers; `where` is for the message."""
    if np.shape(observation) != (width,):
        raise RuntimeError(
            f"{where}: the environment gave an observation of shape {np.shape(observation)}, the data have ({width},)."
        )
    if not np.isfinite(reward):
        raise RuntimeError(f"{where}: the environment gave the reward {reward}.")
    if not np.isfinite(observation).all():
        raise RuntimeError(f"{where}: the environment gave an observation that is not finite.")


class LanesError(RuntimeError):
    """An environment raised, or its process died or did not answer in time.

    Attributes:
        lanes: those whose environment raised, or whose process was lost.
    """

    def __init__(self, message: str, lanes: tuple[int, ...]):
        """Make the error.

        Args:
            message: which lanes, which seeds, and why.
            lanes: as above.
        """
        super().__init__(message)
        self.lanes = lanes


class Lanes:
    """A fixed number of environments of one name, spread over processes. A context manager.

    Construction refuses a name that does not exist and returns at once; the environments are made while the caller goes
    on, and that they could not be made is reported when they are first used. After an error the processes are gone, and
    the lanes cannot be used any more unless they are restarted.

    Attributes:
        size: number of lanes.
    """

    def __init__(
        self, env_name: str, size: int, *, workers: int = 2, start_timeout: float = 300.0, timeout: float = 120.0
    ):
        """Start the processes.

        Args:
            env_name: as for `flowrl.rl.data.make_env`.
            size: number of lanes >= 1.
            workers: number of processes >= 1.
            start_timeout: seconds to wait for a process's first answer, which comes after its environments are made.
            timeout: seconds to wait for each later answer.

        Raises:
            TypeError: `env_name` is no name.
            ValueError: a number is out of range, or there is no environment of this name.
        """
        check_count("size", size)
        check_count("workers", workers)
        check_number("start_timeout", start_timeout, lambda x: x > 0, "> 0")
        check_number("timeout", timeout, lambda x: x > 0, "> 0")
        check_env(env_name)
        self.size = size
        self._name = env_name
        self._start_timeout, self._timeout = start_timeout, timeout
        workers = min(workers, size)
        self._owner = [lane % workers for lane in range(size)]
        self._end: Callable[[], object] = lambda: None
        self.restart()

    def restart(self) -> None:
        """Make all environments again, in new processes; every lane must be reset before it is stepped again."""
        self._end()
        workers = max(self._owner) + 1
        # Of each worker's next answer.
        self._timeouts = [self._start_timeout] * workers
        self._workers: list[Worker] = []
        # The request whose answers were not received yet, by worker and lane.
        self._pending: tuple[str, dict[int, dict[int, Any]]] = "", {}
        self._seeds: dict[int, int] = {}
        self._closed = ""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowrl-")))
            for number in range(workers):
                lanes = [lane for lane in range(self.size) if self._owner[lane] == number]
                worker = Worker(
                    f"{__name__}:environments",
                    {"env_name": self._name, "lanes": lanes},
                    log=folder / f"{number}.log",
                    advice="If memory ran out, use fewer lanes.",
                )
                self._workers.append(stack.enter_context(contextlib.closing(worker)))
            # Also when nobody closes them.
            self._end = weakref.finalize(self, stack.pop_all().close)

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
            LanesError: (a RuntimeError) a process died or did not answer, or an environment raised; the message says
                which, with the seeds of their episodes, and why.
        """
        self._seeds |= {lane: int(seed) for lane, seed in seeds.items()}
        self._send("reset", {lane: self._seeds[lane] for lane in seeds})
        return self._receive()

    def step(self, actions: dict[int, np.ndarray]) -> dict[int, StepResult]:
        """Step some lanes.

        Args:
            actions: lane -> action (act,).

        Returns:
            Lane -> what the step gave.

        Raises:
            LanesError: as for `reset`.
        """
        self.start(actions)
        return self.finish()

    def start(self, actions: dict[int, np.ndarray]) -> None:
        """Begin to step some lanes, and go on with other work; `finish` must follow.

        Args:
            actions: lane -> action (act,).
        """
        # A JAX array would make the process that unpickles it set up JAX.
        self._send("step", {lane: np.asarray(action) for lane, action in actions.items()})

    def finish(self) -> dict[int, StepResult]:
        """Wait for the lanes that were started.

        Returns:
            Lane -> what the step gave.

        Raises:
            LanesError: as for `reset`.
        """
        return self._receive()

    def close(self) -> None:
        """Stop the processes; safe to call twice."""
        self._closed = self._closed or "they were closed"
        self._end()

    def _send(self, what: str, request: dict[int, Any]) -> None:
        """Send each process the part of a request that its lanes answer."""
        if self._closed:
            raise RuntimeError(f"the environments {self._name} cannot be used any more: {self._closed}.")
        parts: dict[int, dict[int, Any]] = {}
        for lane, argument in request.items():
            parts.setdefault(self._owner[lane], {})[lane] = argument
        self._pending = what, parts
        for number, part in parts.items():
            self._workers[number].send({"what": what, "request": part})

    def _receive(self) -> dict[int, Any]:
        """Receive the answers to the last request."""
        (what, parts), self._pending = self._pending, ("", {})
        answer: dict[int, Any] = {}
        lost: tuple[int, ...] = ()
        try:
            for number, part in parts.items():
                seeds = ", ".join(str(self._seeds.get(lane)) for lane in part)
                label = f"{self._name}, {what} of lanes {', '.join(map(str, part))} (seeds {seeds})"
                lost = tuple(part)
                given = self._workers[number].receive(label, timeout=self._timeouts[number])
                if isinstance(given, LaneFailure):
                    lost = (given.lane,)
                    raise RuntimeError(
                        f"{label}: lane {given.lane}, seed {self._seeds.get(given.lane)}: {given.message}"
                    )
                answer |= given
                self._timeouts[number] = self._timeout
        except BaseException as error:
            # Answers that were not read would be taken for those to the next request.
            self._closed = f"{type(error).__name__} during {what}"
            self.close()
            if isinstance(error, RuntimeError | OSError):
                raise LanesError(str(error), lost) from error
            raise
        return answer


class LaneFailure(NamedTuple):
    """What a worker answers where the environment of one lane raised: the exception, then its traceback."""

    lane: int
    message: str


def environments(env_name: str, lanes: list[int]) -> Callable[[str, dict[int, Any]], dict[int, Any] | LaneFailure]:
    """Make the environments of some lanes, in the worker process, and return what answers its requests."""
    try:
        envs = {lane: make_env(env_name, seed=lane) for lane in lanes}
    except Exception as error:
        raise RuntimeError(f"the environment could not be made: {type(error).__name__}: {error}") from error

    def answer(what: str, request: dict[int, Any]) -> dict[int, Any] | LaneFailure:
        answers: dict[int, Any] = {}
        for lane, argument in request.items():
            try:
                if what == "reset":
                    answers[lane] = envs[lane].reset(seed=argument)[0]
                else:
                    observation, reward, terminated, truncated, info = envs[lane].step(argument)
                    success = bool(info.get("success", False))
                    answers[lane] = StepResult(observation, float(reward), bool(terminated), bool(truncated), success)
            except Exception as error:
                return LaneFailure(lane, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        return answers

    return answer
