"""First steps that are small: a schedule for starts that are too wide for the full step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from flowrl._custom_types import Schedule
from flowrl._misc import concrete, number


def ramp(step_size: ArrayLike, steps: int, *, start: float = 1e-3, share: float = 0.1) -> Schedule:
    r"""Return a schedule of step sizes that grow geometrically to the full one.

    $$ε_l = ε\, s^{1 - \min(1,\, l / (c L))}$$

    with the start s, the share c, and L steps in all; `Budget` takes it in the place of ε. A set that starts k times
    too wide under a flow that moves with its covariance, as `ALDI` and `SVGD(Preconditioned())` do, is stable only for
    steps k² times smaller than near the target. On a Gaussian target the covariance of ALDI falls like 1/2t, under a
    kernel more slowly, so steps that grow in proportion to the time spent stay stable all the way. The defaults suit
    starts up to some ten times too wide. Where a start is wider, or a density far from Gaussian, `flowrl.Adaptive`
    finds the steps by itself.

    Args:
        step_size: ε >= 0, the full step size.
        steps: L >= 0, the steps of the budget, or its bound on traced ones.
        start: s in (0, 1], the first step as a fraction of the full one.
        share: c in [0, 1], the share of the steps after which the full one is reached; 0 for no ramp.

    Returns:
        A function of the step index l = 0, 1, ..., as in optax; of an array of indices the step sizes.

    Raises:
        ValueError: one of the numbers is out of its range.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * (x[0] ** 2 + 1e4 * x[1] ** 2))
        start = jr.uniform(jr.key(0), (100, 2), minval=-2, maxval=2)  # 200 times too wide in x[1]
        budget = flowrl.Budget(500, flowrl.ramp(0.3, 500, start=1e-5, share=0.5))
        solution = flowrl.transport(target, start, budget, flow=flowrl.SVGD(flowrl.Preconditioned()))
        assert jnp.abs(jnp.std(solution.particles, axis=0) * jnp.array([1.0, 100.0]) - 1).max() < 0.2
        ```
    """
    full = number("step_size", step_size, lambda value: 0 <= value < np.inf, ">= 0 and finite")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
        raise ValueError(f"steps must be a Python int >= 0, the number of steps of the budget; got {steps!r}.")
    if not 0 < start <= 1:
        raise ValueError(f"start must be in (0, 1], the first step as a fraction of the full one; got {start}.")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], the share of the steps that grow; got {share}.")
    # At least a step, so that no share divides by zero: the second step then is full.
    growing = max(share * steps, 1) if share else 0

    def schedule(step: Any) -> Any:
        if not growing:
            return full
        known = concrete(step)  # on the host where it can be: a budget asks for every step
        if known is not None:
            return full * start ** np.maximum(0.0, 1 - known / growing)
        return full * start ** jnp.maximum(0, 1 - step.astype(full.dtype) / growing)

    return schedule
