"""Where particles may be.

A domain either *restricts* (after a step, particles are brought back, by projection or reflection) or *maps* (the flow
runs in unconstrained coordinates y with x = T(y), and the target gains the Jacobian α log|det ∂x/∂y|). Both are
described by the same methods, so flows and solvers need not know which one it is; a product of domains may do both.
"""

import abc

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Bool, PyTree

from flowrl._custom_types import Particle, Particles, Scalar


class AbstractDomain(eqx.Module):
    """A set that no particle leaves.

    Attributes:
        restricts: particles are brought back after each step, which is not an ordinary differential equation.
        maps: the flow runs in other coordinates than the user's.
        mirrors: the map is the gradient of a convex function's conjugate, x = ∇ψ*(y), and ascent without entropy is
            mirror ascent, dy/dt = ∇V(x), in place of the chain rule. True or false, or a PyTree of these with the
            structure of a particle at its top, if parts of a particle differ.
    """

    restricts: AbstractVar[bool]
    maps: AbstractVar[bool]
    mirrors: AbstractVar[PyTree[bool]]

    @abc.abstractmethod
    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        """Return which particles are inside; on the boundary only where particles are restricted, not mapped.

        Args:
            particles: leaves `(n, ...)`, in the user's coordinates.
        """

    @abc.abstractmethod
    def restrict(self, particles: Particles) -> Particles:
        """Bring particles back inside; the identity on leaves that are mapped, and on particles inside.

        Args:
            particles: leaves `(n, ...)`, in the coordinates of the flow (before its unit of length).
        """

    @abc.abstractmethod
    def forward(self, particle: Particle) -> Particle:
        """Map one particle to the user's coordinates, x = T(y), strictly inside; without a map the identity.

        Args:
            particle: one particle in unconstrained coordinates.
        """

    @abc.abstractmethod
    def inverse(self, particle: Particle) -> Particle:
        """Map one particle to unconstrained coordinates, y = T⁻¹(x); without a map the identity.

        Args:
            particle: one particle in the user's coordinates; on the boundary too the result is finite.
        """

    @abc.abstractmethod
    def log_det_jacobian(self, particle: Particle) -> Scalar:
        """Compute log|det ∂x/∂y| of one particle; zero without a map.

        Args:
            particle: one particle in unconstrained coordinates.
        """
