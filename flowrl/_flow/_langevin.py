"""Overdamped Langevin dynamics."""

from typing import ClassVar, NoReturn

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractStochasticFlow, Traits
from flowrl._flow._target_view import TargetView


class Langevin(AbstractStochasticFlow):
    r"""Overdamped Langevin dynamics, every particle a Markov chain of its own.

    $$dx = ∇U(x)\,dt + \sqrt{2α}\,dW$$

    The chains do not interact and their law converges to the target. With steps of size ε (Euler–Maruyama) the law at
    rest is off by O(ε): on a Gaussian a direction of precision λ, where ∇U = −αλx, has the variance 1/(λ(1 − εαλ/2)),
    and none beyond εαλ = 2. The step is bounded by the narrowest direction and the time needed by the widest: for badly
    conditioned targets see `ALDI`.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        start, budget = jnp.zeros((1000, 2)), flowrl.Budget(steps=100, step_size=0.05)
        solution = flowrl.transport(target, start, budget, flow=flowrl.Langevin(), key=jax.random.key(0))
        ```

    ??? cite "Source"
        Roberts and Tweedie, *Exponential convergence of Langevin distributions and their discrete approximations*,
        Bernoulli 2(4), 1996.
    """

    traits: ClassVar[Traits] = Traits(diffuses=True, additive=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give the drift ∇U at every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        return view.gradient(positions, alive)

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        """Give √(2α) times the white noise.

        Args:
            view: the target at this step's temperature.
            positions: unused, the noise is the same everywhere.
            alive: particles that are not frozen.
            white: independent standard normal numbers, (n, d).
        """
        del positions
        return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * white, 0)

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "Langevin":
        """Give the flow itself: nothing of it depends on data.

        Args:
            view: unused.
            positions: unused.
            alive: unused.
        """
        del view, positions, alive
        return self

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> NoReturn:
        """Refuse: Langevin dynamics descends KL(q | p), which is infinite for every finite set of particles.

        Args:
            view: unused.
            positions: unused.
            alive: unused.

        Raises:
            TypeError: always.
        """
        del view, positions, alive
        raise TypeError(
            "Langevin has no energy on particles: it descends KL(q|p), which is infinite for an empirical measure. Use "
            "a flow with an energy (Blob, KSDDescent), or follow the value and the variance of its particles."
        )
