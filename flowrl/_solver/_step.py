"""The loop over flow steps, the only one in the library, shared by every solver that moves one step at a time."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Count, Key, Mask, PerParticle, Positions, Scalar
from flowrl._flow import AbstractFlow, Field
from flowrl._misc import row_norm
from flowrl._solution import RESULTS
from flowrl._solver._base import AbstractSolver, March, Problem


class AbstractStepSolver(AbstractSolver):
    """A solver that says what one step does."""

    @abc.abstractmethod
    def init(self, positions: Positions) -> PyTree:
        """Give the state before the first step.

        Args:
            positions: z, (n, d).
        """

    @abc.abstractmethod
    def step(
        self,
        flow: AbstractFlow,
        field: Field,
        positions: Positions,
        alive: Mask,
        state: PyTree,
        step_size: Scalar,
        key: Key | None,
    ) -> tuple[Positions, PyTree, Mask]:
        """Propose one step.

        Args:
            flow: the velocity field.
            field: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            state: from `init` or the previous step.
            step_size: ε.
            key: randomness of this step for stochastic flows, else None.

        Returns:
            The proposed move of z (n, d), the next state, and who is still alive. Frozen particles stay, whatever is
            proposed for them.
        """

    def solve(self, problem: Problem, save: Sequence[int] | None) -> March:
        """March `steps` steps: propose, restrict to the domain, pull back to the cap, freeze what is not finite.

        Args:
            problem: flow, field, budget and start.
            save: increasing step counts at which to record the particles, each within 0 and the static number of
                steps; None records nothing.

        Raises:
            ValueError: `save` is not such a sequence.
        """
        bound, steps = problem.budget.bound, problem.budget.steps
        steps = steps if isinstance(steps, int) else jnp.minimum(steps, bound)
        slots, saved = _slots(save, bound)
        start = problem.coordinates(problem.start)
        everyone = jnp.ones(start.shape[0], bool)
        nobody, zero = jnp.zeros_like(everyone), jnp.zeros((), start.dtype)
        initial = _Carry(
            coordinates=start,
            alive=everyone & jnp.all(jnp.isfinite(start), axis=1),
            state=self.init(start / problem.field.scale),
            time=zero,
            path=jnp.zeros(start.shape[0], start.dtype),
            clipped=zero,
            capped=nobody,
            trajectory=jnp.broadcast_to(start, (saved, *start.shape)),
        )

        def body(l: int | Count, carry: _Carry) -> _Carry:
            field, step_size, key = problem.at(jnp.asarray(l))
            scale = field.scale
            move, state, alive = self.step(
                problem.flow, field, carry.coordinates / scale, carry.alive, carry.state, step_size, key
            )
            proposed = carry.coordinates + scale * move
            # Asked before the domain is: a projection would turn an overflow into a point on a face.
            alive = alive & jnp.all(jnp.isfinite(proposed), axis=1)
            proposed, clipped, capped = problem.restrict(proposed)
            alive = alive & jnp.all(jnp.isfinite(proposed), axis=1)
            coordinates = jnp.where(alive[:, None], proposed, carry.coordinates)
            moved = jax.lax.stop_gradient(row_norm((coordinates - carry.coordinates) / scale))
            stopped = jnp.mean((clipped & alive).astype(zero.dtype))
            # A run that stops early leaves its last particles in every later slot.
            later = (slots >= l + 1)[:, None, None]
            return _Carry(
                coordinates=coordinates,
                alive=alive,
                state=state,
                time=carry.time + step_size,
                path=carry.path + moved,
                clipped=carry.clipped + stopped,
                capped=capped & alive,
                trajectory=jnp.where(later, coordinates, carry.trajectory),
            )

        # A Python-int `steps` makes this a scan, an array a while loop.
        final = jax.lax.fori_loop(0, steps, body, initial)
        taken = jnp.asarray(steps)
        stats = {
            "steps": taken,
            "time": final.time,
            "path_length": jnp.mean(final.path),
            "fraction_at_cap": jnp.mean(final.capped.astype(zero.dtype)),
            "fraction_clipped": final.clipped / jnp.maximum(taken, 1).astype(zero.dtype),
        }
        trajectory = final.trajectory if saved else None
        stopped_early = jnp.asarray(problem.budget.steps) > bound
        codes: Any = RESULTS
        result = codes.where(stopped_early, codes.max_steps_reached, codes.successful)
        return March(final.coordinates, final.alive, result, stats, trajectory)


class _Carry(eqx.Module):
    coordinates: Positions
    alive: Mask
    state: Any
    time: Scalar
    path: PerParticle
    clipped: Scalar
    capped: Mask
    trajectory: Float[Array, "saved n d"]


def _slots(save: Sequence[int] | None, bound: int) -> tuple[np.ndarray, int]:
    if save is None:
        return np.zeros(0, int), 0
    slots = np.asarray(save)
    fine = slots.ndim == 1 and slots.size and np.issubdtype(slots.dtype, np.integer)
    if not fine or (np.diff(slots) <= 0).any() or slots[0] < 0 or slots[-1] > bound:
        raise ValueError(f"save must be increasing step counts between 0 and {bound}; got {save}.")
    return slots, len(slots)
