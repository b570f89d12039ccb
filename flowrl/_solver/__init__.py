"""Solvers: how a flow is integrated through its budget."""

from flowrl._solver._base import AbstractSolver as AbstractSolver, Problem as Problem, SolverOutput as SolverOutput
from flowrl._solver._diffrax import Diffrax as Diffrax
from flowrl._solver._ensemble import Ensemble as Ensemble, Step as Step
from flowrl._solver._euler import Euler as Euler
from flowrl._solver._jko import JKO as JKO
from flowrl._solver._needs import Needs as Needs
from flowrl._solver._optax import Optax as Optax
from flowrl._solver._proposal import AbstractProposal as AbstractProposal, Proposal as Proposal
from flowrl._solver._step import AbstractStepSolver as AbstractStepSolver, Progress as Progress
