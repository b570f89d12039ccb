"""Spaces: where the particles of an action live, and how they become actions again.

The noun is that of `flowrl.rlhf`: particles live in actions, or in the noise from which the reference is decoded, where
its density is known exactly, however complicated it is over actions.

??? cite "Source"
    Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, which flows in "a continuous proxy space"
    where texts are concerned.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowrl._target import AbstractTarget, Boltzmann, Tilted
from flowrl.rl.acting._stage import Candidates, Situation


class AbstractSpace(eqx.Module):
    """A space in which the particles of actions live."""

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[str]:
        """What it asks of an algorithm."""

    @abc.abstractmethod
    def particles(self, candidates: Candidates) -> Float[Array, "n ..."]:
        """Return where candidates are in it.

        Args:
            candidates: n of them.
        """

    @abc.abstractmethod
    def decode(
        self, situation: Situation, particles: Float[Array, "n ..."], origins: Float[Array, "n act"]
    ) -> Candidates:
        """Return the candidates that particles stand for.

        Args:
            situation: the state of the environment.
            particles: n of them.
            origins: the proposals that they came from.
        """

    @abc.abstractmethod
    def target(self, situation: Situation, unit: Float[Array, ""]) -> AbstractTarget:
        """Return the value in some unit as a target: over noise, the reference tilted by it.

        Args:
            situation: the state of the environment.
            unit: of the value, > 0.
        """


class Actions(AbstractSpace):
    """Actions themselves."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def particles(self, candidates: Candidates) -> Float[Array, "n act"]:
        return candidates.actions

    def decode(
        self, situation: Situation, particles: Float[Array, "n act"], origins: Float[Array, "n act"]
    ) -> Candidates:
        del situation
        return Candidates(jnp.clip(particles, -1, 1), None, origins)

    def target(self, situation: Situation, unit: Float[Array, ""]) -> AbstractTarget:
        return Boltzmann(lambda action: situation.values(action[None])[0] / unit)


class Noise(AbstractSpace):
    """The noise of the algorithm's proposals, standard normal: in it the reference is N(0, I)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"noise"})

    def particles(self, candidates: Candidates) -> Float[Array, "n ..."]:
        assert candidates.noise is not None
        return candidates.noise

    def decode(
        self, situation: Situation, particles: Float[Array, "n ..."], origins: Float[Array, "n act"]
    ) -> Candidates:
        return Candidates(situation.decode(particles), particles, origins)

    def target(self, situation: Situation, unit: Float[Array, ""]) -> AbstractTarget:
        return Tilted(
            lambda noise: -0.5 * jnp.sum(noise**2),
            lambda noise: situation.values(situation.decode(noise[None]))[0] / unit,
        )
