"""Which parts go together: the single source of the errors, the contract tests and the table in the docs."""

from typing import NamedTuple

from flowrl._domain import AbstractDomain
from flowrl._flow import AbstractFlow, AbstractStochasticFlow
from flowrl._solver import AbstractSolver


class Support(NamedTuple):
    """Whether a combination is supported; true or false as a whole.

    Attributes:
        supported: whether `transport` accepts it.
        reason: why not, and what to use instead; empty when supported.
    """

    supported: bool
    reason: str

    def __bool__(self) -> bool:
        """Be `supported`."""
        return self.supported


def supports(flow: AbstractFlow, solver: AbstractSolver, domain: AbstractDomain) -> Support:
    """Say whether a flow, a solver and a domain go together.

    Args:
        flow: the velocity field.
        solver: how it is marched.
        domain: where particles may be.

    Returns:
        A `Support`, true or false, with the reason.
    """
    names = f"{type(flow).__name__} with {type(solver).__name__}"
    if isinstance(flow, AbstractStochasticFlow) and not solver.handles_noise:
        return _no(f"{names}: this solver cannot march a stochastic flow (it would rescale its noise); use Euler().")
    if domain.restricts and not solver.handles_restriction:
        return _no(
            f"{type(solver).__name__} in {type(domain).__name__}: bringing particles back after a step is not an "
            "ordinary differential equation; use Euler(), or a domain that maps."
        )
    if solver.needs_energy and not flow.has_energy:
        return _no(f"{names}: this solver minimises the flow's energy and {type(flow).__name__} has none.")
    return Support(supported=True, reason="")


def _no(reason: str) -> Support:
    return Support(supported=False, reason=reason)
