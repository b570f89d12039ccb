"""The flow of the squared maximum mean discrepancy to samples."""

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float

from flowrl._custom_types import Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import RBF, AbstractScalarKernel, refuse_linear, total_of
from flowrl._misc import number


class MMDFlow(AbstractFlow):
    r"""The gradient flow of half the squared maximum mean discrepancy to samples y of the target, with witness f.

    $$v_i = -∇f(x_i + β u_i), \qquad f(x) = \frac{1}{n} \sum_j k(x, x_j) - \frac{1}{m} \sum_l k(x, y_l),
      \qquad u_i \sim N(0, I)$$

    Without noise (β = 0) the discrepancy falls, but particles many bandwidths away from all samples hardly move and can
    stay behind, where the others have pushed them; noise injection carries them on. A bandwidth that depends on data is
    fitted to the samples, so that it stays the same while the particles move.

    Attributes:
        kernel: k, a scalar kernel; `RBF()` with the median bandwidth by default.
        noise: β >= 0, how far from a particle its velocity is read, in units of the budget's `scale`, an array (); None
            for no noise. A number needs a key, even 0.

    Raises:
        TypeError: `kernel` is not a scalar kernel, or `noise` not a number.
        ValueError: a concrete `noise` is not a finite number >= 0.

    ??? cite "Source"
        Arbel, Korba, Salim and Gretton, *Maximum Mean Discrepancy Gradient Flow*, NeurIPS 2019.
    """

    kernel: AbstractScalarKernel
    noise: Array | None

    def __init__(self, kernel: AbstractScalarKernel = RBF(), noise: ArrayLike | None = None):  # noqa: B008
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
        """What the flow asks; with noise it needs a key, and descends no energy."""
        return Traits(
            needs=frozenset({"samples"}),
            temperature="none",
            entropic=False,
            energy_needs=frozenset({"samples"}) if self.noise is None else None,
            random=self.noise is not None,
            weighs=True,
        )

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        kernel, x, y = self._ready(view, positions, alive)
        mass = view.mass(alive)
        at = x
        if self.noise is not None:
            at = x + self.noise.astype(x.dtype) * jr.normal(view.flow_key, x.shape, x.dtype)
        apart = kernel.gradient(at, x, mass) / total_of(mass)
        toward = kernel.gradient(at, y, jnp.full(y.shape[0], 1 / y.shape[0], y.dtype))
        return jnp.where(alive[:, None], toward - apart, 0), alive

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "MMDFlow":
        kernel, _, _ = self._ready(view, positions, alive)
        return MMDFlow(kernel, self.noise)

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        if self.noise is not None:
            raise TypeError("MMDFlow with noise descends no energy; the discrepancy is that of MMDFlow(kernel).")
        kernel, x, y = self._ready(view, positions, alive)
        mass = view.mass(alive)
        weight = mass / total_of(mass)
        share = jnp.full(y.shape[0], 1 / y.shape[0], y.dtype)
        own = jnp.sum(weight * kernel.apply(x, x, weight[:, None])[:, 0])
        cross = jnp.sum(weight * kernel.apply(x, y, share[:, None])[:, 0])
        return 0.5 * (own - 2 * cross + jnp.sum(share * kernel.apply(y, y, share[:, None])[:, 0]))

    def _ready(
        self, view: TargetView, positions: Positions, alive: Mask
    ) -> tuple[AbstractScalarKernel, Positions, Float[Array, "m d"]]:
        """Return the kernel fitted to the samples, and both sets relative to the mean of the samples."""
        y = view.samples()
        shift = jax.lax.stop_gradient(y[:1] + jnp.mean(y - y[:1], axis=0, keepdims=True))
        x, y = jnp.where(alive[:, None], positions - shift, 0), y - shift
        return self.kernel.fitted(jax.lax.stop_gradient(y), jnp.ones(y.shape[0], bool)), x, y
