"""What every offline algorithm is: how it learns, what it proposes, and how its proposals are improved.

Acting is the library's own sentence: candidates are proposed, transported within a test budget (zero steps leave them
where they are), and one is chosen by its value.
"""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._solution import Solution
from flowrl.rl.data.replay import Replay
from flowrl.rl.networks import AbstractAggregate


class AbstractState(eqx.Module):
    """Everything that training changes; with the data and the algorithm it determines the rest of the run.

    Attributes:
        step: updates so far, those of a pretraining not counted.
        key: randomness to come.
    """

    step: AbstractVar[Int[Array, ""]]
    key: AbstractVar[Key]


S = TypeVar("S", bound=AbstractState)


class AbstractAlgorithm(eqx.Module, Generic[S]):
    """An offline algorithm as a value; `S` is its `AbstractState`. Training and acting on its proposals need no more.

    Attributes:
        batch_size: transitions per update.
    """

    batch_size: AbstractVar[int]

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> S:
        """Return the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """

    @abc.abstractmethod
    def update(
        self, state: S, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[S, dict[str, Float[Array, ""]]]:
        """Learn from one batch.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, its `step` one more, and metrics measured before the update. A metric `failed` that is not
            zero stops the training.
        """

    @abc.abstractmethod
    def propose(self, state: S, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one candidate action in [−1, 1].

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this candidate.
        """


class AbstractValueBased(AbstractAlgorithm[S]):
    """An algorithm with a critic: its candidates have values, and can be transported along their gradient.

    Attributes:
        selection: makes the values of the ensemble one number by which candidates are ranked.
    """

    selection: AbstractVar[AbstractAggregate]

    @abc.abstractmethod
    def values(
        self, state: S, observation: Float[Array, " obs"], actions: Float[Array, "n act"]
    ) -> Float[Array, "members n"]:
        """Compute Q_k(s, a) of candidates by each member of the ensemble.

        Args:
            state: the networks.
            observation: s, standardised.
            actions: candidates.
        """

    @abc.abstractmethod
    def improve(
        self, state: S, observation: Float[Array, " obs"], particles: Float[Array, "n act"], budget: Budget
    ) -> Solution:
        """Transport candidates within a test budget.

        Args:
            state: the networks.
            observation: s, standardised.
            particles: candidates, in [−1, 1].
            budget: of a Python int of steps >= 1, in lengths of `unit`; its own `scale` must be None.

        Returns:
            The `flowrl.Solution`, its trajectory saved after 0, 1, ..., `budget.steps` steps.
        """

    @abc.abstractmethod
    def unit(self, state: S) -> Float[Array, "#act"] | Float[Array, ""]:
        """Return the unit of length of budgets and displacements, per coordinate of the action or one for all.

        Args:
            state: the networks.
        """


class AbstractGenerative(AbstractAlgorithm[S]):
    """An algorithm whose proposals are decoded from standard normal noise, in which candidates can be moved too."""

    @abc.abstractmethod
    def noise_shape(self, state: S) -> tuple[int, ...]:
        """Return the shape of the noise of one candidate.

        Args:
            state: the networks.
        """

    @abc.abstractmethod
    def decode(self, state: S, observation: Float[Array, " obs"], noise: Float[Array, "..."]) -> Float[Array, " act"]:
        """Return the candidate action in [−1, 1] that some noise stands for.

        Args:
            state: the networks.
            observation: s, standardised.
            noise: standard normal, or moved from there.
        """

    def propose(self, state: S, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        noise = jr.normal(key, self.noise_shape(state), observation.dtype)
        return self.decode(state, observation, noise)


class AbstractPretrained(AbstractAlgorithm[S]):
    """An algorithm that trains its reference first."""

    @property
    @abc.abstractmethod
    def pretraining(self) -> int:
        """Updates of the reference alone, before the others; may be 0."""

    @abc.abstractmethod
    def pretrained(self, state: S) -> Int[Array, ""]:
        """Return how many updates the reference has had.

        Args:
            state: the current state.
        """

    @abc.abstractmethod
    def pretrain(
        self, state: S, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[S, dict[str, Float[Array, ""]]]:
        """Update the reference alone.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, its `pretrained` one more, and metrics.
        """

    @abc.abstractmethod
    def prepare(self, state: S, replay: Replay, *, key: Key) -> tuple[S, Replay]:
        """Do what lies between the reference's training and the rest. Done again, from the same key, after a restart.

        Args:
            state: the current state.
            replay: the data.
            key: randomness.

        Returns:
            The state and the data to go on with.
        """
