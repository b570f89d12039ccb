"""Move particles toward a target until the budget is spent."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from flowrl._budget import Budget
from flowrl._custom_types import Count, Key, Mask, Particles, PerParticle
from flowrl._domain import AbstractDomain, Unbounded
from flowrl._flow import SVGD, AbstractFlow, TargetView
from flowrl._misc import concrete, ravel, widened
from flowrl._solution import RESULTS, Solution, is_okay
from flowrl._solver import AbstractSolver, Euler, Problem, SolverOutput
from flowrl._supports import supports
from flowrl._target import AbstractTarget, scalar
from flowrl._validation import check, check_key, check_log_weights, explain, resolve

_EXAMPLES = {"flow": "SVGD()", "solver": "Euler() or Optax(optax.adam(1.0))", "domain": "Box(-1, 1)"}


class Transport(eqx.Module):
    """A transport method as a value: a flow, a solver and a domain. Calling it is `flowrl.transport`.

    Attributes:
        flow: the velocity field.
        solver: how the flow is integrated.
        domain: where particles may be.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        method = flowrl.Transport(flow=flowrl.Ascent(), domain=flowrl.Box(-1, 1))
        target = flowrl.Boltzmann(lambda x: -jnp.sum((x - 0.5) ** 2))
        solution = method(target, jr.normal(jr.key(0), (8, 2)).clip(-1, 1), flowrl.Budget(10, 0.1))
        ```
    """

    flow: AbstractFlow = SVGD()
    solver: AbstractSolver = Euler()
    domain: AbstractDomain = Unbounded()

    def __check_init__(self):
        for name, part, kind in (
            ("flow", self.flow, AbstractFlow),
            ("solver", self.solver, AbstractSolver),
            ("domain", self.domain, AbstractDomain),
        ):
            if not isinstance(part, kind):
                hint = f"{part.__name__}()" if isinstance(part, type) else f"one of flowrl's, e.g. {_EXAMPLES[name]}"
                raise TypeError(f"{name} must be an instance of {kind.__name__}, got {part!r}; did you mean {hint}?")
        support = supports(self.flow, self.solver, self.domain)
        if not support:
            raise ValueError(support.reason)

    def __call__(
        self,
        target: AbstractTarget,
        particles: Particles,
        budget: Budget,
        *,
        log_weights: PerParticle | None = None,
        key: Key | None = None,
        save: Any = None,
        throw: bool = True,
    ) -> Solution:
        """Move `particles` toward `target` until `budget` is spent; see `flowrl.transport`.

        Args:
            target: the density to move toward.
            particles: leaves (n, ...).
            budget: how far they may travel.
            log_weights: log weights of the particles (n,); None for equal ones.
            key: randomness; may be None if flow, solver and target are deterministic.
            save: where to record the trajectory.
            throw: raise on failure instead of returning it in `result`.
        """
        particles = check(self.flow, self.solver, self.domain, target, particles, budget)
        log_weights = check_log_weights(log_weights, self.flow, particles)
        check_key(self.flow, self.solver, target, key)
        save = tuple(np.asarray(save).tolist()) if isinstance(save, Sequence | np.ndarray | jax.Array) else save
        budget = resolve(budget, particles, unit_time=self.flow.traits.unit_time)
        solution = _explained(self, target, particles, budget, log_weights, key, save)
        if throw:
            failed = ~is_okay(solution.result)
            known = concrete(failed)
            if known is None:
                return solution.result.error_if(solution, failed)
            # On the host: an error from within a compiled program names the line that compiled it first.
            if known.any():
                raise RuntimeError(
                    f"{RESULTS[solution.result]} With throw=False, print(solution) says how far it came."
                )
        return solution


def transport(
    target: AbstractTarget,
    particles: Particles,
    budget: Budget,
    *,
    flow: AbstractFlow = SVGD(),  # noqa: B008  (immutable module instances: the signature is the doc of the defaults)
    solver: AbstractSolver = Euler(),  # noqa: B008
    domain: AbstractDomain = Unbounded(),  # noqa: B008
    log_weights: PerParticle | None = None,
    key: Key | None = None,
    save: Any = None,
    throw: bool = True,
) -> Solution:
    """Move particles toward a target density until the transport budget is spent.

    One call moves one set of particles; many sets (the actions of a batch of states) are `jax.vmap` of the call. The
    temperature belongs to the budget, so one target serves several budgets. A particle whose score is not finite is
    frozen, taken out of all sums, and counted in `stats["nonfinite"]`.

    Args:
        target: the density to move toward, e.g. `Boltzmann(value)`, `Density(log_prob)` or `Empirical(samples)`.
        particles: the set to move: an array (n, d), or a PyTree of floating arrays (n, ...) of one dtype. It is drawn
            from the reference: a prior, a behaviour policy, an SFT model. Those of 16 bits are moved in float32 and
            rounded at the end; the target sees them in their own dtype.
        budget: how far particles may travel: steps, step size, temperature, cap.
        flow: the velocity field.
        solver: how the flow is integrated.
        domain: where particles may be; they must start there.
        log_weights: log weights of the particles (n,), up to a constant; −inf is an empty slot, whose particle is
            frozen. Means over the set, as in `SVGD`, are then weighted ones, so that a particle of weight two is two
            particles; flows whose `traits` do not say `weighs` refuse them. None for equal weights.
        key: randomness; may be None if flow, solver and target are deterministic.
        save: where to record the trajectory. Step solvers take increasing step counts, e.g. `save=(0, 1, 3)`; `Diffrax`
            takes increasing times. They are part of the compiled program: Python numbers, never traced.
        throw: raise when no finite particle is left or a traced argument was invalid. Use False inside `jax.jit` loops
            and `jax.vmap` (one bad set would raise for all) and read `solution.result`.

    Returns:
        A `flowrl.Solution`: the particles, their values, the result, and what was spent.

    Raises:
        TypeError: particles, target or budget are of the wrong kind.
        ValueError: a concrete argument is out of range, or the parts do not go together (`flowrl.supports`).
        RuntimeError: the transport failed and `throw` is true.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
        solution = flowrl.transport(target, jr.normal(jr.key(0), (100, 2)), flowrl.Budget(steps=200, step_size=0.5))
        print(solution)
        ```
    """
    method = Transport(flow, solver, domain)
    return method(target, particles, budget, log_weights=log_weights, key=key, save=save, throw=throw)


def _explained(method: Transport, target: AbstractTarget, particles: Particles, *rest: Any) -> Solution:
    try:
        return _run(method, target, particles, *rest)
    except (TypeError, ValueError, IndexError) as error:
        failure = error
    # Not in the block above, whose error would be printed too.
    explain(method.flow, target, particles)
    raise failure


@eqx.filter_jit
def _run(
    method: Transport,
    target: AbstractTarget,
    particles: Particles,
    budget: Budget,
    log_weights: PerParticle | None,
    key: Key | None,
    save: Any,
) -> Solution:
    problem = make_problem(method, target, particles, budget, key, log_weights)
    output = method.solver.solve(problem, save)  # the loop over steps is AbstractStepSolver.solve, _solver/_step.py
    return make_solution(problem, output, taken=jnp.asarray(budget.steps) > 0, valued="value" in target.knows)


def make_problem(
    method: Transport,
    target: AbstractTarget,
    particles: Particles,
    budget: Budget,
    key: Key | None,
    log_weights: PerParticle | None = None,
) -> Problem:
    """Return what a solver is given; `budget` comes from `resolve`."""
    given = jax.tree.leaves(particles)[0].dtype
    particles = widened(particles)
    start, unravel = ravel(particles)
    scale = jnp.ones((1, start.shape[1]), start.dtype) if budget.scale is None else budget.scale
    entropic = method.flow.traits.entropic
    view = TargetView(jnp.ones((), start.dtype), None, None, target, method.domain, scale, entropic, unravel)
    if given != start.dtype:
        view = dataclasses.replace(view, dtype=given)
    view = view if log_weights is None else view.weighted(log_weights)
    return Problem(method.flow, view, budget, particles, key, log_weights)


def make_solution(problem: Problem, output: SolverOutput, *, taken: Bool[Array, ""], valued: bool) -> Solution:
    """Return what the user sees; `taken`: whether any step was, `valued`: whether to evaluate the particles."""
    particles, budget, target, traits = problem.given(), problem.budget, problem.view.target, problem.flow.traits
    # A particle that is not finite is frozen, and no reason to stop the others.
    finite = jnp.all(jnp.isfinite(ravel(particles)[0]), axis=1)
    valid, inside = budget.valid(), jnp.all(problem.view.domain.contains(particles) | ~finite)
    if (target.needs_positive_temperature or traits.temperature == "positive") and budget.temperature is not None:
        valid = valid & jnp.all(budget.temperature > 0)

    kept = valid & inside & taken
    moved = problem.delivered(output.coordinates)
    # Zero steps give the input back bit for bit, also where the domain's map would round.
    moved = jax.tree.map(lambda new, old: jnp.where(kept, new, old), moved, particles)
    displacement = jnp.where(kept, jax.lax.stop_gradient(problem.displacement_of(moved)), 0)
    alive = jnp.where(kept, output.alive, finite)
    log_weights = problem.log_weights
    if output.log_weights is not None:
        before = jnp.zeros_like(displacement) if log_weights is None else log_weights
        log_weights = jnp.where(kept, output.log_weights, before)
    values = _values(target, moved, alive) if valued else None
    if values is not None:
        # One that left the support in the last step was never asked for its score.
        alive = alive & jnp.isfinite(values)
    result = output.result if isinstance(output.result, RESULTS) else RESULTS.promote(output.result)
    frozen = jnp.sum(~alive)
    result = RESULTS.where(frozen < alive.size, result, RESULTS.nonfinite_score)
    result = RESULTS.where(inside, result, RESULTS.outside_domain)
    result = RESULTS.where(valid, result, RESULTS.invalid_budget)
    # Nothing was moved, so nothing was spent: a failed transport reports neither.
    spent = {name: jnp.where(kept, x, jnp.zeros_like(x)) for name, x in output.stats.items()}
    stats = spent | {
        "displacement_max": jnp.max(displacement),
        "displacement_rms": jnp.sqrt(jnp.mean(displacement**2)),
        "nonfinite": frozen,
    }
    trajectory = None
    if output.trajectory is not None:
        trajectory = jax.vmap(problem.delivered)(output.trajectory)
        trajectory = jax.tree.map(lambda saved, old: jnp.where(kept, saved, old[None]), trajectory, particles)
    notes = ()
    if traits.diffuses and budget.max_displacement is not None:
        notes = ("the flow is stochastic and its particles are capped: they sample a truncated distribution",)
    log_weights = _normalised(log_weights, alive, frozen, displacement.dtype)
    return Solution(moved, values, result, stats, trajectory, notes, log_weights, output.extras)


def _normalised(log_weights: PerParticle | None, alive: Mask, frozen: Count, dtype: Any) -> PerParticle:
    """Return log weights whose weights sum to 1, −inf for those not alive, and for all if none is."""
    if log_weights is None:
        return jnp.where(alive, -jnp.log((alive.size - frozen).astype(dtype)), -jnp.inf)
    log_weights = jnp.where(alive, log_weights, -jnp.inf)
    total = jax.nn.logsumexp(log_weights)
    return jnp.where(jnp.isfinite(total), log_weights - total, -jnp.inf)


def _values(target: AbstractTarget, particles: Particles, alive: Mask) -> Float[Array, " n"]:
    values = jax.vmap(lambda x: scalar(target.value(x), f"{type(target).__name__}.value"))(particles)
    return jnp.where(alive & jnp.isfinite(values), values, jnp.nan)
