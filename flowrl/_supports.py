"""Which parts go together: the single source of the errors, the contract tests and the table in the docs."""

from typing import NamedTuple

from flowrl._domain import AbstractDomain
from flowrl._flow import AbstractFlow, AbstractJumpFlow, AbstractStochasticFlow
from flowrl._solver import AbstractSolver
from flowrl._target import KNOWN_BY, AbstractTarget


class Support(NamedTuple):
    """Whether a combination is supported; true or false as a whole.

    Attributes:
        supported: whether `transport` accepts it.
        reason: why not, and what to use instead; empty when supported.
    """

    supported: bool
    reason: str

    def __bool__(self) -> bool:
        return self.supported


def supports(
    flow: AbstractFlow, solver: AbstractSolver, domain: AbstractDomain, target: AbstractTarget | None = None
) -> Support:
    """Check whether a flow, a solver and a domain, and if given a target, go together.

    Args:
        flow: the velocity field.
        solver: how it is integrated.
        domain: where particles may be.
        target: the density; None for any.

    Returns:
        A `Support`, true or false, with the reason.

    Raises:
        TypeError: a part is of another kind, a class in the place of an instance, or a flow without a method that its
            traits announce.

    Example:
        ```python
        import flowrl

        assert flowrl.supports(flowrl.Ascent(), flowrl.JKO(), flowrl.Unbounded())
        refused = flowrl.supports(flowrl.Langevin(), flowrl.Optax(), flowrl.Unbounded())
        assert not refused and "use Euler()" in refused.reason
        ```
    """
    for part, kind in ((flow, AbstractFlow), (solver, AbstractSolver), (domain, AbstractDomain)):
        if not isinstance(part, kind):
            raise TypeError(f"expected an instance of {kind.__name__}, got {part!r}.")
    traits, name = flow.traits, type(flow).__name__
    names = f"{name} with {type(solver).__name__}"
    for trait, kind, method in (
        ("diffuses", AbstractStochasticFlow, "noise"),
        ("jumps", AbstractJumpFlow, "ancestors"),
    ):
        if getattr(traits, trait) and not isinstance(flow, kind):
            raise TypeError(
                f"the traits of {name} say {trait}=True; then subclass {kind.__name__} and write {method}()."
            )
    if traits.energy_needs is not None and type(flow).energy is AbstractFlow.energy:
        raise TypeError(f"the traits of {name} say what its energy needs; then write energy().")
    needs = solver.needs
    if not isinstance(flow, needs.flows):
        kinds = " or ".join(f"{kind.__name__}()" for kind in needs.flows)
        return _no(f"{names}: this solver knows the distribution of no other steps; use flow={kinds}.")
    if traits.diffuses and needs.noise == "none":
        return _no(f"{names}: this solver cannot step a stochastic flow (it would rescale its noise); use Euler().")
    if traits.diffuses and needs.noise == "additive" and not traits.additive:
        return _no(
            f"{names}: the flow's noise depends on the particles and is meant in Itô's sense, which this solver cannot "
            "integrate; use Euler(), or Diffrax(diffrax.Euler(), diffrax.ConstantStepSize())."
        )
    if traits.jumps and not needs.jumps:
        return _no(f"{names}: this solver cannot let particles jump; use Euler().")
    if domain.restricts and not needs.restriction:
        return _no(
            f"{type(solver).__name__} in {type(domain).__name__}: bringing particles back after a step is not an "
            'ordinary differential equation; use Euler(), or a domain that maps (by="bijector").'
        )
    if traits.unit_time and not needs.unit_time:
        return _no(
            f"{names}: the flow ends at time 1, and this solver has steps of another length; use Euler() or Diffrax()."
        )
    if traits.unmapped and domain.maps:
        return _no(
            f"{name} in {type(domain).__name__}: the prior is no longer normal in the coordinates of a map; use "
            'Unbounded(), or a domain that brings particles back (by="project").'
        )
    if needs.energy and traits.energy_needs is None:
        return _no(f"{names}: this solver minimises the flow's energy and {name} has none.")
    if target is None:
        return Support(supported=True, reason="")
    asked = {need: name for need in sorted(traits.needs)}
    if needs.energy and traits.energy_needs is not None:
        asked = {need: f"{type(solver).__name__} on the energy of {name}" for need in traits.energy_needs} | asked
    asked = {need: type(solver).__name__ for need in sorted(needs.target)} | asked
    for need, who in asked.items():
        if need not in target.knows:
            known_by = KNOWN_BY.get(need, f"a target whose `knows` has {need!r}")
            return _no(
                f"{who} needs the {need} of its target, which {type(target).__name__} does not know; use {known_by}."
            )
    if needs.exact and target.stochastic:
        return _no(
            f"{type(solver).__name__} with {type(target).__name__}: to accept or reject a move by a minibatch would "
            "sample another distribution; use all the data, e.g. batch_size=None."
        )
    return Support(supported=True, reason="")


def _no(reason: str) -> Support:
    return Support(supported=False, reason=reason)
