"""Birth and death: particles vanish where there are too many, and double where there are too few."""

from typing import ClassVar

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int

from flowrl._custom_types import Key, Mask, PerParticle, Positions, Scalar
from flowrl._flow._base import AbstractJumpFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractScalarKernel, centre, refuse_linear


class BirthDeath(AbstractJumpFlow):
    r"""Birth-death dynamics toward the target: mass jumps between modes that no path of particles connects.

    $$Λ_i = \log ρ_i - U_i/α - \text{mean}, \qquad ρ_i = \frac{1}{n} \sum_j k(x_i, x_j)$$

    In a step of length t a particle has an event with probability 1 − exp(−|Λ_i| t) and draws a partner uniformly.
    Where Λ > 0 there are too many, and it takes its partner's place; where Λ < 0 the partner takes its place. The
    expected number of copies of a particle changes at the rate −Λ_i, to first order in t. At rest the smoothed density
    is in proportion to exp(U/α).

    It finds no new places: add it to a flow that moves. The bandwidth should be about the width of a mode; one as wide
    as the distance between two modes, which the median rule gives, cannot tell them apart and balances them badly.

    Attributes:
        kernel: k of the density estimate; scalar and positive.

    Example:
        ```python
        import flowrl

        flow = flowrl.Langevin() + flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
        ```

    ??? cite "Source"
        Lu, Lu and Nolen, *Accelerating Langevin sampling with birth-death*, 2019, arXiv:1905.09863.
    """

    kernel: AbstractScalarKernel = RBF()
    traits: ClassVar[Traits] = Traits(needs=frozenset({"value"}), temperature="positive", jumps=True)

    def __check_init__(self):
        if not isinstance(self.kernel, AbstractScalarKernel):
            raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {self.kernel!r}.")
        refuse_linear(self.kernel, "BirthDeath")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        # Particles only jump; those whose scaled log density is not finite are frozen.
        return jnp.zeros_like(positions), view.scaled_log_density(positions, alive)[1]

    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        rates, alive = self.rates(view, positions, alive)
        n = positions.shape[0]
        # All rates and places are those of the same configuration.
        ring_key, partner_key, order_key = jr.split(key, 3)
        rings = alive & (jr.uniform(ring_key, (n,), positions.dtype) < -jnp.expm1(-jnp.abs(rates) * time))
        living = jnp.argsort(~alive, stable=True)
        # Itself included: with partners other than oneself the rate would be −Λ n/(n − 1).
        partner = living[jr.randint(partner_key, (n,), 0, jnp.maximum(jnp.sum(alive), 1))]
        own = jnp.arange(n)
        rings = rings & (partner != own)
        parents = jnp.where(rings & (rates > 0), partner, own)
        # A birth replaces its partner, whatever the partner's own death decided. Of several births on one place the
        # highest in a random order counts: the same bits in whatever order they scatter.
        order = jr.permutation(order_key, n)
        rank = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
        highest = jnp.full(n, -1, rank.dtype).at[partner].max(jnp.where(rings & (rates < 0), rank, -1))
        return jnp.where(highest >= 0, order[highest], parents)

    def rates(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[PerParticle, Mask]:
        """Return Λ, the rate of death where positive and of birth where negative, zero for frozen particles.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Returns:
            The rates (n,), and who is still alive.
        """
        log_density, alive = view.scaled_log_density(positions, alive)
        x = centre(positions, alive)
        weight = alive.astype(x.dtype)
        count = jnp.maximum(jnp.sum(weight), 1)
        density = self.kernel.fitted(x, alive).apply(x, x, (weight / count)[:, None])[:, 0]
        tiny = jnp.finfo(x.dtype).tiny
        surplus = jnp.where(alive, jnp.log(jnp.maximum(density, tiny)) - log_density / view.temperature, 0)
        return jnp.where(alive, surplus - jnp.sum(surplus) / count, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "BirthDeath":
        del view
        return BirthDeath(self.kernel.fitted(centre(positions, alive), alive))
