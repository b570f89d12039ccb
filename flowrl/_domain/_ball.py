"""Balls."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from flowrl._custom_types import Particle, Particles, Scalar
from flowrl._domain._bounded import AbstractBounded, Method, check_method
from flowrl._domain._coordinate import fold
from flowrl._misc import concrete, number, numbers_to_array


class Ball(AbstractBounded):
    r"""The Euclidean ball |x − c| <= R over all coordinates of a particle together.

    "project" moves particles outside to the nearest point of the sphere. "reflect" folds the distance to the centre at
    R: to first order the reflection at the tangent plane, so meant for overshoots that are small against R. "bijector"
    and "mirror" are both the gradient map of ψ(x) = −R √(R² − |x − c|²):

    $$x = c + \frac{y}{\sqrt{1 + |y|²/R²}}, \qquad y = \frac{x - c}{\sqrt{1 - |x - c|²/R²}}, \qquad
    \log\left|\det\frac{∂x}{∂y}\right| = -\frac{d + 2}{2} \log(1 + |y|²/R²),$$

    and differ only for ascent (see `AbstractDomain.mirrors`). Near the centre y is x − c. With a map the ball is open.

    Args:
        centre: c, finite: a number, an array that broadcasts against one particle, or a PyTree of such with the
            structure of a particle.
        radius: R, one finite number > 0.
        by: "project", "reflect", "bijector" or "mirror".

    Raises:
        ValueError: a concrete radius or centre is out of its range, or there is no such `by`.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        target = flowrl.Boltzmann(lambda x: jnp.sum(x))  # it grows without bound
        budget, ball = flowrl.Budget(20, 0.2), flowrl.Ball(radius=1.0)
        moved = flowrl.transport(target, jnp.zeros((4, 2)), budget, flow=flowrl.Ascent(), domain=ball)
        assert jnp.allclose(moved.particles, 0.5**0.5, atol=1e-5)  # on the circle, where the sum is largest
        ```
    """

    centre: PyTree[Array]
    radius: Array
    by: Method = eqx.field(static=True)

    def __init__(self, centre: PyTree[ArrayLike] = 0.0, radius: ArrayLike = 1.0, by: Method = "project"):
        check_method("Ball", by)
        centre = numbers_to_array(centre)
        for leaf in jax.tree.leaves(centre):
            place = concrete(leaf)
            if place is not None and not np.isfinite(place).all():
                raise ValueError(f"the centre of Ball must be finite, got {place}.")
        self.centre = jax.tree.map(jnp.asarray, centre)
        self.radius = number("the radius of Ball", radius, lambda value: 0 < value < np.inf, "one finite number > 0")
        self.by = by

    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        def inside(particle: Particle) -> Array:
            offset, centre, radius = self._offset(particle)
            distance = _norm(offset)
            return distance < radius if self.maps else distance <= radius + _rounding(centre, radius)

        return jax.vmap(inside)(particles)

    def restrict(self, particles: Particles) -> Particles:
        def bring(particle: Particle) -> Particle:
            offset, centre, radius = self._offset(particle)
            distance = _norm(offset)
            outside = distance > radius + _rounding(centre, radius)
            allowed = radius if self.by == "project" else fold(distance, -radius, radius)
            inside = centre + offset * (allowed / jnp.where(outside, distance, 1))
            flat, unravel = jax.flatten_util.ravel_pytree(particle)
            return unravel(jnp.where(outside, inside, flat))

        return particles if self.maps else jax.vmap(bring)(particles)

    def forward(self, particle: Particle) -> Particle:
        if not self.maps:
            return particle
        y, unravel = jax.flatten_util.ravel_pytree(particle)
        centre, radius = self._centre(particle), self.radius.astype(y.dtype)
        unit, size = _hypotenuse(y / radius)
        return unravel(centre + _shortened(radius * unit / size, _inner(centre, radius)))

    def inverse(self, particle: Particle) -> Particle:
        if not self.maps:
            return particle
        offset, centre, radius = self._offset(particle)
        offset = _shortened(offset, _inner(centre, radius))
        ratio = _norm(offset) / radius
        _, unravel = jax.flatten_util.ravel_pytree(particle)
        return unravel(offset / jnp.sqrt((1 - ratio) * (1 + ratio)))

    def log_det_jacobian(self, particle: Particle) -> Scalar:
        y, _ = jax.flatten_util.ravel_pytree(particle)
        if not self.maps:
            return jnp.zeros((), y.dtype)
        y = y / self.radius.astype(y.dtype)
        _, size = _hypotenuse(y)
        return -(y.size + 2) * (jnp.log(size) + jnp.log(_largest(y)))

    def _centre(self, particle: Particle) -> Float[Array, " d"]:
        """Return c as a row, in the dtype of the particle."""
        try:
            centre = jax.tree.map(
                lambda c, leaf: jnp.broadcast_to(c.astype(leaf.dtype), leaf.shape),
                jax.tree.broadcast(self.centre, particle),
                particle,
            )
        except ValueError as error:
            got, shape = (jax.tree.map(jnp.shape, tree) for tree in (self.centre, particle))
            raise ValueError(
                f"the centre of Ball, of shape {got}, does not broadcast against a particle of shape {shape}."
            ) from error
        return jax.flatten_util.ravel_pytree(centre)[0]

    def _offset(self, particle: Particle) -> tuple[Float[Array, " d"], Float[Array, " d"], Scalar]:
        """Return x − c, c and R."""
        x, _ = jax.flatten_util.ravel_pytree(particle)
        centre = self._centre(particle)
        return x - centre, centre, self.radius.astype(x.dtype)


def _largest(x: Array) -> Array:
    """Return max(1, |x_i|): a unit in which squares do not overflow. The formulas do not depend on it."""
    return jax.lax.stop_gradient(jnp.max(jnp.abs(x), initial=1))


def _norm(x: Array) -> Array:
    """Compute |x|, for any size, with gradient zero at zero."""
    unit = _largest(x)
    squared = jnp.sum((x / unit) ** 2)
    return unit * jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _hypotenuse(y: Array) -> tuple[Array, Array]:
    """Compute y and √(1 + |y|²), both over max(1, |y_i|)."""
    unit = _largest(y)
    return y / unit, jnp.sqrt(unit**-2 + jnp.sum((y / unit) ** 2))


def _shortened(offset: Array, longest: Array) -> Array:
    distance = _norm(offset)
    return jnp.where(distance > longest, offset * (longest / jnp.where(distance > longest, distance, 1)), offset)


def _rounding(centre: Array, radius: Array) -> Array:
    """Bound how much rounding the coordinates of a point on the sphere changes its distance."""
    eps = jnp.finfo(radius.dtype).eps
    return eps * ((4 + float(np.sqrt(centre.size))) * radius + _norm(centre))


def _inner(centre: Array, radius: Array) -> Array:
    return jnp.maximum(radius - _rounding(centre, radius), 0)
