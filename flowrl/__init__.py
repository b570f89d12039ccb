"""flowrl: probabilistic inference by general particle flows, with a transport budget."""

from pathlib import Path as _Path
from typing import TYPE_CHECKING

from flowrl import _distribution

_distribution.refuse_foreign(_Path(__file__).parent)  # before anything of a mixed folder is imported

# ruff: noqa: E402
from flowrl import bounds as bounds
from flowrl._budget import Budget as Budget, spread as spread
from flowrl._domain import (
    AbstractDomain as AbstractDomain,
    Ball as Ball,
    Box as Box,
    Product as Product,
    Simplex as Simplex,
    Unbounded as Unbounded,
    positive as positive,
)
from flowrl._flow import (
    ALDI as ALDI,
    EKI as EKI,
    EKS as EKS,
    SVGD as SVGD,
    AbstractFlow as AbstractFlow,
    AbstractJumpFlow as AbstractJumpFlow,
    AbstractStochasticFlow as AbstractStochasticFlow,
    Ascent as Ascent,
    BirthDeath as BirthDeath,
    Blob as Blob,
    Consensus as Consensus,
    KFRFlow as KFRFlow,
    KSDDescent as KSDDescent,
    Langevin as Langevin,
    MMDFlow as MMDFlow,
    RandomBatch as RandomBatch,
    SinkhornFlow as SinkhornFlow,
    SlicedSVGD as SlicedSVGD,
    SumFlow as SumFlow,
    TargetView as TargetView,
    Traits as Traits,
)
from flowrl._kernel import (
    IMQ as IMQ,
    RBF as RBF,
    AbstractBandwidth as AbstractBandwidth,
    AbstractKernel as AbstractKernel,
    AbstractScalarKernel as AbstractScalarKernel,
    FixedBandwidth as FixedBandwidth,
    Jet as Jet,
    Linear as Linear,
    LogNBandwidth as LogNBandwidth,
    Matern as Matern,
    MedianBandwidth as MedianBandwidth,
    Pairs as Pairs,
    Preconditioned as Preconditioned,
    ScottBandwidth as ScottBandwidth,
    SilvermanBandwidth as SilvermanBandwidth,
)
from flowrl._numpyro import NumpyroPosterior as NumpyroPosterior, from_numpyro as from_numpyro
from flowrl._ramp import ramp as ramp
from flowrl._renamed import old_names as _old_names
from flowrl._sample import Samples as Samples, Verdict as Verdict, sample as sample
from flowrl._select import (
    Selected as Selected,
    best_of_n as best_of_n,
    softmax_select as softmax_select,
    uniform_select as uniform_select,
)
from flowrl._solution import RESULTS as RESULTS, Solution as Solution
from flowrl._solver import (
    JKO as JKO,
    AbstractProposal as AbstractProposal,
    AbstractScale as AbstractScale,
    AbstractSolver as AbstractSolver,
    AbstractStepSolver as AbstractStepSolver,
    AbstractTrajectory as AbstractTrajectory,
    Adaptive as Adaptive,
    Coin as Coin,
    Diffrax as Diffrax,
    Ensemble as Ensemble,
    Euler as Euler,
    Hamiltonian as Hamiltonian,
    LearnedCovariance as LearnedCovariance,
    LearnedScale as LearnedScale,
    Metropolis as Metropolis,
    Microcanonical as Microcanonical,
    Monotone as Monotone,
    Needs as Needs,
    Nesterov as Nesterov,
    Optax as Optax,
    Problem as Problem,
    Progress as Progress,
    Proposal as Proposal,
    SolverOutput as SolverOutput,
    Step as Step,
    Tempered as Tempered,
)
from flowrl._stepper import State as State, Stepper as Stepper
from flowrl._supports import Support as Support, supports as supports
from flowrl._target import (
    AbstractTarget as AbstractTarget,
    AbstractValueTarget as AbstractValueTarget,
    Boltzmann as Boltzmann,
    Density as Density,
    Empirical as Empirical,
    InverseProblem as InverseProblem,
    Posterior as Posterior,
    Score as Score,
    Tilted as Tilted,
    ValueGradient as ValueGradient,
    bridge as bridge,
)
from flowrl._transport import Transport as Transport, transport as transport

__version__: str = _distribution.version()

if TYPE_CHECKING:
    from flowrl import diagnostics as diagnostics, plot as plot, sharding as sharding
else:  # a type checker would take every misspelt name for one of these
    _ROOMS = ("diagnostics", "plot", "sharding")  # imported when first asked for
    __getattr__ = _old_names("flowrl", rooms=_ROOMS)

    def __dir__():
        return sorted({*globals(), *_ROOMS})
