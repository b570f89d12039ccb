"""Birth and death: particles vanish where there are too many, and double where there are too few."""

from typing import ClassVar, NoReturn

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int

from flowrl._custom_types import Key, Mask, PerParticle, Positions, Scalar
from flowrl._flow._base import AbstractJumpFlow, Traits
from flowrl._flow._target_view import TargetView
from flowrl._kernel import RBF, AbstractScalarKernel
from flowrl._kernel._distance import centre
from flowrl._kernel._linear import refuse_linear


class BirthDeath(AbstractJumpFlow):
    r"""Birth-death dynamics toward the target: mass jumps between modes that no path of particles connects.

    $$Λ_i = \log ρ_i - U_i/α - \text{mean}, \qquad ρ_i = \frac{1}{n} \sum_j k(x_i, x_j)$$

    A particle with Λ > 0 stands where there are too many. In a step of length t, with all rates and places taken from
    the same configuration,

    1. every particle rings with probability 1 − exp(−|Λ_i| t), and draws a partner uniformly from the living, itself
       included; who draws itself does nothing;
    2. deaths: a ringing particle with Λ > 0 takes its partner's place;
    3. births: the partner of a ringing particle with Λ < 0 takes that particle's place, whatever step 2 decided for it;
       of several births on one partner a random one counts.

    The expected number of copies of a particle then changes at the rate −Λ_i, to first order in t: the replicator
    equation dw_i/dt = −Λ_i w_i. (With partners other than oneself the rate would be −Λ_i n/(n − 1).) At rest the
    smoothed density is in proportion to exp(U/α).

    It finds no new places: every particle stands where one stood before. Add it to a flow that moves,
    `Langevin() + BirthDeath(kernel)`. The density is a kernel estimate, so the bandwidth matters: one as wide as the
    distance between two modes, which the median rule gives, cannot tell them apart and balances them badly. Give
    `RBF(FixedBandwidth(σ))` with σ about the width of a mode.

    Attributes:
        kernel: k of the density estimate; scalar and positive.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def log_prob(x):  # two modes of equal mass, far apart
            return jnp.logaddexp(-0.5 * jnp.sum((x + 5) ** 2), -0.5 * jnp.sum((x - 5) ** 2))


        start = jnp.where(jnp.arange(200) < 20, -5.0, 5.0)[:, None]  # one in ten on the left
        flow = flowrl.Langevin() + flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
        budget = flowrl.Budget(200, 0.05)
        solution = flowrl.transport(flowrl.Density(log_prob), start, budget, flow=flow, key=jr.key(0))
        assert 0.3 < jnp.mean(solution.particles < 0) < 0.7
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
        """Give zero: particles only jump. Those whose scaled log density is not finite are frozen.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        return jnp.zeros_like(positions), view.scaled_log_density(positions, alive)[1]

    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        """Say whose place each particle takes; its own if it does not jump.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen; the others, and those whose scaled log density is not finite here, neither
                jump nor are jumped to.
            time: length of the step in the flow's time.
            key: randomness of this step.
        """
        rates, alive = self.rates(view, positions, alive)
        n = positions.shape[0]
        ring_key, partner_key, order_key = jr.split(key, 3)
        rings = alive & (jr.uniform(ring_key, (n,), positions.dtype) < -jnp.expm1(-jnp.abs(rates) * time))
        living = jnp.argsort(~alive, stable=True)
        partner = living[jr.randint(partner_key, (n,), 0, jnp.maximum(jnp.sum(alive), 1))]
        own = jnp.arange(n)
        rings = rings & (partner != own)
        parents = jnp.where(rings & (rates > 0), partner, own)
        # Of the births on one place the highest in a random order counts: the same bits in whatever order they scatter.
        order = jr.permutation(order_key, n)
        rank = jnp.zeros(n, order.dtype).at[order].set(jnp.arange(n, dtype=order.dtype))
        highest = jnp.full(n, -1, rank.dtype).at[partner].max(jnp.where(rings & (rates < 0), rank, -1))
        return jnp.where(highest >= 0, order[highest], parents)

    def rates(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[PerParticle, Mask]:
        """Give Λ, the rate of death where positive and of birth where negative, zero for frozen particles.

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
        """Give the flow with the kernel fixed at these particles.

        Args:
            view: unused.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        del view
        return BirthDeath(self.kernel.fitted(centre(positions, alive), alive))

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> NoReturn:
        """Refuse: birth-death descends KL(q | p), which is infinite for every finite set of particles.

        Args:
            view: unused.
            positions: unused.
            alive: unused.

        Raises:
            TypeError: always.
        """
        del view, positions, alive
        raise TypeError(
            "BirthDeath has no energy on particles: it descends KL(q|p), which is infinite for an empirical measure. "
            "Follow the value of its particles, or a discrepancy to samples."
        )
