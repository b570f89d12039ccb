"""The methods by which a domain keeps its particles inside."""

from typing import Literal, TypeAlias, get_args

Method: TypeAlias = Literal["project", "reflect", "bijector", "mirror"]

RESTRICTING: frozenset[str] = frozenset({"project", "reflect"})
MAPPING: frozenset[str] = frozenset({"bijector", "mirror"})


def check_method(domain: str, by: str) -> None:
    """Raise a ValueError if `by` is not one of the methods."""
    if by not in get_args(Method):
        methods = ", ".join(f'"{method}"' for method in get_args(Method))
        raise ValueError(f"{domain} keeps particles by one of {methods}; got by={by!r}.")
