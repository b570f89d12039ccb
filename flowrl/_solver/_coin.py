"""Steps without a step size: each coordinate bets on the sign of its velocity."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._speed import flow_speed
from flowrl._solver._step import AbstractStepSolver


class Bets(eqx.Module):
    anchor: Positions
    place: Positions
    total: Positions
    largest: Positions
    spread: Positions
    won: Positions


class Coin(AbstractStepSolver):
    r"""Coin."""

    mode: str = "a"
    needs: ClassVar[Needs] = Needs(chooses=frozenset({"step_size"}))

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        del step
        zero = jnp.zeros_like(ensemble.coordinates)
        return ensemble.replace(own=Bets(ensemble.coordinates, ensemble.coordinates, zero, zero, zero, zero))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        velocity, alive = step.velocity(ensemble)
        own = ensemble.own
        size = jnp.abs(velocity)
        largest, spread = jnp.maximum(own.largest, size), own.spread + size
        total = own.total + velocity
        bet = (own.place - own.anchor) / ensemble.scale
        won = jnp.maximum(own.won + velocity * bet, 0)
        safe = jnp.where(largest > 0, largest, 1)
        denom = spread + safe
        if self.mode == "b":
            denom = jnp.maximum(denom, 100 * safe)
        place = own.anchor + ensemble.scale * total / denom * (1 + won / safe)
        place = jnp.where(alive[:, None], place, ensemble.coordinates)
        return ensemble.replace(
            coordinates=place, alive=alive, own=Bets(own.anchor, place, total, largest, spread, won)
        )

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        del who
        own = ensemble.own
        held = ensemble.coordinates != own.place
        return ensemble.replace(
            own=Bets(
                jnp.where(held, ensemble.coordinates, own.anchor),
                ensemble.coordinates,
                jnp.where(held, 0, own.total),
                own.largest,
                own.spread,
                jnp.where(held, 0, own.won),
            )
        )

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        del ensemble
        return jnp.ones_like(step.size)

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        return flow_speed(step, ensemble)
