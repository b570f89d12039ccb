r"""Entropic optimal transport between weighted sets of points, for the cost c(x, y) = |x − y|²/2.

$$\mathrm{OT}_ε = \min_P \; ⟨P, c⟩ + ε \, \mathrm{KL}(P \,|\, a ⊗ b) = \max_{f, g} \; ⟨a, f⟩ + ⟨b, g⟩$$

over f = S(g), S(g)(x) = −ε log Σ_j b_j exp((g_j − c(x, y_j))/ε), and likewise for g. All sums are log-sum-exps over
blocks of rows, so no matrix of all pairs is held. Both sets are counted from their own means: for this cost a shift of
one set adds linear functions to the potentials and leaves the plan as it is, so neither the number of iterations nor
float32 feel how far apart the sets are.

Functions are differentiable in the points by the envelope theorem: the potentials are constants for autodiff. Weights
are >= 0 and of any sum; points of weight zero need not be finite, and get finite answers. ε is in squared units of
length.

??? cite "Source"
    Cuturi, *Sinkhorn distances*, NeurIPS 2013. Feydy et al., *Interpolating between optimal transport and MMD using
    Sinkhorn divergences*, AISTATS 2019 (averaged iterations for a set against itself). Thibault et al.,
    *Overrelaxed Sinkhorn-Knopp algorithm for regularized optimal transport*, Algorithms 2021.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from flowrl._custom_types import Scalar
from flowrl._kernel import by_rows, inner_products
from flowrl._misc import varying_as

_SELF_ITERATIONS = 30
"""Enough for a set against itself at every ε: each averaged iteration at least halves the error."""
_RELAXATION = 1.5
"""Overrelaxation ω of the later iterations, in [1, 2); 1 is plain Sinkhorn."""


class _Cloud(NamedTuple):
    """A weighted set of points (n, d) counted from its mean `origin + rest`, each (1, d); weights (n,) sum to 1."""

    points: Array
    origin: Array
    rest: Array
    weights: Array
    logs: Array


def potentials(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    weights_x: Float[Array, " n"],
    weights_y: Float[Array, " m"],
    regularisation: Scalar,
    iterations: int,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Return the dual potentials f and g of OT_ε; f is S(g), so the plan's first marginal is exact."""
    one, other = _cloud(x, weights_x), _cloud(y, weights_y)
    shift = _shift(one, other)
    f, g = _potentials(one, other, regularisation, iterations)
    return f + one.points @ shift[0] + 0.5 * jnp.sum(shift**2), g - other.points @ shift[0]


def divergence(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    weights_x: Float[Array, " n"],
    weights_y: Float[Array, " m"],
    regularisation: Scalar,
    iterations: int,
) -> Scalar:
    """Return the Sinkhorn divergence OT_ε(x, y) − ½ OT_ε(x, x) − ½ OT_ε(y, y) >= 0."""
    one, other = _cloud(x, weights_x), _cloud(y, weights_y)
    f, g = _potentials(one, other, regularisation, iterations)
    # The value is the dual's at (S(g), g), where it is exact to second order in the error of g. Each potential is the
    # function S of the point it stands at, the other set held fixed: its gradient is the envelope's.
    cost = jnp.sum(one.weights * _softmin(one.points, other, g, regularisation)) + jnp.sum(other.weights * g)
    moving = _softmin(other.points, one, f, regularisation)
    cost = cost + jnp.sum(other.weights * (moving - jax.lax.stop_gradient(moving)))
    shift = _shift(one, other)
    cost = cost + 0.5 * jnp.sum(shift**2)
    return cost - _half_self_cost(one, regularisation, iterations) - _half_self_cost(other, regularisation, iterations)


def displacements(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    weights_x: Float[Array, " n"],
    weights_y: Float[Array, " m"],
    regularisation: Scalar,
    iterations: int,
) -> Float[Array, "n d"]:
    """Return T_xy(x_i) − T_xx(x_i), the barycentric projections of the two plans.

    It is −1/a_i times the gradient of the divergence.
    """
    one, other = _cloud(x, weights_x), _cloud(y, weights_y)
    _, g = _potentials(one, other, regularisation, iterations)
    own = _self_potential(one, regularisation, iterations)
    toward = _projected(one.points, other, g, regularisation)
    return toward - _projected(one.points, one, own, regularisation) - _shift(one, other)


