"""Checks of a transport's arguments before anything is compiled; numbers get the dtype of the particles."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowrl._budget import Budget
from flowrl._custom_types import Key, Particles
from flowrl._domain import AbstractDomain
from flowrl._flow import AbstractFlow, Traits
from flowrl._misc import check_one_key, check_particles, concrete, log_weights_array, ravel, working_dtype
from flowrl._solver import AbstractSolver
from flowrl._supports import supports
from flowrl._target import AbstractTarget


def check(
    flow: AbstractFlow,
    solver: AbstractSolver,
    domain: AbstractDomain,
    target: AbstractTarget,
    particles: Any,
    budget: Budget,
) -> Particles:
    """Return the particles with arrays as leaves; refuse concrete misuse before anything is compiled."""
    if isinstance(target, type):
        raise TypeError(f"target is the class {target.__name__}; did you mean an instance, {target.__name__}(...)?")
    if not isinstance(target, AbstractTarget):
        raise TypeError(
            f"target must be a flowrl target, got {type(target).__name__}. Wrap a value as Boltzmann(value), a log "
            "density as Density(log_prob), a score as Score(score), samples as Empirical(samples)."
        )
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a flowrl.Budget, got {type(budget).__name__}.")
    particles = jax.tree.map(jnp.asarray, particles)
    check_particles(particles)
    support = supports(flow, solver, domain, target)
    if not support:
        raise ValueError(support.reason)
    name, traits = type(flow).__name__, flow.traits
    if traits.temperature == "none" and budget.temperature is not None:
        raise ValueError(f"{name} has no entropy, so it has no temperature; leave temperature=None in the budget.")
    temperature = None if budget.temperature is None else concrete(budget.temperature)
    if temperature is not None and (temperature == 0).any():
        if target.needs_positive_temperature:
            raise ValueError(
                f"{type(target).__name__} has no force at temperature 0 (its scaled log density is α log p); use "
                "Boltzmann(value) with that limit, or Ascent() for the maximum."
            )
        if traits.temperature == "positive":
            raise ValueError(f"{name} divides by the temperature, so it must be > 0; got {temperature}.")
    if traits.jumps and budget.max_displacement is not None:
        raise ValueError(
            f"the particles of {name} jump to the places of others, which a max_displacement would undo; leave it out."
        )
    if (traits.diffuses or traits.jumps) and budget.tolerance is not None:
        raise ValueError(f"the particles of {name} never come to rest; leave tolerance=None in the budget.")
    _check_needs(solver, traits, budget, temperature)
    if "samples" in traits.needs:
        _check_samples(target, particles, domain)
    finite = [concrete(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(particles)]
    if any(ok is not None and not ok for ok in finite):
        raise ValueError("particles hold NaN or infinity; drop or repair them before the transport.")
    if domain.restricts or domain.maps:
        inside = concrete(domain.contains(particles))
        if inside is not None and not inside.all():
            raise ValueError(
                f"{int((~inside).sum())} of {inside.size} particles start outside {type(domain).__name__} "
                f"(first: index {int(np.argmin(inside))}); bring them inside, "
                + ("strictly, as a map asks." if domain.maps else "e.g. by domain.restrict(particles).")
            )
    return particles


def _check_needs(solver: AbstractSolver, traits: Traits, budget: Budget, temperature: np.ndarray | None) -> None:
    """Refuse a budget with numbers that the solver or the flow chooses, or caps that it does not keep."""
    name, needs = type(solver).__name__, solver.needs
    if budget.step_size is None and not traits.unit_time and "step_size" not in needs.adapts | needs.chooses:
        raise ValueError(f"step_size=None, but {name} does not choose one; give a number, e.g. Budget(steps, 0.1).")
    if budget.step_size is not None and "step_size" in needs.chooses:
        raise ValueError(f"{name} chooses its steps by itself; write Budget(steps, None).")
    if traits.unit_time and budget.step_size is not None:
        sizes, steps = concrete(budget.step_size), concrete(budget.steps)
        if sizes is not None and steps is not None and steps > 0:
            total = float(np.sum(np.broadcast_to(sizes, (int(steps),)) if sizes.ndim == 0 else sizes))
            if abs(total - 1) > 1e-3:
                raise ValueError(
                    f"the flow reaches its target at time 1, but the steps sum to {total:g}; write Budget(steps, None) "
                    "for steps of 1/steps."
                )
    if not needs.caps and (budget.max_displacement is not None or budget.max_mmd is not None):
        raise ValueError(f"{name} cannot keep max_displacement or max_mmd; leave them out.")
    if not needs.rests and budget.tolerance is not None:
        raise ValueError(f"the particles of {name} never come to rest; leave tolerance=None in the budget.")
    if needs.exact and temperature is not None and (temperature == 0).any():
        raise ValueError(f"{name} divides by the temperature, so it must be > 0; got {temperature}.")


def check_log_weights(log_weights: Any, flow: AbstractFlow, particles: Particles) -> Any:
    """Return log weights (n,) whose weights are one on average, or None; refuse what are none."""
    if log_weights is None:
        return None
    count, dtype = check_particles(particles)
    dtype = working_dtype(dtype)
    weights = log_weights_array(log_weights, count, dtype)
    if not flow.traits.weighs:
        raise ValueError(
            f"{type(flow).__name__} does not know weights; resample by them first, or use SVGD(), Langevin() or "
            "Ascent()."
        )
    return weights - jax.nn.logsumexp(weights) + jnp.log(jnp.asarray(count, dtype))


def explain(flow: AbstractFlow, target: AbstractTarget, particles: Particles) -> None:
    """Raise the error of the target's own function at one particle, if that is why a transport failed.

    From within the transport it comes under a hundred lines of transformations. To look for it only after a failure
    costs nothing otherwise.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), particles)
    key = jax.random.key(0) if target.stochastic else None
    if "value" in target.knows:
        jax.eval_shape(target.value, one)
    if "gradient" in flow.traits.needs:
        temperature = jax.ShapeDtypeStruct((), jax.tree.leaves(particles)[0].dtype)
        jax.eval_shape(lambda x, a: target.gradient(x, a, key=key), one, temperature)


