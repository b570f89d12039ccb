"""Kernels, the rules for their bandwidth, and sums over pairs of particles by blocks."""

from flowrl._kernel._bandwidth import (
    AbstractBandwidth as AbstractBandwidth,
    FixedBandwidth as FixedBandwidth,
    LogNBandwidth as LogNBandwidth,
    MedianBandwidth as MedianBandwidth,
    ScottBandwidth as ScottBandwidth,
    SilvermanBandwidth as SilvermanBandwidth,
)
from flowrl._kernel._base import (
    AbstractKernel as AbstractKernel,
    Jet as Jet,
    Pairs as Pairs,
)
from flowrl._kernel._blocks import by_rows as by_rows
from flowrl._kernel._distance import (
    centre as centre,
    inner_products as inner_products,
    squared_distances as squared_distances,
)
from flowrl._kernel._gradient_gram import gradient_gram as gradient_gram
from flowrl._kernel._linear import Linear as Linear, refuse_linear as refuse_linear
from flowrl._kernel._mass import mass_of as mass_of, total_of as total_of
from flowrl._kernel._preconditioned import (
    Preconditioned as Preconditioned,
    _factor_of as covariance_root,  # noqa: F401
    _whiten as whiten,  # noqa: F401
)
from flowrl._kernel._radial import IMQ as IMQ, Matern as Matern
from flowrl._kernel._rbf import RBF as RBF
from flowrl._kernel._scalar import AbstractScalarKernel as AbstractScalarKernel
