"""Keep a particle's move only if its value rose."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PyTree

from flowrl._custom_types import Count, Mask, PerParticle, Scalar
from flowrl._misc import check_fields
from flowrl._solver._ensemble import Ensemble, Step
from flowrl._solver._euler import Euler
from flowrl._solver._needs import Needs
from flowrl._solver._step import AbstractStepSolver


class _Own(NamedTuple):
    """What belongs to each particle: the inner solver's, its value, its step size over the budget's."""

    inner: PyTree
    value: PerParticle
    factor: PerParticle


class _Memory(NamedTuple):
    """What belongs to the set: the inner solver's, the mean share of moves kept so far, steps."""

    inner: PyTree
    kept: Scalar
    steps: Count


class Monotone(AbstractStepSolver):
    """A solver whose moves are kept only by particles whose value they raise, so that no particle ever gets worse.

    The value is the one by which particles are ranked (`Solution.values`): V of `Boltzmann` and `Tilted`, log p of
    `Density`. A particle that keeps its move goes on; one that does not stays, and its own step size halves, as long as
    the first share of the budget lasts. With `acceptance` a step that is kept grows again, so that the step sizes
    settle where that share of moves is kept (a Robbins-Monro rule for each particle). It maximises, it does not sample.

    `Solution.extras` has `acceptance`, the mean share of moves kept.

    Attributes:
        inner: the solver of which moves are kept.
        acceptance: the share of moves kept that step sizes adapt to, in (0, 1); None to halve them only.
        share: the first share of the budget in which step sizes change, in [0, 1].

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Boltzmann(lambda x: -jnp.sum(x**4))
        start = 3 * jax.random.normal(jax.random.key(0), (50, 2))
        method = dict(flow=flowrl.Ascent(), solver=flowrl.Monotone())
        solution = flowrl.transport(target, start, flowrl.Budget(20, 1.0), **method)  # a step of 1 would diverge
        assert (solution.values >= jax.vmap(target.value)(start)).all()
        ```

    ??? cite "Source"
        Dennis and Schnabel, *Numerical Methods for Unconstrained Optimization*, 1983, chapter 6 (backtracking).
    """

    inner: AbstractStepSolver = Euler()
    acceptance: float | None = eqx.field(static=True, default=None)
    share: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        if not isinstance(self.inner, AbstractStepSolver):
            raise TypeError(f"inner must be a solver that steps, such as Euler() or Optax(), got {self.inner!r}.")
        check_fields(self, shares=("share",))
        if self.acceptance is not None and not 0 < self.acceptance < 1:
            raise ValueError(f"Monotone: acceptance must be in (0, 1), got {self.acceptance}.")

    @property
    def needs(self) -> Needs:
        """What the inner solver needs, and the value of every particle."""
        needs = self.inner.needs
        return Needs(
            target=needs.target | {"value"},
            flows=needs.flows,
            energy=needs.energy,
            noise=needs.noise,
            restriction=needs.restriction,
            random=needs.random,
            exact=needs.exact,
            adapts=needs.adapts if self.acceptance is None else frozenset({"step_size"}),
            chooses=needs.chooses,
            caps=needs.caps,
            rests=needs.rests,
            stays=True,
        )

    def init(self, step: Step, ensemble: Ensemble) -> Ensemble:
        ensemble = self.inner.init(step, ensemble)
        value, finite = _values(step, ensemble)
        own = _Own(ensemble.own, value, jnp.ones_like(value))
        memory = _Memory(ensemble.memory, jnp.zeros((), value.dtype), jnp.zeros((), int))
        return ensemble.replace(own=own, memory=memory, alive=finite)

    def step(self, step: Step, ensemble: Ensemble) -> Ensemble:
        own, memory = ensemble.own, ensemble.memory
        before = ensemble.replace(own=own.inner, memory=memory.inner)
        proposed = self.inner.step(step, before)
        move = (proposed.coordinates - before.coordinates) / before.scale
        moved = before.moved(own.factor[:, None] * move)
        coordinates, _, _ = step.problem.restrict(moved.coordinates)
        moved = moved.replace(coordinates=coordinates, own=proposed.own, alive=proposed.alive)
        value, finite = _values(step, moved)
        kept = finite & (value > own.value)
        after = moved.where(kept, before)
        grow = 1.0 if self.acceptance is None else 2 ** ((1 - self.acceptance) / self.acceptance)
        factor = jnp.where(step.within(self.share), own.factor * jnp.where(kept, grow, 0.5), own.factor)
        mass = step.view.mass(ensemble.alive)
        mean = jnp.sum(jnp.where(kept, mass, 0)) / jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
        steps = memory.steps + 1
        memory = _Memory(proposed.memory, memory.kept + (mean - memory.kept) / steps.astype(mean.dtype), steps)
        own = _Own(after.own, jnp.where(kept, value, own.value), factor)
        return after.replace(own=own, memory=memory, alive=ensemble.alive, result=proposed.result)

    def spent(self, step: Step, ensemble: Ensemble) -> Scalar:
        own, memory = ensemble.own, ensemble.memory
        time = self.inner.spent(step, ensemble.replace(own=own.inner, memory=memory.inner))
        mass = step.view.mass(ensemble.alive)
        return time * jnp.sum(mass * own.factor) / jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)

    def extras(self, ensemble: Ensemble) -> dict[str, Any]:
        own, memory = ensemble.own, ensemble.memory
        inner = self.inner.extras(ensemble.replace(own=own.inner, memory=memory.inner))
        return inner | {"acceptance": memory.kept}


def _values(step: Step, ensemble: Ensemble) -> tuple[PerParticle, Mask]:
    """Return the value of every particle, in the dtype in which they move; the target's may be another."""
    value, finite = step.view.ask("value", ensemble.positions, ensemble.alive)
    return value.astype(ensemble.coordinates.dtype), finite
