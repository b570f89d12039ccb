"""What every offline algorithm is: how it learns, what it proposes, and how its proposals are improved.

Acting is the library's own sentence: candidates are proposed, transported within a test budget (zero steps leave them
where they are), and one is chosen by its value.
"""

import abc
from typing import Any

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key
from flowrl._solution import Solution
from flowrl.rl.data.replay import Replay
from flowrl.rl.networks import AbstractAggregate


class AbstractState(eqx.Module):
    """Everything that training changes; with the data and the algorithm it determines the rest of the run.

    Attributes:
        scale: unit of length of budgets, (act,): the reference's within-state spread, or ones.
        reference_step: updates of the reference alone, before the others.
        step: the other updates.
        key: randomness to come.
    """

    scale: AbstractVar[Float[Array, " act"]]
    reference_step: AbstractVar[Int[Array, ""]]
    step: AbstractVar[Int[Array, ""]]
    key: AbstractVar[Key]


class AbstractAlgorithm(eqx.Module):
    """An offline algorithm as a value. `State` below is its own `AbstractState`.

    Attributes:
        batch_size: transitions an update.
        selection: makes the values of the ensemble one number by which candidates are ranked.
    """

    batch_size: AbstractVar[int]
    selection: AbstractVar[AbstractAggregate]

    @abc.abstractmethod
    def init(self, observation_size: int, action_size: int, *, key: Key) -> Any:
        """Make the state before the first update.

        Args:
            observation_size: coordinates of s.
            action_size: coordinates of a.
            key: randomness of the whole run.
        """

    @abc.abstractmethod
    def update(
        self, state: Any, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
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
    def propose(self, state: Any, observation: Float[Array, " obs"], key: Key) -> Float[Array, " act"]:
        """Draw one candidate action.

        Args:
            state: the networks.
            observation: s, standardised.
            key: randomness of this candidate.

        Returns:
            An action in [−1, 1].
        """

    @abc.abstractmethod
    def improve(
        self,
        state: Any,
        observation: Float[Array, " obs"],
        particles: Float[Array, "n act"],
        steps: int,
        step_size: Float[Array, ""],
    ) -> Solution:
        """Transport candidates within a test budget.

        Args:
            state: the networks.
            observation: s, standardised.
            particles: candidates, in [−1, 1].
            steps: L_test >= 1.
            step_size: ε, in the unit of length `state.scale`.

        Returns:
            The `flowrl.Solution`, its trajectory saved after 0, 1, ..., `steps` steps.
        """

    @abc.abstractmethod
    def values(
        self, state: Any, observation: Float[Array, " obs"], actions: Float[Array, "n act"]
    ) -> Float[Array, "members n"]:
        """Give the value of candidates by each member of the ensemble.

        Args:
            state: the networks.
            observation: s, standardised.
            actions: candidates.
        """


class AbstractPretrained(AbstractAlgorithm):
    """An algorithm that trains its reference first."""

    @property
    @abc.abstractmethod
    def pretraining(self) -> int:
        """Updates of the reference alone, before the others; may be 0."""

    @abc.abstractmethod
    def pretrain(
        self, state: Any, replay: Replay, rows: Int[Array, " batch"], key: Key
    ) -> tuple[Any, dict[str, Float[Array, ""]]]:
        """Update the reference alone.

        Args:
            state: the current state.
            replay: the data.
            rows: rows of the batch.
            key: randomness of this update.

        Returns:
            The next state, its `reference_step` one more, and metrics.
        """

    @abc.abstractmethod
    def prepare(self, state: Any, replay: Replay, *, key: Key) -> tuple[Any, Replay]:
        """Do what lies between the reference's training and the rest. Done again, from the same key, after a restart.

        Args:
            state: the current state.
            replay: the data.
            key: randomness.

        Returns:
            The state and the data to go on with.
        """
