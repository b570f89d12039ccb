r"""The flow of the squared maximum mean discrepancy to samples.

E(q) = ½ MMD²(q, π) = ½ |∫ k(x, ·) d(q − π)|² in the kernel's Hilbert space. Its velocity is −∇f, where the witness is
f(x) = (1/n) Σ_j k(x, x_j) − (1/m) Σ_l k(x, y_l).
"""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow, Traits
from flowrl._flow._target_view import TargetView
from flowrl._kernel import RBF, AbstractScalarKernel
from flowrl._kernel._linear import refuse_linear
from flowrl._misc import number


class MMDFlow(AbstractFlow):
    r"""The gradient flow of half the squared maximum mean discrepancy to samples y of the target.

    $$v_i = -∇f(x_i + β u_i), \qquad f(x) = \frac{1}{n} \sum_j k(x, x_j) - \frac{1}{m} \sum_l k(x, y_l),
      \qquad u_i \sim N(0, I)$$

    Without noise (β = 0) the discrepancy falls, but particles far from all samples, by the measure of the bandwidth,
    feel next to nothing and can stay behind, where the others have pushed them; noise injection carries them on. A
    bandwidth that depends on data is fitted to the samples, so that it stays the same while the particles move.

    Attributes:
        kernel: k; `RBF()` with the median bandwidth by default.
        noise: β, an array `()`, or None for a deterministic flow.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import flowrl

        samples = 1 + jax.random.normal(jax.random.key(0), (500, 2))
        start = 0.5 * jax.random.normal(jax.random.key(1), (100, 2))
        budget = flowrl.Budget(steps=200, step_size=1.0)
        solution = flowrl.transport(flowrl.Empirical(samples), start, budget, flow=flowrl.MMDFlow())
        ```

    ??? cite "Source"
        Arbel, Korba, Salim and Gretton, *Maximum Mean Discrepancy Gradient Flow*, NeurIPS 2019.
    """

    kernel: AbstractScalarKernel
    noise: Array | None

    def __init__(self, kernel: AbstractScalarKernel = RBF(), noise: ArrayLike | None = None):  # noqa: B008
        """Make the flow.

        Args:
            kernel: k(x, y); a scalar kernel.
            noise: β >= 0, how far from a particle its velocity is read, in the coordinates the flow runs in (units of
                the budget's `scale`). None for no noise; a number asks for a key, be it 0.

        Raises:
            TypeError: `kernel` is not a scalar kernel, or `noise` no number.
            ValueError: a concrete `noise` is not a finite number >= 0.
        """
        if not isinstance(kernel, AbstractScalarKernel):
            raise TypeError(f"kernel must be a scalar kernel such as RBF(), got {kernel!r}.")
        refuse_linear(kernel, "MMDFlow")
        self.kernel = kernel
        self.noise = None
        if noise is not None:
            self.noise = number(
                "noise", noise, lambda value: 0 <= value < float("inf"), "a finite number >= 0, or None"
            )

    @property
    def traits(self) -> Traits:
        """What the flow asks: samples, no temperature, and a key if there is noise, with which it descends nothing."""
        return Traits(
            needs=frozenset({"samples"}),
            temperature="none",
            entropic=False,
            energy_needs=frozenset({"samples"}) if self.noise is None else None,
            random=self.noise is not None,
        )

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give −∇f at every particle, or beside it if there is noise.

        Args:
            view: the target; its samples, and its `flow_key` if there is noise.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        kernel, x, y = self._ready(view, positions, alive)
        weight = alive.astype(x.dtype)
        at = x
        if self.noise is not None:
            at = x + self.noise.astype(x.dtype) * jr.normal(view.flow_key, x.shape, x.dtype)
        apart = kernel.gradient(at, x, weight) / jnp.maximum(jnp.sum(weight), 1)
        toward = kernel.gradient(at, y, jnp.full(y.shape[0], 1 / y.shape[0], y.dtype))
        return jnp.where(alive[:, None], toward - apart, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "MMDFlow":
        """Give the flow with the kernel, which is fitted to the samples, fixed at these particles.

        Args:
            view: the target; its samples.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        kernel, _, _ = self._ready(view, positions, alive)
        return MMDFlow(kernel, self.noise)

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Give ½ MMD² between the living particles and the samples, all pairs counted.

        Args:
            view: the target; its samples.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Raises:
            TypeError: the flow has noise, so it descends no energy.
        """
        if self.noise is not None:
            raise TypeError("MMDFlow with noise descends no energy; the discrepancy is that of MMDFlow(kernel).")
        kernel, x, y = self._ready(view, positions, alive)
        weight = alive.astype(x.dtype) / jnp.maximum(jnp.sum(alive.astype(x.dtype)), 1)
        share = jnp.full(y.shape[0], 1 / y.shape[0], y.dtype)
        own = jnp.sum(weight * kernel.apply(x, x, weight[:, None])[:, 0])
        cross = jnp.sum(weight * kernel.apply(x, y, share[:, None])[:, 0])
        return 0.5 * (own - 2 * cross + jnp.sum(share * kernel.apply(y, y, share[:, None])[:, 0]))

    def _ready(
        self, view: TargetView, positions: Positions, alive: Mask
    ) -> tuple[AbstractScalarKernel, Positions, Float[Array, "m d"]]:
        """Give the kernel fitted to the samples, and both sets counted from the mean of the samples."""
        y = view.samples()
        shift = jax.lax.stop_gradient(y[:1] + jnp.mean(y - y[:1], axis=0, keepdims=True))
        x, y = jnp.where(alive[:, None], positions - shift, 0), y - shift
        return self.kernel.fitted(jax.lax.stop_gradient(y), jnp.ones(y.shape[0], bool)), x, y
