"""What a solver is given, what it returns, and the two ways to write one.

`AbstractSolver.solve` integrates the whole budget (an adaptive integrator brings its own loop); `AbstractStepSolver`
defines one step and shares the loop of `flowrl._solver._step`.
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float

from flowrl._budget import Budget
from flowrl._custom_types import Key, Mask, Particles, PerParticle, Positions, Scalar
from flowrl._flow import AbstractFlow, TargetView
from flowrl._kernel import RBF, FixedBandwidth
from flowrl._misc import ravel, row_norm, scaled_row_norm, widened
from flowrl._solver._needs import Needs


class Problem(eqx.Module):
    """One transport, ready for a solver: the flow, its target, the budget in arrays, and where the particles start.

    Attributes:
        flow: the velocity field.
        view: the target; its temperature and keys are set for each step by `at`.
        budget: all numbers in that dtype too, `temperature` filled in.
        start: x_0, the particles as the user gave them, in the dtype of the computation.
        key: randomness of the whole transport, or None.
        log_weights: of the particles at the start (n,), the largest sum of weights n; None if all weigh the same.
    """

    flow: AbstractFlow
    view: TargetView
    budget: Budget
    start: Particles
    key: Key | None
    log_weights: PerParticle | None = None

    def at(self, step: Array) -> tuple[TargetView, Float[Array, ""], Key | None]:
        """Return the view, the step size and the solver's own key of one step; beyond the last step, those of the last.

        Args:
            step: index l = 0, 1, ...
        """
        assert self.budget.temperature is not None  # filled in by `resolve`, as the step size is
        assert self.budget.step_size is not None
        temperature, step_size = _entry(self.budget.temperature, step), _entry(self.budget.step_size, step)
        target_key = flow_key = solver_key = None
        if self.key is not None:
            target_key, flow_key, solver_key = jr.split(jr.fold_in(self.key, step), 3)
        # Keys go only to what declares randomness: code that works with a key at hand would fail without.
        target_key = target_key if self.view.target.stochastic else None
        flow_key = flow_key if self.flow.traits.random else None
        view = eqx.tree_at(
            lambda f: (f.temperature, f.key, f.velocity_key),
            self.view,
            (temperature, target_key, flow_key),
            is_leaf=lambda x: x is None,
        )
        return view, step_size, solver_key

    def ends(self) -> Float[Array, " steps"]:
        """Return the time Σ ε at the end of every step; that of the last for steps beyond a traced number."""
        assert self.budget.step_size is not None
        sizes = jnp.broadcast_to(self.budget.step_size, (self.budget.bound,))
        taken = jnp.arange(self.budget.bound) < jnp.asarray(self.budget.steps)
        return jnp.cumsum(jnp.where(taken, sizes, 0))

    def coordinates(self, particles: Particles) -> Positions:
        """Return the unconstrained coordinates y (n, d) of particles; z = y / scale.

        Args:
            particles: leaves (n, ...), in the user's coordinates.
        """
        domain = self.view.domain
        return ravel(eqx.filter_vmap(domain.inverse)(particles) if domain.maps else particles)[0]

    def particles(self, coordinates: Positions) -> Particles:
        """Return particles in the user's coordinates from unconstrained ones, within the cap.

        Args:
            coordinates: y, (n, d).
        """
        particles = self._mapped(coordinates)
        if not self.view.domain.maps or self.budget.max_displacement is None:
            return particles
        # The way to y and back rounds by more than the cap gives away, so mapped particles are capped once more.
        return self.view.unravel(self._capped(ravel(particles)[0])[0])

    def restrict(self, coordinates: Positions) -> tuple[Positions, Mask, Mask]:
        """Apply the domain and the displacement cap to proposed coordinates.

        Args:
            coordinates: y, (n, d), as a step proposes them.

        Returns:
            Allowed coordinates, who was stopped by the domain, and who was pulled back by the cap.
        """
        domain = self.view.domain
        nobody = jnp.zeros(coordinates.shape[0], bool)
        clipped = capped = nobody
        if domain.restricts:
            inside = ravel(domain.restrict(self.view.unravel(coordinates)))[0]
            clipped = jnp.any(inside != coordinates, axis=1)
            coordinates = inside
        if self.budget.max_displacement is not None:
            pulled, capped = self._capped(ravel(self._mapped(coordinates))[0])
            # The segment lies inside a convex domain up to rounding; restricting once more only shortens the move.
            pulled = self.coordinates(domain.restrict(self.view.unravel(pulled)))
            coordinates = jnp.where(capped[:, None], pulled, coordinates)
        return coordinates, clipped, capped

    def _mapped(self, coordinates: Positions) -> Particles:
        domain = self.view.domain
        particles = self.view.unravel(coordinates)
        return eqx.filter_vmap(domain.forward)(particles) if domain.maps else particles

    def _capped(self, positions: Positions) -> tuple[Positions, Mask]:
        """Pull x (n, d) back to the cap, on the segment to its start; return also who was beyond it."""
        cap, start = self.budget.max_displacement, ravel(self.start)[0]
        assert cap is not None
        move = positions - start
        distance = scaled_row_norm(move / self.view.scale)
        # A few units of rounding are given away so that the certificate |x - x_0| <= D survives float arithmetic.
        eps = jnp.finfo(start.dtype).eps
        capped = distance > cap * (1 - 4 * eps)
        pulled = start + move * (cap * (1 - 8 * eps) / jnp.where(capped, distance, 1))[:, None]
        # One unit in the last place back toward the start: far from the origin, rounding the sum may have added it.
        constant = jax.lax.stop_gradient(pulled)
        pulled = pulled + (jnp.nextafter(constant, jax.lax.stop_gradient(start)) - constant)
        return jnp.where(capped[:, None], pulled, positions), capped

    def mmd(self, coordinates: Positions) -> Scalar:
        """Return the maximum mean discrepancy of the particles to their start, in units of the budget's `scale`.

        The kernel is Gaussian, its σ the budget's `mmd_sigma`, or the median rule's at the start. Particles that did
        not start finite are left out.

        Args:
            coordinates: y, (n, d).
        """
        start = ravel(self.start)[0] / self.view.scale
        counted = jnp.all(jnp.isfinite(start), axis=1)
        start = jnp.where(counted[:, None], start, 0)
        now = jnp.where(counted[:, None], ravel(self.particles(coordinates))[0] / self.view.scale, 0)
        sigma = self.budget.mmd_sigma
        kernel = RBF() if sigma is None else RBF(FixedBandwidth(sigma))
        kernel = kernel.fitted(start, counted)
        mass = counted.astype(start.dtype)
        if self.log_weights is not None:
            mass = mass * jnp.exp(self.log_weights)
        weights = mass / jnp.maximum(jnp.sum(mass), 1)

        def mean(x: Positions, y: Positions) -> Scalar:
            return jnp.sum(weights * kernel.apply(x, y, weights[:, None])[:, 0])

        return jnp.sqrt(jnp.maximum(mean(start, start) + mean(now, now) - 2 * mean(start, now), 0))

    def displacement(self, coordinates: Positions) -> PerParticle:
        """Return |x − x_0| / scale of each particle (n,).

        Args:
            coordinates: y, (n, d).
        """
        return self.displacement_of(self.particles(coordinates))

    def displacement_of(self, particles: Particles) -> PerParticle:
        """Return |x − x_0| / scale of each particle (n,).

        Args:
            particles: x, leaves (n, ...), in the user's coordinates.
        """
        move = (ravel(widened(particles))[0] - ravel(self.start)[0]) / self.view.scale
        return row_norm(move) if self.budget.max_displacement is None else scaled_row_norm(move)

    def finite(self, coordinates: Positions) -> Mask:
        """Return which particles are finite numbers, also in the dtype in which they are handed back (n,).

        Args:
            coordinates: y, (n, d).
        """
        dtype = self.view.dtype
        return jnp.all(jnp.isfinite(coordinates if dtype is None else coordinates.astype(dtype)), axis=1)

    def given(self) -> Particles:
        """Return x_0 in the dtype in which the user gave it."""
        return _cast(self.start, self.view.dtype)

    def delivered(self, coordinates: Positions) -> Particles:
        """Return particles in the user's coordinates and dtype, within the domain and the cap in that dtype too.

        Args:
            coordinates: y, (n, d).
        """
        domain, dtype = self.view.domain, self.view.dtype
        if dtype is None:
            return self.particles(coordinates)
        particles = domain.restrict(_cast(self.view.unravel(coordinates), dtype))
        particles = eqx.filter_vmap(domain.forward)(particles) if domain.maps else particles
        if self.budget.max_displacement is None:
            return particles
        # Where rounding has gone beyond the cap, the nearest numbers within it take their place, else the start.
        pulled, beyond = self._capped(ravel(widened(particles))[0])
        start = ravel(self.start)[0]
        rounded = pulled.astype(dtype)
        back = jnp.nextafter(rounded, start.astype(dtype))
        outward = jnp.abs(rounded.astype(start.dtype) - start) > jnp.abs(pulled - start)
        rounded = jnp.where(outward, back, rounded).astype(start.dtype)
        rounded = jnp.where(self._capped(rounded)[1][:, None], start, rounded)
        kept = _cast(self.view.unravel(rounded), dtype)
        return jax.tree.map(lambda far, near: jnp.where(_beside(beyond, near), near, far), particles, kept)


class SolverOutput(eqx.Module):
    """What a solver returns.

    Attributes:
        coordinates: y, (n, d), at the end.
        alive: particles that were never frozen.
        result: a member of `flowrl.RESULTS`.
        stats: `steps`, `time`, `path_length`, `fraction_at_cap`, `fraction_clipped`.
        trajectory: coordinates at the saved steps (saved, n, d), or None.
        log_weights: at the end (n,), or None if all particles weigh the same.
        extras: what the solver learned, by name.
    """

    coordinates: Positions
    alive: Mask
    result: Any
    stats: dict[str, Array]
    trajectory: Float[Array, "saved n d"] | None
    log_weights: PerParticle | None = None
    extras: dict[str, Any] = eqx.field(default_factory=dict)


class AbstractSolver(eqx.Module):
    """How a flow is integrated through its budget.

    Attributes:
        needs: what the solver asks of target, flow, domain and budget.
    """

    # Not a field: where it depends on a part it is a property, which type checkers would take for a missing argument.
    if TYPE_CHECKING:
        needs: ClassVar[Needs]
    else:
        needs: AbstractVar[Needs]

    @abc.abstractmethod
    def solve(self, problem: Problem, save: Any) -> SolverOutput:
        """Integrate the particles from `problem.start` to the end of the budget.

        Args:
            problem: flow, view, budget and start.
            save: where to record the trajectory, as the solver understands it; None for nowhere.
        """


def _cast(particles: Particles, dtype: Any) -> Particles:
    return particles if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), particles)


def _beside(mask: Mask, leaf: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))


def _entry(x: Array, step: Array) -> Array:
    return x if x.ndim == 0 else x[step]
