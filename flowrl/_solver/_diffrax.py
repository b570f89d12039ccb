"""Continuous time: a flow as an ordinary or stochastic differential equation, integrated by diffrax."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow import AbstractStochasticFlow, noise_of, velocity_of
from flowrl._misc import check_count, refuse_checked_sharding, row_norm
from flowrl._solution import RESULTS
from flowrl._solver._base import AbstractSolver, Problem, SolverOutput
from flowrl._solver._needs import Needs

_NoProgress = diffrax.NoProgressMeter()
_codes: Any = RESULTS


class Diffrax(AbstractSolver):
    """The flow in continuous time, dx/dt = v(x) (or dx = v dt + noise dW), to the budget's time Σ ε.

    Step size control, adjoints, events and Brownian motion are diffrax's. The first step is the budget's first ε, for a
    flow in unit time one that diffrax finds; with `diffrax.ConstantStepSize()` all are the budget's. A temperature
    schedule holds for the time of its step. For deterministic flows `max_displacement` and `max_mmd` are events,
    located by root finding, and `tolerance` is `diffrax.steady_state_event`; `check_every` is refused.

    Diffusions take a solver of stochastic equations and a constant step size, and no caps. If their noise is additive,
    as Langevin's is, any will do (`diffrax.ShARK()`, `diffrax.SRA1()`); else `diffrax.Euler()`, since the others need
    commutative noise or integrate in Stratonovich's sense, and the flows here are meant in Itô's.

    `save` takes increasing times >= 0; after the budget's time, or an event, the particles stay where they are.

    Attributes:
        solver: how one step is taken.
        controller: how long it is.
        adjoint: how reverse mode goes back through it.
        max_steps: bound on the number of steps, accepted and rejected; beyond it the result is `max_steps_reached`.
        progress_meter: e.g. `diffrax.TqdmProgressMeter()`.

    Example:
        ```python
        import diffrax
        import jax
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        start = 3 + jax.random.normal(jax.random.key(0), (50, 2))
        solver = flowrl.Diffrax(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-4, atol=1e-6))
        solution = flowrl.transport(target, start, flowrl.Budget(100, 0.2), solver=solver)
        ```

    ??? cite "Source"
        Kidger, *On Neural Differential Equations*, PhD thesis, Oxford 2021 (diffrax).
    """

    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    controller: diffrax.AbstractStepSizeController = diffrax.PIDController(rtol=1e-3, atol=1e-6)
    adjoint: diffrax.AbstractAdjoint = diffrax.RecursiveCheckpointAdjoint()
    max_steps: int = eqx.field(static=True, default=4096)
    progress_meter: diffrax.AbstractProgressMeter = _NoProgress

    def __check_init__(self):
        for name, kind, hint in (
            ("solver", diffrax.AbstractSolver, "diffrax.Tsit5()"),
            ("controller", diffrax.AbstractStepSizeController, "diffrax.PIDController(rtol=1e-3, atol=1e-6)"),
            ("adjoint", diffrax.AbstractAdjoint, "diffrax.RecursiveCheckpointAdjoint()"),
            ("progress_meter", diffrax.AbstractProgressMeter, "diffrax.TqdmProgressMeter()"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be diffrax's, such as {hint}, got {getattr(self, name)!r}.")
        check_count("max_steps", self.max_steps)

    @property
    def needs(self) -> Needs:
        """Any noise for `diffrax.Euler`; additive noise for other solvers of stochastic equations; else none."""
        sorts = (diffrax.AbstractItoSolver, diffrax.AbstractStratonovichSolver)
        additive = "additive" if isinstance(self.solver, sorts) else "none"
        noise = "any" if isinstance(self.solver, diffrax.Euler) else additive
        return Needs(noise=noise, unit_time=True, restriction=False)

    def solve(self, problem: Problem, save: Any) -> SolverOutput:
        budget, scale = problem.budget, problem.view.scale
        assert budget.step_size is not None  # filled in by `resolve`
        refuse_checked_sharding("Diffrax", problem)
        if budget.check_every > 1:
            raise ValueError("check_every counts steps, and Diffrax watches the caps all the time: leave it out.")
        given = problem.coordinates(problem.start) / scale
        present = _present(problem)
        # One NaN would make the norm NaN by which diffrax judges a step; that particle stays, the others go on.
        start = jnp.where(present[:, None], given, 0)
        ends = problem.ends()
        total = ends[-1] if ends.size else jnp.zeros((), start.dtype)
        sizes = jnp.atleast_1d(budget.step_size)
        first = sizes[jnp.argmax(sizes > 0)]  # a warm-up may begin at zero
        terms, stochastic = self._terms(problem, total)
        events, reasons = _events(problem)
        if stochastic and isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController):
            raise ValueError(
                "the noise of a diffusion is resolved for steps of the budget's size: give "
                "Diffrax(..., controller=diffrax.ConstantStepSize())."
            )
        if stochastic and events:
            raise ValueError(
                "a displacement cap, an MMD cap or a tolerance is an event, which has no meaning along a diffusion's "
                "rough path; leave them out, or use Euler()."
            )
        controller: Any = self.controller
        scheduled = budget.temperature is not None and budget.temperature.ndim
        adaptive = isinstance(self.controller, diffrax.AbstractAdaptiveStepSizeController)
        jumps = bool(scheduled) or problem.view.target.stochastic
        if not adaptive and ends.size and (jumps or budget.step_size.ndim):
            controller = _BudgetSteps(ends)
        if jumps and ends.size and not stochastic:
            # The velocity jumps where the temperature or the minibatch does, and no step should straddle that.
            controller = diffrax.ClipStepSizeController(controller if adaptive else _Longest(), jump_ts=ends)
        # The whole unit of time at once would overflow within the first step, from which no controller comes back.
        found = problem.flow.traits.unit_time and adaptive
        times = _times(save, start.dtype)
        times = None if times is None else jnp.minimum(times, total)
        saves = [diffrax.SubSaveAt(t1=True)] + ([] if times is None else [diffrax.SubSaveAt(ts=times)])
        # Diffrax mixes dtypes and ranks inside; what goes in and comes out has the particles' dtype.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution: Any = diffrax.diffeqsolve(
                terms,
                self.solver,
                t0=jnp.zeros((), start.dtype),
                t1=total,
                dt0=None if found else jnp.minimum(first, total),
                y0=start,
                args=problem,
                stepsize_controller=controller,
                saveat=diffrax.SaveAt(subs=saves),
                event=diffrax.Event(tuple(events), optx.Newton(1e-6, 1e-6)) if events else None,
                adjoint=self.adjoint,
                max_steps=self.max_steps,
                progress_meter=self.progress_meter,
                throw=False,
            )
        end = solution.ys[0][-1].astype(start.dtype)
        finite = present & problem.finite(end * scale)
        # What the root finder leaves above `max_displacement` is pulled back to it, so the cap holds exactly.
        end = problem.restrict(jnp.where(finite[:, None], end, given) * scale)[0] / scale
        _, alive = velocity_of(problem.flow, _at_time(problem, total), end, finite)
        result = RESULTS.promote(solution.result)
        landed = solution.result == diffrax.RESULTS.event_occurred
        for mask, reason in zip(solution.event_mask or (), reasons, strict=True):
            # Where an event could not be located the result says so already.
            result = _codes.where(mask & landed, reason, result)
        nothing = jnp.zeros((), start.dtype)
        reached = jnp.minimum(solution.ts[0][-1].astype(start.dtype), total)
        stats = {
            "steps": solution.stats["num_accepted_steps"],
            "time": reached,
            # Dense output would be needed for it, and its length is that of a polynomial.
            "path_length": jnp.full_like(nothing, jnp.nan),
            "fraction_at_cap": nothing if budget.max_displacement is None else _at_cap(problem, end * scale),
            "fraction_clipped": nothing,
        }
        trajectory = None
        if times is not None:
            # Diffrax leaves infinity at times after an event.
            known = (times < reached)[:, None, None] & present[None, :, None]
            saved = jnp.where(known, solution.ys[1].astype(start.dtype), end[None])
            trajectory = jax.vmap(lambda y: problem.restrict(y * scale)[0])(saved)
        return SolverOutput(end * scale, alive, result, stats, trajectory, problem.log_weights)

    def _terms(self, problem: Problem, total: Scalar) -> tuple[Any, bool]:
        everyone = _present(problem)
        drift = diffrax.ODETerm(_velocity(everyone))
        if not problem.flow.traits.diffuses:
            return drift, False
        shape = jax.ShapeDtypeStruct((everyone.shape[0], problem.view.scale.shape[1]), problem.view.scale.dtype)
        least: Any = getattr(self.solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
        areas = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea, diffrax.SpaceTimeTimeLevyArea)
        area = next(area for area in areas if issubclass(area, least))
        length = jnp.where(total > 0, total, 1)
        assert problem.budget.step_size is not None
        sizes = problem.budget.step_size
        least_size = jnp.min(jnp.where(sizes > 0, sizes, jnp.inf))
        motion = diffrax.VirtualBrownianTree(
            jnp.zeros_like(length),
            length,
            # Below the smallest step that is taken; a path is resolved no further than this.
            tol=jnp.where(least_size < jnp.inf, least_size, length) / 4,
            shape=shape,
            key=_brownian_key(problem),
            levy_area=area,
        )
        return diffrax.MultiTerm(drift, diffrax.ControlTerm(_diffusion(everyone, shape), motion)), True


class _BudgetSteps(diffrax.AbstractStepSizeController):
    """The budget's own steps, those of size zero left out; `diffrax.StepTo` refuses those, and a traced number."""

    ends: Array

    def wrap(self, direction: Any) -> "_BudgetSteps":
        del direction  # a budget's time never runs back
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Any]:
        del terms, t1, y0, dt0, args, func, error_order
        return self._next(t0), None

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        del t0, y0, y1_candidate, args, y_error, error_order
        return True, t1, self._next(t1), False, controller_state, diffrax.RESULTS.successful

    def _next(self, t: Any) -> Any:
        later = jnp.searchsorted(self.ends, t, side="right")
        return self.ends[jnp.minimum(later, self.ends.shape[0] - 1)]


