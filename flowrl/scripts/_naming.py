"""Which option of a command line an error of the library is about: that whose usual value mends it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

C = TypeVar("C")


def checked(check: Callable[[C], object], config: C, usual: C) -> None:
    """Check options; an error that names none of them gets the names of those that it is about.

    Args:
        check: raises a ValueError for options that make no sense.
        config: a dataclass of groups of options, each a dataclass.
        usual: the options that are not given.
    """
    try:
        check(config)
    except ValueError as error:
        said = str(error)
        if "--" in said:
            raise
        answers = {words: _answer(check, other) for words, other in _each_usual(config, usual)}
        # One that mends it altogether is the option; otherwise there are several, and the next error is another one.
        guilty = [words for words, answer in answers.items() if answer is None]
        guilty = guilty or [words for words, answer in answers.items() if answer != said]
        if not guilty:
            raise
        raise ValueError(f"{', '.join(guilty)}: {said}") from error


def _answer(check: Callable[[C], object], config: C) -> str | None:
    try:
        check(config)
    except ValueError as error:
        return str(error)
    return None


def _each_usual(config: Any, usual: Any) -> Iterator[tuple[str, Any]]:
    """Yield each option that is not as usual, in words, with the options where it is."""
    for group in dataclasses.fields(config):
        mine, theirs = getattr(config, group.name), getattr(usual, group.name)
        if not dataclasses.is_dataclass(mine) or type(mine) is not type(theirs):
            continue
        for field in dataclasses.fields(mine):
            value, default = getattr(mine, field.name), getattr(theirs, field.name)
            if field.init and value != default:
                other = dataclasses.replace(mine, **{field.name: default})  # pyright: ignore[reportArgumentType]
                yield _words(field.name, value), dataclasses.replace(config, **{group.name: other})


def _words(name: str, value: Any) -> str:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
