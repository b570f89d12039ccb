"""Distances between two sets that are sums over pairs of points.

With z all points together and weights w_i = 1/n on x (or its own, normalised) and −1/m on y,
MMD² = Σ_ij w_i w_j k(z_i, z_j), and the square of the energy distance is −Σ_ij w_i w_j |z_i − z_j|.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._custom_types import Particles, PerParticle, Scalar
from flowrl._kernel import RBF, AbstractScalarKernel, by_rows, centre, inner_products
from flowrl.diagnostics._sets import as_matrices, distinct, emptied, log_shares, present, root


def mmd(
    x: Particles, y: Particles, kernel: AbstractScalarKernel = RBF(), *, log_weights: PerParticle | None = None
) -> Scalar:
    r"""Compute the maximum mean discrepancy between two sets, the distance of their mean embeddings.

    $$\mathrm{MMD} = \Bigl| \frac{1}{n} \sum_i k(x_i, ·) - \frac{1}{m} \sum_j k(y_j, ·) \Bigr|_{H}$$

    All pairs are counted, so it is >= 0, and 0 for equal sets. For two independent sets of one distribution it is of
    the order of (1/n + 1/m)^½; `mmd_squared(..., unbiased=True)` is 0 on average then. Rounding leaves up to about 1e-3
    in float32.

    Args:
        x: particles, leaves (n, ...).
        y: the reference, leaves (m, ...). A bandwidth that depends on data is fitted to it, so that distances of
            several sets to one reference compare.
        kernel: k, a scalar kernel; bounded and characteristic ones, such as `RBF` and `IMQ`, tell any two distributions
            apart.
        log_weights: log weights of x (n,), up to a constant; −∞ is an empty slot, which is left out whatever it holds.
            None for equal weights.

    Raises:
        TypeError: `kernel` is not a scalar kernel.
        ValueError: `log_weights` are no log weights.

    Example:
        ```python
        import jax.random as jr
        from flowrl import diagnostics

        x, y = jr.normal(jr.key(0), (100, 2)), 1 + jr.normal(jr.key(1), (200, 2))
        distance = diagnostics.mmd(x, y)
        ```

    ??? cite "Source"
        Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012.
    """
    return root(mmd_squared(x, y, kernel, log_weights=log_weights))


def mmd_squared(
    x: Particles,
    y: Particles,
    kernel: AbstractScalarKernel = RBF(),
    *,
    unbiased: bool = False,
    log_weights: PerParticle | None = None,
) -> Scalar:
    """Compute the squared maximum mean discrepancy between two sets, see `mmd`.

    Args:
        x: as for `mmd`.
        y: as for `mmd`.
        kernel: as for `mmd`.
        unbiased: leave out the pairs of a point with itself. Then the mean over independent samples is the squared
            discrepancy of their distributions (for a kernel that does not depend on them), and the result can be
            negative. NaN if one point of x has all the weight.
        log_weights: as for `mmd`.

    Raises:
        TypeError: `kernel` is not a scalar kernel.
        ValueError: a set has one point where two are needed, or `log_weights` are no log weights.
    """
    if not isinstance(kernel, AbstractScalarKernel):
        raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {kernel!r}.")
    a, b = as_matrices(x, y)
    logs = log_shares(log_weights, a)
    if unbiased and min(a.shape[0], b.shape[0]) < 2:
        raise ValueError(f"unbiased=True needs two points in each set, got {a.shape[0]} in x and {b.shape[0]} in y.")
    return _mmd_squared(a, b, logs, kernel, unbiased)


def energy_distance(x: Particles, y: Particles, *, log_weights: PerParticle | None = None) -> Scalar:
    r"""Compute the energy distance between two sets, which needs no bandwidth.

    $$D^2 = \frac{2}{nm} \sum_{ij} |x_i - y_j| - \frac{1}{n^2} \sum_{ij} |x_i - x_j|
      - \frac{1}{m^2} \sum_{ij} |y_i - y_j|$$

    D is the root, as in `scipy.stats.energy_distance`, in the square root of the unit of length; 0 for equal sets
    (up to about 1e-3 of the root of the spread in float32).

    Args:
        x: leaves (n, ...).
        y: leaves (m, ...).
        log_weights: of x, as for `mmd`.

    Raises:
        ValueError: `log_weights` are no log weights.

    Example:
        ```python
        import jax.random as jr
        from flowrl import diagnostics

        x, y = jr.normal(jr.key(0), (100, 2)), jr.normal(jr.key(1), (100, 2))
        assert diagnostics.energy_distance(x, y) < diagnostics.energy_distance(x, y + 1)
        ```

    ??? cite "Source"
        Székely and Rizzo, *Energy statistics: a class of statistics based on distances*, Journal of Statistical
        Planning and Inference 2013.
    """
    a, b = as_matrices(x, y)
    return _energy_distance(a, b, log_shares(log_weights, a))


@eqx.filter_jit
def _mmd_squared(
    x: Array,
    y: Array,
    log_shares: PerParticle | None,
    kernel: AbstractScalarKernel,
    unbiased: bool,  # noqa: FBT001
) -> Array:
    everyone = jnp.ones(y.shape[0], bool)
    return _contrast(kernel.fitted(centre(y, everyone), everyone).gram, x, y, log_shares, unbiased=unbiased)


@eqx.filter_jit
def _energy_distance(x: Array, y: Array, log_shares: PerParticle | None) -> Array:
    return root(-_contrast(_distances, x, y, log_shares, unbiased=False))


def _contrast(
    entries: Callable[[Array, Array], Array],
    x: Array,
    y: Array,
    log_shares: PerParticle | None,
    *,
    unbiased: bool,
) -> Array:
    """Compute mean f(x, x') + mean f(y, y') − 2 mean f(x, y) of a symmetric function of pairs."""
    n, m = x.shape[0], y.shape[0]
    (x,) = emptied(log_shares, x)
    # Both sets together, and always as the first argument: a kernel counts positions from the mean of that one, and a
    # kernel such as `Linear` is the same for all pairs only if that mean is.
    points = jnp.concatenate([x, y])
    there = jnp.concatenate([present(log_shares, x), jnp.ones(m, bool)])
    points, index = centre(points, there), jnp.arange(n + m)
    own_x, own_y = (1 / (n * (n - 1)), 1 / (m * (m - 1))) if unbiased else (1 / n**2, 1 / m**2)
    shares = None
    if log_shares is not None:
        shares = jnp.concatenate([jnp.exp(log_shares), jnp.full(m, 1 / m, x.dtype)])
        own_x, own_y = (1 / distinct(shares[:n]), m / (m - 1)) if unbiased else (1, 1)

    def rows(block: tuple[Array, Array]) -> Array:
        here, number = block
        own = jnp.where(index < n, own_x, own_y).astype(x.dtype)[:, None]
        same = (index < n)[:, None] == (number < n)[None, :]
        if shares is None:
            weight = jnp.where(same, own, -1 / (n * m))
        else:
            weight = jnp.where(same, own, -1) * shares[:, None] * shares[number][None, :]
        if unbiased:
            weight = jnp.where(index[:, None] == number[None, :], 0, weight)
        return jnp.sum(weight * entries(points, here), axis=0)

    return jnp.sum(by_rows(rows, (points, index), n + m))


def _distances(x: Float[Array, "n d"], y: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """Compute |x_i − y_j|, 0 for pairs that rounding cannot tell from coincident ones."""
    squared_x, squared_y = jnp.sum(x * x, axis=1)[:, None], jnp.sum(y * y, axis=1)[None, :]
    squared = squared_x + squared_y - 2 * inner_products(x, y)
    rounding = 8 * jnp.finfo(x.dtype).eps * (squared_x + squared_y)
    return root(jnp.where(squared <= rounding, 0, squared))
