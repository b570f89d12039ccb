"""Solvers whose step is a proposal with a known density, so that `Metropolis` can accept or reject it."""

import abc
from typing import Any, NamedTuple

from jaxtyping import PyTree

from flowrl._custom_types import Mask, PerParticle
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._step import AbstractStepSolver


class Proposal(NamedTuple):
    """One proposed step.

    Attributes:
        proposed: the ensemble if every particle is accepted.
        kept: the ensemble if none is: the positions are those before, a momentum may be another.
        there: what `evaluate` gives at the proposed positions.
        log_ratio: log q(kept | proposed) − log q(proposed | kept) of each particle (n,), with the change of the
            density of all that is not a position; −inf where it is not finite.
    """

    proposed: Ensemble
    kept: Ensemble
    there: PyTree
    log_ratio: PerParticle


class AbstractProposal(AbstractStepSolver):
    """A step solver whose steps have a known density under Langevin's flow, which `Metropolis` can make exact."""

    @abc.abstractmethod
    def evaluate(self, step: Step, ensemble: Ensemble) -> tuple[Any, Mask]:
        """Return what a proposal needs to know at the particles' positions, leaves (n, ...), and where it is finite.

        Args:
            step: the target at this step's temperature.
            ensemble: where the particles are.
        """

    @abc.abstractmethod
    def propose(self, step: Step, ensemble: Ensemble, here: Any) -> Proposal:
        """Propose one step.

        Args:
            step: the target at this step's temperature, ε, the key.
            ensemble: where the particles are.
            here: what `evaluate` gave there.
        """
