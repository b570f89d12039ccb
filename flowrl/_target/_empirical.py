"""A law known by samples alone, for flows that compare sets of points."""

from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp

from flowrl._custom_types import Key, Particle, Particles, Scalar
from flowrl._misc import check_particles, concrete
from flowrl._target._base import AbstractTarget, Knowledge


class Empirical(AbstractTarget):
    """A law known by samples alone, each of the same weight; for flows that move particles toward samples.

    It has no density: flows that follow a gradient refuse it.

    Attributes:
        points: the samples, leaves (m, ...).

    Example:
        ```python
        import jax.random as jr
        import flowrl

        target = flowrl.Empirical(jr.normal(jr.key(0), (100, 2)))
        ```
    """

    points: Particles
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"samples"})
    stochastic: ClassVar[bool] = False
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, samples: Any):
        """Make the target.

        Args:
            samples: an array (m, ...), or a PyTree of floating arrays (m, ...) with the structure of the particles;
                m >= 1, any number beside that of the particles.

        Raises:
            TypeError: a leaf is not a floating array.
            ValueError: no samples, leaves that disagree about m, or samples that are not finite.
        """
        self.points = jax.tree.map(jnp.asarray, samples)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.points):
            name = "samples" + jax.tree_util.keystr(path)
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"{name} has dtype {leaf.dtype}; expected floating samples, as particles are.")
            if leaf.shape[:1] == (0,):
                raise ValueError(f"{name} holds no sample (m = 0); expected shape (m, ...) with m >= 1.")
            finite = concrete(jnp.all(jnp.isfinite(leaf)))
            if finite is not None and not finite:
                raise ValueError(f"{name} holds NaN or infinity; drop or repair these samples.")
        try:
            check_particles(self.points)
        except (TypeError, ValueError) as error:
            raise type(error)(f"samples must form a set as particles do, but {error}") from None

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> NoReturn:
        """Refuse: samples have no density.

        Args:
            particle: unused.
            temperature: unused.
            key: unused.

        Raises:
            TypeError: always.
        """
        del particle, temperature, key
        _no_density("a gradient")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> NoReturn:
        """Refuse: samples have no density.

        Args:
            particle: unused.
            temperature: unused.
            key: unused.

        Raises:
            TypeError: always.
        """
        del particle, temperature, key
        _no_density("a scaled log density")

    def value(self, particle: Particle) -> NoReturn:
        """Refuse: samples have no density.

        Args:
            particle: unused.

        Raises:
            TypeError: always.
        """
        del particle
        _no_density("a value")

    def samples(self) -> Particles:
        """Give the samples, leaves (m, ...)."""
        return self.points


def _no_density(asked: str) -> NoReturn:
    raise TypeError(
        f"Empirical knows only samples, but this asks for {asked}. Use a flow toward samples, or a target with a "
        "density: Density(log_prob), Boltzmann(value) or Score(score)."
    )
