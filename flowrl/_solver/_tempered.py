"""Adaptive tempering: from a reference to the target through distributions between them, with resampling."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PyTree

from flowrl._custom_types import Count, Key, Mask, PerParticle, Scalar
from flowrl._misc import check_count
from flowrl._solution import RESULTS
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._metropolis import Metropolis
from flowrl._solver._needs import Needs
from flowrl._solver._step import AbstractStepSolver
from flowrl._target import Tilted

_codes: Any = RESULTS
_BISECTIONS = 40


class _Own(NamedTuple):
    """What belongs to each particle: the inner solver's, and which of the first particles it descends from."""

    inner: PyTree
    origin: Int[Array, " n"]


class _Memory(NamedTuple):
    """What belongs to the set: the inner solver's, β, the log evidence so far, how many temperatures there were."""

    inner: PyTree
    power: Scalar
    log_evidence: Scalar
    temperatures: Count


class Tempered(AbstractStepSolver):
    r"""Sequential Monte Carlo along $π_β ∝ μ(x) \exp(β V(x))$, from the reference μ at β = 0 to the target at β = 1/α.

    Every K steps the next β is the largest at which the weights $\exp((β' - β) V)$ keep the effective sample size asked
    for, and the particles are resampled by them (systematically: each with all that belongs to it). In between they
    move at the present β by the inner solver, which samples $π_β$; what adapts in it goes on until the last β and for
    half of the budget. Particles must start as draws of μ. Modes keep their mass, which no single chain could carry
    from one to the other. Log evidence is that of $\int μ \exp(V/α)$, with μ normalised: the marginal likelihood where
    μ is a prior and V a log likelihood.

    `Solution.extras` has `log_evidence`; `log_evidence_error`, its standard error by the genealogy of this one run (NaN
    if all descend from one particle); `origin`, which of the first particles each descends from (n,), such as errors of
    other means are made of; `inverse_temperature` β at the end; and `temperatures`, their number. A budget that ends
    before the last β has the result `tempering_unfinished`.

    Attributes:
        inner: the solver that moves particles at each β.
        ess: effective sample size kept, as a share of the particles, in (0, 1).
        moves: steps K >= 1 at each β.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        def log_prior(x):  # N(0, I) in two dimensions, normalised
            return -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi)

        def log_likelihood(x):
            return -2.0 * jnp.sum((x - 1) ** 2)

        start, key = jax.random.normal(jax.random.key(0), (500, 2)), jax.random.key(1)
        solution = flowrl.transport(
            flowrl.Tilted(log_prior, log_likelihood), start, flowrl.Budget(100, None),
            flow=flowrl.Langevin(), solver=flowrl.Tempered(), key=key,
        )
        exact = -jnp.log(5.0) - 4 / 5
        assert abs(solution.extras["log_evidence"] - exact) < 0.3
        ```

    ??? cite "Source"
        Del Moral, Doucet and Jasra, *Sequential Monte Carlo samplers*, JRSS B 68, 2006. Jasra, Stephens, Doucet and
        Tsagaris, *Inference for Lévy-driven stochastic volatility models via adaptive sequential Monte Carlo*,
        Scandinavian Journal of Statistics 38, 2011: the choice of β. Lee and Whiteley, *Variance estimation in the
        particle filter*, Biometrika 105, 2018: errors from genealogies.
    """

    inner: AbstractStepSolver = Metropolis()
    ess: float = eqx.field(static=True, default=0.9)
    moves: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        if not isinstance(self.inner, AbstractStepSolver):
            raise TypeError(f"inner must be a solver that steps, such as Metropolis() or Euler(), got {self.inner!r}.")
        if isinstance(self.inner, Tempered):
            raise TypeError("inner is Tempered itself; give the solver that moves particles at one temperature.")
        if not 0 < self.ess < 1:
            raise ValueError(f"Tempered: ess must be in (0, 1), got {self.ess}.")
        check_count("moves", self.moves)

    @property
    def needs(self) -> Needs:
        """What the inner solver needs, and the tilt of a `Tilted` target."""
        needs = self.inner.needs
        return Needs(
            target=needs.target | {"log_tilt"},
            flows=needs.flows,
            energy=needs.energy,
            noise=needs.noise,
            restriction=needs.restriction,
            random=True,
            exact=needs.exact,
            adapts=needs.adapts,
            chooses=needs.chooses,
            caps=False,
            rests=False,
        )

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        temperature = step.problem.budget.temperature
        if temperature is not None and temperature.ndim:
            raise ValueError("Tempered chooses the temperatures on its way; give the budget the last one, one number.")
        zero, none = jnp.zeros((), ensemble.scale.dtype), jnp.zeros((), int)
        inner = self.inner.init(_at_power(step, zero), ensemble)
        own = _Own(inner.own, jnp.arange(ensemble.alive.shape[0]))
        # Who has no likelihood is frozen until the first resampling, in which it takes the place of another.
        return inner.replace(own=own, memory=_Memory(inner.memory, zero, zero, none))

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        memory: _Memory = ensemble.memory
        resample_key, move_key = step.keys(2)
        last = 1 / step.view.temperature
        due = (step.index % self.moves == 0) & (memory.power < last)
        value, finite = step.view.ask("log_tilt", ensemble.positions, ensemble.alive)
        log_mass = jnp.zeros_like(value) if ensemble.log_weights is None else ensemble.log_weights
        log_mass = log_mass - jax.nn.logsumexp(log_mass)
        longest = last - memory.power
        rise = jnp.where(due, self._rise(value, finite, log_mass, longest), 0)
        # The sum of both would round: the last β is to be exact.
        power = jnp.where(due & (rise >= longest), last, memory.power + rise)
        log_weights = jnp.where(finite, log_mass + rise * value, -jnp.inf)
        gained = jax.nn.logsumexp(log_weights)
        chosen = _systematic(resample_key, log_weights - gained)
        ancestors = jnp.where(due, chosen, jnp.arange(chosen.shape[0], dtype=chosen.dtype))
        ensemble = ensemble.take(ancestors)
        if ensemble.log_weights is not None:
            equal = jnp.zeros_like(ensemble.log_weights)
            ensemble = ensemble.replace(log_weights=jnp.where(due, equal, ensemble.log_weights))
        own: _Own = ensemble.own
        at_power = _at_power(step, power).replace(key=move_key, adapts=(power < last) | step.within(0.5))
        if ensemble.log_weights is not None:
            at_power = at_power.replace(view=at_power.view.weighted(ensemble.log_weights))
        moved = self.inner.step(at_power, ensemble.replace(own=own.inner, memory=memory.inner))
        log_evidence = memory.log_evidence + jnp.where(due, gained, 0)
        memory = _Memory(moved.memory, power, log_evidence, memory.temperatures + due.astype(memory.temperatures.dtype))
        ends = step.index + 1 >= jnp.minimum(jnp.asarray(step.problem.budget.steps), step.problem.budget.bound)
        result = _codes.where(ends & (power < last), _codes.tempering_unfinished, moved.result)
        return moved.replace(own=_Own(moved.own, own.origin), memory=memory, result=result)

    def _rise(self, value: PerParticle, finite: Mask, log_mass: PerParticle, longest: Scalar) -> Scalar:
        """Return the largest rise of β, at most `longest`, that keeps the effective sample size."""
        value = value - jnp.max(jnp.where(finite, value, -jnp.inf))

        def kept(rise: Scalar) -> Array:
            log_weights = jnp.where(finite, log_mass + rise * value, -jnp.inf)
            log_size = 2 * jax.nn.logsumexp(log_weights) - jax.nn.logsumexp(2 * log_weights)
            return log_size >= jnp.log(self.ess) + whole

        # Of what the start has: an empty slot counts for nothing.
        start = jnp.where(finite, log_mass, -jnp.inf)
        whole = 2 * jax.nn.logsumexp(start) - jax.nn.logsumexp(2 * start)

        def halve(_: int | Array, bracket: tuple[Scalar, Scalar]) -> tuple[Scalar, Scalar]:
            low, high = bracket
            middle = 0.5 * (low + high)
            fine = kept(middle)
            return jnp.where(fine, middle, low), jnp.where(fine, high, middle)

        low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(longest), longest))
        return jnp.where(kept(longest), longest, low)

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        own, memory = ensemble.own, ensemble.memory
        inner = self.inner.stopped(ensemble.replace(own=own.inner, memory=memory.inner), who)
        return inner.replace(own=own._replace(inner=inner.own), memory=memory._replace(inner=inner.memory))

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        own, memory = ensemble.own, ensemble.memory
        return self.inner.spent(step, ensemble.replace(own=own.inner, memory=memory.inner))

    def extras(self, ensemble: Ensemble) -> dict[str, Any]:
        own, memory = ensemble.own, ensemble.memory
        inner = self.inner.extras(ensemble.replace(own=own.inner, memory=memory.inner))
        return inner | {
            "log_evidence": memory.log_evidence,
            "log_evidence_error": _error(own.origin, memory.log_evidence.dtype),
            "origin": own.origin,
            "inverse_temperature": memory.power,
            "temperatures": memory.temperatures,
        }


