"""Domains with a boundary, and the methods by which they keep particles inside."""

from typing import Literal, TypeAlias, get_args

from equinox import AbstractVar

from flowrl._domain._base import AbstractDomain

Method: TypeAlias = Literal["project", "reflect", "bijector", "mirror"]


class AbstractBounded(AbstractDomain):
    """A domain that keeps particles inside by one of four methods.

    Attributes:
        by: "project" and "reflect" bring particles back after each step; "bijector" and "mirror" map.
    """

    by: AbstractVar[Method]

    @property
    def restricts(self) -> bool:
        """Whether particles are brought back after each step."""
        return self.by in ("project", "reflect")

    @property
    def maps(self) -> bool:
        """Whether the flow runs in other coordinates."""
        return self.by in ("bijector", "mirror")

    @property
    def mirrors(self) -> bool:
        """Whether ascent is mirror ascent."""
        return self.by == "mirror"


def check_method(domain: str, by: str) -> None:
    """Raise a ValueError if `by` is not one of the methods."""
    if by not in get_args(Method):
        methods = ", ".join(f'"{method}"' for method in get_args(Method))
        raise ValueError(f"{domain} keeps particles by one of {methods}; got by={by!r}.")
