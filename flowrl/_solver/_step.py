"""The loop over flow steps, the only one in the library, shared by every solver that moves one step at a time."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from flowrl._custom_types import Count, Key, Mask, PerParticle, Positions, Scalar
from flowrl._flow import AbstractFlow, TargetView
from flowrl._misc import row_norm
from flowrl._solution import RESULTS
from flowrl._solver._base import AbstractSolver, Problem, SolverOutput


class AbstractStepSolver(AbstractSolver):
    """A solver that defines one step; the loop over the budget, the domain and the caps are shared.

    `save` takes increasing step counts within 0 and the static number of steps. A run that stops early leaves its last
    particles in every later slot.
    """

    @abc.abstractmethod
    def init(self, positions: Positions) -> PyTree:
        """Return the state before the first step.

        Args:
            positions: z, (n, d).
        """

    @abc.abstractmethod
    def step(
        self,
        flow: AbstractFlow,
        view: TargetView,
        positions: Positions,
        alive: Mask,
        state: PyTree,
        step_size: Scalar,
        key: Key | None,
    ) -> tuple[Positions, PyTree, Mask, Any]:
        """Propose one step.

        Args:
            flow: the velocity field.
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            state: from `init` or the previous step.
            step_size: ε.
            key: randomness of this step for stochastic flows, else None.

        Returns:
            The proposed move of z (n, d), the next state, who is still alive, and a member of `flowrl.RESULTS`:
            successful, or why the step failed. Frozen particles stay, whatever is proposed for them.
        """

    def begin(self, problem: Problem) -> "Progress":
        """Return the progress before the first step.

        Args:
            problem: flow, view, budget and start.
        """
        start = problem.coordinates(problem.start)
        zero = jnp.zeros((), start.dtype)
        nobody = jnp.zeros(start.shape[0], bool)
        return Progress(
            step=jnp.zeros((), int),
            coordinates=start,
            alive=jnp.all(jnp.isfinite(start), axis=1),
            state=self.init(start / problem.view.scale),
            time=zero,
            path=jnp.zeros(start.shape[0], start.dtype),
            clipped=zero,
            capped=nobody,
            checked=None if problem.budget.max_mmd is None else (start, jnp.zeros((), int)),
            result=_codes.successful,
        )

    def advance(self, problem: Problem, progress: "Progress") -> "Progress":
        """Take one step: propose, restrict to the domain, pull back to the cap, freeze what is not finite.

        Args:
            problem: flow, view, budget and start.
            progress: where the last step led.
        """
        view, step_size, key = problem.at(progress.step)
        scale, before = view.scale, progress.coordinates
        move, state, alive, result = self.step(
            problem.flow, view, before / scale, progress.alive, progress.state, step_size, key
        )
        if jnp.shape(move) != before.shape:
            raise ValueError(
                f"{type(self).__name__}.step proposed a move of shape {jnp.shape(move)}; expected {before.shape}."
            )
        proposed = before + scale * move
        # Checked before the domain is applied: a projection would turn an overflow into a point on a face.
        alive = alive & jnp.all(jnp.isfinite(proposed), axis=1)
        proposed, clipped, capped = problem.restrict(proposed)
        alive = alive & jnp.all(jnp.isfinite(proposed), axis=1)
        coordinates = jnp.where(alive[:, None], proposed, before)  # here the particles move
        moved = jax.lax.stop_gradient(row_norm((coordinates - before) / scale))
        advanced = Progress(
            step=progress.step + 1,
            coordinates=coordinates,
            alive=alive,
            state=state,
            time=progress.time + step_size,
            path=progress.path + moved,
            clipped=progress.clipped + jnp.mean((clipped & alive).astype(scale.dtype)),
            capped=capped & alive,
            checked=progress.checked,
            # The first failure is the one reported.
            result=_codes.where(progress.result == _codes.successful, result, progress.result),
        )
        return _checked(problem, advanced, moved, step_size)

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
        return SolverOutput(progress.coordinates, progress.alive, result, stats, None)

    def solve(self, problem: Problem, save: Sequence[int] | None) -> SolverOutput:
        bound, steps = problem.budget.bound, problem.budget.steps
        slots, saved = _slots(save, bound)
        initial = self.begin(problem)
        trajectory = jnp.broadcast_to(initial.coordinates, (saved, *initial.coordinates.shape))

        def body(carry: tuple[Progress, Array]) -> tuple[Progress, Array]:
            progress = self.advance(problem, carry[0])
            # A set that an MMD cap sent back to where it last was allowed takes the slots in between with it.
            certain = progress.step if progress.checked is None else progress.checked[1]
            returned = progress.result == _codes.mmd_reached
            later = slots >= jnp.where(returned, certain, progress.step)
            return progress, jnp.where(later[:, None, None], progress.coordinates, carry[1])

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
        coordinates: y, (n, d).
        alive: particles that were never frozen.
        state: the solver's own.
        time: sum of the step sizes so far.
        path: length that each particle has travelled.
        clipped: sum over steps of the fraction of particles that the domain stopped.
        capped: particles that the last step's cap pulled back.
        checked: coordinates and step at the last check of the MMD cap, or None without one.
        result: `flowrl.RESULTS.successful` as long as nothing stops the transport.
    """

    step: Count
    coordinates: Positions
    alive: Mask
    state: Any
    time: Scalar
    path: PerParticle
    clipped: Scalar
    capped: Mask
    checked: tuple[Positions, Count] | None
    result: Any