def _check_samples(target: AbstractTarget, particles: Particles, domain: AbstractDomain) -> None:
    """Refuse samples that differ from the particles in shape, or lie outside the domain."""
    samples = target.samples()
    shapes = [jax.tree.map(lambda leaf: leaf.shape[1:], tree) for tree in (samples, particles)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"one sample of the target has the shape {shapes[0]}, one particle {shapes[1]}; they must be equal."
        )
    inside = concrete(domain.contains(samples))
    if inside is not None and not inside.all():
        raise ValueError(
            f"{int((~inside).sum())} of {inside.size} samples of the target lie outside {type(domain).__name__}, where "
            "no particle can follow; drop them, or widen the domain."
        )


def check_key(flow: AbstractFlow, solver: AbstractSolver, target: AbstractTarget, key: Key | None) -> None:
    """Refuse a missing key, several keys, or something that is not a key."""
    if key is not None:
        check_one_key(key)
    if key is None and (flow.traits.stochastic or target.stochastic or solver.needs.random):
        who = solver if solver.needs.random and not flow.traits.stochastic else flow
        names = f"{type(who).__name__} toward {type(target).__name__}"
        raise ValueError(f"{names} is stochastic: pass key=jax.random.key(seed).")


def resolve(budget: Budget, particles: Particles, *, unit_time: bool) -> Budget:
    """Return the budget with all numbers in the particles' working dtype, and the scale as a row (1, d).

    A step size that is left to the method is 1/steps for a flow in unit time, else where an adaptation begins.
    """
    dtype = working_dtype(jax.tree.leaves(particles)[0].dtype)
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
    if budget.step_size is None:
        steps = jnp.maximum(jnp.asarray(budget.steps), 1).astype(dtype)
        step_size = 1 / steps if unit_time else jnp.asarray(0.1, dtype)
    else:
        step_size = budget.step_size.astype(dtype)
    cap = None if budget.max_displacement is None else budget.max_displacement.astype(dtype)
    caps = [None if x is None else x.astype(dtype) for x in (budget.tolerance, budget.max_mmd, budget.mmd_sigma)]
    return eqx.tree_at(
        lambda b: (b.step_size, b.temperature, b.max_displacement, b.scale, b.tolerance, b.max_mmd, b.mmd_sigma),
        budget,
        (step_size, temperature, cap, scale, *caps),
        is_leaf=lambda x: x is None,
    )
