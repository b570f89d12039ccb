"""Domains: the sets that particles may not leave."""

from flowrl._domain._ball import Ball as Ball
from flowrl._domain._base import AbstractDomain as AbstractDomain
from flowrl._domain._box import Box as Box, positive as positive
from flowrl._domain._product import Product as Product
from flowrl._domain._simplex import Simplex as Simplex
from flowrl._domain._unbounded import Unbounded as Unbounded