def _cloud(x: Array, weights: Array) -> _Cloud:
    counts = weights > 0
    total = jnp.sum(weights)
    weights = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), 1 / x.shape[0])
    x = jnp.where(counts[:, None], x, 0)
    # A point of the set is subtracted before averaging, so that float32 keeps its digits far from the origin.
    origin = jax.lax.stop_gradient(x[jnp.argmax(counts)])[None]
    x = jnp.where(counts[:, None], x - origin, 0)
    rest = weights[None] @ x
    points = jnp.where(counts[:, None], x - jax.lax.stop_gradient(rest), 0)
    logs = jnp.log(jnp.where(weights > 0, weights, 1))
    return _Cloud(points, origin, rest, weights, jnp.where(weights > 0, logs, -jnp.inf))


def _shift(one: _Cloud, other: _Cloud) -> Array:
    """Return the shift from the mean of the other set to the mean of the one, (1, d)."""
    return (one.origin - other.origin) + (one.rest - other.rest)


def _logits(block: Array, cloud: _Cloud, potential: Array, regularisation: Scalar) -> Array:
    """Return the logarithms of the plan's rows, up to a constant per row such as |x|²/2: only x·y is needed."""
    bias = cloud.logs + (potential - 0.5 * jnp.sum(cloud.points**2, axis=1)) / regularisation
    return bias[None] + inner_products(block, cloud.points) / regularisation


def _softmin(points: Array, cloud: _Cloud, potential: Array, regularisation: Scalar) -> Array:
    """Return S at the points, for a potential on the (fixed) cloud, (n,)."""
    cloud = jax.lax.stop_gradient(cloud)

    def rows(block: Array) -> Array:
        summed = logsumexp(_logits(block, cloud, potential, regularisation), axis=1)
        return 0.5 * jnp.sum(block**2, axis=1) - regularisation * summed

    return by_rows(rows, points, cloud.points.shape[0])


def _projected(points: Array, cloud: _Cloud, potential: Array, regularisation: Scalar) -> Array:
    """Return the means of the plan's rows, (n, d)."""

    def rows(block: Array) -> Array:
        return jax.nn.softmax(_logits(block, cloud, potential, regularisation), axis=1) @ cloud.points

    return by_rows(rows, points, cloud.points.shape[0])


def _potentials(one: _Cloud, other: _Cloud, regularisation: Scalar, iterations: int) -> tuple[Array, Array]:
    """Alternate f = S(g) and g = S(f): ε comes down to its value in the first half, the second half is overrelaxed."""
    # Here and not on the result: autodiff would hold the matrices of all iterations before it is told to drop them.
    one, other, regularisation = jax.lax.stop_gradient((one, other, regularisation))
    spread = 0.5 * sum(jnp.sum(c.weights[:, None] * c.points**2) for c in (one, other))
    coming_down, index = iterations // 2, np.arange(iterations)
    left = jnp.asarray(np.maximum(1 - index / max(coming_down, 1), 0) * (coming_down > 0), one.points.dtype)
    regularisations = regularisation * jnp.maximum(spread / regularisation, 1) ** left
    relaxations = jnp.asarray(np.where(index > coming_down, _RELAXATION, 1), one.points.dtype)

    def sweep(carry: tuple[Array, Array], now: tuple[Scalar, Scalar]) -> tuple[tuple[Array, Array], None]:
        (f, g), (epsilon, relaxation) = carry, now
        f = f + relaxation * (_softmin(one.points, other, g, epsilon) - f)
        g = g + relaxation * (_softmin(other.points, one, f, epsilon) - g)
        return (f, g), None

    nothing = varying_as((jnp.zeros_like(one.logs), jnp.zeros_like(other.logs)), one, other)
    (_, g), _ = jax.lax.scan(sweep, nothing, (regularisations, relaxations))
    return _softmin(one.points, other, g, regularisation), g


def _self_potential(cloud: _Cloud, regularisation: Scalar, iterations: int) -> Array:
    """Return the one potential of a set against itself, by averaged iterations."""
    cloud, regularisation = jax.lax.stop_gradient((cloud, regularisation))

    def average(_: int | Array, f: Array) -> Array:
        return 0.5 * (f + _softmin(cloud.points, cloud, f, regularisation))

    return jax.lax.fori_loop(
        0, min(iterations, _SELF_ITERATIONS), average, varying_as(jnp.zeros_like(cloud.logs), cloud)
    )


def _half_self_cost(cloud: _Cloud, regularisation: Scalar, iterations: int) -> Scalar:
    fixed = jax.lax.stop_gradient(cloud)
    own = _self_potential(cloud, regularisation, iterations)
    answer = _softmin(cloud.points, fixed, own, regularisation)
    # The dual at (S(f), f) is exact to second order; its half has the envelope's gradient, that of S alone.
    correction = 0.5 * jax.lax.stop_gradient(own - answer)
    return jnp.sum(cloud.weights * (answer + correction))
