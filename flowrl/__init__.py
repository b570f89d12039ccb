"""flowrl: probabilistic inference by general particle flows, with a transport budget."""

from pathlib import Path as _Path

from flowrl import _distribution

_distribution.refuse_foreign(_Path(__file__).parent)  # before anything of a mixed folder is imported

# ruff: noqa: E402
from flowrl import bounds as bounds
from flowrl._budget import Budget as Budget, spread as spread
from flowrl._domain import AbstractDomain as AbstractDomain, Box as Box, Unbounded as Unbounded
from flowrl._flow import (
    SVGD as SVGD,
    AbstractFlow as AbstractFlow,
    AbstractJumpFlow as AbstractJumpFlow,
    AbstractStochasticFlow as AbstractStochasticFlow,
    Ascent as Ascent,
    Field as Field,
    Traits as Traits,
)
from flowrl._kernel import (
    RBF as RBF,
    AbstractBandwidth as AbstractBandwidth,
    AbstractKernel as AbstractKernel,
    AbstractScalarKernel as AbstractScalarKernel,
    FixedBandwidth as FixedBandwidth,
    Jet as Jet,
    LogNBandwidth as LogNBandwidth,
    MedianBandwidth as MedianBandwidth,
    Pairs as Pairs,
)
from flowrl._select import (
    Selected as Selected,
    best_of_n as best_of_n,
    softmax_select as softmax_select,
    uniform_select as uniform_select,
)
from flowrl._solution import RESULTS as RESULTS, Solution as Solution
from flowrl._solver import (
    AbstractSolver as AbstractSolver,
    AbstractStepSolver as AbstractStepSolver,
    Euler as Euler,
    March as March,
    Optax as Optax,
    Problem as Problem,
    Progress as Progress,
)
from flowrl._supports import Support as Support, supports as supports
from flowrl._target import (
    AbstractTarget as AbstractTarget,
    AbstractValueTarget as AbstractValueTarget,
    Boltzmann as Boltzmann,
    Density as Density,
    Knowledge as Knowledge,
    Score as Score,
    ValueGradient as ValueGradient,
)
from flowrl._transport import Transport as Transport, transport as transport

__version__: str = _distribution.version()
