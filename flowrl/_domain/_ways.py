"""The ways in which a domain keeps its particles."""

from typing import Literal, TypeAlias, get_args

Way: TypeAlias = Literal["project", "reflect", "bijector", "mirror"]

RESTRICTING: frozenset[str] = frozenset({"project", "reflect"})
MAPPING: frozenset[str] = frozenset({"bijector", "mirror"})


def check_way(domain: str, by: str) -> None:
    """Refuse a way that there is not.

    Args:
        domain: name of the domain, for the message.
        by: candidate.

    Raises:
        ValueError: it is none of the ways.
    """
    if by not in get_args(Way):
        ways = ", ".join(f'"{way}"' for way in get_args(Way))
        raise ValueError(f"{domain} keeps particles by one of {ways}; got by={by!r}.")
