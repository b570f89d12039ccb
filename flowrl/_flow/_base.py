"""What a flow is: a velocity for every particle, and the energy it descends where one exists."""

import abc

import equinox as eqx
from equinox import AbstractClassVar

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow._field import Field


class AbstractFlow(eqx.Module):
    """A velocity field on sets of particles.

    Attributes:
        entropic: the flow has an entropy term and so a temperature; the target of one without is maximised.
        has_energy: `energy` can be asked.
    """

    entropic: AbstractClassVar[bool]
    has_energy: AbstractClassVar[bool]

    @abc.abstractmethod
    def velocity(self, field: Field, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give the velocity of every particle.

        Args:
            field: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Returns:
            The velocity (n, d), zero for frozen particles, and who is still alive.
        """

    @abc.abstractmethod
    def energy(self, field: Field, positions: Positions, alive: Mask) -> Scalar:
        """Give the functional of the particles that the flow descends.

        Args:
            field: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Raises:
            TypeError: the flow has no energy on finite sets of particles.
        """


class AbstractStochasticFlow(AbstractFlow):
    """A flow with a diffusion: dz = velocity dt + noise √dt."""

    @abc.abstractmethod
    def noise(self, field: Field, positions: Positions, alive: Mask, key: Key) -> Positions:
        """Give the noise of unit time (n, d).

        Args:
            field: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            key: randomness of this step.
        """
