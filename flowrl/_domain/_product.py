"""Products of domains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from flowrl._custom_types import Particle, Particles, Scalar
from flowrl._domain._base import AbstractDomain


class Product(AbstractDomain):
    """A domain for each part of a particle: x is inside if every part is inside its own.

    Parts may be kept in different ways, some mapped, some brought back after each step.

    Args:
        domains: a PyTree of domains, with the structure of a particle at its top; each applies to the part of a
            particle at its place, a leaf or a sub-tree.

    Raises:
        TypeError: a leaf is not a domain.
        ValueError: there is no leaf.

    Example:
        ```python
        import jax.numpy as jnp
        import flowrl

        domain = flowrl.Product({"weights": flowrl.Simplex(), "scale": flowrl.positive(), "mean": flowrl.Unbounded()})
        particles = {"weights": jnp.full((8, 3), 1 / 3), "scale": jnp.ones(8), "mean": jnp.zeros((8, 2))}
        print(domain.contains(particles))
        ```
    """

    domains: PyTree[AbstractDomain]

    def __init__(self, domains: PyTree[AbstractDomain]):
        parts = jax.tree.leaves(domains, is_leaf=_is_domain)
        if not parts:
            raise ValueError('Product needs at least one domain, e.g. Product({"scale": positive()}); got none.')
        for part in parts:
            if not _is_domain(part):
                hint = f"{part.__name__}()" if isinstance(part, type) else "Unbounded() for a part that is free"
                raise TypeError(f"Product needs a PyTree of domains, got {part!r} in it; did you mean {hint}?")
        self.domains = domains

    @property
    def restricts(self) -> bool:
        """Whether any part is brought back after each step."""
        return any(part.restricts for part in self._parts)

    @property
    def maps(self) -> bool:
        """Whether the flow runs in other coordinates in any part."""
        return any(part.maps for part in self._parts)

    @property
    def mirrors(self) -> PyTree[bool]:
        """Which parts mirror, in the structure of `domains`."""
        return jax.tree.map(lambda part: part.mirrors, self.domains, is_leaf=_is_domain)

    def contains(self, particles: Particles) -> Bool[Array, " n"]:
        inside = self._each(lambda part, x: part.contains(x), particles)
        return jnp.all(jnp.stack(inside), axis=0)

    def restrict(self, particles: Particles) -> Particles:
        return self._structure.unflatten(self._each(lambda part, x: part.restrict(x), particles))

    def forward(self, particle: Particle) -> Particle:
        return self._structure.unflatten(self._each(lambda part, y: part.forward(y), particle))

    def inverse(self, particle: Particle) -> Particle:
        return self._structure.unflatten(self._each(lambda part, x: part.inverse(x), particle))

    def log_det_jacobian(self, particle: Particle) -> Scalar:
        zero = jnp.zeros((), jax.tree.leaves(particle)[0].dtype)
        volumes = self._each(lambda part, y: part.log_det_jacobian(y) if part.maps else zero, particle)
        return jnp.stack(volumes).sum()

    @property
    def _parts(self) -> list[AbstractDomain]:
        return jax.tree.leaves(self.domains, is_leaf=_is_domain)

    @property
    def _structure(self) -> Any:
        return jax.tree.structure(self.domains, is_leaf=_is_domain)

    def _each(self, function: Callable[[AbstractDomain, Any], Any], particles: Particles) -> list[Any]:
        try:
            parts = self._structure.flatten_up_to(particles)
        except ValueError as error:
            raise ValueError(
                f"the domains of Product have the structure {self._structure}, which is not the top of the particles' "
                f"{jax.tree.structure(particles)}."
            ) from error
        return [function(domain, part) for domain, part in zip(self._parts, parts, strict=True)]


def _is_domain(x: Any) -> bool:
    return isinstance(x, AbstractDomain)
