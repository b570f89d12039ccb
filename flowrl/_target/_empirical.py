"""A distribution known by samples alone, for flows that compare sets of points."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flowrl._custom_types import Particles
from flowrl._misc import check_particles, concrete
from flowrl._target._base import AbstractTarget


class Empirical(AbstractTarget):
    """A distribution known by samples alone, each of the same weight; for flows that move particles toward samples.

    It has no density: flows that follow a gradient refuse it.

    Attributes:
        points: the samples, leaves (m, ...).
    """

    points: Particles
    knows: ClassVar[frozenset[str]] = frozenset({"samples"})
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, samples: Any):
        """Create the target.

        Args:
            samples: an array (m, ...), or a PyTree of floating arrays (m, ...) with the structure of the particles; m
                >= 1.

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

    def samples(self) -> Particles:
        return self.points
