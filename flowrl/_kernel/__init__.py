"""Kernels and the rules for their bandwidth."""

from flowrl._kernel._bandwidth import (
    AbstractBandwidth as AbstractBandwidth,
    FixedBandwidth as FixedBandwidth,
    LogNBandwidth as LogNBandwidth,
    MedianBandwidth as MedianBandwidth,
)
from flowrl._kernel._base import (
    AbstractKernel as AbstractKernel,
    AbstractScalarKernel as AbstractScalarKernel,
    Jet as Jet,
    Pairs as Pairs,
)
from flowrl._kernel._rbf import RBF as RBF
