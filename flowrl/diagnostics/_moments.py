"""Cheap checks: particles that have collapsed, weights concentrated on a few."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from flowrl._custom_types import Particles, PerParticle, Scalar
from flowrl._misc import concrete
from flowrl.diagnostics._sets import as_matrix, distinct, emptied, log_shares


def variance_ratio(particles: Particles, variance: Particles, *, log_weights: PerParticle | None = None) -> Scalar:
    r"""Compute the particles' variance over the target's, averaged over coordinates: below 1 they have collapsed.

    $$\frac{1}{d} \sum_k \frac{\mathrm{var}_k(x)}{σ_k^2}, \qquad
      \mathrm{var}_k(x) = \frac{1}{n - 1} \sum_i (x_{ik} - \bar x_k)^2$$

    1 on average for independent samples of the target. Below 1 the particles are too narrow, as those of SVGD are in
    many dimensions; 0 means that all coincide. One particle has the ratio 0. With weights w that sum to one the mean
    is the weighted one, and the variance $\sum_i w_i (x_{ik} - \bar x_k)^2 / (1 - \sum_i w_i^2)$.

    Args:
        particles: leaves (n, ...).
        variance: σ² > 0 of each coordinate: what broadcasts against one particle, leaf by leaf, such as a number or an
            array (d,). From samples of a reference: `jnp.var(samples, axis=0, ddof=1)`.
        log_weights: log weights of the particles (n,), up to a constant; −∞ is an empty slot, which is left out
            whatever it holds. None for equal weights.

    Raises:
        ValueError: `variance` does not broadcast against one particle, a concrete one is not positive, or `log_weights`
            are no log weights.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        from flowrl import diagnostics

        samples = jr.normal(jr.key(0), (500, 10))
        assert abs(diagnostics.variance_ratio(samples, 1.0) - 1) < 0.1
        assert diagnostics.variance_ratio(jnp.zeros((500, 10)), 1.0) == 0  # collapsed
        ```
    """
    x = as_matrix(particles, "particles")
    try:
        reference = jax.tree.map(
            lambda leaf, v: jnp.broadcast_to(jnp.asarray(v).astype(leaf.dtype), leaf.shape[1:])[None],
            particles,
            jax.tree.broadcast(variance, particles),
        )
    except ValueError as error:
        got = jax.tree.map(jnp.shape, variance)
        want = jax.tree.map(lambda leaf: leaf.shape[1:], particles)
        raise ValueError(f"variance of shape {got} does not broadcast against a particle of shape {want}.") from error
    reference = as_matrix(reference, "variance")
    value = concrete(reference)
    if value is not None and not (value > 0).all():
        raise ValueError(f"variance must be positive in every coordinate, but its smallest entry is {value.min()}.")
    logs = log_shares(log_weights, x)
    if logs is None:
        x = x - x[:1]
        x = x - jnp.mean(x, axis=0, keepdims=True)
        return jnp.mean(jnp.sum(x * x, axis=0, keepdims=True) / max(x.shape[0] - 1, 1) / reference)
    shares = jnp.exp(logs)
    (x,) = emptied(logs, x - x[jnp.argmax(logs)][None])
    x = x - (shares @ x)[None]
    pairs = distinct(shares)
    summed = shares[None] @ (x * x)
    return jnp.mean(summed / jnp.where(pairs > 0, pairs, 1) / reference)


def effective_sample_size(log_weights: Float[Array, " n"]) -> Scalar:
    r"""Compute the effective sample size of weighted particles, Kish's $(\sum_i w_i)^2 / \sum_i w_i^2$.

    Between 1 (one particle has all the weight) and n (all weigh the same), and 0 if all weights are zero. It does not
    account for dependence between particles.

    Args:
        log_weights: log w_i up to a constant, (n,); −∞ for a weight of zero.

    Raises:
        TypeError: `log_weights` is not an array.
        ValueError: its shape is not (n,) with n >= 1.

    Example:
        ```python
        import jax.numpy as jnp
        from flowrl import diagnostics

        assert jnp.isclose(diagnostics.effective_sample_size(jnp.zeros(100)), 100)
        assert jnp.isclose(diagnostics.effective_sample_size(jnp.array([0.0, -jnp.inf, -jnp.inf])), 1)
        ```

    ??? cite "Source"
        Kish, *Survey Sampling*, Wiley 1965. Kong, Liu and Wong, *Sequential imputations and Bayesian missing data
        problems*, JASA 1994, for importance weights.
    """
    if not isinstance(log_weights, jax.Array | np.ndarray):
        raise TypeError(f"log_weights must be an array (n,), got {log_weights!r}.")
    if log_weights.ndim != 1 or log_weights.shape[0] == 0:
        raise ValueError(f"log_weights must have shape (n,) with n >= 1, got {log_weights.shape}; vmap over more axes.")
    return _kish(log_weights)


@jax.jit
def _kish(log_weights: Float[Array, " n"]) -> Scalar:
    nothing = jnp.max(log_weights) == -jnp.inf
    logs = jnp.where(nothing, 0, log_weights)
    return jnp.where(nothing, 0, jnp.exp(2 * logsumexp(logs) - logsumexp(2 * logs)))
