"""Accelerated steps for deterministic flows."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, PerParticle
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._speed import flow_speed
from flowrl._solver._step import AbstractStepSolver


class Nesterov(AbstractStepSolver):
    r"""Nesterov's accelerated steps: each velocity is taken ahead of the particles, where their momentum carries them.

    $$x_{l+1} = y_l + ε v(y_l), \qquad y_{l+1} = x_{l+1} + \frac{l}{l+3} (x_{l+1} - x_l), \qquad y_0 = x_0$$

    """

    restart: bool = True
    needs: ClassVar[Needs] = Needs()

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        del step
        return ensemble.replace(own=jnp.zeros_like(ensemble.coordinates), memory=jnp.zeros((), int))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        momentum, count = ensemble.own, ensemble.memory
        weight = (jnp.maximum(count - 1, 0) / (count + 2)).astype(momentum.dtype)
        ahead = ensemble.moved(weight * momentum)
        # A step may look no further than where particles may be.
        ahead = ahead.replace(coordinates=step.problem.restrict(ahead.coordinates)[0])
        velocity, fine = step.velocity(ahead)
        arrived = ahead.moved(step.size * velocity).coordinates
        # One whose momentum carries it to where the score is not finite stays, and starts anew.
        moves = jnp.any(momentum != 0, axis=1)
        arrived = jnp.where(fine[:, None], arrived, ensemble.coordinates)
        move = (arrived - ensemble.coordinates) / ensemble.scale
        if self.restart:
            uphill = jnp.sum(velocity * move) >= 0
        else:
            uphill = jnp.asarray(True)
        return ensemble.replace(
            coordinates=arrived,
            alive=fine | (ensemble.alive & moves),
            own=jnp.where(uphill, move, 0),
            memory=jnp.where(uphill, count + 1, 0),
        )

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        return ensemble.replace(own=jnp.where(who[:, None], 0, ensemble.own))

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        return flow_speed(step, ensemble)
