"""Normalised scores: 0 for a policy that acts at random, 100 for an expert."""

import dataclasses
import math
from typing import TypeVar

import numpy as np

_Returns = TypeVar("_Returns", float, np.ndarray)


@dataclasses.dataclass(frozen=True)
class ReferenceScores:
    r"""The two returns between which D4RL and Minari measure.

    Attributes:
        minimum: mean return of a random policy.
        maximum: mean return of an expert, > `minimum`.
        source: where the two numbers come from.
    """

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum) and self.minimum < self.maximum):
            raise ValueError(
                f"reference scores must be finite and minimum < maximum, got {self.minimum} and {self.maximum} "
                f"({self.source})."
            )

    def score(self, returns: _Returns) -> _Returns:
        r"""Compute $100\,(R - R_\min) / (R_\max - R_\min)$, in percent (D4RL, Fu et al. 2020, arXiv 2004.07219).

        Args:
            returns: undiscounted sums of the environment's own rewards, one or an array of any shape.
        """
        return 100 * (returns - self.minimum) / (self.maximum - self.minimum)
