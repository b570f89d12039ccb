"""Accept or reject each particle's step, so that the distribution it samples is exact."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Int, PyTree

from flowrl._custom_types import Count, Key, Mask, PerParticle, Scalar
from flowrl._flow import Langevin
from flowrl._misc import check_fields
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._euler import Euler
from flowrl._solver._needs import Needs
from flowrl._solver._proposal import AbstractProposal
from flowrl._solver._step import AbstractStepSolver

_DIVERGENT = 10.0  # a loss of log density with a chance of 5e-5: the step is far too long for the place


class _Memory(NamedTuple):
    """What belongs to the set: the proposal's memory, log of the step size over the budget's, the acceptance."""

    proposal: PyTree
    log_factor: Scalar
    acceptance: Scalar
    divergent: Scalar
    counted: Count
    steps: Count
    step_size: Scalar


class _Own(NamedTuple):
    """What belongs to each particle: the proposal's own, U/α where it is, and its refusals in a row."""

    proposal: PyTree
    log_density: PerParticle
    refused: Int[Array, " n"]


class Metropolis(AbstractStepSolver):
    r"""Every particle a Markov chain whose steps are accepted or rejected, so that it samples the target exactly.

    A proposal x' of x is taken with probability

    $$\min\left(1, \frac{π(x') q(x | x')}{π(x) q(x' | x)}\right), \qquad π ∝ \exp(U/α)$$

    and else the particle stays. With `flow=Langevin()` and Euler's step it is MALA; with `Hamiltonian()` it is
    Hamiltonian Monte Carlo of every particle, with `Hamiltonian(leaps=1, friction=1.0)` its generalised form, with
    `Microcanonical()` MAMS. A proposal outside of the domain or the displacement cap is rejected, so the law is the
    target's, restricted to them; mapped coordinates and units of length are part of the density.

    The step size of the set adapts by Robbins and Monro's rule until the mean acceptance is the one asked for, and is
    then fixed: particles are draws of the target from there on. `Solution.extras` has `acceptance` (mean probability,
    after the adaptation), `divergent` (share of proposals that lost more than 10 in log density), `step_size`, and
    `gradients` (per particle).

    Attributes:
        proposal: a solver whose step has a known density.
        acceptance: the share of accepted moves that the step size adapts to, in (0, 1); None for the proposal's own.
        share: the first share of the budget in which the step size adapts, in [0, 1]; 0 for the budget's own step size.
        patience: as many refusals in a row, while the step size adapts, give up a particle that lies deeper than 10
            in log density below every one that moves: the step size that suits the others never fits a start so far
            out. It takes the place of one that moves, by chance. None, by default, for never.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: jnp.sum(2 * jnp.log(x) - x))  # Gamma(3, 1) in two dimensions
        start, key = 1 + jax.random.uniform(jax.random.key(0), (200, 2)), jax.random.key(1)
        solution = flowrl.transport(
            target, start, flowrl.Budget(300, None), flow=flowrl.Langevin(), solver=flowrl.Metropolis(),
            domain=flowrl.positive(), key=key,
        )
        assert abs(solution.particles.mean() - 3) < 0.3
        ```

    ??? cite "Source"
        Roberts and Tweedie, *Exponential convergence of Langevin distributions and their discrete approximations*,
        Bernoulli 2(4), 1996 (MALA). Andrieu and Thoms, *A tutorial on adaptive MCMC*, Statistics and Computing 18,
        2008 (the adaptation).
    """

    proposal: AbstractProposal = Euler()
    acceptance: float | None = eqx.field(static=True, default=None)
    share: float = eqx.field(static=True, default=0.5)
    patience: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if not isinstance(self.proposal, AbstractProposal):
            raise TypeError(
                f"proposal must be a solver whose steps have a known density: Euler(), Hamiltonian() or "
                f"Microcanonical(); got {self.proposal!r}."
            )
        check_fields(self, shares=("share",), counts=("patience",))
        if self.acceptance is not None and not 0 < self.acceptance < 1:
            raise ValueError(f"Metropolis: acceptance must be in (0, 1), got {self.acceptance}.")

    @property
    def needs(self) -> Needs:
        """The value and the gradient of every particle, by Langevin's flow alone."""
        return Needs(
            target=frozenset({"value", "gradient"}),
            flows=(Langevin,),
            noise="any",
            random=True,
            exact=True,
            adapts=frozenset({"step_size"} if self.share > 0 else ()),
            rests=False,
        )

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        ensemble, log_density = self.proposal.prepare(step, ensemble)
        zero, none = jnp.zeros((), log_density.dtype), jnp.zeros((), int)
        memory = _Memory(ensemble.memory, zero, zero, zero, none, none, step.size)
        return ensemble.replace(own=_Own(ensemble.own, log_density, jnp.zeros(log_density.shape, int)), memory=memory)

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        memory: _Memory = ensemble.memory
        propose_key, accept_key, *rescue_key = step.keys(2 if self.patience is None else 3)
        sized = self._sized(step, memory).replace(key=propose_key)
        adapts = step.within(self.share)
        own: _Own = ensemble.own
        before, log_density = ensemble.replace(own=own.proposal, memory=memory.proposal), own.log_density
        if not step.unchanging:
            before, log_density = self.proposal.prepare(sized, before)
        proposed, kept, log_ratio, there = self.proposal.propose(sized.replace(adapts=adapts), before)
        log_chance = jnp.where(step.allowed(proposed), there - log_density + log_ratio, -jnp.inf)
        chance = jnp.exp(jnp.minimum(jnp.where(jnp.isnan(log_chance), -jnp.inf, log_chance), 0))
        accepted = before.alive & (jr.uniform(accept_key, chance.shape, chance.dtype) < chance)
        after = proposed.where(accepted, kept)
        refused = jnp.where(accepted, 0, own.refused + 1)
        own = _Own(after.own, jnp.where(accepted, there, log_density), refused)
        # A move outside of the domain is refused whatever its energy.
        lost = step.allowed(proposed) & ~(there - log_density + log_ratio > -_DIVERGENT)
        mass = step.view.mass(before.alive)
        memory = self._adapted(memory, proposed.memory, sized, adapts, mass, chance, lost)
        after = after.replace(own=own, alive=before.alive, memory=memory)
        if self.patience is None:
            return after
        return self._rescued(step, after, adapts, self.patience, *rescue_key)

    def _rescued(self, step: Step, ensemble: Ensemble, adapts: Bool[Array, ""], patience: int, key: Key) -> Ensemble:
        """Put particles that were given up where others are."""
        own: _Own = ensemble.own
        moves = ensemble.alive & (own.refused < patience)
        lowest = jnp.min(jnp.where(moves, own.log_density, jnp.inf))
        lost = ensemble.alive & ~moves & (own.log_density < lowest - _DIVERGENT) & jnp.any(moves) & adapts
        chosen = jr.categorical(key, jnp.where(moves, 0.0, -jnp.inf).astype(own.log_density.dtype), shape=lost.shape)
        there = ensemble.take(jnp.where(lost, chosen, jnp.arange(lost.shape[0])))
        return there.where(step.allowed(there) | ~lost, ensemble)

    def _sized(self, step: Step, memory: _Memory) -> Step:
        return step.replace(size=step.size * jnp.exp(memory.log_factor))

    def _adapted(
        self,
        memory: _Memory,
        proposal: PyTree,
        sized: Step,
        adapts: Bool[Array, ""],
        mass: PerParticle,
        chance: PerParticle,
        lost: Mask,
    ) -> _Memory:
        wanted = self.proposal.acceptance if self.acceptance is None else self.acceptance
        total = jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
        mean, divergent = jnp.sum(mass * chance) / total, jnp.sum(jnp.where(lost, mass, 0)) / total
        # From −1, all rejected, to 1, all accepted, so that a step size comes up from far below as fast as down.
        surplus = jnp.where(mean > wanted, (mean - wanted) / (1 - wanted), (mean - wanted) / wanted)
        gain = (memory.steps + 1).astype(mean.dtype) ** -0.5
        log_factor = memory.log_factor + jnp.where(adapts, gain * surplus, 0)
        counted = jnp.where(adapts, jnp.zeros_like(memory.counted), memory.counted + 1)
        weight = 1 / jnp.maximum(counted, 1).astype(mean.dtype)
        acceptance = memory.acceptance + weight * (mean - memory.acceptance)
        divergent = memory.divergent + weight * (divergent - memory.divergent)
        return _Memory(proposal, log_factor, acceptance, divergent, counted, memory.steps + 1, sized.size)

    def stopped(self, ensemble: Ensemble, who: Array) -> Ensemble:
        inner = ensemble.replace(own=ensemble.own.proposal, memory=ensemble.memory.proposal)
        inner = self.proposal.stopped(inner, who)
        memory = ensemble.memory._replace(proposal=inner.memory)
        return inner.replace(own=ensemble.own._replace(proposal=inner.own), memory=memory)

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        memory: _Memory = ensemble.memory
        return self.proposal.spent(self._sized(step, memory), ensemble.replace(memory=memory.proposal))

    def extras(self, ensemble: Ensemble) -> dict[str, Any]:
        memory: _Memory = ensemble.memory
        inner = self.proposal.extras(ensemble.replace(own=ensemble.own.proposal, memory=memory.proposal))
        learned = {
            "acceptance": memory.acceptance,
            "divergent": memory.divergent,
            "step_size": memory.step_size,
        }
        return inner | learned | {"gradients": 1 + memory.steps * self.proposal.gradients}
