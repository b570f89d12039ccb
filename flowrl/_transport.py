"""The verb: move particles toward a target until the budget is spent."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowrl._budget import Budget
from flowrl._custom_types import Key, Mask, Particles
from flowrl._domain import AbstractDomain, Unbounded
from flowrl._flow import SVGD, AbstractFlow, Field
from flowrl._misc import check_particles, concrete, ravel
from flowrl._solution import RESULTS, Solution, is_okay
from flowrl._solver import AbstractSolver, Euler, Problem
from flowrl._supports import supports
from flowrl._target import AbstractTarget

_EXAMPLES = {"flow": "SVGD()", "solver": "Euler() or Optax(optax.adam(1.0))", "domain": "Box(-1, 1)"}


class Transport(eqx.Module):
    """A transport method as a value: a flow, how it is marched, and where particles may be. Calling it is the verb.

    Attributes:
        flow: the velocity field.
        solver: how the flow is marched.
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
        key: Key | None = None,
        save: Any = None,
        throw: bool = True,
    ) -> Solution:
        """Move `particles` toward `target` until `budget` is spent; see `flowrl.transport`.

        Args:
            target: the density to move toward.
            particles: leaves (n, ...).
            budget: how far they may travel.
            key: randomness; may be None if the flow and the target are deterministic.
            save: where to record the trajectory.
            throw: raise on failure instead of returning it in `result`.

        Returns:
            The `flowrl.Solution`.
        """
        particles = jax.tree.map(jnp.asarray, particles)
        _, dtype = check_particles(particles)
        self._check(target, particles, budget, key)
        save = tuple(np.asarray(save).tolist()) if isinstance(save, Sequence | np.ndarray | jax.Array) else save
        solution = _run(self, target, particles, _resolve(budget, particles, dtype), key, save)
        if throw:
            solution = solution.result.error_if(solution, ~is_okay(solution.result))
        return solution

    def _check(self, target: AbstractTarget, particles: Particles, budget: Budget, key: Key | None) -> None:
        """Refuse concrete misuse before anything is compiled."""
        if not isinstance(target, AbstractTarget):
            raise TypeError(
                f"target must be a flowrl target, got {type(target).__name__}. Wrap a value as Boltzmann(value), a log "
                "density as Density(log_prob), a score as Score(score)."
            )
        if not isinstance(budget, Budget):
            raise TypeError(f"budget must be a flowrl.Budget, got {type(budget).__name__}.")
        support = supports(self.flow, self.solver, self.domain, target)
        if not support:
            raise ValueError(support.reason)
        flow, traits = type(self.flow).__name__, self.flow.traits
        if traits.temperature == "none" and budget.temperature is not None:
            raise ValueError(f"{flow} has no entropy, so it has no temperature; leave temperature=None in the budget.")
        temperature = None if budget.temperature is None else concrete(budget.temperature)
        if temperature is not None and (temperature == 0).any():
            if target.vanishes_when_cold:
                raise ValueError(
                    f"{type(target).__name__} has no force at temperature 0 (its potential is α log p); use "
                    "Boltzmann(value) with that limit, or Ascent() for the maximum."
                )
            if traits.temperature == "positive":
                raise ValueError(f"{flow} divides by the temperature, so it must be > 0; got {temperature}.")
        if traits.jumps and budget.max_displacement is not None:
            raise ValueError(
                f"the particles of {flow} jump to the places of others, which a max_displacement would undo; leave it "
                "out."
            )
        if (traits.diffuses or traits.jumps) and budget.tolerance is not None:
            raise ValueError(f"the particles of {flow} never come to rest; leave tolerance=None in the budget.")
        if key is None and (traits.stochastic or target.stochastic):
            raise ValueError(f"{flow} toward {type(target).__name__} is stochastic: pass key=jax.random.key(seed).")
        finite = [concrete(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(particles)]
        if any(ok is not None and not ok for ok in finite):
            raise ValueError("particles hold NaN or infinity; drop or repair them before the transport.")
        if self.domain.restricts or self.domain.maps:
            inside = concrete(self.domain.contains(particles))
            if inside is not None and not inside.all():
                raise ValueError(
                    f"{int((~inside).sum())} of {inside.size} particles start outside {type(self.domain).__name__} "
                    f"(first: index {int(np.argmin(inside))}); bring them inside, e.g. by domain.restrict(particles)."
                )


def transport(
    target: AbstractTarget,
    particles: Particles,
    budget: Budget,
    *,
    flow: AbstractFlow = SVGD(),  # noqa: B008  (immutable module instances: the signature is the doc of the defaults)
    solver: AbstractSolver = Euler(),  # noqa: B008
    domain: AbstractDomain = Unbounded(),  # noqa: B008
    key: Key | None = None,
    save: Any = None,
    throw: bool = True,
) -> Solution:
    """Move particles toward a target density until the transport budget is spent.

    One call moves one set of particles; many sets (the actions of a batch of states) are `jax.vmap` of the call. The
    temperature belongs to the budget, so one target serves several budgets. A particle whose score is not finite is
    frozen, taken out of all sums, and counted in `stats["nonfinite"]`.

    Args:
        target: the density to move toward: `Boltzmann(value)`, `Density(log_prob)`, `Score(...)`, `ValueGradient(...)`.
        particles: the set to move: an array (n, d), or a PyTree of floating arrays (n, ...) of one dtype. It is drawn
            from the reference: a prior, a behaviour policy, an SFT model.
        budget: how far particles may travel: steps, step size, temperature, cap.
        flow: the velocity field.
        solver: how the flow is marched.
        domain: where particles may be; they must start there.
        key: randomness; may be None if the flow and the target are deterministic.
        save: where to record the trajectory. Step solvers take increasing step counts, e.g. `save=(0, 1, 3)`.
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

        def log_prob(x):
            return -0.5 * jnp.sum((x - 1.0) ** 2)

        particles = jr.normal(jr.key(0), (100, 2))
        solution = flowrl.transport(flowrl.Density(log_prob), particles, flowrl.Budget(steps=200, step_size=0.5))
        print(solution)
        ```
    """
    return Transport(flow, solver, domain)(target, particles, budget, key=key, save=save, throw=throw)


def _resolve(budget: Budget, particles: Particles, dtype: Any) -> Budget:
    """Give all numbers the particles' dtype; a scale becomes the row (1, d) of the ravelled particle."""
    if budget.scale is None:
        scale = None
    else:
        try:
            unit = jax.tree.map(
                lambda s, leaf: jnp.broadcast_to(s.astype(dtype), leaf.shape[1:]),
                jax.tree.broadcast(budget.scale, particles),
                particles,
            )
        except ValueError as error:
            shapes = jax.tree.map(lambda leaf: leaf.shape[1:], particles)
            got = jax.tree.map(jnp.shape, budget.scale)
            raise ValueError(
                f"scale of shape {got} does not broadcast against a particle of shape {shapes}."
            ) from error
        scale = ravel(jax.tree.map(lambda leaf: leaf[None], unit))[0]
    temperature = jnp.ones((), dtype) if budget.temperature is None else budget.temperature.astype(dtype)
    cap = None if budget.max_displacement is None else budget.max_displacement.astype(dtype)
    caps = [None if x is None else x.astype(dtype) for x in (budget.tolerance, budget.max_mmd, budget.mmd_sigma)]
    return eqx.tree_at(
        lambda b: (b.step_size, b.temperature, b.max_displacement, b.scale, b.tolerance, b.max_mmd, b.mmd_sigma),
        budget,
        (budget.step_size.astype(dtype), temperature, cap, scale, *caps),
        is_leaf=lambda x: x is None,
    )


@eqx.filter_jit
def _run(
    method: Transport, target: AbstractTarget, particles: Particles, budget: Budget, key: Key | None, save: Any
) -> Solution:
    problem = _problem(method, target, particles, budget, key)
    start = ravel(particles)[0]
    traits = method.flow.traits
    valid, inside = budget.valid(), jnp.all(method.domain.contains(particles))
    if (target.vanishes_when_cold or traits.temperature == "positive") and budget.temperature is not None:
        valid = valid & jnp.all(budget.temperature > 0)
    march = method.solver.solve(problem, save)

    kept = valid & inside & (jnp.asarray(budget.steps) > 0)
    moved = problem.particles(march.coordinates)
    # Zero steps give the input back bit for bit, also where the domain's map would round.
    moved = jax.tree.map(lambda new, old: jnp.where(kept, new, old), moved, particles)
    displacement = jnp.where(kept, jax.lax.stop_gradient(problem.displacement(march.coordinates)), 0)
    alive = jnp.where(kept, march.alive, jnp.all(jnp.isfinite(start), axis=1))
    result = march.result if isinstance(march.result, RESULTS) else RESULTS.promote(march.result)
    notes = ()
    if traits.diffuses and budget.max_displacement is not None:
        notes = ("the flow is stochastic and its particles are capped: they sample a truncated law",)
    result = RESULTS.where(jnp.any(alive), result, RESULTS.nonfinite_score)
    result = RESULTS.where(inside, result, RESULTS.outside_domain)
    result = RESULTS.where(valid, result, RESULTS.invalid_budget)
    # Nothing was moved, so nothing was spent: a failed transport reports neither.
    spent = {name: jnp.where(kept, x, jnp.zeros_like(x)) for name, x in march.stats.items()}
    stats = spent | {
        "displacement_max": jnp.max(displacement),
        "displacement_rms": jnp.sqrt(jnp.mean(displacement**2)),
        "nonfinite": jnp.sum(~alive),
    }
    trajectory = None
    if march.trajectory is not None:
        trajectory = jax.vmap(problem.particles)(march.trajectory)
        trajectory = jax.tree.map(lambda saved, old: jnp.where(kept, saved, old[None]), trajectory, particles)
    return Solution(moved, _values(target, moved, alive), result, stats, trajectory, notes)


def _problem(
    method: Transport, target: AbstractTarget, particles: Particles, budget: Budget, key: Key | None
) -> Problem:
    start, unravel = ravel(particles)
    scale = jnp.ones((1, start.shape[1]), start.dtype) if budget.scale is None else budget.scale
    entropic = method.flow.traits.entropic
    field = Field(jnp.ones((), start.dtype), None, None, target, method.domain, scale, entropic, unravel)
    return Problem(method.flow, field, budget, particles, key)


def _values(target: AbstractTarget, particles: Particles, alive: Mask) -> Float[Array, " n"] | None:
    if "value" not in target.knows:
        return None
    values = jax.vmap(target.value)(particles)
    return jnp.where(alive & jnp.isfinite(values), values, jnp.nan)
