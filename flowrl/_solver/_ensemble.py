"""The particles with all that belongs to them, and one step as a solver sees it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PyTree

from flowrl._custom_types import Count, Key, Mask, PerParticle, Positions, Scalar
from flowrl._flow import AbstractFlow, TargetView, velocity_of
from flowrl._solution import RESULTS
from flowrl._solver._base import Problem
from flowrl._target import AbstractTarget

_codes: Any = RESULTS


class Ensemble(eqx.Module):
    """A set of particles between two steps, with all that belongs to it.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        pair = flowrl.Ensemble(jnp.zeros((2, 3)), jnp.ones((1, 3)), jnp.ones(2, bool), own=jnp.array([1.0, 2.0]))
        pair = pair.moved(jnp.ones((2, 3))).take(jnp.array([1, 1]))  # both are copies of the second one
        assert (pair.own == 2).all()
        ```

    Attributes:
        coordinates: y = scale · z, (n, d): where the particles are, exactly.
        scale: unit of length of each coordinate, (1, d).
        alive: particles that are not frozen. A frozen one stays where it is, whatever a step proposes for it.
        log_weights: log weights (n,), or None if all particles weigh the same.
        own: what belongs to each particle, a PyTree with leaves (n, ...): a momentum, a value.
        memory: what belongs to the set, a PyTree: the moments of an optimiser, an adapted step size.
        result: a member of `flowrl.RESULTS`: why the solver failed, if it did.
    """

    coordinates: Positions
    scale: Float[Array, "1 d"]
    alive: Mask
    log_weights: PerParticle | None = None
    own: PyTree = None
    memory: PyTree = None
    result: Any = eqx.field(default_factory=lambda: _codes.successful)

    @property
    def positions(self) -> Positions:
        """The positions z (n, d) in the coordinates of the flow."""
        return self.coordinates / self.scale

    def replace(self, **changes: Any) -> "Ensemble":
        """Return the ensemble with some attributes changed.

        Args:
            changes: new values by name.
        """
        return dataclasses.replace(self, **changes)

    def moved(self, move: Positions, alive: Mask | None = None) -> "Ensemble":
        """Return the ensemble with every particle moved.

        Args:
            move: change of z, (n, d).
            alive: who is still alive after it; None for no change.

        Raises:
            ValueError: the move does not have the shape of the particles.
        """
        if jnp.shape(move) != self.coordinates.shape:
            raise ValueError(f"a step proposed a move of shape {jnp.shape(move)}; expected {self.coordinates.shape}.")
        coordinates = self.coordinates + self.scale * move
        return self.replace(coordinates=coordinates, alive=self.alive if alive is None else alive)

    def take(self, ancestors: Int[Array, " n"]) -> "Ensemble":
        """Return the ensemble with every particle in the place of its ancestor: an exact copy, with all that it owns.

        Args:
            ancestors: index of each particle's ancestor (n,).
        """
        own = jax.tree.map(lambda leaf: leaf[ancestors], self.own)
        return self.replace(coordinates=self.coordinates[ancestors], alive=self.alive[ancestors], own=own)

    def where(self, mask: Mask, other: "Ensemble") -> "Ensemble":
        """Return this ensemble's particles where the mask is true, and the other's elsewhere, each with what it owns.

        Args:
            mask: (n,).
            other: the same particles elsewhere; memory, weights and result are this ensemble's.
        """
        coordinates, alive, own = select(
            mask, (self.coordinates, self.alive, self.own), (other.coordinates, other.alive, other.own)
        )
        return self.replace(coordinates=coordinates, alive=alive, own=own)


class Step(eqx.Module):
    """One step as a solver sees it.

    Attributes:
        problem: the whole transport; its view and its budget are those of no particular step.
        view: the target at this step's temperature.
        size: ε.
        index: l = 0, 1, ...
        key: randomness of this step for the solver, or None.
        unchanging: the target is the same at every step, so what was evaluated at the end of one step holds at the
            start of the next.
        adapts: whether the solver may still adapt, where another part decides it; None for the solver's own rule.
    """

    problem: Problem
    view: TargetView
    size: Scalar
    index: Count
    key: Key | None
    unchanging: bool = eqx.field(static=True)
    adapts: Bool[Array, ""] | None = None

    @property
    def flow(self) -> AbstractFlow:
        """The velocity field."""
        return self.problem.flow

    def replace(self, **changes: Any) -> "Step":
        """Return the step with some attributes changed.

        Args:
            changes: new values by name.
        """
        return dataclasses.replace(self, **changes)

    def toward(self, target: AbstractTarget) -> "Step":
        """Return the step toward another target, at α = 1; what was evaluated of the first one does not hold there.

        Args:
            target: the density.
        """
        view = dataclasses.replace(self.view, target=target, temperature=jnp.ones_like(self.view.temperature))
        return self.replace(view=view, unchanging=False)

    def keys(self, number: int) -> list[Key]:
        """Return independent keys for this step; the solver's `needs` must say that it draws.

        Args:
            number: how many.
        """
        assert self.key is not None  # `check_key` has seen to it
        return list(jr.split(self.key, number))

    def velocity(self, ensemble: Ensemble) -> tuple[Positions, Mask]:
        """Return the flow's velocity (n, d), zero for frozen particles, and who is still alive.

        Args:
            ensemble: where the particles are.
        """
        return velocity_of(self.flow, self.view, ensemble.positions, ensemble.alive)

    def log_density(self, ensemble: Ensemble) -> tuple[PerParticle, Mask]:
        """Return U/α (n,), the log of the density that the flow samples, and where it is finite.

        Args:
            ensemble: where the particles are.
        """
        value, finite = self.view.scaled_log_density(ensemble.positions, ensemble.alive)
        return value / self.view.temperature, finite

    def gradient(self, ensemble: Ensemble) -> tuple[Positions, Mask]:
        """Return ∇(U/α) (n, d), zero where it is not finite, and where it is.

        Args:
            ensemble: where the particles are.
        """
        gradient, finite = self.view.gradient(ensemble.positions, ensemble.alive)
        return gradient / self.view.temperature, finite

    def value_and_gradient(self, ensemble: Ensemble) -> tuple[PerParticle, Positions, Mask]:
        """Return U/α (n,) and ∇(U/α) (n, d), zero where one of them is not finite, and where both are.

        A target without a value has U = 0 here: a step that is not accepted or rejected needs its gradient alone.

        Args:
            ensemble: where the particles are.
        """
        if "value" not in self.view.target.knows:
            gradient, finite = self.gradient(ensemble)
            return jnp.zeros_like(gradient[:, 0]), gradient, finite
        value, gradient, finite = self.view.value_and_gradient(ensemble.positions, ensemble.alive)
        return value / self.view.temperature, gradient / self.view.temperature, finite

    def allowed(self, ensemble: Ensemble) -> Mask:
        """Return which particles are in the domain and within the displacement cap (n,): nothing brings them back.

        Args:
            ensemble: where the particles are.
        """
        _, clipped, capped = self.problem.restrict(ensemble.coordinates)
        return ~(clipped | capped)

    def within(self, share: float | Scalar) -> Bool[Array, ""]:
        """Return whether this step is in the first share of the budget, in which a solver may adapt.

        Args:
            share: in [0, 1].
        """
        if self.adapts is not None:
            return self.adapts
        steps = jnp.asarray(self.problem.budget.steps).astype(self.size.dtype)
        return self.index.astype(self.size.dtype) < share * steps


def select(mask: Mask, yes: PyTree, no: PyTree) -> PyTree:
    """Return row by row the leaves (n, ...) of one PyTree or of another."""

    def rows(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(rows, yes, no)