class _Longest(diffrax.AbstractAdaptiveStepSizeController):
    """Steps as long as they may be: clipped at the ends of the budget's steps, they are the budget's.

    The tolerances are those of implicit solvers that do not bring their own.
    """

    rtol: Any = 1e-3
    atol: Any = 1e-6
    norm: Any = optx.rms_norm

    def wrap(self, direction: Any) -> "_Longest":
        del direction
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Any]:
        del terms, t0, y0, dt0, args, func, error_order
        return t1, t1

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> tuple[Any, Any, Any, Any, Any, Any]:
        del t0, y0, y1_candidate, args, y_error, error_order
        return True, t1, controller_state, False, controller_state, diffrax.RESULTS.successful


def _present(problem: Problem) -> Mask:
    """Return who takes part: the particles that start finite, in a slot that is not empty."""
    finite = jnp.all(jnp.isfinite(problem.coordinates(problem.start)), axis=1)
    return finite if problem.log_weights is None else finite & (problem.log_weights > -jnp.inf)


def _at_cap(problem: Problem, coordinates: Positions) -> Scalar:
    """Return the share of particles that are at the displacement cap, as near as the root finder lands."""
    cap = problem.budget.max_displacement
    assert cap is not None
    return jnp.mean((problem.displacement(coordinates) >= (1 - 1e-4) * cap).astype(coordinates.dtype))


