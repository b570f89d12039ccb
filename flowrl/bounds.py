"""Bounds on the distance between the start and the end of a transport, from its budget alone.

All bounds hold for the empirical measures of the two sets, under the coupling of each particle with itself. With the
Gaussian kernel k(x, y) = exp(−|x − y|²/2σ²): 0 < k <= 1 and |∇k| <= 1/(σ√e). A concrete number out of its range raises
a ValueError.

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, bound on MMD²(μ, π_N^L).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from flowrl._budget import Budget
from flowrl._misc import real_array


def displacement(budget: Budget, gradient_bound: ArrayLike, sigma: ArrayLike) -> Float[Array, ""]:
    r"""Bound how far any particle moves: $Δ = \sum_l ε_l (c + α_l / (σ \sqrt{e}))$, capped by `max_displacement`.

    For `Euler` with `SVGD(RBF(FixedBandwidth(σ)))` and |∇V| <= c along the way, also in a convex domain by projection;
    not for `Optax`, whose steps do not scale with the gradient. In units of the budget's `scale`, if it has one. It
    bounds the Wasserstein distance W_p of the two sets too, for every p.

    Args:
        budget: the budget; its static number of steps is used.
        gradient_bound: c >= 0, Lipschitz constant of the value.
        sigma: σ > 0, the fixed bandwidth of the flow.

    Raises:
        TypeError: `budget` is not a budget.

    Example:
        ```python
        import flowrl

        budget = flowrl.Budget(10, 0.1)  # α = 1
        assert 1.6 < flowrl.bounds.displacement(budget, gradient_bound=1.0, sigma=1.0) < 1.61
        ```
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a flowrl.Budget, got {type(budget).__name__}.")
    gradient_bound, sigma = _at_least_zero("gradient_bound", gradient_bound), _positive("sigma", sigma)
    temperature = jnp.ones(()) if budget.temperature is None else budget.temperature
    if budget.step_size is None:
        raise ValueError("the budget leaves its step_size to the method, so nothing bounds how far particles move.")
    step_size = jnp.broadcast_to(budget.step_size, (budget.bound,))
    pull = gradient_bound + jnp.broadcast_to(temperature, (budget.bound,)) / (sigma * jnp.sqrt(jnp.e))
    moved = jnp.sum(step_size * pull)
    return moved if budget.max_displacement is None else jnp.minimum(moved, budget.max_displacement)


def mmd_squared(budget: Budget, gradient_bound: ArrayLike, sigma: ArrayLike) -> Float[Array, ""]:
    r"""Bound the squared maximum mean discrepancy between start and end, for plain `Euler` with a fixed bandwidth only.

    $$\mathrm{MMD}^2 \le \frac{2}{σ\sqrt{e}} \sum_l ε_l \Bigl( c + \frac{α_l}{σ\sqrt{e}} \Bigr)$$

    The theorem of the VGF paper in the units of this library: it writes its step ε φ with φ = k∇V/α + ∇k; here v = α φ
    and `step_size` = ε/α, hence c in place of c/α.

    Args:
        budget: the budget; its static number of steps is used.
        gradient_bound: c >= 0, Lipschitz constant of the value.
        sigma: σ > 0, the fixed bandwidth of the flow and of the MMD.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        kernel = flowrl.RBF(flowrl.FixedBandwidth(1.0))
        target = flowrl.Boltzmann(lambda x: jnp.sum(jnp.tanh(x)))  # |∇V| <= 1 in one dimension
        start, budget = jr.normal(jr.key(0), (100, 1)), flowrl.Budget(5, 0.1)
        end = flowrl.transport(target, start, budget, flow=flowrl.SVGD(kernel)).particles
        bound = flowrl.bounds.mmd_squared(budget, gradient_bound=1.0, sigma=1.0)
        assert flowrl.diagnostics.mmd_squared(end, start, kernel) <= bound
        ```
    """
    sigma = _positive("sigma", sigma)
    return 2 * displacement(budget, gradient_bound, sigma) / (sigma * jnp.sqrt(jnp.e))


def mmd_squared_from_displacement(max_displacement: ArrayLike, sigma: ArrayLike) -> Float[Array, ""]:
    """Bound MMD² from a displacement alone, whatever the flow: MMD² <= 2 (1 − exp(−D²/2σ²)).

    Tighter than `mmd_squared` for small budgets, since it is quadratic in D.

    Args:
        max_displacement: D >= 0, no particle moved further.
        sigma: σ > 0, bandwidth of the MMD.

    Example:
        ```python
        import flowrl

        bound = flowrl.bounds.mmd_squared_from_displacement(max_displacement=0.1, sigma=1.0)
        assert 0.0099 < bound < 0.01
        ```
    """
    ratio = _at_least_zero("max_displacement", max_displacement) / _positive("sigma", sigma)
    return -2 * jnp.expm1(-0.5 * ratio**2)


def best_of_n_kl(n: ArrayLike) -> Float[Array, ""]:
    """Bound KL(best-of-N | reference) <= log N − (N − 1)/N, what selection costs besides transport.

    Args:
        n: number of candidates N >= 1.

    Example:
        ```python
        import flowrl

        assert flowrl.bounds.best_of_n_kl(1) == 0
        assert 1.20 < flowrl.bounds.best_of_n_kl(8) < 1.21
        ```

    ??? cite "Source"
        Beirami et al., *Theoretical guarantees on the best-of-n alignment policy*, 2024.
    """
    count = real_array("n", n, lambda x: (x >= 1) & np.isfinite(x), "a finite number >= 1")
    return jnp.log(count) - (count - 1) / count


def _at_least_zero(name: str, x: ArrayLike) -> Array:
    return real_array(name, x, lambda x: x >= 0, ">= 0")


def _positive(name: str, x: ArrayLike) -> Array:
    return real_array(name, x, lambda x: x > 0, "> 0")
