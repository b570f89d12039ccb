"""Signals that ask a program to stop, and work that must not be torn apart."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stops_wait() -> Iterator[Callable[[], bool]]:
    """Delay SIGINT and SIGTERM until the block is done; yield a function that says whether a signal is waiting.

    A second signal of a kind does not wait. A signal that Python does not handle ends the process as ever. If the block
    raises, its exception is what the caller sees. Outside the main thread, which gets all signals, nothing is done.
    """
    waiting: list[int] = []
    handlers: dict[int, Callable[..., Any]] = {}

    def note(number: int, _: object) -> None:
        waiting.append(number)
        signal.signal(number, handlers[number])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, note)
    try:
        yield lambda: bool(waiting)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in waiting:
        handlers[number](number, None)
