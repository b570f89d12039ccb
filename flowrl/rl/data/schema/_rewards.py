"""An affine map of rewards with the name of the protocol it belongs to."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RewardTransform:
    r"""$r \mapsto \text{scale} \cdot r + \text{shift}$, for data and for an environment's rewards alike.

    Attributes:
        protocol: one of `REWARD_PROTOCOLS`.
        scale: factor, > 0.
        shift: added after scaling.
    """

    protocol: str = "none"
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.scale < float("inf") and abs(self.shift) < float("inf")):
            raise ValueError(f"a reward transform needs a finite scale > 0 and a finite shift, got {self}.")

    def __call__(self, rewards: Any) -> Any:
        """Transform rewards, a number or an array of any shape; the dtype stays.

        Args:
            rewards: numbers, or a NumPy or JAX array.
        """
        return rewards * self.scale + self.shift
