"""What proposals along a trajectory share: each particle has a momentum, and the set learns a unit of length."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, PyTree

from flowrl._custom_types import Key, Mask, PerParticle, Positions, Scalar
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._proposal import AbstractProposal, Proposal
from flowrl._solver._scale import AbstractScale

Kick = Callable[[Positions, Positions], tuple[Positions, PerParticle]]


class Phase(NamedTuple):
    """What belongs to each particle on a trajectory.

    Attributes:
        momentum: its momentum, or its direction, (n, d).
        gradient: ∇(U/α) where it is, (n, d).
    """

    momentum: Positions
    gradient: Positions


class End(NamedTuple):
    """Where a trajectory ends.

    Attributes:
        ensemble: the particles there.
        gained: what the momenta gained in log density on the way (n,).
        log_density: U/α there (n,).
        fine: whether everything was finite on the way (n,).
    """

    ensemble: Ensemble
    gained: PerParticle
    log_density: PerParticle
    fine: Mask


class AbstractTrajectory(AbstractProposal):
    """A proposal that follows a trajectory: leapfrog steps of a momentum that the gradient turns.

    A subclass says how momenta are drawn, and makes proposals from `travelled`.

    Attributes:
        leaps: leapfrog steps K per step.
        scale: how the unit of length of each coordinate is learned; None for the budget's.
    """

    leaps: AbstractVar[int]
    scale: AbstractVar[AbstractScale | None]

    @abc.abstractmethod
    def drawn(self, key: Key, like: Positions) -> Positions:
        """Return momenta of the distribution at rest (n, d).

        Args:
            key: randomness.
            like: an array (n, d) of the shape and dtype.
        """

    @property
    def gradients(self) -> int:
        """One for each leapfrog step."""
        return self.leaps

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        return self.prepare(step, ensemble)[0]

    def prepare(self, step: Step, ensemble: Ensemble) -> tuple[Ensemble, PerParticle]:
        value, gradient, finite = step.value_and_gradient(ensemble)
        if ensemble.own is not None:
            return ensemble.replace(own=ensemble.own._replace(gradient=gradient), alive=finite), value
        (key,) = step.keys(1)
        memory = None if self.scale is None else self.scale.first(gradient)
        return ensemble.replace(own=Phase(self.drawn(key, gradient), gradient), memory=memory, alive=finite), value

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        problem = step.problem
        brought_back = problem.view.domain.restricts or problem.budget.max_displacement is not None
        if brought_back or not step.unchanging:
            ensemble, _ = self.prepare(step, ensemble)
        proposed, _, log_ratio, _ = self.propose(step, ensemble)
        return proposed.replace(alive=ensemble.alive & (log_ratio > -jnp.inf))

    def learned(self, step: Step, ensemble: Ensemble) -> PyTree:
        """Return the unit of length at this step, as `scale` keeps it.

        Args:
            step: the step.
            ensemble: the particles; their memory is the unit so far.
        """
        kept, scale = ensemble.memory, self.scale
        if scale is None or ensemble.alive.shape[0] == 1:
            return kept
        return jax.lax.cond(step.within(scale.share), lambda: scale.learned(kept, step, ensemble), lambda: kept)

    def travelled(
        self, step: Step, ensemble: Ensemble, momentum: Positions, unit: PyTree, h: Scalar, kick: Kick
    ) -> End:
        """Take K leapfrog steps: half a kick, a move by h, half a kick.

        Args:
            step: the step.
            ensemble: where the trajectory starts.
            momentum: at its start, (n, d).
            unit: the unit of length, from `learned`.
            h: length of one leapfrog step.
            kick: of a momentum and a gradient in that unit, the momentum after half a step, and what it gained in log
                density of the momentum (n,).
        """

        def moved(w: Positions) -> Positions:
            return w if self.scale is None else self.scale.moved(unit, w)

        def pulled(gradient: Positions) -> Positions:
            return gradient if self.scale is None else self.scale.pulled(unit, gradient)

        def leap(carry: End, _: Any) -> tuple[End, None]:
            moving, gained, _, fine = carry
            momentum, first = kick(moving.own.momentum, pulled(moving.own.gradient))
            moving = moving.moved(moved(h * momentum))
            value, gradient, finite = step.value_and_gradient(moving)
            momentum, second = kick(momentum, pulled(gradient))
            moving = moving.replace(own=Phase(momentum, gradient))
            return End(moving, gained + first + second, value, fine & finite), None

        start = ensemble.replace(own=ensemble.own._replace(momentum=momentum), memory=unit)
        nothing = jnp.zeros_like(momentum[:, 0])
        carry = End(start, nothing, nothing, ensemble.alive)
        return (jax.lax.scan(leap, carry, length=self.leaps) if self.leaps > 1 else leap(carry, None))[0]

    def proposal(self, ensemble: Ensemble, momentum: Positions, end: End) -> Proposal:
        """Return the proposal of a trajectory; a particle that is rejected turns round.

        Args:
            ensemble: where it started.
            momentum: at its start, (n, d).
            end: from `travelled`.
        """
        moved = end.ensemble
        kept = ensemble.replace(own=ensemble.own._replace(momentum=-momentum), memory=moved.memory)
        return Proposal(moved, kept, jnp.where(end.fine, end.gained, -jnp.inf), end.log_density)

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        momentum = jnp.where(who[:, None], -ensemble.own.momentum, ensemble.own.momentum)
        return ensemble.replace(own=ensemble.own._replace(momentum=momentum))

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        del ensemble
        return step.size * self.leaps

    def extras(self, ensemble: Ensemble) -> dict[str, Array]:
        return {} if self.scale is None else {"scale": self.scale.deviations(ensemble.memory)}
