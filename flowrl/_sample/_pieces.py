"""A long sampling in pieces: it says how far it is, keeps to a time, and goes on from a file."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from flowrl._budget import Budget
from flowrl._custom_types import Count, Key, Particles, PerParticle
from flowrl._io import load_checkpoint, save_checkpoint
from flowrl._solution import Solution
from flowrl._solver import AbstractStepSolver, Metropolis, Problem, Progress
from flowrl._target import AbstractTarget
from flowrl._transport import Transport, make_problem, make_solution
from flowrl._validation import check, explain, resolve

_PIECE = 10  # steps between two looks at the clock: long beside such a look, and short where a gradient takes a second
_EVERY = 30.0  # seconds between two files: the most that is lost where a machine goes down


class Standing(NamedTuple):
    """Where a sampling stands: what its file holds, beside the draws.

    Attributes:
        given: key and particles that the sampling was called with.
        start: where the particles started, after the tempering if there was one.
        first: log density there (n,), by which another target is told.
        evidence: of the tempering before, with the origins of the particles.
        learning: steps of the adaptation.
        progress: where the particles are, and what the method has learned.
    """

    given: tuple[Key, Particles]
    start: Particles
    first: PerParticle
    evidence: dict[str, Array]
    learning: Count
    progress: Progress


class Pieces(eqx.Module):
    """How a sampling is cut into pieces.

    Attributes:
        seconds: after which no piece begins, once the first has been compiled; None for no limit.
        warm: share of them in which the adaptation ends.
        least: steps of the adaptation, and draws, that are taken whatever the time.
        progress: called as `progress(done, total)` after each piece, in gradients of all particles.
        checkpoint: the file, or None.
    """

    seconds: float | None
    warm: float
    least: int
    progress: Callable[[int, int], object] | None
    checkpoint: Path | None

    def __check_init__(self):
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be > 0, or None for no limit; got {self.seconds}.")

    @property
    def resumes(self) -> bool:
        """Whether there is a file to go on from."""
        return self.checkpoint is not None and self.checkpoint.exists()

    def run(
        self,
        method: Transport,
        target: AbstractTarget,
        start: Particles,
        budget: Budget,
        learning: int,
        *,
        key: Key,
        given: tuple[Key, Particles],
        spent: int,
        evidence: dict[str, Array],
    ) -> tuple[Solution, int, dict[str, Array]]:
        """Return the solution, its draws the trajectory; the steps of the adaptation; and the evidence.

        Args:
            method: a transport by `Metropolis` that adapts in the first `learning` steps of the budget.
            target: the density.
            start: where the particles start, leaves (n, ...); what the file has takes its place.
            budget: steps in all.
            learning: those of the adaptation.
            key: randomness of the moves.
            given: key and particles that the sampling was called with; the file must have them.
            spent: gradients that each particle took before.
            evidence: of the tempering before, with the origins of the particles; what the file has takes its place.
        """
        solver, steps = method.solver, budget.steps
        assert isinstance(solver, Metropolis)
        assert isinstance(steps, int)
        start = check(method.flow, solver, method.domain, target, start, budget)
        explain(method.flow, target, start)
        n, each = jax.tree.leaves(start)[0].shape[0], solver.proposal.gradients

        def shortened(learned: int) -> Budget:
            # The method adapts in a share of the steps: an adaptation that ends early is one of a shorter budget.
            number = min((2 * learned - 1) * steps // (2 * learning - 1), steps)
            return Budget(jnp.asarray(number), None, max_steps=steps)

        def begun(start: Particles) -> Standing:
            progress = _begun(method, target, start, shortened(learning), key)
            first = progress.ensemble.own.log_density
            return Standing(given, start, first, evidence, jnp.asarray(learning), progress)

        standing, draws = begun(start), []
        if self.resumes:
            standing, rows = self._loaded(standing, begun)
            draws = [rows] if len(rows) else []
        done, learned = int(standing.progress.step), int(standing.learning)
        if done < learned:
            learned = learning
        began, written = 0.0, time.monotonic()

        def over(share: float) -> bool:
            return began > 0 and self.seconds is not None and time.monotonic() - began > share * self.seconds

        try:
            while done < steps:
                if self.least <= done < learned and over(self.warm):
                    learned = done
                if done >= learned + self.least and over(1.0):
                    break
                last = min(done + _PIECE, learned if done < learned else steps)
                progress, rows = _piece(
                    method, target, standing.start, shortened(learned), key, standing.progress, jnp.asarray(last)
                )
                draws += [np.asarray(rows)[: last - done]] if done >= learned else []
                standing, done = standing._replace(progress=progress, learning=jnp.asarray(learned)), last
                began = began or time.monotonic()  # when the first piece is compiled
                if self.progress is not None:
                    self.progress(n * (spent + done * each), n * (spent + steps * each))
                if time.monotonic() - written > _EVERY:
                    self._write(standing, draws)
                    written = time.monotonic()
        finally:
            self._write(standing, draws)
        if not draws:
            raise ValueError(
                f"{self.checkpoint}: its adaptation has taken {n * (spent + done * each)} gradients already, which "
                "leaves no draws within max_gradients; give more."
            )
        moved = jnp.asarray(np.concatenate(draws))
        solution = _finished(method, target, standing.start, shortened(learned), key, standing.progress, moved)
        return solution, learned, standing.evidence

    def _write(self, standing: Standing, draws: list[np.ndarray]) -> None:
        if self.checkpoint is not None:
            none = np.zeros((0, *standing.progress.ensemble.coordinates.shape), standing.first.dtype)
            save_checkpoint(self.checkpoint, standing, {"draws": np.concatenate([none, *draws])})

    def _loaded(self, like: Standing, begun: Callable[[Particles], Standing]) -> tuple[Standing, np.ndarray]:
        """Return what the file holds, unless it is of another sampling."""
        assert self.checkpoint is not None
        standing, meta = load_checkpoint(self.checkpoint, like)
        (key, particles), (given_key, given_particles) = standing.given, like.given
        if not (jr.key_data(key) == jr.key_data(given_key)).all():
            raise ValueError(f"{self.checkpoint} is of a sampling with another key; give that key, or another file.")
        if not jax.tree.all(jax.tree.map(np.array_equal, particles, given_particles)):
            raise ValueError(f"{self.checkpoint} is of a sampling from other particles; give those, or another file.")
        first, again = np.asarray(standing.first), np.asarray(begun(standing.start).first)
        # Another machine rounds otherwise.
        if not np.allclose(first, again, rtol=1e-3, atol=1e-2, equal_nan=True):
            raise ValueError(
                f"{self.checkpoint} is of a sampling of another target: its log density where the particles started is "
                "not that of this one. Give another file."
            )
        return standing, meta["draws"]


def _problem(method: Transport, target: AbstractTarget, start: Particles, budget: Budget, key: Key) -> Problem:
    return make_problem(method, target, start, resolve(budget, start, unit_time=False), key)


def _solver(method: Transport) -> AbstractStepSolver:
    assert isinstance(method.solver, AbstractStepSolver)
    return method.solver


@eqx.filter_jit
def _begun(method: Transport, target: AbstractTarget, start: Particles, budget: Budget, key: Key) -> Progress:
    return _solver(method).begin(_problem(method, target, start, budget, key))


@eqx.filter_jit
def _piece(
    method: Transport,
    target: AbstractTarget,
    start: Particles,
    budget: Budget,
    key: Key,
    progress: Progress,
    last: Count,
) -> tuple[Progress, Float[Array, "piece n d"]]:
    """Take the steps to the last, which are a piece at most; return also the coordinates after each."""
    problem, solver = _problem(method, target, start, budget, key), _solver(method)

    def body(progress: Progress, _: None) -> tuple[Progress, Array]:
        more = progress.step < last.astype(progress.step.dtype)
        progress = jax.lax.cond(more, lambda p: solver.advance(problem, p), lambda p: p, progress)
        return progress, progress.ensemble.coordinates

    return jax.lax.scan(body, progress, length=_PIECE)


@eqx.filter_jit
def _finished(
    method: Transport,
    target: AbstractTarget,
    start: Particles,
    budget: Budget,
    key: Key,
    progress: Progress,
    draws: Float[Array, "m n d"],
) -> Solution:
    problem = _problem(method, target, start, budget, key)
    output = _solver(method).finish(problem, progress)
    output = eqx.tree_at(lambda o: o.trajectory, output, draws, is_leaf=lambda x: x is None)
    return make_solution(problem, output, taken=progress.step > 0, valued=True)
