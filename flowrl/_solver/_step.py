"""The loop over flow steps, the only one in the library, shared by every solver that moves one step at a time."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool

from flowrl._budget import Budget
from flowrl._custom_types import Count, Mask, PerParticle, Positions, Scalar
from flowrl._misc import row_norm, varying_as
from flowrl._solution import RESULTS
from flowrl._solver._base import AbstractSolver, Problem, SolverOutput
from flowrl._solver._ensemble import Ensemble, Step


class AbstractStepSolver(AbstractSolver):
    """A solver that defines one step; the loop over the budget, the domain and the caps are shared.

    `save` takes increasing step counts within 0 and the static number of steps. A run that stops early leaves its last
    particles in every later slot.
    """

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        """Return the ensemble before the first step, with what the solver keeps of particles and set; by default as is.

        Args:
            step: the first step.
            ensemble: where the particles start; `own` and `memory` are None.
        """
        del step
        return ensemble

    @abc.abstractmethod
    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        """Return the ensemble after one step: where its particles shall be, what they own, the memory of the set.

        The loop then brings particles back to the domain and the cap, and freezes those that are not finite.

        Args:
            step: the target at this step's temperature, ε, the key.
            ensemble: from `init` or the step before.
        """

    def stopped(self, ensemble: Ensemble, who: Mask) -> Ensemble:
        """Return the ensemble after the domain or the cap has brought some particles back; by default as it is.

        Args:
            ensemble: with particles where they were brought.
            who: those that were (n,).
        """
        del who
        return ensemble

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        """Return the time that a step takes; ε by default.

        Args:
            step: the step.
            ensemble: before it.
        """
        del ensemble
        return step.size

    def speed(self, step: Step, ensemble: Ensemble, moved: PerParticle) -> PerParticle:
        """Return the speed (n,) by which `tolerance` tells whether the set is at rest; by default |Δz| / ε.

        Args:
            step: the step.
            ensemble: before it.
            moved: |Δz|, the length of its move (n,).
        """
        del ensemble
        return moved / jnp.where(step.size > 0, step.size, 1)

    def extras(self, ensemble: Ensemble) -> dict[str, Any]:
        """Return what the solver learned, by name, for `Solution.extras`; nothing by default.

        Args:
            ensemble: at the end.
        """
        del ensemble
        return {}

    def begin(self, problem: Problem) -> "Progress":
        """Return the progress before the first step.

        Args:
            problem: flow, view, budget and start.
        """
        start = problem.coordinates(problem.start)
        zero = jnp.zeros((), start.dtype)
        nobody = jnp.zeros(start.shape[0], bool)
        log_weights = problem.log_weights
        if log_weights is None and self.needs.weighs:
            log_weights = jnp.zeros(start.shape[0], start.dtype)
        ensemble = Ensemble(start, problem.view.scale, jnp.all(jnp.isfinite(start), axis=1), log_weights)
        if log_weights is not None:
            ensemble = ensemble.replace(alive=ensemble.alive & (log_weights > -jnp.inf))
        step = _step(problem, jnp.zeros((), int), ensemble)
        if step.key is not None:
            # Apart from the keys of the steps, which are folded from small numbers.
            step = step.replace(key=jr.fold_in(step.key, 2**31 - 2))
        progress = Progress(
            step=jnp.zeros((), int),
            ensemble=self.init(step, ensemble),
            time=zero,
            path=jnp.zeros(start.shape[0], start.dtype),
            clipped=zero,
            capped=nobody,
            checked=None if problem.budget.max_mmd is None else (start, jnp.zeros((), int)),
            result=_codes.successful,
        )
        return varying_as(progress, problem, progress)

    def advance(self, problem: Problem, progress: "Progress") -> "Progress":
        """Take one step: propose, restrict to the domain, pull back to the cap, freeze what is not finite.

        Args:
            problem: flow, view, budget and start.
            progress: where the last step led.
        """
        before = progress.ensemble
        step = _step(problem, progress.step, before)
        proposed = self.step(step, before)
        _check_structure(self, before, proposed)
        # Checked before the domain is applied: a projection would turn an overflow into a point on a face.
        alive = proposed.alive & problem.finite(proposed.coordinates)
        coordinates, clipped, capped = proposed.coordinates, jnp.zeros_like(alive), jnp.zeros_like(alive)
        if not self.needs.stays:
            coordinates, clipped, capped = problem.restrict(coordinates)
        alive = alive & problem.finite(coordinates)
        coordinates = jnp.where(alive[:, None], coordinates, before.coordinates)  # here the particles move
        ensemble = proposed.replace(coordinates=coordinates, alive=alive, result=_codes.successful)
        if problem.view.domain.restricts or problem.budget.max_displacement is not None:
            ensemble = self.stopped(ensemble, clipped | capped)
        moved = jax.lax.stop_gradient(row_norm((coordinates - before.coordinates) / step.view.scale))
        advanced = Progress(
            step=progress.step + 1,
            ensemble=ensemble,
            time=progress.time + self.spent(step, before),
            path=progress.path + moved,
            clipped=progress.clipped + jnp.mean((clipped & alive).astype(moved.dtype)),
            capped=capped & alive,
            checked=progress.checked,
            # The first failure is the one reported.
            result=_codes.where(progress.result == _codes.successful, proposed.result, progress.result),
        )
        budget = problem.budget
        if budget.tolerance is not None:
            advanced = _rested(budget, advanced, step.size, jax.lax.stop_gradient(self.speed(step, before, moved)))
        return advanced if budget.max_mmd is None else _kept_near(problem, advanced)

    def finish(self, problem: Problem, progress: "Progress") -> SolverOutput:
        """Return the result of the steps taken so far.

        Args:
            problem: flow, view, budget and start.
            progress: where the last step led.
        """
        taken = jnp.maximum(progress.step, 1).astype(progress.time.dtype)
        stats = {
            "steps": progress.step,
            "time": progress.time,
            "path_length": jnp.mean(progress.path),
            "fraction_at_cap": jnp.mean(progress.capped.astype(progress.time.dtype)),
            "fraction_clipped": progress.clipped / taken,
        }
        unbounded = jnp.asarray(problem.budget.steps) > problem.budget.bound
        result = _codes.where(unbounded, _codes.max_steps_reached, progress.result)
        ensemble = progress.ensemble
        extras = self.extras(ensemble)
        return SolverOutput(ensemble.coordinates, ensemble.alive, result, stats, None, ensemble.log_weights, extras)

    def solve(self, problem: Problem, save: Sequence[int] | None) -> SolverOutput:
        bound, steps = problem.budget.bound, problem.budget.steps
        slots, saved = _slots(save, bound)
        initial = self.begin(problem)
        trajectory = jnp.broadcast_to(initial.ensemble.coordinates, (saved, *initial.ensemble.coordinates.shape))

        def body(carry: tuple[Progress, Array]) -> tuple[Progress, Array]:
            progress = varying_as(self.advance(problem, carry[0]), initial)
            # A set that an MMD cap sent back to where it last was allowed takes the slots in between with it.
            certain = progress.step if progress.checked is None else progress.checked[1]
            returned = progress.result == _codes.mmd_reached
            later = slots >= jnp.where(returned, certain, progress.step)
            return progress, jnp.where(later[:, None, None], progress.ensemble.coordinates, carry[1])

        def goes_on(progress: Progress) -> Bool[Array, ""]:
            return progress.result == _codes.successful

        carry = (initial, trajectory)
        stops = problem.budget.tolerance is not None or problem.budget.max_mmd is not None
        if not isinstance(steps, int):
            last = jnp.minimum(steps, bound).astype(initial.step.dtype)

            def more(carry: tuple[Progress, Array]) -> Bool[Array, ""]:
                unspent = carry[0].step < last
                return unspent & goes_on(carry[0]) if stops else unspent

            carry = jax.lax.while_loop(more, body, carry)
        elif stops:
            # Still a scan, so that reverse mode works: steps after the stop cost nothing, unless vmapped.
            carry, _ = jax.lax.scan(
                lambda c, _: (jax.lax.cond(goes_on(c[0]), body, lambda c: c, c), None), carry, length=steps
            )
        else:
            carry, _ = jax.lax.scan(lambda c, _: (body(c), None), carry, length=steps)
        progress, trajectory = carry
        output = self.finish(problem, progress)
        return eqx.tree_at(lambda m: m.trajectory, output, trajectory, is_leaf=lambda x: x is None) if saved else output


class Progress(eqx.Module):
    """Where a transport stands between two steps.

    Attributes:
        step: number of steps taken.
        ensemble: the particles, with all that belongs to them.
        time: sum of the step sizes so far.
        path: length that each particle has travelled.
        clipped: sum over steps of the fraction of particles that the domain stopped.
        capped: particles that the last step's cap pulled back.
        checked: coordinates and step at the last check of the MMD cap, or None without one.
        result: `flowrl.RESULTS.successful` as long as nothing stops the transport.
    """

    step: Count
    ensemble: Ensemble
    time: Scalar
    path: PerParticle
    clipped: Scalar
    capped: Mask
    checked: tuple[Positions, Count] | None
    result: Any


_codes: Any = RESULTS  # the members of an Equinox enumeration are unknown to type checkers


def _step(problem: Problem, index: Count, ensemble: Ensemble) -> Step:
    view, size, key = problem.at(index)
    if ensemble.log_weights is not None:
        # Of the living alone: a heavy one that is frozen would leave the others nothing.
        view = view.weighted(jnp.where(ensemble.alive, ensemble.log_weights, -jnp.inf))
    temperature = problem.budget.temperature
    unchanging = not problem.view.target.stochastic and (temperature is None or temperature.ndim == 0)
    return Step(problem, view, size, index, key, unchanging)


def _rested(budget: Budget, progress: Progress, step_size: Scalar, speed: PerParticle) -> Progress:
    """Stop a set that is at rest: the root mean square of its speeds is at most the tolerance."""
    assert budget.tolerance is not None
    due = progress.step % budget.check_every == 0
    weight = progress.ensemble.alive.astype(speed.dtype)
    if progress.ensemble.log_weights is not None:
        weight = weight * jnp.exp(progress.ensemble.log_weights)
    speed = jnp.sqrt(jnp.sum(weight * speed**2) / jnp.maximum(jnp.sum(weight), jnp.finfo(weight.dtype).tiny))
    rests = due & (step_size > 0) & (speed <= budget.tolerance)
    result = _codes.where(rests, _codes.stationary, progress.result)
    return eqx.tree_at(lambda p: p.result, progress, result)


def _kept_near(problem: Problem, progress: Progress) -> Progress:
    """Stop a set that has come too far from its start by the maximum mean discrepancy, where it last had not."""
    budget, coordinates = problem.budget, progress.ensemble.coordinates
    assert progress.checked is not None
    assert budget.max_mmd is not None
    # The last step is always checked, so that what comes back is certified whatever `check_every`.
    due = progress.step % budget.check_every == 0
    due = due | (progress.step >= jnp.minimum(jnp.asarray(budget.steps), budget.bound).astype(progress.step.dtype))
    due = due | (progress.result != _codes.successful)
    too_far = due & ~(problem.mmd(coordinates) <= budget.max_mmd)
    allowed, at = progress.checked
    coordinates = jnp.where(too_far, allowed, coordinates)
    keep = due & ~too_far
    checked = (jnp.where(keep, coordinates, allowed), jnp.where(keep, progress.step, at))
    result = _codes.where(too_far, _codes.mmd_reached, progress.result)
    return eqx.tree_at(
        lambda p: (p.ensemble.coordinates, p.checked, p.result), progress, (coordinates, checked, result)
    )


def _check_structure(solver: AbstractStepSolver, before: Ensemble, after: Any) -> None:
    """Refuse a step that does not return what the next one starts from, in words before JAX does in its own."""
    name = type(solver).__name__
    if not isinstance(after, Ensemble):
        raise TypeError(f"{name}.step gave a {type(after).__name__}; expected the flowrl.Ensemble after the step.")
    for part in ("coordinates", "alive", "log_weights", "own", "memory"):
        was, now = (
            jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), getattr(e, part)) for e in (before, after)
        )
        if was != now:
            raise ValueError(f"{name}.step changed the form of {part} from {was} to {now}; they must be equal.")


def _slots(save: Sequence[int] | None, bound: int) -> tuple[np.ndarray, int]:
    if save is None:
        return np.zeros(0, int), 0
    slots = np.asarray(save)
    fine = slots.ndim == 1 and slots.size and np.issubdtype(slots.dtype, np.integer)
    if not fine or (np.diff(slots) <= 0).any() or slots[0] < 0 or slots[-1] > bound:
        raise ValueError(f"save must be increasing step counts between 0 and {bound}; got {save}.")
    return slots, len(slots)
