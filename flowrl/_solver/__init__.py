"""Solvers: how a flow is integrated through its budget."""

from flowrl._solver._adaptive import Adaptive as Adaptive
from flowrl._solver._base import AbstractSolver as AbstractSolver, Problem as Problem, SolverOutput as SolverOutput
from flowrl._solver._coin import Coin as Coin
from flowrl._solver._diffrax import Diffrax as Diffrax
from flowrl._solver._ensemble import Ensemble as Ensemble, Step as Step
from flowrl._solver._euler import Euler as Euler
from flowrl._solver._hamiltonian import Hamiltonian as Hamiltonian
from flowrl._solver._jko import JKO as JKO
from flowrl._solver._metropolis import Metropolis as Metropolis
from flowrl._solver._microcanonical import Microcanonical as Microcanonical
from flowrl._solver._monotone import Monotone as Monotone
from flowrl._solver._needs import Needs as Needs
from flowrl._solver._nesterov import Nesterov as Nesterov
from flowrl._solver._optax import Optax as Optax
from flowrl._solver._proposal import AbstractProposal as AbstractProposal, Proposal as Proposal
from flowrl._solver._scale import (
    AbstractScale as AbstractScale,
    LearnedCovariance as LearnedCovariance,
    LearnedScale as LearnedScale,
)
from flowrl._solver._step import AbstractStepSolver as AbstractStepSolver, Progress as Progress
from flowrl._solver._tempered import Tempered as Tempered
from flowrl._solver._trajectory import AbstractTrajectory as AbstractTrajectory
