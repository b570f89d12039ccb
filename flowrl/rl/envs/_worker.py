"""The process at the other end of `_pool.py`: it does one job after another.

Messages are pickles, exchanged by two processes of ours and nobody else. On standard input comes first the assignment
(a factory, its arguments, and where the parent finds modules), then one job after another; each job is answered on
standard output. The process ends when its input does, so it cannot outlive a parent that was killed.
"""

import importlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """Result of a job: its value, or the message and traceback of its exception, with the errno of an `OSError`."""

    value: Any = None
    failure: tuple[str, str] | None = None
    errno: int | None = None


def prepare(factory: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Return what a factory, "module:function", makes: the function that does one job, given as keyword arguments."""
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def main() -> None:
    """Answer jobs until standard input ends."""
    # Only answers may go to the pipe: whatever a library prints goes to the log instead.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    factory, arguments, path = pickle.load(sys.stdin.buffer)
    # Behind our own: a user's environment may stand in a module of theirs, which must hide none that is installed.
    sys.path.extend(folder for folder in path if folder not in sys.path)
    # Before the first job is there: whoever asks has other things to do meanwhile.
    work = _attempt(prepare, {"factory": factory, "arguments": arguments})
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(work if work.failure else _attempt(work.value, job), answers)
        answers.flush()


def _attempt(work: Callable[..., Any], arguments: dict[str, Any]) -> Answer:
    """Call a function, and turn what it raises into an answer."""
    try:
        return Answer(work(**arguments))
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        return Answer(None, (str(error), traceback.format_exc()), number)