def _brownian_key(problem: Problem) -> Key:
    assert problem.key is not None  # `check_key` has seen to it
    # Apart from the keys of single steps, which are folded from small numbers.
    return jr.fold_in(problem.key, 2**31 - 1)


def _at_time(problem: Problem, t: Scalar):
    """Return the view of the step whose time holds t."""
    step = jnp.minimum(jnp.sum(problem.ends() <= t), max(problem.budget.bound - 1, 0))
    return problem.at(step)[0]


def _velocity(everyone: Mask) -> Callable[[Any, Positions, Problem], Positions]:
    def velocity(t: Any, z: Positions, problem: Problem) -> Positions:
        return velocity_of(problem.flow, _at_time(problem, t), z, everyone)[0]

    return velocity


def _diffusion(everyone: Mask, shape: jax.ShapeDtypeStruct) -> Callable[[Any, Positions, Problem], Any]:
    def diffusion(t: Any, z: Positions, problem: Problem) -> lx.AbstractLinearOperator:
        flow, view = problem.flow, _at_time(problem, t)
        assert isinstance(flow, AbstractStochasticFlow)
        if flow.traits.additive:
            return lx.DiagonalLinearOperator(noise_of(flow, view, z, everyone, jnp.ones(shape.shape, shape.dtype)))
        return lx.FunctionLinearOperator(lambda white: noise_of(flow, view, z, everyone, white), shape)

    return diffusion


