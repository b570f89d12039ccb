"""What a target is.

A target has a scaled log density U(x, α) = α × log density + constant; flows use its gradient. One temperature convention holds
everywhere: `Boltzmann` has U = V(x), law ∝ exp(V/α); `Density` has U = α log p(x), law p at every α > 0.
"""

import abc
from collections.abc import Iterable
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Particles, Scalar

Knowledge: TypeAlias = Literal["value", "gradient", "samples"]
"""What can be known of a target."""


class AbstractTarget(eqx.Module):
    """A density that particles move toward, known by its value, the gradient of its scaled log density, or samples.

    Attributes:
        knows: what can be asked: "value" (and so `scaled_log_density`), "gradient", "samples".
        stochastic: `gradient` and `scaled_log_density` need a key.
        needs_positive_temperature: the scaled log density is zero at α = 0, so that temperature is refused.
    """

    knows: AbstractVar[frozenset[Knowledge]]
    stochastic: AbstractVar[bool]
    needs_positive_temperature: AbstractVar[bool]

    def __check_init__(self):
        check_knowledge(f"{type(self).__name__}.knows", self.knows)

    @abc.abstractmethod
    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        """Give ∇U(x, α) at one particle.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Returns:
            The gradient, with the structure and shapes of `particle`.

        Raises:
            TypeError: the target does not know its gradient.
        """

    @abc.abstractmethod
    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        """Give U(x, α) at one particle.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Raises:
            TypeError: the target does not know its value.
        """

    @abc.abstractmethod
    def value(self, particle: Particle) -> Float[Array, ""]:
        """Give the value by which particles can be ranked: V(x), or log p(x).

        Args:
            particle: x, without the particle axis.

        Raises:
            TypeError: the target does not know its value.
        """

    @abc.abstractmethod
    def samples(self) -> Particles:
        """Give samples of the target, leaves (m, ...).

        Raises:
            TypeError: the target has no samples.
        """


def check_knowledge(name: str, words: Iterable[str]) -> None:
    """Refuse words that name nothing that can be known of a target.

    Args:
        name: what holds them, for the message.
        words: such as {"gradient"}.

    Raises:
        ValueError: a word is not a `Knowledge`.
    """
    allowed = get_args(Knowledge)
    unknown = sorted(set(words) - set(allowed))
    if unknown:
        raise ValueError(
            f"{name} has {', '.join(map(repr, unknown))}; expected a set of {', '.join(map(repr, allowed))}, such as "
            'frozenset({"gradient"}).'
        )


def as_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn Python floats among a target's arguments into (weakly typed) arrays, so that a new number never recompiles.

    Args:
        args: any PyTrees. Integers, strings and functions stay static, and so does what lies inside modules.
    """
    return tuple(jnp.asarray(arg) if type(arg) is float else arg for arg in args)


def no_samples(target: AbstractTarget) -> NoReturn:
    """Refuse to give samples.

    Args:
        target: who is asked.

    Raises:
        TypeError: always.
    """
    raise TypeError(f"{type(target).__name__} has no samples; flows toward samples take Empirical(samples).")