_codes: Any = RESULTS  # the members of an Equinox enumeration are unknown to type checkers


def _checked(problem: Problem, progress: Progress, moved: PerParticle, step_size: Scalar) -> Progress:
    """Stop a set that no longer moves, or that has come too far from its start by the maximum mean discrepancy."""
    budget = problem.budget
    if budget.tolerance is None and budget.max_mmd is None:
        return progress
    due = progress.step % budget.check_every == 0
    if budget.tolerance is not None:
        weight = progress.alive.astype(moved.dtype)
        speed = jnp.sqrt(jnp.sum(weight * moved**2) / jnp.maximum(jnp.sum(weight), 1))
        rests = due & (step_size > 0) & (speed <= budget.tolerance * step_size)
        result = _codes.where(rests, _codes.stationary, progress.result)
        progress = eqx.tree_at(lambda p: p.result, progress, result)
    if budget.max_mmd is not None:
        assert progress.checked is not None
        # The last step is always checked, so that what comes back is certified whatever `check_every`.
        due = due | (progress.step >= jnp.minimum(jnp.asarray(budget.steps), budget.bound).astype(progress.step.dtype))
        due = due | (progress.result != _codes.successful)
        too_far = due & ~(problem.mmd(progress.coordinates) <= budget.max_mmd)
        allowed, at = progress.checked
        coordinates = jnp.where(too_far, allowed, progress.coordinates)
        keep = due & ~too_far
        checked = (jnp.where(keep, coordinates, allowed), jnp.where(keep, progress.step, at))
        result = _codes.where(too_far, _codes.mmd_reached, progress.result)
        progress = eqx.tree_at(lambda p: (p.coordinates, p.checked, p.result), progress, (coordinates, checked, result))
    return progress


def _slots(save: Sequence[int] | None, bound: int) -> tuple[np.ndarray, int]:
    if save is None:
        return np.zeros(0, int), 0
    slots = np.asarray(save)
    fine = slots.ndim == 1 and slots.size and np.issubdtype(slots.dtype, np.integer)
    if not fine or (np.diff(slots) <= 0).any() or slots[0] < 0 or slots[-1] > bound:
        raise ValueError(f"save must be increasing step counts between 0 and {bound}; got {save}.")
    return slots, len(slots)
