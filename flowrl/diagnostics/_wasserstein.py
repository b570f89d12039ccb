r"""Optimal transport distances between two sets of points; those of the first may have weights.

In one dimension the optimal coupling pairs quantiles: W_p^p = ∫ |F⁻¹(u) − G⁻¹(u)|^p du, a sum over the at most
n + m − 1 intervals between the levels i/n (sums of weights) and j/m. In more, for equal sizes, it is a permutation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Key, Particles, PerParticle, Positions, Scalar
from flowrl._domain import Unbounded
from flowrl._flow import SinkhornFlow, TargetView
from flowrl._kernel import by_rows
from flowrl._misc import check_count
from flowrl._target import Empirical
from flowrl.diagnostics._sets import as_matrices, emptied, log_shares, norms, power_root, present


def wasserstein(x: Particles, y: Particles, p: float = 2, *, log_weights: PerParticle | None = None) -> Scalar:
    r"""Compute the exact Wasserstein distance between two sets of the same size, or of any sizes in one dimension.

    $$W_p = \Bigl( \min_σ \frac{1}{n} \sum_i |x_i - y_{σ(i)}|^p \Bigr)^{1/p}$$

    over permutations σ, by the Hungarian method: O(n³) time in the worst case (some 2 s for n = 1000 and 16 s for
    n = 2000 on one core) and O(n²) memory. It is differentiable, with the permutation held fixed. Between independent
    samples of one distribution in d > 2 dimensions it falls only as $n^{-1/d}$.

    Args:
        x: leaves (n, ...).
        y: leaves (m, ...).
        p: the power, a Python number >= 1.
        log_weights: log weights of x (n,), up to a constant, in one dimension only; −∞ is an empty slot, which is left
            out whatever it holds. None for equal weights.

    Raises:
        ValueError: there are weights or the sizes differ in more than one dimension, p < 1, or `log_weights` are no log
            weights.

    Example:
        ```python
        import jax.random as jr
        from flowrl import diagnostics

        x, y = jr.normal(jr.key(0), (100, 2)), 1 + jr.normal(jr.key(1), (100, 2))
        distance = diagnostics.wasserstein(x, y)
        ```

    ??? cite "Source"
        Peyré and Cuturi, *Computational Optimal Transport*, 2019, sections 2.2 and 2.6.
    """
    _check_power(p)
    a, b = as_matrices(x, y)
    logs = log_shares(log_weights, a)
    if a.shape[1] == 1:
        return _quantile_distance(a[:, 0], b[:, 0], logs, p)
    if logs is not None:
        raise ValueError(
            "wasserstein pairs points one to one in more than one dimension, so it takes no log_weights there; "
            "sliced_wasserstein, sinkhorn_divergence and energy_distance do."
        )
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"wasserstein pairs the points of sets of the same size, got {a.shape[0]} in x and {b.shape[0]} in y; "
            "sliced_wasserstein, sinkhorn_divergence and energy_distance take any sizes."
        )
    return _assignment_distance(a, b, p)


def sliced_wasserstein(
    x: Particles,
    y: Particles,
    *,
    key: Key,
    projections: int = 128,
    p: float = 2,
    log_weights: PerParticle | None = None,
) -> Scalar:
    r"""Compute the sliced Wasserstein distance, over random directions of projection.

    $$SW_p = \Bigl( \frac{1}{L} \sum_l W_p^p(θ_l·x, θ_l·y) \Bigr)^{1/p}, \qquad θ_l \text{ uniform on the sphere}$$

    Sizes may differ. $SW_p$ <= $W_p$, and two distributions that differ by a shift Δ have $SW_2 = |Δ|/\sqrt{d}$ on
    average over directions. The error of $SW_p^p$ from the directions falls as 1/√L; use one key for distances that are
    compared.

    Args:
        x: leaves (n, ...).
        y: leaves (m, ...).
        key: randomness of the directions.
        projections: L, a Python int >= 1.
        p: the power, a Python number >= 1.
        log_weights: log weights of x (n,), up to a constant; −∞ is an empty slot, which is left out whatever it holds.
            None for equal weights.

    Raises:
        ValueError: p < 1, `projections` is not an int >= 1, or `log_weights` are no log weights.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        from flowrl import diagnostics

        x = jr.normal(jr.key(0), (100, 4))
        distance = diagnostics.sliced_wasserstein(x, x + 1, key=jr.key(1), projections=1000)
        assert jnp.abs(distance - 1) < 0.1  # |Δ| / √d = 2 / 2
        ```

    ??? cite "Source"
        Bonneel, Rabin, Peyré and Pfister, *Sliced and Radon Wasserstein Barycenters of Measures*, Journal of
        Mathematical Imaging and Vision 2015.
    """
    _check_power(p)
    check_count("projections", projections)
    a, b = as_matrices(x, y)
    return _sliced_distance(a, b, log_shares(log_weights, a), key, projections, p)


def sinkhorn_divergence(
    x: Particles,
    y: Particles,
    regularisation: ArrayLike = 0.05,
    iterations: int = 100,
    *,
    log_weights: PerParticle | None = None,
) -> Scalar:
    r"""Compute the debiased Sinkhorn divergence, the entropy-regularised transport cost that `SinkhornFlow` descends.

    $$\mathrm{OT}_ε(x, y) - \tfrac{1}{2} \mathrm{OT}_ε(x, x) - \tfrac{1}{2} \mathrm{OT}_ε(y, y)$$

    for the cost |x − y|²/2: it goes to $\tfrac{1}{2} W_2^2$ as ε → 0 and to half the squared distance of the means as
    ε → ∞. Sizes may differ. It is 0 for equal sets and, but for the error of the iterations, not negative.

    Args:
        x: particles, leaves (n, ...).
        y: the reference, leaves (m, ...).
        regularisation: ε > 0 relative to the total variance of y.
        iterations: number of Sinkhorn iterations >= 1, a Python int; see `SinkhornFlow` for how many are enough.
        log_weights: log weights of x (n,), up to a constant; −∞ is an empty slot, which is left out whatever it holds.
            None for equal weights.

    Raises:
        ValueError: a number is out of its range, or `log_weights` are no log weights.

    ??? cite "Source"
        Feydy et al., *Interpolating between optimal transport and MMD using Sinkhorn divergences*, AISTATS 2019.
    """
    flow = SinkhornFlow(regularisation, iterations)
    a, b = as_matrices(x, y)
    return _divergence(a, b, log_shares(log_weights, a), flow)


@eqx.filter_jit
def _divergence(x: Positions, y: Float[Array, "m d"], log_shares: PerParticle | None, flow: SinkhornFlow) -> Scalar:
    one, row = jnp.ones((), x.dtype), jnp.ones((1, x.shape[1]), x.dtype)
    view = TargetView(one, None, None, Empirical(y), Unbounded(), row, entropic=False, unravel=_same)
    view = view if log_shares is None else view.weighted(log_shares)
    return flow.energy(view, x, present(log_shares, x))


@eqx.filter_jit
def _quantile_distance(
    x: Float[Array, " n"], y: Float[Array, " m"], log_shares: PerParticle | None, p: float
) -> Scalar:
    shift = jax.lax.stop_gradient(y[0])
    (x,) = emptied(log_shares, (x - shift)[:, None])
    return _quantiles_apart(x.T, (y - shift)[None], log_shares, p)[0]


@eqx.filter_jit
def _assignment_distance(x: Positions, y: Positions, p: float) -> Scalar:
    chosen = _assignment(*jax.lax.stop_gradient((x, y)), p)
    apart = norms(x - y[chosen])
    return _power_mean(apart[None], jnp.full(apart.shape, 1 / apart.shape[0], apart.dtype), p)[0]


@eqx.filter_jit
def _sliced_distance(
    x: Positions, y: Float[Array, "m d"], log_shares: PerParticle | None, key: Key, projections: int, p: float
) -> Scalar:
    shift = jax.lax.stop_gradient(y[:1])
    (x,), y = emptied(log_shares, x - shift), y - shift
    directions = jr.normal(key, (projections, x.shape[1]), x.dtype)
    directions = directions / norms(directions)[:, None]

    def rows(block: Float[Array, "b d"]) -> Float[Array, " b"]:
        project = lambda points: jnp.matmul(block, points.T, precision=jax.lax.Precision.HIGHEST)
        return _quantiles_apart(project(x), project(y), log_shares, p)

    each = by_rows(rows, directions, x.shape[0] + y.shape[0])
    return _power_mean(each[None], jnp.full(projections, 1 / projections, x.dtype), p)[0]


def _quantiles_apart(
    x: Float[Array, "b n"], y: Float[Array, "b m"], log_shares: PerParticle | None, p: float
) -> Float[Array, " b"]:
    """Compute W_p between the rows of two matrices, the columns of the first weighted."""
    n, m = x.shape[1], y.shape[1]
    if log_shares is not None:
        return jax.vmap(lambda a, b: _weighted_quantiles_apart(a, b, jnp.exp(log_shares), p))(x, y)
    # In integers, so that equal levels i/n = j/m are seen as equal.
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = jnp.asarray(np.diff(levels, prepend=0) / (n * m), x.dtype)
    x, y = jnp.sort(x, axis=1)[:, (levels - 1) // m], jnp.sort(y, axis=1)[:, (levels - 1) // n]
    return _power_mean(jnp.abs(x - y), widths, p)


def _weighted_quantiles_apart(x: Float[Array, " n"], y: Float[Array, " m"], shares: PerParticle, p: float) -> Scalar:
    """Compute W_p between weighted numbers x and numbers y."""
    order, m = jnp.argsort(x), y.shape[0]
    above = jnp.cumsum(shares[order])
    # The last level of both is one, whatever rounding makes of the sum.
    above = (above / above[-1]).astype(x.dtype)
    levels = jnp.sort(jnp.concatenate([above, jnp.asarray(np.arange(1, m + 1) / m, x.dtype)]))
    widths = jnp.diff(levels, prepend=0)
    # Of each interval the point whose own reaches its upper end: a point of weight zero is never met.
    i = jnp.searchsorted(above, levels, side="left")
    j = jnp.searchsorted(jnp.asarray(np.arange(1, m + 1) / m, x.dtype), levels, side="left")
    return _power_mean(jnp.abs(x[order][i] - jnp.sort(y)[j])[None], widths, p)[0]


def _power_mean(values: Float[Array, "b k"], weights: Float[Array, " k"], p: float) -> Float[Array, " b"]:
    """Compute (Σ_k w_k v_k^p)^(1/p) of numbers v >= 0, in units of the largest so that no power overflows."""
    largest = jax.lax.stop_gradient(jnp.max(values, axis=1, keepdims=True))
    unit = jnp.where(largest == 0, 1, largest)
    return unit[:, 0] * power_root(((values / unit) ** p) @ weights, p)


def _assignment(x: Positions, y: Positions, p: float) -> Array:
    """Return the index of the point of y for each of x, by the Hungarian method."""

    def add(squared: Array, coordinate: tuple[Array, Array]) -> tuple[Array, None]:
        here, there = coordinate
        return squared + (here[:, None] - there[None, :]) ** 2, None

    # By differences and not by a matrix product, so that float32 sees the small distances, which decide.
    squared, _ = jax.lax.scan(add, jnp.zeros((x.shape[0], y.shape[0]), x.dtype), (x.T, y.T))
    cost = (squared / jnp.max(squared)) ** (p / 2)
    cost = jnp.where(jnp.isfinite(cost), cost, 0)  # the distance is NaN then, but the method must come to an end
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(x.shape[0], columns.dtype).at[rows].set(columns)


def _check_power(p: float) -> None:
    if isinstance(p, bool) or not isinstance(p, int | float) or not 1 <= p < float("inf"):
        raise ValueError(f"p must be a finite Python number >= 1, got {p!r}.")


def _same(positions: Positions) -> Positions:
    return positions
