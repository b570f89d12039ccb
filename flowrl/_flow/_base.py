"""What a flow is: a velocity for every particle, and the energy it descends where one exists."""

import abc
import dataclasses
from typing import Any, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Int

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow._target_view import TargetView
from flowrl._target import Knowledge, check_knowledge

_Temperature = Literal["none", "any", "positive"]


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a flow asks of the other parts: its row of the compatibility table.

    Attributes:
        needs: what the target must know: its "gradient", its "value", its "samples".
        temperature: "none" if the flow has no temperature, "any" for α >= 0, "positive" if it divides by α.
        entropic: the flow samples a law, so mapped coordinates gain the Jacobian; else the target is maximised.
        energy_needs: what the target must know for `energy`; None if the flow has no energy.
        random: `velocity` uses the view's `flow_key`.
        diffuses: the flow is an `AbstractStochasticFlow` with noise.
        additive: that noise is the white noise times numbers that do not depend on the particles.
        jumps: the flow is an `AbstractJumpFlow` with jumps.

    Raises:
        ValueError: a word is none of those above.
    """

    needs: frozenset[Knowledge] = frozenset({"gradient"})
    temperature: _Temperature = "any"
    entropic: bool = True
    energy_needs: frozenset[Knowledge] | None = None
    random: bool = False
    diffuses: bool = False
    additive: bool = False
    jumps: bool = False

    def __post_init__(self):
        check_knowledge("Traits.needs", self.needs)
        check_knowledge("Traits.energy_needs", self.energy_needs or ())
        allowed = get_args(_Temperature)
        if self.temperature not in allowed:
            raise ValueError(
                f"Traits.temperature is {self.temperature!r}; expected one of {', '.join(map(repr, allowed))}."
            )

    @property
    def stochastic(self) -> bool:
        """Whether the flow needs a key."""
        return self.random or self.diffuses or self.jumps


class AbstractFlow(eqx.Module):
    """A velocity field on sets of particles. `flow_a + flow_b` and `2.0 * flow` are flows too, see `SumFlow`.

    Attributes:
        traits: what the flow asks of target, budget and solver.
    """

    traits: AbstractVar[Traits]

    @abc.abstractmethod
    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give the velocity of every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Returns:
            The velocity (n, d), zero for frozen particles, and who is still alive.
        """

    @abc.abstractmethod
    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "AbstractFlow":
        """Give the same flow with all that depends on data (a bandwidth) fixed, so that its energy is one function.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """

    @abc.abstractmethod
    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Give the functional of the particles that the flow descends: velocity = −n ∇energy.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Raises:
            TypeError: the flow has no energy on finite sets of particles.
        """

    def __add__(self, other: "AbstractFlow") -> "AbstractFlow":
        """Give both flows at the same time.

        Args:
            other: a flow.
        """
        from flowrl._flow._sum import SumFlow

        return SumFlow(self, other) if isinstance(other, AbstractFlow) else NotImplemented

    def __mul__(self, other: Any) -> "AbstractFlow":
        """Give this flow at a multiple of its speed.

        Args:
            other: a number > 0.
        """
        from flowrl._flow._sum import SumFlow

        if not isinstance(other, float | int | Array) or isinstance(other, bool):
            return NotImplemented
        return SumFlow(self, weights=jnp.reshape(jnp.asarray(other), (1,)) if isinstance(other, Array) else [other])

    def __rmul__(self, other: Any) -> "AbstractFlow":
        """Give this flow at a multiple of its speed.

        Args:
            other: a number > 0.
        """
        return self * other


class AbstractStochasticFlow(AbstractFlow):
    """A flow with a diffusion, dz = velocity dt + noise(dW) in the sense of Itô."""

    @abc.abstractmethod
    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        """Give the diffusion applied to white noise; linear in `white`.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            white: independent standard normal numbers for unit time, (n, d).

        Returns:
            The noise of unit time (n, d), zero for frozen particles.
        """


class AbstractJumpFlow(AbstractFlow):
    """A flow by which particles jump to the places of others."""

    @abc.abstractmethod
    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        """Say whose place each particle takes; its own if it does not jump.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen; the others neither jump nor are jumped to.
            time: length of the step in the flow's time.
            key: randomness of this step.
        """


def velocity_of(flow: AbstractFlow, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
    """Ask a flow for its velocity and see that it is one: (n, 1) would be broadcast to (n, d) without a word.

    Args:
        flow: the velocity field.
        view: the target at this step's temperature.
        positions: z, (n, d).
        alive: particles that are not frozen.

    Raises:
        TypeError: it gave something else than a velocity and a mask.
        ValueError: one of them has another shape.
    """
    given = flow.velocity(view, positions, alive)
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(
            f"{type(flow).__name__}.velocity gave a {type(given).__name__}; expected two things, the velocity (n, d) "
            "and who is still alive (n,)."
        )
    velocity, alive = given
    _expect(flow, "velocity", velocity, positions.shape)
    _expect(flow, "velocity", alive, positions.shape[:1], " for who is alive")
    return velocity, alive


def noise_of(flow: Any, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
    """Ask a flow for its noise and see that it has the shape of the particles.

    Args:
        flow: an `AbstractStochasticFlow`.
        view: the target at this step's temperature.
        positions: z, (n, d).
        alive: particles that are not frozen.
        white: independent standard normal numbers, (n, d).

    Raises:
        ValueError: it has another shape.
    """
    noise = flow.noise(view, positions, alive, white)
    _expect(flow, "noise", noise, positions.shape)
    return noise


def _expect(flow: AbstractFlow, method: str, given: Any, shape: tuple[int, ...], what: str = "") -> None:
    if jnp.shape(given) != shape:
        raise ValueError(f"{type(flow).__name__}.{method} gave shape {jnp.shape(given)}{what}; expected {shape}.")
