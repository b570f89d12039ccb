"""Flows: the velocity field that moves the particles."""

from flowrl._flow._aldi import ALDI as ALDI
from flowrl._flow._ascent import Ascent as Ascent
from flowrl._flow._base import (
    AbstractFlow as AbstractFlow,
    AbstractJumpFlow as AbstractJumpFlow,
    AbstractStochasticFlow as AbstractStochasticFlow,
    SumFlow as SumFlow,
    drift_and_noise_of as drift_and_noise_of,
    noise_of as noise_of,
    velocity_of as velocity_of,
)
from flowrl._flow._birth_death import BirthDeath as BirthDeath
from flowrl._flow._blob import Blob as Blob
from flowrl._flow._consensus import Consensus as Consensus
from flowrl._flow._eki import EKI as EKI
from flowrl._flow._eks import EKS as EKS
from flowrl._flow._kfr import KFRFlow as KFRFlow
from flowrl._flow._ksd import KSDDescent as KSDDescent
from flowrl._flow._langevin import Langevin as Langevin
from flowrl._flow._mmd import MMDFlow as MMDFlow
from flowrl._flow._random_batch import RandomBatch as RandomBatch
from flowrl._flow._sinkhorn import SinkhornFlow as SinkhornFlow
from flowrl._flow._sliced import SlicedSVGD as SlicedSVGD
from flowrl._flow._svgd import SVGD as SVGD
from flowrl._flow._target_view import TargetView as TargetView
from flowrl._flow._traits import Traits as Traits
