"""The target as a flow sees it: a matrix of positions in, a matrix of gradients out, at one step's temperature.

A view hides the structure of the particles, the unit of length, the coordinates of the domain and non-finite scores.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from flowrl._custom_types import Key, Mask, Particle, Particles, PerParticle, Positions, Scalar
from flowrl._domain import AbstractDomain
from flowrl._target import AbstractTarget, scalar


class TargetView(eqx.Module):
    """A target in the coordinates z of a flow, x = T(scale · z).

    Attributes:
        temperature: α of this step.
        key: randomness of the target at this step, or None.
        velocity_key: what `flow_key` returns; None if there is none.
        target: the density.
        domain: has x = T(y).
        scale: unit of length of each coordinate.
        entropic: the flow samples a distribution, so mapped coordinates gain the Jacobian.
        unravel: restores the structure of the particles.
        weights: of the particles, one on average (n,), or None if all weigh the same.
        dtype: in which the target sees particles, where the transport computes in another; None for the same.
    """

    temperature: Scalar
    key: Key | None
    velocity_key: Key | None
    target: AbstractTarget
    domain: AbstractDomain
    scale: Float[Array, "1 d"]
    entropic: bool = eqx.field(static=True)
    unravel: Callable[[Positions], Particles] = eqx.field(static=True)
    weights: PerParticle | None = None
    dtype: Any = eqx.field(static=True, default=None)

    def weighted(self, log_weights: PerParticle) -> "TargetView":
        """Return the view of a set of particles with weights.

        Args:
            log_weights: (n,); −inf is an empty slot.
        """
        total = jax.nn.logsumexp(log_weights)
        shares = jnp.exp(log_weights - jnp.where(jnp.isfinite(total), total, 0))
        weights = shares * log_weights.shape[0]
        return eqx.tree_at(lambda view: view.weights, self, weights, is_leaf=lambda x: x is None)

    def mass(self, alive: Mask) -> PerParticle:
        """Return what each particle counts in a sum over the set: zero if frozen, one without weights (n,).

        Args:
            alive: particles not frozen.
        """
        mass = alive.astype(self.scale.dtype)
        return mass if self.weights is None else mass * self.weights.astype(mass.dtype)

    @property
    def flow_key(self) -> Key:
        """Randomness of the flow's velocity at this step.

        Raises:
            ValueError: the flow's traits do not say `random=True`, or the view was made without a key.
        """
        if self.velocity_key is None:
            raise ValueError(
                "the view has no flow_key: a flow whose velocity is random says so by Traits(random=True), and then "
                "transport asks for a key."
            )
        return self.velocity_key

    def gradient(self, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Return ∇_z U at every particle.

        Args:
            positions: z, (n, d).
            alive: particles not frozen yet.

        Returns:
            The gradient (n, d), zero where it is not finite or the particle is frozen; and who is still alive.
        """
        particles = self.unravel(positions * self.scale)
        gradient = jax.vmap(self._mapped_gradient if self.domain.maps else self._gradient)(particles)
        return self._flattened(gradient, positions, alive)

    def value_and_gradient(self, positions: Positions, alive: Mask) -> tuple[PerParticle, Positions, Mask]:
        """Return what `scaled_log_density` and `gradient` do, by one evaluation where the target knows how.

        Args:
            positions: z, (n, d).
            alive: particles not frozen yet.

        Returns:
            The scaled log density (n,) and the gradient (n, d), zero where one of them is not finite or the particle is
            frozen; and who is still alive.
        """
        particles = self.unravel(positions * self.scale)
        value, gradient = jax.vmap(self._mapped_both if self.domain.maps else self._both)(particles)
        flat, alive = self._flattened(gradient, positions, alive & jnp.isfinite(value))
        return jnp.where(alive, value, 0), flat, alive

    def _flattened(self, gradient: Particles, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        flat = jax.vmap(lambda g: jax.flatten_util.ravel_pytree(g)[0])(gradient)
        if flat.shape != positions.shape:
            raise ValueError(
                f"{type(self.target).__name__}.gradient gave {flat.shape[1]} numbers for one particle of "
                f"{positions.shape[1]}; expected the structure and shapes of the particle."
            )
        flat = flat * self.scale
        alive = alive & jnp.all(jnp.isfinite(flat), axis=1)
        return jnp.where(alive[:, None], flat, 0), alive

    def scaled_log_density(self, positions: Positions, alive: Mask) -> tuple[PerParticle, Mask]:
        """Return U(x, α), plus α log|det ∂x/∂y| in mapped coordinates, at every particle.

        Args:
            positions: z, (n, d).
            alive: particles not frozen yet.

        Returns:
            The scaled log density (n,), zero where it is not finite or the particle is frozen; and who is still alive.
        """
        particles = self.unravel(positions * self.scale)
        log_density = jax.vmap(self._scaled_log_density)(particles)
        alive = alive & jnp.isfinite(log_density)
        return jnp.where(alive, log_density, 0), alive

    def ask(self, name: str, positions: Positions, alive: Mask) -> tuple[PyTree, Mask]:
        """Return what else the target knows, at every particle: `target.name(x)` of each x in the user's coordinates.

        Args:
            name: a word of the target's `knows`, and its method of one particle.
            positions: z, (n, d).
            alive: particles not frozen yet.

        Returns:
            The answer, leaves (n, ...), zero where it is not finite or the particle is frozen; and who is still alive.
        """
        particles = self.unravel(positions * self.scale)
        if self.domain.maps:
            particles = jax.vmap(self.domain.forward)(particles)
        answer = self._widened(jax.vmap(getattr(self.target, name))(self._seen(particles)))

        for leaf in jax.tree.leaves(answer):
            alive = alive & jnp.all(jnp.isfinite(leaf.reshape(leaf.shape[0], -1)), axis=1)

        def known(leaf: Array) -> Array:
            return jnp.where(alive.reshape(alive.shape + (1,) * (leaf.ndim - 1)), leaf, 0)

        return jax.tree.map(known, answer), alive

    def samples(self) -> Float[Array, "m d"]:
        """Return the samples of the target in the coordinates z."""
        samples = self.target.samples()
        if self.domain.maps:
            samples = jax.vmap(self.domain.inverse)(samples)
        flat = jax.vmap(lambda x: jax.flatten_util.ravel_pytree(x)[0])(samples)
        if flat.shape[1] != self.scale.shape[1]:
            raise ValueError(
                f"one sample of the target has {flat.shape[1]} coordinates, but one particle has {self.scale.shape[1]}."
            )
        return flat.astype(self.scale.dtype) / self.scale

    def _seen(self, tree: PyTree) -> PyTree:
        """Return particles and numbers as the target sees them."""
        return tree if self.dtype is None else jax.tree.map(lambda leaf: leaf.astype(self.dtype), tree)

    def _widened(self, answer: PyTree) -> PyTree:
        """Return the target's real numbers as the transport computes with them."""

        def widen(leaf: Any) -> Any:
            real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
            return jnp.asarray(leaf, self.scale.dtype) if real else leaf

        return answer if self.dtype is None else jax.tree.map(widen, answer)

    def _gradient(self, particle: Particle) -> Particle:
        # One key for all particles: they share a minibatch, and so keep their relative positions.
        return self._widened(self.target.gradient(*self._seen((particle, self.temperature)), key=self.key))

    def _both(self, particle: Particle) -> tuple[Scalar, Particle]:
        both = self.target.value_and_gradient(*self._seen((particle, self.temperature)), key=self.key)
        value, gradient = self._widened(both)
        return scalar(value, f"{type(self.target).__name__}.scaled_log_density"), gradient

    def _mapped_gradient(self, particle: Particle) -> Particle:
        return self._mapped(particle, lambda x: (jnp.zeros(()), self._gradient(x)))[1]

    def _mapped_both(self, particle: Particle) -> tuple[Scalar, Particle]:
        value, gradient = self._mapped(particle, self._both)
        return (value + self.temperature * self.domain.log_det_jacobian(particle) if self.entropic else value), gradient

    def _mapped(
        self, particle: Particle, evaluate: Callable[[Particle], tuple[Scalar, Particle]]
    ) -> tuple[Scalar, Particle]:
        # The chain rule by hand, since the target may know only its gradient.
        x, pull_back = jax.vjp(self.domain.forward, particle)
        value, there = evaluate(x)
        (gradient,) = pull_back(there)
        if not self.entropic:
            # Mirror ascent, in the parts that mirror: dy/dt = ∇V(x), which is what the dual coordinates are for.
            mirrors = jax.tree.broadcast(self.domain.mirrors, particle)
            return value, jax.tree.map(lambda dual, g, chain: g if dual else chain, mirrors, there, gradient)
        volume = jax.grad(self.domain.log_det_jacobian)(particle)
        return value, jax.tree.map(lambda g, v: g + self.temperature * v, gradient, volume)

    def _scaled_log_density(self, particle: Particle) -> Scalar:
        x = self.domain.forward(particle) if self.domain.maps else particle
        log_density = self.target.scaled_log_density(*self._seen((x, self.temperature)), key=self.key)
        log_density = self._widened(log_density)
        log_density = scalar(log_density, f"{type(self.target).__name__}.scaled_log_density")
        if self.domain.maps and self.entropic:
            return log_density + self.temperature * self.domain.log_det_jacobian(particle)
        return log_density
