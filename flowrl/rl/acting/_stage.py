"""What a policy does to a set of candidate actions, stage by stage, and what it knows while it does."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl.rl.learning import AbstractAlgorithm, AbstractGenerative, AbstractState, AbstractValueBased


class Candidates(eqx.Module):
    """A set of candidate actions in one state.

    Attributes:
        actions: (n, act), in [−1, 1].
        noise: what they are decoded from, (n, ...); None where the algorithm has none, or they were moved since.
        origins: the proposals that they came from, from which their displacement is measured, (n, act).
    """

    actions: Float[Array, "n act"]
    noise: Float[Array, "n ..."] | None
    origins: Float[Array, "n act"]

    def at(self, actions: Float[Array, "n act"]) -> "Candidates":
        """Return the candidates moved as actions: no noise decodes to them any more.

        Args:
            actions: where they are now.
        """
        return Candidates(actions, None, self.origins)

    def only(self, index: Int[Array, ""]) -> "Candidates":
        """Return one of them.

        Args:
            index: which.
        """
        return jax.tree.map(lambda leaf: leaf[index][None], self)


class Situation(eqx.Module):
    """One state of the environment, as an agent sees it.

    Attributes:
        algorithm: what was trained.
        state: its networks.
        observation: s, standardised.
    """

    algorithm: AbstractAlgorithm
    state: AbstractState
    observation: Float[Array, " obs"]

    def propose(self, count: int, key: Key) -> Candidates:
        """Draw candidates; the first of many are those of fewer, so that best-of-4N ranks those of best-of-N and more.

        Args:
            count: how many.
            key: randomness.
        """
        keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(count))
        algorithm = self.algorithm
        if not isinstance(algorithm, AbstractGenerative):
            actions = jax.vmap(lambda k: algorithm.propose(self.state, self.observation, k))(keys)
            return Candidates(actions, None, actions)
        shape, dtype = algorithm.noise_shape(self.state), self.observation.dtype
        noise = jax.vmap(lambda k: jr.normal(k, shape, dtype))(keys)
        actions = self.decode(noise)
        return Candidates(actions, noise, actions)

    def decode(self, noise: Float[Array, "n ..."]) -> Float[Array, "n act"]:
        """Return the actions of some noise.

        Args:
            noise: standard normal where it is drawn, wherever a stage has moved it.
        """
        algorithm = self.algorithm
        assert isinstance(algorithm, AbstractGenerative)
        return jax.vmap(lambda z: algorithm.decode(self.state, self.observation, z))(noise)

    def values(self, actions: Float[Array, "n act"]) -> Float[Array, " n"]:
        """Compute the value by which actions are ranked, 0 where the algorithm has none.

        Args:
            actions: candidates.
        """
        if not isinstance(self.algorithm, AbstractValueBased):
            return jnp.zeros(actions.shape[0], actions.dtype)
        return self.algorithm.selection(self.algorithm.values(self.state, self.observation, actions))

    def improved(self, actions: Float[Array, "n act"], budget: Budget) -> Float[Array, "n act"]:
        """Return actions transported as the algorithm does.

        Args:
            actions: candidates.
            budget: in its unit of length.
        """
        assert isinstance(self.algorithm, AbstractValueBased)
        return self.algorithm.improve(self.state, self.observation, actions, budget).particles

    def unit(self, size: int) -> Float[Array, " act"]:
        """Return the unit of length of each coordinate of the action, 1 where the algorithm has none.

        Args:
            size: coordinates of the action.
        """
        if not isinstance(self.algorithm, AbstractValueBased):
            return jnp.ones(size, jnp.float32)
        return jnp.broadcast_to(self.algorithm.unit(self.state), (size,))


class AbstractStage(eqx.Module):
    """One thing that is done to a set of candidates.

    Attributes:
        needs: what it asks of the algorithm: "values", "noise".
    """

    @property
    @abc.abstractmethod
    def needs(self) -> frozenset[str]:
        """What it asks of the algorithm: "values", "noise"."""

    @abc.abstractmethod
    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        """Move, choose or merge candidates.

        Args:
            situation: the state of the environment, with the networks.
            candidates: n of them.
            key: randomness of this stage.
        """

    @property
    def least(self) -> int:
        """How few candidates it can work on."""
        return 1

    @property
    def leaves_one(self) -> bool:
        """Whether one candidate is left after it, of any number."""
        return False

    @property
    def keeps_noise(self) -> bool:
        """Whether candidates that were decoded from noise still are after it."""
        return True

    @property
    def steps(self) -> int:
        """Steps of a flow that it takes."""
        return 0
