"""Kernel Fisher-Rao flow: from a reference to its tilt in unit time, by values alone."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractScalarKernel, centre, gradient_gram, total_of
from flowrl._misc import number


class KFRFlow(AbstractFlow):
    r"""Kernel Fisher-Rao flow: from a reference μ to its tilt μ exp(V/α) in unit time, without a gradient of V.

    Along the geometric path $π_t \propto μ \exp(tV/α)$ the velocity is a gradient $v = ∇φ$ with
    $E_{π_t}[∇f \cdot v] = \operatorname{Cov}_{π_t}(f, V/α)$ for every function f. Here φ and f are sums of the kernels
    at the particles, and the particles stand for $π_t$:

    $$v(x) = \sum_j a_j ∇_x k(x, x_j), \qquad (M + λI)\,a = b$$

    $$M_{ij} = \frac{1}{n} \sum_k ∇_k k(x_k, x_i) \cdot ∇_k k(x_k, x_j), \qquad
      b_i = \frac{1}{nα} \sum_k k(x_k, x_i) (V(x_k) - \bar V)$$

    The particles are drawn from μ, which is never evaluated: the target is a `Tilted(log_reference, value)`, asked for
    its value once per particle and step, and that value must be finite where particles come. With weights of the
    particles the means over k are weighted. A step costs O(n³) and holds matrices n × n.

    `Budget(steps, None)` takes steps of 1/steps. Where V/α differs by much between particles the flow is stiff, and
    Euler's steps throw particles far off: `Diffrax()` with `Budget(1, None)` finds its own. The set knows the tilt from
    its own draws of μ: a set of a few tens falls into clumps, variances come out too small in many dimensions, and a
    posterior beyond all particles is not reached by kernels that fall off. For the last add one that does not,
    `RBF() + 0.1 * (Linear() * Linear())`, whose flow is affine, in a budget with the particles' spread as `scale`.

    Attributes:
        kernel: k, scalar; `RBF()` with the median bandwidth of the moment by default.
        regularisation: λ > 0 in units of the mean of M's diagonal, an array (); at least 4n times the rounding error of
            the dtype is taken. A larger one makes the flow smoother and leaves particles behind.

    Raises:
        TypeError: `kernel` is not a scalar kernel.
        ValueError: a concrete `regularisation` is not one positive number.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def log_prior(x):
            return -0.5 * jnp.sum(x**2)


        def log_likelihood(x):
            return -0.5 * jnp.sum((x - 2.0) ** 2)


        target, prior = flowrl.Tilted(log_prior, log_likelihood), jr.normal(jr.key(0), (200, 2))
        flow, solver = flowrl.KFRFlow(), flowrl.Diffrax()
        posterior = flowrl.transport(target, prior, flowrl.Budget(1, None), flow=flow, solver=solver)  # N(1, I/2)
        assert jnp.abs(posterior.particles.mean(axis=0) - 1).max() < 0.15
        assert jnp.abs(posterior.particles.var(axis=0) - 0.5).max() < 0.15
        ```

    ??? cite "Source"
        Maurais and Marzouk, *Sampling in Unit Time with Kernel Fisher-Rao Flow*, ICML 2024. There λ is a number by
        itself.
    """

    kernel: AbstractScalarKernel
    regularisation: Array
    traits: ClassVar[Traits] = Traits(
        needs=frozenset({"log_tilt"}), temperature="positive", weighs=True, unit_time=True
    )

    def __init__(self, kernel: AbstractScalarKernel = RBF(), regularisation: ArrayLike = 1e-3):  # noqa: B008
        if not isinstance(kernel, AbstractScalarKernel):
            raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {kernel!r}.")
        self.kernel = kernel
        self.regularisation = number("regularisation", regularisation, lambda x: 0 < x < float("inf"), "> 0 and finite")

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        tilt, alive = view.ask("log_tilt", positions, alive)
        x, mass = centre(positions, alive), view.mass(alive)
        mass = mass / total_of(mass)
        excess = tilt / view.temperature
        excess = mass * (excess - jnp.sum(mass * excess))
        kernel = self.kernel.fitted(x, alive)
        moments = jnp.where(alive, kernel.apply(x, x, excess[:, None])[:, 0], 0)
        gram = gradient_gram(kernel, x, mass, alive)
        count = jnp.maximum(jnp.sum(alive.astype(x.dtype)), 1)
        # The eigenvalues of M are at most n times the mean of its diagonal: below this they are rounding errors, by
        # which a Cholesky factorisation fails.
        least = 4 * count * jnp.finfo(x.dtype).eps
        ridge = jnp.maximum(self.regularisation.astype(x.dtype), least) * jnp.trace(gram) / count
        # Of particles in one place M is zero. The frozen have a coefficient of zero by either.
        gram = gram + jnp.where(ridge > 0, ridge, 1) * jnp.eye(x.shape[0], dtype=x.dtype)
        coefficients = jax.scipy.linalg.solve(gram, moments, assume_a="pos")
        return jnp.where(alive[:, None], kernel.gradient(x, x, coefficients), 0), alive
