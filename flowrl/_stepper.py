"""The stepping interface, for loops of the user's own."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from flowrl._budget import Budget
from flowrl._custom_types import Key, Particles
from flowrl._solution import RESULTS, Solution
from flowrl._solver import AbstractStepSolver, Problem, Progress
from flowrl._target import AbstractTarget
from flowrl._transport import Transport, make_problem, make_solution
from flowrl._validation import check, check_key, resolve


class State(NamedTuple):
    """Where a transport stands between two steps.

    Attributes:
        particles: the set now, leaves (n, ...).
        start: the set before the first step.
        progress: what the next step starts from.
    """

    particles: Particles
    start: Particles
    progress: Progress


class Stepper(eqx.Module):
    """A transport one step at a time, for loops of your own; the steps are those of `flowrl.transport`.

    A state whose budget is spent stays as it is, however often it is stepped. With the same key at every step the two
    agree to rounding. The two methods have the signatures of a blackjax algorithm, so
    `blackjax.util.run_inference_algorithm` and its progress bar run a `Stepper` as it stands.

    Attributes:
        target: the density to move toward.
        budget: how far the particles may travel.
        method: flow, solver and domain; the solver must be one that steps.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        stepper = flowrl.Stepper(target, flowrl.Budget(steps=50, step_size=0.2))
        state = stepper.init(3 + jax.random.normal(jax.random.key(0), (20, 2)))
        for _ in range(10):
            state, info = stepper.step(None, state)
        ```
    """

    target: AbstractTarget
    budget: Budget
    method: Transport = Transport()  # noqa: RUF009  (immutable)

    def __check_init__(self):
        if not isinstance(self.method, Transport):
            raise TypeError(f"method must be a flowrl.Transport(flow, solver, domain), got {self.method!r}.")
        if not isinstance(self.method.solver, AbstractStepSolver):
            raise TypeError(
                f"{type(self.method.solver).__name__} integrates a whole budget at once, not step by step; use Euler() "
                "or Optax(...)."
            )

    def init(self, particles: Particles, rng_key: Key | None = None) -> State:
        """Return the state before the first step.

        Args:
            particles: the set to move, leaves (n, ...); inside the domain.
            rng_key: randomness of solvers that draw at the start; else unused. Drivers such as blackjax's pass one.

        Raises:
            TypeError: particles, target or budget are of the wrong kind.
            ValueError: a concrete argument is out of range, or the parts do not go together.
        """
        if self.method.solver.needs.random:
            check_key(self.method.flow, self.method.solver, self.target, rng_key)
        particles = check(self.method.flow, self.method.solver, self.method.domain, self.target, particles, self.budget)
        return _begin(self, particles, rng_key)

    def step(self, rng_key: Key | None, state: State) -> tuple[State, Solution]:
        """Take one step, unless the budget is spent.

        Args:
            rng_key: randomness of this step; may be None if flow, solver and target are deterministic.
            state: from `init` or the step before.

        Returns:
            The next state, and the solution so far: what was spent since the start, and whether anything has stopped
            the transport. Its `values` are None; rank particles by `target.value`.

        Raises:
            ValueError: a stochastic flow or target without a key.
        """
        check_key(self.method.flow, self.method.solver, self.target, rng_key)
        return _step(self, rng_key, state)


@eqx.filter_jit
def _begin(stepper: Stepper, particles: Particles, key: Key | None) -> State:
    return State(particles, particles, _solver(stepper).begin(_problem(stepper, particles, key)))


@eqx.filter_jit
def _step(stepper: Stepper, key: Key | None, state: State) -> tuple[State, Solution]:
    solver = _solver(stepper)
    problem = _problem(stepper, state.start, key)
    last = jnp.minimum(jnp.asarray(stepper.budget.steps), stepper.budget.bound).astype(state.progress.step.dtype)
    more = (state.progress.step < last) & (state.progress.result == RESULTS.successful)
    progress = jax.lax.cond(more, lambda p: solver.advance(problem, p), lambda p: p, state.progress)
    solution = make_solution(problem, solver.finish(problem, progress), taken=progress.step > 0, valued=False)
    return State(solution.particles, state.start, progress), solution


def _problem(stepper: Stepper, start: Particles, key: Key | None) -> Problem:
    budget = resolve(stepper.budget, start, unit_time=stepper.method.flow.traits.unit_time)
    return make_problem(stepper.method, stepper.target, start, budget, key)


def _solver(stepper: Stepper) -> AbstractStepSolver:
    solver = stepper.method.solver
    assert isinstance(solver, AbstractStepSolver)  # checked when the stepper was made
    return solver
