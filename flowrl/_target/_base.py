"""What a target is.

A target has a scaled log density U(x, α) = α × log density + constant; flows use its gradient. One convention holds
everywhere: `Boltzmann` has U = V(x), a distribution ∝ exp(V/α); `Density` has U = α log p(x), that is p at every α > 0.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from flowrl._custom_types import Key, Particle, Particles, Scalar

KNOWN_BY: dict[str, str] = {
    "gradient": "Density(log_prob), Boltzmann(value) or Score(score)",
    "value": "Density(log_prob) or Boltzmann(value)",
    "samples": "Empirical(samples)",
    "log_tilt": "Tilted(log_reference, value)",
    "forward": "InverseProblem(forward_map, data, noise, ...)",
}
"""Targets that know it, for messages."""

_METHODS: dict[str, tuple[str, ...]] = {
    "gradient": ("gradient",),
    "value": ("value", "scaled_log_density"),
    "samples": ("samples",),
    "forward": ("forward", "misfit", "prior_misfit"),
}


class AbstractTarget(eqx.Module):
    """A density that particles move toward, known by its value, the gradient of its scaled log density, or samples.

    A subclass declares `knows` and `needs_positive_temperature`, and writes the methods of what it knows: `gradient`;
    for "value" both `value` and `scaled_log_density`; `samples`. The others raise TypeError. Any other word is the name
    of a method of one particle, which a flow gets by `view.ask(word, positions, alive)`.

    Attributes:
        knows: what can be asked: "value" (and so `scaled_log_density`), "gradient", "samples", or a word of its own.
        stochastic: `gradient` and `scaled_log_density` need a key; False unless declared.
        needs_positive_temperature: the scaled log density is zero at α = 0, so that temperature is refused.
    """

    knows: AbstractVar[frozenset[str]]
    needs_positive_temperature: AbstractVar[bool]
    stochastic: ClassVar[bool] = False

    def __check_init__(self):
        name = type(self).__name__
        check_knowledge(f"{name}.knows", self.knows)
        for word in sorted(self.knows):
            methods = _METHODS.get(word, (word,))
            refusals = [getattr(AbstractTarget, method, None) for method in methods]
            missing = [
                m for m, refusal in zip(methods, refusals, strict=True) if getattr(type(self), m, None) is refusal
            ]
            if missing:
                raise TypeError(f"{name}.knows has {word!r}; then write {'() and '.join(missing)}().")

    def gradient(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Particle:
        """Return ∇U(x, α) at one particle, with its structure and shapes.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Raises:
            TypeError: the target does not know its gradient.
        """
        del particle, temperature, key
        raise self._unknown("gradient")

    def scaled_log_density(self, particle: Particle, temperature: Scalar, *, key: Key | None) -> Float[Array, ""]:
        """Return U(x, α) at one particle.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.

        Raises:
            TypeError: the target does not know its value.
        """
        del particle, temperature, key
        raise self._unknown("value")

    def value_and_gradient(
        self, particle: Particle, temperature: Scalar, *, key: Key | None
    ) -> tuple[Float[Array, ""], Particle]:
        """Return U(x, α) and ∇U(x, α) at one particle, by one evaluation where a subclass knows how.

        Args:
            particle: x, without the particle axis.
            temperature: α >= 0.
            key: randomness for stochastic targets, else None.
        """
        log_density = self.scaled_log_density(particle, temperature, key=key)
        return log_density, self.gradient(particle, temperature, key=key)

    def value(self, particle: Particle) -> Float[Array, ""]:
        """Return the value by which particles can be ranked: V(x), or log p(x).

        Args:
            particle: x, without the particle axis.

        Raises:
            TypeError: the target does not know its value.
        """
        del particle
        raise self._unknown("value")

    def samples(self) -> Particles:
        """Return samples of the target, leaves (m, ...).

        Raises:
            TypeError: the target has no samples.
        """
        raise self._unknown("samples")

    def _unknown(self, asked: str) -> TypeError:
        words: dict[str, str] = {"value": "a value", "gradient": "a gradient", "samples": "samples"}
        known = " and ".join(words[word] for word in words if word in self.knows) or "nothing"
        return TypeError(
            f"{type(self).__name__} knows only {known}, but this asks for {words[asked]}. Use {KNOWN_BY[asked]}."
        )


def check_knowledge(name: str, words: Iterable[str]) -> None:
    """Refuse words that could not be the name of a target's method."""
    if isinstance(words, str):
        raise ValueError(f"{name} is {words!r}; expected a set of words, such as frozenset({{'gradient'}}).")
    for word in words:
        if not isinstance(word, str) or not word.isidentifier():
            raise ValueError(
                f"{name} has {word!r}; expected names of what a target knows, such as frozenset({{'gradient'}})."
            )


def as_arguments(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn Python floats among a target's arguments into arrays; integers, strings and functions stay static."""
    # Weakly typed, so that a new number never recompiles and never changes the dtype of the result.
    return tuple(jnp.asarray(arg) if type(arg) is float else arg for arg in args)
