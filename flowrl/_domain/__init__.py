"""Where particles may be."""

from flowrl._domain._base import AbstractDomain as AbstractDomain
from flowrl._domain._box import Box as Box
from flowrl._domain._unbounded import Unbounded as Unbounded
