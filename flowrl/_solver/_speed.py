"""The speed of a flow, for solvers whose steps are not its velocity times a step size."""

import jax.numpy as jnp

from flowrl._custom_types import PerParticle
from flowrl._misc import row_norm
from flowrl._solver._ensemble import Ensemble, Step


def flow_speed(step: Step, ensemble: Ensemble) -> PerParticle:
    """Return |v(z)| of every particle (n,), less what the domain or the cap holds back: at rest there is no way on."""
    velocity, _ = step.velocity(ensemble)
    probe = ensemble.moved(step.size * velocity).coordinates
    held = step.problem.restrict(probe)[0] - ensemble.coordinates
    return row_norm(held / ensemble.scale) / jnp.where(step.size > 0, step.size, 1)
