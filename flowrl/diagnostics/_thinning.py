"""Stein thinning: the few of many points that together represent a distribution best."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from flowrl._custom_types import Particles, Positions, Scalar
from flowrl._kernel import AbstractKernel, centre
from flowrl._misc import check_count, concrete
from flowrl.diagnostics._sets import with_scores
from flowrl.diagnostics._stein import checked


def stein_thinning(
    particles: Particles,
    scores: Particles,
    m: int,
    kernel: AbstractKernel | None = None,
    *,
    log_probs: Float[Array, " n"] | None = None,
    regularisation: ArrayLike | None = None,
) -> Int[Array, " m"]:
    r"""Choose points one after the other so that the chosen ones have the least kernel Stein discrepancy.

    $$π_t = \operatorname{argmin}_i \; κ(x_i, x_i) + 2 \sum_{j < t} κ(x_{π_j}, x_i) - λ t \log p(x_i)$$

    with the Stein kernel κ. Every choice is the best next one for $t^2 \mathrm{KSD}^2 - λ t \sum_j \log p(x_{π_j})$. A
    point can be chosen again. It discards the burn-in of a Markov chain, corrects a biased sampler and compresses.

    Without `log_probs` (λ = 0) it can choose points between modes or of low density where the score is small; with
    them such points cost log p. The same authors' correction by the Laplacian of log p is not included.

    Costs m sweeps over all points, memory O(n).

    Args:
        particles: the candidates, leaves (n, ...). Those whose position, score or log density is NaN or infinite are
            never chosen (the first is, over and over, if all are).
        scores: ∇ log p at each of them, of the same structure and shapes.
        m: how many to choose, a Python int >= 1; may exceed n.
        kernel: k, scalar or matrix-valued; `IMQ()` by default, its bandwidth fitted to the candidates.
        log_probs: log p at each candidate up to a constant, (n,).
        regularisation: λ >= 0, with `log_probs` only; 1/m by default.

    Returns:
        The indices of the chosen, (m,), in the order of choice: the first k are the choice of k (for the same λ).

    Raises:
        TypeError: `kernel` is not a kernel or has no Stein kernel.
        ValueError: shapes differ, `m` is not an int >= 1, or `regularisation` is negative or without `log_probs`.

    Example:
        ```python
        import jax
        import jax.random as jr
        from flowrl import diagnostics

        chain = 3 * jr.normal(jr.key(0), (1000, 2))  # too wide for N(0, I), whose score is −x
        chosen = chain[diagnostics.stein_thinning(chain, -chain, 50)]
        ```

    ??? cite "Source"
        Riabiz et al., *Optimal thinning of MCMC output*, JRSS B 2022. Bénard, Staber and Da Veiga, *Kernel Stein
        Discrepancy thinning: a theoretical perspective of pathologies and a practical fix with regularization*,
        NeurIPS 2023, for the term λ log p.
    """
    x, s = with_scores(particles, scores)
    check_count("m", m)
    if log_probs is None:
        if regularisation is not None:
            raise ValueError("regularisation weighs log densities: pass log_probs (n,) too, or leave it out.")
        log_probs, regularisation = jnp.zeros(x.shape[0], x.dtype), 0.0
    if log_probs.shape != x.shape[:1]:
        raise ValueError(f"log_probs must have shape {x.shape[:1]}, one per particle; got {log_probs.shape}.")
    regularisation = 1 / m if regularisation is None else regularisation
    value = concrete(regularisation)
    if value is not None and not (value.shape == () and 0 <= value < float("inf")):
        raise ValueError(f"regularisation must be one finite number >= 0, got {regularisation}.")
    weight = jnp.asarray(regularisation).astype(x.dtype)
    return _thin(x, s, log_probs.astype(x.dtype), checked(kernel), weight, m)


@eqx.filter_jit
def _thin(
    x: Positions, s: Positions, log_probs: Float[Array, " n"], kernel: AbstractKernel, weight: Scalar, m: int
) -> Int[Array, " m"]:
    alive = jnp.all(jnp.isfinite(x) & jnp.isfinite(s), axis=1) & jnp.isfinite(log_probs)
    x, s, log_probs = centre(x, alive), jnp.where(alive[:, None], s, 0), jnp.where(alive, log_probs, 0)
    kernel = kernel.fitted(x, alive)

    def own(here: Array, score: Array) -> Array:
        # A kernel counts positions from the mean of its first argument; that of x and −x is zero, as that of all.
        pair, pair_scores = jnp.stack([here, -here]), jnp.stack([score, score])
        return kernel.stein_gram(pair, pair_scores, here[None], score[None])[0, 0]

    def choose(cost: Array, t: Array) -> tuple[Array, Array]:
        chosen = jnp.argmin(jnp.where(alive, cost - weight * t * log_probs, jnp.inf))
        column = kernel.stein_gram(x, s, x[chosen][None], s[chosen][None])[:, 0]
        return cost + 2 * column, chosen

    _, indices = jax.lax.scan(choose, jax.vmap(own)(x, s), jnp.arange(1, m + 1).astype(x.dtype))
    return indices
