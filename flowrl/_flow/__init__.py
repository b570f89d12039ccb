"""Flows: the velocity field that moves the particles."""

from flowrl._flow._ascent import Ascent as Ascent
from flowrl._flow._base import (
    AbstractFlow as AbstractFlow,
    AbstractJumpFlow as AbstractJumpFlow,
    AbstractStochasticFlow as AbstractStochasticFlow,
    Traits as Traits,
)
from flowrl._flow._field import Field as Field
from flowrl._flow._svgd import SVGD as SVGD
