"""Ensemble Kalman inversion in unit time."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractFlow
from flowrl._flow._covariance import deviations
from flowrl._flow._eks import cross, misfits
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits


class EKI(AbstractFlow):
    r"""The ensemble Kalman-Bucy flow, which takes a prior ensemble to the posterior in unit time, without noise.

    $$\frac{dx_i}{dt} = -C_{xG} Γ^{-1} \Big(\tfrac{1}{2} \big(G(x_i) + \bar G\big) - y\Big), \qquad
      C_{xG} = \frac{1}{n - 1} \sum_i (x_i - \bar x)(G(x_i) - \bar G)^\top$$

    from t = 0 to 1, with $\bar x$ and $\bar G$ the means over the particles. Of a linear map the particles have at
    time 1 exactly the mean and the covariance of Kalman's update of their own mean and covariance at the start; of
    another map they are approximately those of the posterior.

    The particles start from the prior: the `InverseProblem` is asked for its map, data and noise alone, and its prior
    only for the values in the solution. `Budget(steps, None)` takes steps of 1/steps. The flow is stiff where data are
    precise and the prior is wide: Euler's first step must stay below $2/λ$, λ the largest eigenvalue of
    $Γ^{-1/2} C_{GG} Γ^{-1/2}$ at the start, which is the largest ratio of the prior's variance of G(x) to the noise's.
    `Diffrax()` finds its steps by itself, the first one too, with `Budget(1, None)`. Particles stay in their affine
    hull.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def forward_map(x):
            return x[:1] + x[1:]


        problem = flowrl.InverseProblem(forward_map, [2.0], 0.1, prior_mean=[0.0, 0.0], prior_scale=1.0)
        prior, budget = jr.normal(jr.key(0), (1000, 2)), flowrl.Budget(1, None)
        solution = flowrl.transport(problem, prior, budget, flow=flowrl.EKI(), solver=flowrl.Diffrax())
        assert jnp.abs(solution.particles.mean(axis=0) - 2 / 2.01).max() < 0.1
        ```

    ??? cite "Source"
        Bergemann and Reich, *A localization technique for ensemble Kalman filters*, Quarterly Journal of the Royal
        Meteorological Society 136, 2010; and *A mollified ensemble Kalman filter*, ibid.
    """

    traits: ClassVar[Traits] = Traits(needs=frozenset({"forward"}), temperature="none", unit_time=True, unmapped=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        misfit, alive = misfits(view, positions, alive)
        x, count = deviations(positions, alive)
        apart, _ = deviations(misfit, alive)
        # (G(x_i) + mean)/2 − y is the misfit of x_i with its distance to the mean halved.
        halved = jnp.where(alive[:, None], misfit - apart / 2, 0)
        return -cross(halved, apart, x) / jnp.maximum(count - 1, 1), alive
