"""Kernels and the rules for their bandwidth."""

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
    AbstractScalarKernel as AbstractScalarKernel,
    Jet as Jet,
    Pairs as Pairs,
)
from flowrl._kernel._linear import Linear as Linear
from flowrl._kernel._preconditioned import Preconditioned as Preconditioned
from flowrl._kernel._radial import IMQ as IMQ, Matern as Matern
from flowrl._kernel._rbf import RBF as RBF
