"""Solvers whose step is a proposal with a known density, so that `Metropolis` can accept or reject it."""

import abc
from typing import NamedTuple

from equinox import AbstractVar

from flowrl._custom_types import PerParticle
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._step import AbstractStepSolver


class Proposal(NamedTuple):
    """One proposed step.

    Attributes:
        proposed: the ensemble if every particle is accepted.
        kept: the ensemble if none is: the positions are those before, a momentum may be another.
        log_ratio: log q(kept | proposed) − log q(proposed | kept) of each particle (n,), with the change of the log
            density of all that is not a position; −inf where it is not finite.
        log_density: U/α of each particle where it is proposed (n,).
    """

    proposed: Ensemble
    kept: Ensemble
    log_ratio: PerParticle
    log_density: PerParticle


class AbstractProposal(AbstractStepSolver):
    """A step solver whose steps under Langevin's flow have a known density, so that `Metropolis` can make them exact.

    Attributes:
        acceptance: the share of accepted moves at which the proposal mixes best, in (0, 1).
        gradients: gradients of the target that one proposal takes.
    """

    acceptance: AbstractVar[float]
    gradients: AbstractVar[int]

    @abc.abstractmethod
    def prepare(self, step: Step, ensemble: Ensemble) -> tuple[Ensemble, PerParticle]:
        """Return the ensemble with what proposals start from, a momentum, the gradient there; and U/α there (n,).

        Args:
            step: the target at this step's temperature, the key.
            ensemble: `own` is None before the first step; later only what depends on the target is evaluated again.
        """

    @abc.abstractmethod
    def propose(self, step: Step, ensemble: Ensemble) -> Proposal:
        """Propose one step.

        Args:
            step: the target at this step's temperature, ε, the key.
            ensemble: from `prepare`, or the proposal before.
        """
