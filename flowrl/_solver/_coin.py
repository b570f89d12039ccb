"""Steps without a step size: every coordinate bets on the sign of its next velocity."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._speed import flow_speed
from flowrl._solver._step import AbstractStepSolver


class _Bets(eqx.Module):
    """What each coordinate of a particle knows, (n, d) each; the first two are coordinates, the others of z."""

    origin: Positions  # where it began to bet
    place: Positions  # where its last bet put it
    total: Positions  # Σ v
    largest: Positions  # L
    absolute: Positions  # G
    reward: Positions  # R


class Coin(AbstractStepSolver):
    r"""Coin betting: parameter-free steps, whose lengths follow from what each coordinate has won so far.

    Each coordinate of each particle stakes a part of its wealth on the next velocity v; what it stakes is how far it
    stands from its start. With $L_l = \max_{s ≤ l} |v_s|$, $G_l = \sum_{s ≤ l} |v_s|$ and the reward
    $R_l = \max(R_{l-1} + v_l (x_l - x_0),\, 0)$,

    $$x_{l+1} = x_0 + \frac{\sum_{s ≤ l} v_s}{G_l + L_l} \left(1 + \frac{R_l}{L_l}\right)$$

    Nothing is to be chosen: write `Budget(steps, None)`. A multiple of the velocity gives the same steps. The first
    step moves a coordinate by half a unit of `scale`, and after it a coordinate that always finds the same sign doubles
    its wealth again and again; so the one number that matters is the unit of length. Coordinates of different width
    each find their own pace, as under Adagrad.

    A bet has no length in the flow's time, so `stats["time"]` counts the steps. A coordinate that the domain or the cap
    brought back bets anew from where it was brought, L and G apart. At a cap the place reached is, as under every
    solver with a step of its own for each coordinate, not that of the flow.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        start, budget = jr.normal(jr.key(0), (50, 2)), flowrl.Budget(300, None)
        for width in (0.1, 10.0):
            target = flowrl.Density(lambda a, x: -0.5 * jnp.sum((x / a) ** 2), width)
            solution = flowrl.transport(target, start, budget, solver=flowrl.Coin())
            assert jnp.abs(solution.particles.std(axis=0) / width - 1).max() < 0.1
        ```

    ??? cite "Source"
        Sharrock and Nemeth, *Coin Sampling: Gradient-Based Bayesian Inference without Learning Rates*, ICML 2023: the
        adaptive version. Orabona and Tommasi, *Training Deep Networks without Learning Rates Through Coin Betting*,
        NeurIPS 2017.
    """

    needs: ClassVar[Needs] = Needs(chooses=frozenset({"step_size"}))

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        del step
        start, zero = ensemble.coordinates, jnp.zeros_like(ensemble.coordinates)
        return ensemble.replace(own=_Bets(start, start, zero, zero, zero, zero))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        velocity, alive = step.velocity(ensemble)
        own, size = ensemble.own, jnp.abs(velocity)
        total, absolute = own.total + velocity, own.absolute + size
        largest = jnp.maximum(own.largest, size)
        staked = (own.place - own.origin) / ensemble.scale
        reward = jnp.maximum(own.reward + velocity * staked, 0)
        # Zero only while all velocities were, and then so is their sum.
        unit = jnp.where(largest > 0, largest, 1)
        place = own.origin + ensemble.scale * (total / (absolute + unit) * (1 + reward / unit))
        place = jnp.where(alive[:, None], place, ensemble.coordinates)
        own = _Bets(own.origin, place, total, largest, absolute, reward)
        return ensemble.replace(coordinates=place, alive=alive, own=own)

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        del who  # not all coordinates of a particle need have been brought back
        own, here = ensemble.own, ensemble.coordinates
        held = here != own.place
        total, reward = jnp.where(held, 0, own.total), jnp.where(held, 0, own.reward)
        origin = jnp.where(held, here, own.origin)
        return ensemble.replace(own=_Bets(origin, here, total, own.largest, own.absolute, reward))

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        del ensemble
        return jnp.ones_like(step.size)

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        return flow_speed(step, ensemble)
