"""Array types shared by every room.

Shapes are written as in jaxtyping: ``n`` particles, ``d`` coordinates of one particle after ravelling.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key as KeyArray, PRNGKeyArray, PyTree, UInt32

Positions: TypeAlias = Float[Array, "n d"]
Mask: TypeAlias = Bool[Array, " n"]
PerParticle: TypeAlias = Float[Array, " n"]
Scalar: TypeAlias = Float[Array, ""]
Count: TypeAlias = Int[Array, ""]
Key: TypeAlias = PRNGKeyArray

Keys: TypeAlias = KeyArray[Array, "..."] | UInt32[Array, "..."]
"""Many keys, with leading axes."""

Particle: TypeAlias = PyTree
"""One particle: a PyTree of floating arrays without the leading axis ``n``."""

Particles: TypeAlias = PyTree
"""A set of particles: a PyTree of floating arrays that share the leading axis ``n``."""

Schedule: TypeAlias = Callable[[Any], Any]
"""A function of the step index ``l = 0, 1, ...``, as in optax."""
