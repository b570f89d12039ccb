"""Explicit Euler, Euler-Maruyama for diffusions, and jumps."""

from typing import ClassVar, cast

import jax.numpy as jnp
import jax.random as jr

from flowrl._custom_types import PerParticle, Positions
from flowrl._flow import AbstractJumpFlow, drift_and_noise_of
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._proposal import AbstractProposal, Proposal


class Euler(AbstractProposal):
    """Explicit Euler, x ← x + ε v(x); with noise √ε for diffusions (Euler-Maruyama). First order in ε.

    Jumps are taken after the move, with the chances of a step of length ε.
    """

    needs: ClassVar[Needs] = Needs(noise="any", jumps=True, unit_time=True)
    acceptance: ClassVar[float] = 0.574  # Roberts and Rosenthal (1998): of Langevin proposals in many dimensions
    gradients: ClassVar[int] = 1

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        traits = step.flow.traits
        if not traits.diffuses and not traits.jumps:
            velocity, alive = step.velocity(ensemble)
            return ensemble.moved(step.size * velocity, alive)
        noise_key, jump_key = step.keys(2)
        positions = ensemble.positions
        if traits.diffuses:
            white = jr.normal(noise_key, positions.shape, positions.dtype)
            velocity, noise, alive = drift_and_noise_of(step.flow, step.view, positions, ensemble.alive, white)
            move = step.size * velocity + jnp.sqrt(step.size) * noise
        else:
            velocity, alive = step.velocity(ensemble)
            move = step.size * velocity
        ensemble = ensemble.moved(move, alive)
        if traits.jumps:
            flow = cast(AbstractJumpFlow, step.flow)
            ensemble = ensemble.take(flow.ancestors(step.view, positions + move, alive, step.size, jump_key))
        return ensemble

    def prepare(self, step: Step, ensemble: Ensemble) -> tuple[Ensemble, PerParticle]:
        value, gradient, finite = step.value_and_gradient(ensemble)
        return ensemble.replace(own=gradient, alive=finite), value

    def propose(self, step: Step, ensemble: Ensemble) -> Proposal:
        # x' = x + h ∇(U/α) + √(2h) ξ is Langevin's step of length ε for h = εα.
        (key,) = step.keys(1)
        here, h = ensemble.own, step.size * step.view.temperature
        move = h * here + jnp.sqrt(2 * h) * jr.normal(key, here.shape, here.dtype)
        proposed = ensemble.moved(move)
        value, there, finite = step.value_and_gradient(proposed)

        def log_chance(move: Positions, gradient: Positions) -> PerParticle:
            return -jnp.sum((move - h * gradient) ** 2, axis=1) / (4 * h)

        log_ratio = jnp.where(finite, log_chance(-move, there) - log_chance(move, here), -jnp.inf)
        return Proposal(proposed.replace(own=there), ensemble, log_ratio, value)
