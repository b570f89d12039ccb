"""Targets: what particles move toward."""

from flowrl._target._base import (
    KNOWN_BY as KNOWN_BY,
    AbstractTarget as AbstractTarget,
    check_knowledge as check_knowledge,
)
from flowrl._target._empirical import Empirical as Empirical
from flowrl._target._function import as_leaves as as_leaves, scalar as scalar, third_party as third_party
from flowrl._target._gradient import Score as Score, ValueGradient as ValueGradient
from flowrl._target._inverse import InverseProblem as InverseProblem
from flowrl._target._posterior import Posterior as Posterior
from flowrl._target._tilted import Tilted as Tilted, bridge as bridge
from flowrl._target._value import AbstractValueTarget as AbstractValueTarget, Boltzmann as Boltzmann, Density as Density
