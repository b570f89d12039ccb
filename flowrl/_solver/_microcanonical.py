"""Microcanonical Langevin dynamics: every particle moves at unit speed, and the target turns it."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from flowrl._custom_types import Key, PerParticle, Positions, Scalar
from flowrl._flow import Langevin
from flowrl._misc import check_count, row_norm
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._proposal import Proposal
from flowrl._solver._scale import AbstractScale, LearnedScale
from flowrl._solver._trajectory import AbstractTrajectory


class Microcanonical(AbstractTrajectory):
    r"""Microcanonical Langevin dynamics (MCLMC): each particle has a direction u, |u| = 1, in units of a learned scale.

    $$dw = u\,dt, \qquad du = (1 - u u^\top) \frac{∇_w(U/α)}{d - 1}\,dt + \text{noise on the sphere}, \qquad z = S w$$

    Its distribution at rest is the target's, though the speed never changes, so steep places throw no particle out. A
    step turns the direction a little at random, so that it is forgotten after a path of `length`, and takes K steps of
    length h = ε by the isokinetic leapfrog. Alone its bias is O(h²); `Metropolis(Microcanonical())` is MAMS, exact at
    every h. It needs two dimensions or more.

    Where a domain or a cap brings a particle back, its direction turns round.

    Attributes:
        leaps: steps K >= 1 per step of the budget.
        length: path after which the direction is forgotten, > 0, in units of the scale; None for √d.
        scale: how S is learned; None for the budget's unit of length.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        start, key = 3 + jax.random.normal(jax.random.key(0), (200, 10)), jax.random.key(1)
        mams = flowrl.Metropolis(flowrl.Microcanonical())
        solution = flowrl.transport(
            target, start, flowrl.Budget(100, None), flow=flowrl.Langevin(), solver=mams, key=key
        )
        assert abs(solution.particles.var() - 1) < 0.1
        ```

    ??? cite "Source"
        Robnik, De Luca, Silverstein and Seljak, *Microcanonical Hamiltonian Monte Carlo*, JMLR 24, 2023. Robnik, Cohn-
        Gordon and Seljak, *Metropolis Adjusted Microcanonical Hamiltonian Monte Carlo*, 2025, arXiv:2503.01707.
    """

    leaps: int = eqx.field(static=True, default=4)
    length: float | None = eqx.field(static=True, default=None)
    scale: AbstractScale | None = LearnedScale()
    needs: ClassVar[Needs] = Needs(
        target=frozenset({"gradient"}), flows=(Langevin,), noise="any", random=True, rests=False
    )
    acceptance: ClassVar[float] = 0.9  # Robnik et al. (2025), section 4

    def __check_init__(self):
        check_count("leaps", self.leaps)
        if self.length is not None and not self.length > 0:
            raise ValueError(f"Microcanonical: length must be > 0, got {self.length}.")

    def drawn(self, key: Key, like: Positions) -> Positions:
        if like.shape[1] < 2:
            raise ValueError("Microcanonical needs two dimensions or more: on a line a direction cannot turn.")
        return _unit(jr.normal(key, like.shape, like.dtype))

    def propose(self, step: Step, ensemble: Ensemble) -> Proposal:
        (key,) = step.keys(1)
        here, h = ensemble.own.momentum, step.size
        d = here.shape[1]
        length = jnp.sqrt(jnp.asarray(d, h.dtype)) if self.length is None else self.length
        white = jr.normal(key, here.shape, here.dtype)
        direction = _unit(here + jnp.sqrt(jnp.expm1(2 * h * self.leaps / length) / d) * white)
        end = self.travelled(
            step,
            ensemble,
            direction,
            self.learned(step, ensemble),
            h,
            lambda u, gradient: _turned(u, gradient, 0.5 * h),
        )
        return self.proposal(ensemble, direction, end)


def _unit(x: Positions) -> Positions:
    return x / jnp.maximum(row_norm(x), jnp.finfo(x.dtype).tiny)[:, None]


def _turned(u: Positions, gradient: Positions, h: Scalar) -> tuple[Positions, PerParticle]:
    """Turn directions toward the gradient for a time h; return also what the log density of the speed loses (n,)."""
    d = u.shape[1]
    norm = row_norm(gradient)
    e = gradient / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)[:, None]
    delta = h * norm / (d - 1)
    along = jnp.sum(e * u, axis=1)
    # cosh δ + e·u sinh δ and its like over e^δ/2, which do not overflow.
    small = jnp.exp(-2 * delta)
    grown = (1 + along) + (1 - along) * small
    turned = 2 * jnp.exp(-delta)[:, None] * u + ((1 - small) + along * (1 - jnp.exp(-delta)) ** 2)[:, None] * e
    # A direction that points straight down turns at once, if only by rounding.
    grown = jnp.maximum(grown, jnp.finfo(norm.dtype).tiny)
    kinetic = (d - 1) * (delta + jnp.log(0.5 * grown))
    return _unit(turned), -kinetic