def _events(problem: Problem) -> tuple[list[Callable[..., Any]], list[Any]]:
    budget, events, reasons = problem.budget, [], []
    scale, max_mmd, max_displacement = problem.view.scale, budget.max_mmd, budget.max_displacement
    if budget.tolerance is not None:

        def rms(x: Float[Array, "n d"]) -> Scalar:
            return jnp.sqrt(jnp.mean(row_norm(x) ** 2))

        at_rest: Any = budget.tolerance
        events.append(diffrax.steady_state_event(rtol=0.0, atol=at_rest, norm=rms))
        reasons.append(_codes.stationary)
    if max_mmd is not None:

        def discrepancy(t: Any, y: Positions, args: Any, **_: Any) -> Scalar:
            del t, args
            # A hair below, so that what the root finder leaves above does not break the cap.
            return problem.mmd(y * scale) - (1 - 1e-4) * max_mmd

        events.append(discrepancy)
        reasons.append(_codes.mmd_reached)
    if max_displacement is not None:

        def displacement(t: Any, y: Positions, args: Any, **_: Any) -> Scalar:
            del t, args
            moved = problem.displacement(y * scale)
            return jnp.max(jnp.where(jnp.isfinite(moved), moved, 0)) - max_displacement

        events.append(displacement)
        reasons.append(_codes.displacement_reached)
    if scale.dtype != jnp.result_type(float):
        events = [_in_default_precision(event) for event in events]
    return events, reasons


def _in_default_precision(event: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same event in the precision of a Python float: diffrax's zero has it where an event is not due."""

    def condition(t: Any, y: Positions, args: Any, **rest: Any) -> Scalar:
        value = jnp.asarray(event(t, y, args, **rest))
        if jnp.issubdtype(value.dtype, jnp.bool_):
            # The sign changes with the first step after which it is true. There the root is, by a slope of one, as
            # diffrax has it for an event that is true or false.
            value = jnp.where(value & (t > 0), 0, 1) + (t - jax.lax.stop_gradient(t))
        return value.astype(jnp.result_type(float))

    return condition


def _times(save: Any, dtype: Any) -> Float[Array, " saved"] | None:
    if save is None:
        return None
    if isinstance(save, diffrax.SaveAt):
        raise ValueError("save takes the times themselves, such as save=(0.0, 0.5, 1.0), and no diffrax.SaveAt.")
    times = np.asarray(save, float)
    if times.ndim != 1 or not times.size or (np.diff(times) <= 0).any() or times[0] < 0:
        raise ValueError(f"save must be increasing times >= 0; got {save}.")
    return jnp.asarray(times, dtype)
