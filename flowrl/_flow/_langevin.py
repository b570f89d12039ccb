"""Overdamped Langevin dynamics."""

from typing import ClassVar

import jax.numpy as jnp

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractStochasticFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits


class Langevin(AbstractStochasticFlow):
    r"""Overdamped Langevin dynamics, every particle a Markov chain of its own.

    $$dx = ∇U(x)\,dt + \sqrt{2α}\,dW$$

    The chains do not interact and converge in distribution to the target. With Euler-Maruyama steps of size ε the
    stationary distribution is off by O(ε): on a Gaussian a direction of precision λ, where ∇U = −αλx, has the variance
    1/(λ(1 − εαλ/2)), and none beyond εαλ = 2. The step is bounded by the narrowest direction and the time needed by the
    widest: for badly conditioned targets see `ALDI`.

    ??? cite "Source"
        Roberts and Tweedie, *Exponential convergence of Langevin distributions and their discrete approximations*,
        Bernoulli 2(4), 1996.
    """

    traits: ClassVar[Traits] = Traits(diffuses=True, additive=True, weighs=True)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        return view.gradient(positions, alive)

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        del positions
        return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * white, 0)
