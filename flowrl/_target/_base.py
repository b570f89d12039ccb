"""What a target is.

A target has a potential U(x, α) = α × log density + constant; flows use its gradient. One temperature convention holds
everywhere: `Boltzmann` has U = V(x), law ∝ exp(V/α); `Density` has U = α log p(x), law p at every α > 0.
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractClassVar
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Scalar


class AbstractTarget(eqx.Module):
    """A density that particles move toward, known by the gradient of its potential.

    Attributes:
        has_value: `value` can be asked.
        stochastic: `gradient` needs a key.
        vanishes_when_cold: the potential is zero at α = 0, so that temperature is refused.
    """

    has_value: AbstractClassVar[bool]
    stochastic: AbstractClassVar[bool]
    vanishes_when_cold: AbstractClassVar[bool]

    @abc.abstractmethod
    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        """Give ∇U(x, α) at one particle.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Returns:
            The gradient, with the structure and shapes of `particle`.
        """

    @abc.abstractmethod
    def potential(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        """Give U(x, α) at one particle.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Raises:
            TypeError: the target only knows its gradient.
        """

    @abc.abstractmethod
    def value(self, particle: Particle) -> Float[Array, ""]:
        """Give the value by which particles can be ranked: V(x), or log p(x).

        Args:
            particle: x, without the particle axis.

        Raises:
            TypeError: the target only knows its gradient.
        """


def as_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn Python floats among a target's arguments into (weakly typed) arrays, so that a new number never recompiles.

    Args:
        args: any PyTrees. Integers, strings and functions stay static, and so does what lies inside modules.
    """
    return tuple(jnp.asarray(arg) if type(arg) is float else arg for arg in args)
