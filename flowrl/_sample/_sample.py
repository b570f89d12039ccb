"""Sample a posterior without tuning."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from flowrl._budget import Budget
from flowrl._custom_types import Key, Particle, Particles, Positions
from flowrl._domain import AbstractDomain, Unbounded
from flowrl._flow import Langevin
from flowrl._misc import check_count, check_particles, ravel
from flowrl._numpyro import NumpyroPosterior
from flowrl._sample._pieces import Pieces
from flowrl._sample._samples import Samples
from flowrl._sample._verdict import Verdict, judge
from flowrl._solution import Solution
from flowrl._solver import (
    AbstractProposal,
    Euler,
    LearnedCovariance,
    LearnedScale,
    Metropolis,
    Microcanonical,
    Tempered,
)
from flowrl._target import AbstractTarget, Density, bridge
from flowrl._transport import Transport, make_problem
from flowrl._validation import check_key, resolve

_LEAPS = 8
_DENSE = 1000  # dimensions up to which a covariance is learned: 4 MB, and 0.3 s of arithmetic in all
_MOVES = 4  # per temperature, of tempering
_LEAST = 10  # steps of the adaptation, and draws of each particle
_EVIDENCE = ("log_evidence", "log_evidence_error")
_PATIENCE = 10  # steps after which a particle in the far tail, that the step size of the set does not fit, is given up
_JUDGED = 20  # sets of draws at which the verdict takes gradients


def sample(
    target: AbstractTarget | NumpyroPosterior | Callable[[Particle], Any],
    particles: Particles | int = 100,
    *,
    key: Key,
    like: Particle | None = None,
    max_gradients: int = 100_000,
    domain: AbstractDomain = Unbounded(),  # noqa: B008  (an immutable module: the signature is the doc of the default)
    proposal: AbstractProposal | None = None,
    warm: float = 0.5,
    tempered: bool = False,
    seconds: float | None = None,
    progress: Callable[[int, int], object] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Samples:
    """Draw from a posterior without choosing a step size, a number of steps or a start, and say whether it arrived.

    Each particle is a chain of its own that accepts and rejects (`Metropolis`), so draws are exact once the set has
    arrived. The first share `warm` of the gradients finds the step size and the covariance from the whole set; both are
    then fixed, and every state of every particle after it is a draw. With `tempered` the particles first go to the
    target by temperatures, so that separate modes get their mass, and the evidence is measured.

    Args:
        target: log p of one particle, as a function or a target that knows value and gradient; or a model by
            `from_numpyro`.
        particles: where they start, leaves (n, ...), inside the domain; or their number n. A number starts
            them uniformly within 2 of zero in unconstrained coordinates, for which `like` says what one particle is;
            a numpyro model says it by itself.
        key: randomness.
        like: one particle, such as `jnp.zeros(d)`; only its structure, shapes and dtype count. For a number of
            particles and a target that is no numpyro model.
        max_gradients: gradients of log p that all particles may take together, > 0; the verdict's own are among them.
        domain: where particles may be.
        proposal: how a particle moves, by default `Microcanonical(8, scale=LearnedCovariance())`, with a
            `LearnedScale` beyond a thousand dimensions, and `Euler()`, the step of MALA, on a line.
        warm: share of the gradients that is spent on the adaptation, in (0, 1).
        tempered: spend half of the gradients on tempering, from a normal distribution with the mean and three times the
            deviation of the start to the target. `log_evidence` is that of exp(log p), so of a normalised log joint the
            marginal likelihood.
        seconds: how long to adapt and draw, > 0; the adaptation ends after the share `warm` of them. Ten steps of the
            adaptation and ten draws are taken whatever the time; compilation, tempering and the verdict come on top.
            None for no limit.
        progress: called as `progress(done, total)` after every ten steps, in gradients of all particles together.
        checkpoint: a file that keeps the sampling: written every half minute, and when it ends by itself, by the time
            or by an exception. The same call goes on from it, as if nothing had happened; with more `max_gradients` it
            adds draws, and adapts no more.

    Returns:
        The `Samples`: draws, verdict, what was spent and chosen.

    Raises:
        TypeError: target, particles or `like` are of the wrong kind.
        ValueError: a number is out of range, too few gradients for the particles, or the checkpoint is of another
            sampling.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        def log_prob(x):
            return -0.5 * jnp.sum((x / jnp.array([1.0, 100.0])) ** 2)

        samples = flowrl.sample(log_prob, 100, like=jnp.zeros(2), key=jax.random.key(0))
        print(samples)
        assert samples.verdict.arrived
        ```

    ??? cite "Source"
        Robnik, Cohn-Gordon and Seljak, *Metropolis Adjusted Microcanonical Hamiltonian Monte Carlo*, 2025,
        arXiv:2503.01707. Many short chains that adapt together: Hoffman and Sountsov, *Tuning-Free Generalized
        Hamiltonian Monte Carlo*, AISTATS 2022.
    """
    posterior = target if isinstance(target, NumpyroPosterior) else None
    density = _density(target)
    if not 0 < warm < 1:
        raise ValueError(f"warm must be in (0, 1), got {warm}.")
    if not isinstance(domain, AbstractDomain):
        raise TypeError(
            f"domain must be a domain such as flowrl.positive(), for a PyTree of unknowns flowrl.Product of them; got "
            f"{domain!r}."
        )
    check_count("max_gradients", max_gradients)
    pieces = _pieces(seconds, progress, checkpoint, warm, (target, particles, key))
    check_key(Langevin(), Metropolis(), density, key)
    start_key, bridge_key, move_key = jr.split(key, 3)
    start = _start(posterior, particles, like, domain, start_key)
    _check_value(density, start)
    given, (n, d) = (key, start), ravel(start)[0].shape
    acceptance = None
    if proposal is None and d == 1:
        proposal, acceptance = Euler(), 0.9  # at Euler's own acceptance steps are so long that some diverge
    elif proposal is None:
        proposal = Microcanonical(_LEAPS, scale=LearnedCovariance() if d <= _DENSE else LearnedScale())
    each = max_gradients // n - 1
    spent, phases = 1, []
    evidence: dict[str, Array] = {}
    if tempered:
        moves = each // 2 // proposal.gradients
        solver = Tempered(
            inner=Metropolis(proposal=proposal, acceptance=acceptance), moves=min(_MOVES, max(moves // 8, 1))
        )
        method, tempering = Transport(Langevin(), solver, domain), Budget(moves, None)
        phases.append((method, tempering))
        if pieces is not None and pieces.resumes:
            evidence = {name: jnp.zeros((), ravel(start)[0].dtype) for name in _EVIDENCE} | {"origin": jnp.arange(n)}
        else:
            start, evidence = _bridged(method, density, start, tempering, bridge_key)
        spent, each = spent + moves * proposal.gradients, each - moves * proposal.gradients
    learning = int(warm * each) // proposal.gradients
    kept = (each - _JUDGED - learning * proposal.gradients) // proposal.gradients
    if learning < _LEAST or kept < _LEAST:
        enough = (_LEAST + 1) * proposal.gradients / min(warm, 1 - warm) + 2 * _JUDGED
        needed = int(n * (2 * enough if tempered else enough))
        raise ValueError(
            f"{max_gradients} gradients are {max_gradients // n} for each of {n} particles, too few to adapt by "
            f"{proposal.gradients} a step; give at least {needed}, or fewer particles."
        )
    method, budget = _moves(proposal, acceptance, domain, learning, learning + kept)
    if pieces is None:
        saved = tuple(range(learning + 1, learning + kept + 1))
        drawn = method(density, start, budget, key=move_key, save=saved, throw=False)
    else:
        drawn, learning, evidence = pieces.run(
            method, density, start, budget, learning, key=move_key, given=given, spent=spent, evidence=evidence
        )
        method, budget = _moves(proposal, acceptance, domain, learning, int(drawn.stats["steps"]))
    phases.append((method, budget))
    learned = _unravel(start, drawn.extras["scale"]) if "scale" in drawn.extras else 1.0
    assert drawn.trajectory is not None
    verdict, judged = _judge(method, density, drawn, evidence.get("origin"))
    depth = spent + budget.steps * proposal.gradients + judged
    stats = {
        "gradients": jnp.asarray(n * depth),
        "depth": jnp.asarray(depth),
        "acceptance": drawn.extras["acceptance"],
        "divergent": drawn.extras["divergent"],
        "step_size": drawn.extras["step_size"],
    }
    stats |= {name: evidence[name] for name in _EVIDENCE if tempered}
    return Samples(drawn.trajectory, verdict, stats, learned, tuple(phases), posterior)


def _density(target: Any) -> AbstractTarget:
    if isinstance(target, NumpyroPosterior):
        return target.target
    if isinstance(target, type):
        raise TypeError(f"target is the class {target.__name__}; did you mean an instance, {target.__name__}(...)?")
    density = target if isinstance(target, AbstractTarget) else Density(target)
    if not {"value", "gradient"} <= density.knows:
        raise TypeError(
            f"{type(density).__name__} does not know its value and its gradient, by which draws are accepted; use "
            "Density(log_prob) or Boltzmann(value)."
        )
    return density


def _check_value(density: AbstractTarget, start: Particles) -> None:
    """Refuse a log density that is not one real number."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), start)
    dtype = jax.eval_shape(density.value, one).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"the log density of one particle has dtype {dtype}; expected a real floating number, which has a gradient."
        )


def _start(
    posterior: NumpyroPosterior | None, particles: Any, like: Particle | None, domain: AbstractDomain, key: Key
) -> Particles:
    if isinstance(particles, bool) or not isinstance(particles, int):
        if like is not None:
            raise ValueError("particles are given, so `like` has nothing to say; leave it out, or give a number.")
        particles = jax.tree.map(jnp.asarray, particles)
        check_particles(particles)
        return particles
    check_count("particles", particles)
    if posterior is not None:
        # Not draws of the prior: one with heavy tails, as scales often have, starts some too far away to come back.
        shapes = jax.eval_shape(lambda k: posterior.initial(1, k), key)
        like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)
    if like is None:
        raise ValueError(
            "a number of particles does not say what one is: pass like=jnp.zeros(d), a PyTree of arrays, or the "
            "particles themselves."
        )
    like = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)) if jnp.ndim(x) == 0 else jnp.asarray(x), like)
    check_particles(jax.tree.map(lambda leaf: leaf[None], like))
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    if not domain.restricts:
        start = jax.vmap(unravel)(jr.uniform(key, (particles, flat.shape[0]), flat.dtype, -2, 2))
        return eqx.filter_vmap(domain.forward)(start) if domain.maps else start
    # Means of four points that were brought inside: on the boundary, where those of many are, log p may be infinite.
    wide = jr.uniform(key, (4, particles, flat.shape[0]), flat.dtype, -4, 4)
    inside = [domain.restrict(jax.vmap(unravel)(points)) for points in wide]
    mixed = jax.tree.map(lambda *points: sum(points) / 4, *inside)
    return eqx.filter_vmap(domain.forward)(mixed) if domain.maps else mixed


def _pieces(
    seconds: float | None, progress: Any, checkpoint: Any, warm: float, given: tuple[Any, ...]
) -> Pieces | None:
    """Return how the sampling is cut into pieces, or None where it is one program."""
    if seconds is None and progress is None and checkpoint is None:
        return None
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise ValueError("seconds, progress and checkpoint are for calls outside of jax.jit and jax.vmap.")
    path = None if checkpoint is None else Path(checkpoint)
    return Pieces(seconds, warm, _LEAST, progress, path)


def _moves(
    proposal: AbstractProposal, acceptance: float | None, domain: AbstractDomain, learning: int, steps: int
) -> tuple[Transport, Budget]:
    """Return the method that adapts in the first `learning` of some steps, and its budget."""
    share = (learning - 0.5) / steps  # half: for rounding
    solver = Metropolis(proposal=proposal, acceptance=acceptance, share=share, patience=_PATIENCE)
    return Transport(Langevin(), solver, domain), Budget(steps, None)


def _bridged(
    method: Transport, density: AbstractTarget, start: Particles, budget: Budget, key: Key
) -> tuple[Particles, dict[str, Array]]:
    """Temper from a normal distribution around the start to the target; return also the evidence."""
    if method.domain.maps or method.domain.restricts:
        raise ValueError(
            "tempered=True begins with a normal distribution, which no domain holds; write the density in coordinates "
            "without bounds, or temper by Tilted(log_prior, log_likelihood) and Tempered() from draws of the prior."
        )
    draw_key, move_key = jr.split(key)
    rows, unravel = ravel(start)
    mean, deviation = rows.mean(axis=0), 3 * jnp.maximum(rows.std(axis=0), 1e-3)
    begin = unravel(mean[None] + deviation[None] * jr.normal(draw_key, rows.shape, rows.dtype))
    solution = method(bridge(_Normal(mean, deviation), density.value), begin, budget, key=move_key, throw=False)
    return solution.particles, {name: solution.extras[name] for name in (*_EVIDENCE, "origin")}


class _Normal(eqx.Module):
    """A normalised normal distribution over particles, by coordinate."""

    mean: Array
    deviation: Array

    def __call__(self, particle: Particle) -> Array:
        x = jax.flatten_util.ravel_pytree(particle)[0]
        z = (x - self.mean) / self.deviation
        return -0.5 * jnp.sum(z**2) - jnp.sum(jnp.log(self.deviation)) - 0.5 * x.size * jnp.log(2 * jnp.pi)


def _unravel(start: Particles, row: Array) -> Particles:
    return jax.tree.map(lambda leaf: leaf[0], ravel(start)[1](row[None]))


def _judge(method: Transport, density: AbstractTarget, drawn: Solution, origin: Array | None) -> tuple[Verdict, int]:
    """Return the verdict, and how many gradients of each particle it took."""
    trajectory, particles = drawn.trajectory, drawn.particles
    budget = resolve(Budget(1, 0.0), particles, unit_time=False)
    problem = make_problem(method, density, particles, budget, None)
    draws = jax.vmap(problem.coordinates)(trajectory)
    every = -(-draws.shape[0] // _JUDGED)
    judged = draws[every - 1 :: every]

    def gradient(positions: Positions) -> Positions:
        return problem.view.gradient(positions, jnp.ones(positions.shape[0], bool))[0]

    frozen = drawn.stats["nonfinite"] / draws.shape[1]
    gradients = jax.lax.map(gradient, judged)
    return judge(
        draws, judged, gradients, drawn.extras["acceptance"], drawn.extras["divergent"], frozen, origin=origin
    ), judged.shape[0]
