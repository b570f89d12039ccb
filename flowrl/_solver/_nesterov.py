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

    A step takes one velocity, as Euler's does, but where the way is long, along a flat direction or in a curved
    density, it takes about √L steps to come as far as L of Euler's. The particles that come back are the x, which the
    domain and the cap hold; a y is brought back in the same way before the velocity is taken there. Whenever the set
    moves against the velocity, $\sum_i v(y_i) · (x_i^{l+1} - x_i^l) < 0$, all momentum is forgotten and l begins again
    at 0: otherwise momenta swing, and under a kernel, whose flow is no gradient in the space of positions, they may
    even grow. A particle that the domain or the cap brought back, or whose y has no finite score, starts again from its
    x without momentum.

    The largest stable step is two thirds of Euler's. `tolerance` stops a set whose velocity v(x) is small enough, for
    one more velocity a step; under a kernel it is better to stop there than to take thousands of steps more.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] ** 2 + x[1] ** 2 / 100))  # ten times as wide in x[1]
        start, budget = jr.normal(jr.key(0), (50, 2)), flowrl.Budget(100, 0.5)
        for solver, least in ((flowrl.Euler(), 0.0), (flowrl.Nesterov(), 0.7)):
            solution = flowrl.transport(target, start, budget, solver=solver)
            assert least < solution.particles[:, 1].var() / 100 < least + 0.3
        ```

    ??? cite "Source"
        Liu, Zhuo, Cheng, Zhang, Zhu and Carin, *Understanding and Accelerating Particle-Based Variational Inference*,
        ICML 2019: Wasserstein Nesterov, here with straight lines between a particle's places. O'Donoghue and Candès,
        *Adaptive Restart for Accelerated Gradient Schemes*, Foundations of Computational Mathematics 15, 2015: the
        gradient scheme.
    """

    needs: ClassVar[Needs] = Needs()

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        del step
        # Each particle's last move, and the number of steps since the last restart.
        return ensemble.replace(own=jnp.zeros_like(ensemble.coordinates), memory=jnp.zeros((), int))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        momentum, count = ensemble.own, ensemble.memory
        since = count.astype(momentum.dtype)
        ahead = ensemble.moved(jnp.maximum(since - 1, 0) / (since + 2) * momentum)
        ahead = ahead.replace(coordinates=step.problem.restrict(ahead.coordinates)[0])
        velocity, finite = step.velocity(ahead)
        arrived = ahead.moved(step.size * velocity).coordinates
        arrived = jnp.where(finite[:, None], arrived, ensemble.coordinates)
        move = (arrived - ensemble.coordinates) / ensemble.scale
        onward = jnp.sum(step.view.mass(finite)[:, None] * velocity * move) >= 0
        # A particle without momentum was looked at where it is, so there its score is not finite.
        alive = finite | (ensemble.alive & jnp.any(momentum != 0, axis=1))
        return ensemble.replace(
            coordinates=arrived,
            alive=alive,
            own=jnp.where(onward, move, 0),
            memory=jnp.where(onward, count + 1, 0),
        )

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        return ensemble.replace(own=jnp.where(who[:, None], 0, ensemble.own))

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        return flow_speed(step, ensemble)
