"""Euler's steps, shortened where the drift would throw particles far out of their set."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from flowrl._custom_types import Mask, PerParticle, Positions, Scalar
from flowrl._flow import drift_and_noise_of
from flowrl._kernel import centre, covariance_root, whiten
from flowrl._misc import number_field, row_norm
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._speed import flow_speed
from flowrl._solver._step import AbstractStepSolver


class Adaptive(AbstractStepSolver):
    r"""Euler's step, shortened so that no particle drifts further than a fraction of the spread of the set.

    $$ε_l = \min\Bigl(ε, \frac{r}{\max_i |C^{-1/2} v(x_i)|}\Bigr), \qquad
      x_i ← x_i + ε_l v(x_i) + \sqrt{ε_l}\,\text{noise}_i$$

    C is the covariance of the living particles, so the rule is the same in all affine coordinates. It is meant for
    flows that move with the covariance of their particles, `ALDI` and `SVGD(Preconditioned())`, from starts that are
    wide or far from the target: there the largest stable step grows by orders of magnitude as the set contracts. Near a
    Gaussian target the drift is about as long as a particle is far from the mean, and ε holds.

    One step size for the whole set leaves the law of a large set as it is, since ε_l then hardly varies at rest.
    `stats["time"]` sums the ε_l. Coincident particles, and n <= d of them outside their plane, have no spread: what
    drifts there is hardly moved.

    Attributes:
        reach: r > 0, in standard deviations of the set, an array (). Smaller is slower and follows curved densities
            better.

    Raises:
        ValueError: a concrete reach is not a positive finite number.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] ** 2 + 1e4 * x[1] ** 2))
        start = jr.uniform(jr.key(0), (200, 2), minval=-2, maxval=2)  # 200 times too wide in x[1]
        solution = flowrl.transport(
            target, start, flowrl.Budget(300), flow=flowrl.ALDI(), solver=flowrl.Adaptive(), key=jr.key(1)
        )
        assert jnp.abs(jnp.std(solution.particles, axis=0) * jnp.array([1.0, 100.0]) - 1).max() < 0.2
        ```

    ??? cite "Source"
        Garbuno-Inigo, Hoffmann, Li and Stuart, *Interacting Langevin Diffusions: Gradient Structure and Ensemble
        Kalman Sampler*, SIAM Journal on Applied Dynamical Systems 19(1), 2020, section 4.2: there the step is in
        proportion to 1/‖D‖, and ‖D‖ is the root mean square of the same lengths.
    """

    reach: Array = eqx.field(default=0.5, converter=number_field("reach", lambda r: 0 < r < np.inf, "> 0 and finite"))
    needs: ClassVar[Needs] = Needs(noise="any", adapts=frozenset({"step_size"}))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        if not step.flow.traits.diffuses:
            velocity, alive = step.velocity(ensemble)
            return ensemble.moved(self._size(step, ensemble, velocity, alive) * velocity, alive)
        positions = ensemble.positions
        (key,) = step.keys(1)
        white = jr.normal(key, positions.shape, positions.dtype)
        velocity, noise, alive = drift_and_noise_of(step.flow, step.view, positions, ensemble.alive, white)
        size = self._size(step, ensemble, velocity, alive)
        return ensemble.moved(size * velocity + jnp.sqrt(size) * noise, alive)

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        # The same computation as in the step, which XLA does once.
        return self._size(step, ensemble, *step.velocity(ensemble))

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        del moved
        return flow_speed(step, ensemble)

    def _size(self, step: Step, ensemble: Ensemble, velocity: Positions, alive: Mask) -> Scalar:
        root = covariance_root(centre(ensemble.positions, alive), alive)
        furthest = step.size * jnp.max(row_norm(whiten(root, velocity))).astype(velocity.dtype)
        reach = self.reach.astype(velocity.dtype)
        return step.size * reach / jnp.maximum(reach, furthest)
