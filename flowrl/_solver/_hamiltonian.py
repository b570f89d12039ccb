"""Hamiltonian dynamics of every particle: kinetic Langevin dynamics, and the proposals of HMC."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from flowrl._custom_types import Key, PerParticle, Positions
from flowrl._flow import Langevin
from flowrl._misc import check_count
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._needs import Needs
from flowrl._solver._proposal import Proposal
from flowrl._solver._scale import AbstractScale, LearnedScale
from flowrl._solver._trajectory import AbstractTrajectory


class Hamiltonian(AbstractTrajectory):
    r"""Hamiltonian dynamics: each particle has a momentum p, in units of the learned scale S.

    $$dz = S p\,dt, \qquad dp = S ∇(U/α)(z)\,dt - γ p\,dt + \sqrt{2γ}\,dW$$

    A step renews the momentum, $p ← c p + \sqrt{1 - c^2}\,ξ$ with $c = \exp(-γ h K)$, and takes K leapfrog steps of
    length h = ε. With a finite friction γ and K = 1 it is kinetic (underdamped) Langevin dynamics by OBABO, whose
    stationary variance along a direction of precision λ is 1/(λ(1 − h²λ/4)); with `Metropolis(Hamiltonian())` it is
    Hamiltonian Monte Carlo of every particle, exact at every h, with a metric that the set has learned. The whole
    momentum is renewed where γ is infinite; the length of a trajectory is then drawn for the set, from 0.7 to 1.3 K h,
    since one that fits a period would come back to its start. α rescales the target, never the time.

    Where a domain or a cap brings a particle back, its momentum turns round.

    Attributes:
        leaps: leapfrog steps K >= 1 per step.
        friction: γ > 0, per unit time; infinity renews the whole momentum.
        scale: how S is learned; None for the budget's unit of length.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 100.0])))
        start, key = jax.random.normal(jax.random.key(0), (200, 2)), jax.random.key(1)
        hmc = flowrl.Metropolis(flowrl.Hamiltonian())
        solution = flowrl.transport(
            target, start, flowrl.Budget(100, None), flow=flowrl.Langevin(), solver=hmc, key=key
        )
        assert jnp.allclose(solution.particles.std(axis=0), jnp.array([1.0, 10.0]), rtol=0.2)
        ```

    ??? cite "Source"
        Duane, Kennedy, Pendleton and Roweth, *Hybrid Monte Carlo*, Physics Letters B 195, 1987. Horowitz, *A
        generalized guided Monte Carlo algorithm*, Physics Letters B 268, 1991. Leimkuhler and Matthews, *Molecular
        Dynamics*, 2015, chapter 7 (OBABO).
    """

    leaps: int = eqx.field(static=True, default=8)
    friction: float = eqx.field(static=True, default=float("inf"))
    scale: AbstractScale | None = LearnedScale()
    needs: ClassVar[Needs] = Needs(
        target=frozenset({"gradient"}), flows=(Langevin,), noise="any", random=True, rests=False
    )
    acceptance: ClassVar[float] = 0.8  # Betancourt, Byrne and Girolami (2014), between .6 and .9

    def __check_init__(self):
        check_count("leaps", self.leaps)
        if not self.friction > 0:
            raise ValueError(f"Hamiltonian: friction must be > 0, got {self.friction}.")

    def drawn(self, key: Key, like: Positions) -> Positions:
        return jr.normal(key, like.shape, like.dtype)

    def propose(self, step: Step, ensemble: Ensemble) -> Proposal:
        noise_key, length_key = step.keys(2)
        white, h = self.drawn(noise_key, ensemble.own.momentum), step.size
        if self.friction == float("inf"):
            momentum, h = white, h * jr.uniform(length_key, (), h.dtype, 0.7, 1.3)
        else:
            rubbed = self.friction * self.leaps * h
            momentum = jnp.exp(-rubbed) * ensemble.own.momentum + jnp.sqrt(-jnp.expm1(-2 * rubbed)) * white

        def kick(momentum: Positions, gradient: Positions) -> tuple[Positions, PerParticle]:
            after = momentum + 0.5 * h * gradient
            return after, 0.5 * jnp.sum(momentum**2 - after**2, axis=1)

        end = self.travelled(step, ensemble, momentum, self.learned(step, ensemble), h, kick)
        return self.proposal(ensemble, momentum, end)
