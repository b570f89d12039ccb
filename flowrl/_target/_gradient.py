"""Targets given by a gradient alone: a score network, an amortized value gradient."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flowrl._custom_types import Key, Particle, Scalar
from flowrl._target._base import AbstractTarget, as_arguments
from flowrl._target._function import called


class Score(AbstractTarget):
    """The distribution p whose score s(x) = ∇ log p(x) is given: ∇U = α s(x).

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl


        def score(mean, x):  # of N(mean, I); a score network would be called like this too
            return mean - x


        start, target = jr.normal(jr.key(0), (50, 2)), flowrl.Score(score, jnp.array([3.0, -1.0]))
        solution = flowrl.transport(target, start, flowrl.Budget(200, 0.5))
        assert jnp.allclose(solution.particles.mean(axis=0), jnp.array([3.0, -1.0]), atol=0.1)
        ```
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    knows: ClassVar[frozenset[str]] = frozenset({"gradient"})
    needs_positive_temperature: ClassVar[bool] = True

    def __init__(self, score: Callable[..., Any], *args: Any):
        """Create the target.

        Args:
            score: function of `(*args, particle)` that returns ∇ log p with the shape of the particle.
            args: leading arguments of `score`; any PyTrees.
        """
        self.function = _callable(score, "score")
        self.args = as_arguments(args)

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        del key
        out = called(self.function, *self.args, particle, name="score", particle=particle)
        score = _like(out, particle, "score")
        return jax.tree.map(lambda leaf: temperature.astype(leaf.dtype) * leaf, score)


class ValueGradient(AbstractTarget):
    """The distribution ∝ exp(V/α) whose ∇V is given, for instance by a network fitted to ∇Q (amortized VGF).

    ??? cite "Source"
        Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026: f(s, a) ≈ ∇_a Q(s, a).
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    knows: ClassVar[frozenset[str]] = frozenset({"gradient"})
    needs_positive_temperature: ClassVar[bool] = False

    def __init__(self, value_gradient: Callable[..., Any], *args: Any):
        """Create the target.

        Args:
            value_gradient: function of `(*args, particle)` that returns ∇V with the shape of the particle.
            args: leading arguments of `value_gradient`; any PyTrees.
        """
        self.function = _callable(value_gradient, "value_gradient")
        self.args = as_arguments(args)

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        del temperature, key
        out = called(self.function, *self.args, particle, name="value_gradient", particle=particle)
        return _like(out, particle, "value_gradient")


def _callable(given: Any, name: str) -> Callable[..., Any]:
    if isinstance(given, type) or not callable(given):
        raise TypeError(f"{name} must be a function of one particle or a callable module, got {given!r}.")
    return given


def _like(out: Any, particle: Particle, name: str) -> Particle:
    """Refuse a gradient that does not have the structure and shapes of the particle it was asked at."""
    got = jax.tree.map(lambda leaf: jnp.shape(leaf), out)
    want = jax.tree.map(lambda leaf: jnp.shape(leaf), particle)
    if got != want:
        raise ValueError(f"{name} returned shape {got} for one particle of shape {want}; they must be equal.")
    return jax.tree.map(lambda leaf, x: jnp.asarray(leaf).astype(x.dtype), out, particle)
