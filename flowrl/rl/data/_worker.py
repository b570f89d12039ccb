"""The process at the other end of `_pool.py`: it does one job after another.

It speaks JSON lines: first the assignment (a factory and its arguments), then one job a line on standard input; one
answer a line on standard output. It ends when its input does, so it cannot outlive a parent that was killed.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def prepare(factory: str, arguments: dict[str, Any]) -> Callable[..., object]:
    """Calls a factory by name.

    Args:
        factory: "module:function".
        arguments: its keyword arguments.

    Returns:
        What the factory returns: the function that does one job, given as keyword arguments.
    """
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**arguments)


def main() -> None:
    """Answers jobs until standard input ends."""
    # Only answers may go to the pipe: whatever a library prints goes to the log instead.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    assignment = json.loads(sys.stdin.readline())
    work: Callable[..., object] | None = None
    for line in sys.stdin:
        try:
            if work is None:
                work = prepare(assignment["factory"], assignment["arguments"])
            work(**json.loads(line))
            answer: dict[str, Any] = {"done": True}
        except Exception as error:
            number = error.errno if isinstance(error, OSError) else None
            answer = {"done": False, "errno": number, "message": str(error), "traceback": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
