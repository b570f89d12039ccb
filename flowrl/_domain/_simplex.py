"""The probability simplex."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flowrl._custom_types import Particle, Particles, Scalar
from flowrl._domain._bounded import AbstractBounded, Method, check_method

_SUM = 128
"""Sums may miss 1 by this many K ε: room for vectors that were normalised elsewhere."""

_FLOOR = 4
"""Mapped probabilities are at least this many times the smallest normal number, which may be flushed to zero."""


class Simplex(AbstractBounded):
    r"""Probability vectors: the last axis of every leaf holds K >= 2 entries >= 0 that sum to 1.

    "mirror" and "bijector" run the flow in y with x = softmax(y), y = log x − mean(log x), and differ only for ascent:
    the mirror map of the negative entropy makes it exponentiated gradient, an Euler step multiplying x by exp(ε ∇V) and
    normalising. "project" brings vectors to the nearest point of the simplex, in the Euclidean sense, after each step.

    A shift of y does not change x, so y has one direction too many. For flows that sample, that direction gets an
    independent standard normal distribution: per vector

    $$\log\left|\det\frac{∂x}{∂y}\right| = \sum_i \log x_i - \tfrac12 K ȳ² + \text{const},$$

    the Jacobian of y to (x₁, …, x_{K−1}, √K ȳ) times the normal density of √K ȳ. The density in y is proper and the
    distribution of x exact. Densities are with respect to the first K − 1 entries, as usual for Dirichlet
    distributions.

    Mapped entries are at least 4 times the smallest normal number. Sums may miss 1 by 128 K ε, with ε the spacing of
    floating numbers at 1; such vectors are left as they are.

    Attributes:
        by: "project", "bijector" or "mirror".

    ??? cite "Source"
        Beck and Teboulle, *Mirror descent and nonlinear projected subgradient methods for convex optimization*,
        Operations Research Letters 31, 2003. Held, Wolfe and Crowder, *Validation of subgradient optimization*,
        Mathematical Programming 6, 1974, for the projection by sorting.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        def log_dirichlet(x):  # Dirichlet(2, 3, 4)
            return jnp.sum(jnp.array([1.0, 2.0, 3.0]) * jnp.log(x))

        particles = jr.dirichlet(jr.key(0), jnp.ones(3), (20,))
        target, budget = flowrl.Density(log_dirichlet), flowrl.Budget(50, 0.5)
        print(flowrl.transport(target, particles, budget, domain=flowrl.Simplex()))
        ```
    """

    by: Method = eqx.field(static=True, default="mirror")

    def __check_init__(self):
        check_method("Simplex", self.by)
        if self.by == "reflect":
            raise ValueError(
                'Simplex cannot be kept by="reflect": it has no interior to be reflected into, since every vector sums '
                'to 1. Use by="mirror", "bijector" or "project".'
            )

    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        def inside(leaf: Array) -> Array:
            return jnp.all(self._inside(leaf), axis=tuple(range(1, leaf.ndim - 1)))

        return jnp.all(jnp.stack(jax.tree.leaves(_vectors(inside, particles, batched=True))), axis=0)

    def restrict(self, particles: Particles) -> Particles:
        def bring(leaf: Array) -> Array:
            return jnp.where(self._inside(leaf)[..., None], leaf, _nearest(leaf))

        return particles if self.maps else _vectors(bring, particles, batched=True)

    def forward(self, particle: Particle) -> Particle:
        def constrain(leaf: Array) -> Array:
            return jnp.maximum(jax.nn.softmax(leaf, axis=-1), _floor(leaf))

        return _vectors(constrain, particle, batched=False) if self.maps else particle

    def inverse(self, particle: Particle) -> Particle:
        def unconstrain(leaf: Array) -> Array:
            y = jnp.log(jnp.maximum(leaf, _floor(leaf)))
            return y - jnp.mean(y, axis=-1, keepdims=True)

        return _vectors(unconstrain, particle, batched=False) if self.maps else particle

    def log_det_jacobian(self, particle: Particle) -> Scalar:
        if not self.maps:
            return jnp.zeros((), jax.tree.leaves(particle)[0].dtype)

        def volume(leaf: Array) -> Array:
            shift = jnp.mean(leaf, axis=-1)
            return jnp.sum(jax.nn.log_softmax(leaf, axis=-1)) - 0.5 * leaf.shape[-1] * jnp.sum(shift**2)

        return jnp.stack(jax.tree.leaves(_vectors(volume, particle, batched=False))).sum()

    def _inside(self, leaf: Array) -> Array:
        """Return which vectors are inside, (..., K) to (...)."""
        tolerance = _SUM * leaf.shape[-1] * float(jnp.finfo(leaf.dtype).eps)
        entries = leaf > 0 if self.maps else leaf >= 0
        return jnp.all(entries, axis=-1) & (jnp.abs(jnp.sum(leaf, axis=-1) - 1) <= tolerance)


def _vectors(function, particles: Particles, *, batched: bool) -> Particles:
    for leaf in jax.tree.leaves(particles):
        shape = leaf.shape[batched:]
        if not shape or shape[-1] < 2:
            raise ValueError(
                f"Simplex needs probability vectors of K >= 2 entries in the last axis of every leaf, got a leaf of "
                f"shape {shape} in one particle."
            )
    return jax.tree.map(function, particles)


def _floor(leaf: Array) -> float:
    return _FLOOR * float(jnp.finfo(leaf.dtype).tiny)


def _nearest(leaf: Array) -> Array:
    # x = max(v − θ, 0) with the θ that makes the sum 1, found from the sorted entries.
    # From the largest entry down, where θ >= −1: entries below −1 end at zero, wherever they are.
    v = jnp.maximum(leaf - jnp.max(leaf, axis=-1, keepdims=True), -1)
    falling = -jnp.sort(-v, axis=-1)
    count = jnp.arange(1, leaf.shape[-1] + 1, dtype=leaf.dtype).reshape((1,) * (leaf.ndim - 1) + (-1,))
    threshold = (jnp.cumsum(falling, axis=-1) - 1) / count
    support = jnp.sum(falling > threshold, axis=-1, keepdims=True)
    x = jnp.maximum(v - jnp.take_along_axis(threshold, support - 1, axis=-1), 0)
    return x / jnp.sum(x, axis=-1, keepdims=True)