def _at_power(step: Step, power: Scalar) -> Step:
    """Return the step toward μ exp(β V), at α = 1: so β changes what is sampled, and not the time it takes."""
    assert isinstance(step.view.target, Tilted)  # nothing else knows its tilt
    return step.toward(step.view.target.at_power(power))


def _systematic(key: Key, log_weights: PerParticle) -> Int[Array, " n"]:
    """Return ancestors by one uniform number: each is chosen n w times, rounded up or down."""
    n = log_weights.shape[0]
    cumulative = jnp.cumsum(jnp.exp(log_weights))
    marks = (jnp.arange(n, dtype=cumulative.dtype) + jr.uniform(key, (), cumulative.dtype)) / n
    # The sum is one but for rounding; beyond it comes the last that has a weight.
    found = jnp.searchsorted(cumulative, marks * cumulative[-1], side="right")
    last = n - 1 - jnp.argmax((log_weights > -jnp.inf)[::-1])
    return jnp.minimum(found, last.astype(found.dtype))


def _error(origin: Int[Array, " n"], dtype: Any) -> Scalar:
    """Return the standard error of the log evidence, from how many particles descend from each of the first ones.

    Systematic resampling adds next to no chance of its own, so a family's share of the set estimates the evidence from
    its origin alone, and origins are independent.
    """
    n = origin.shape[0]
    families = jnp.zeros(n, dtype).at[origin].add(1)
    squared = (jnp.sum((families / n) ** 2) - 1 / n) * n / max(n - 1, 1)
    return jnp.where(jnp.max(families) < n, jnp.sqrt(jnp.maximum(squared, 0)), jnp.nan)
