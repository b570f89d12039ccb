"""The part of a gymnasium environment that the library uses."""

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Environment(Protocol):
    """The part of `gymnasium.Env` that flowrl uses, so that gymnasium stays an optional dependency."""

    @property
    def observation_space(self) -> Any:
        """The `gymnasium.spaces.Box` of observations."""
        ...

    @property
    def action_space(self) -> Any:
        """The `gymnasium.spaces.Box` of actions."""
        ...

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the episode; None goes on from the environment's own random state.
            options: as the environment defines them.

        Returns:
            The first observation (obs,) and an information dictionary.
        """
        ...

    def step(self, action: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take one step.

        Args:
            action: (act,), within `action_space`.

        Returns:
            The next observation (obs,), reward, terminated (a true end), truncated (a time limit), and an information
            dictionary.
        """
        ...

    def close(self) -> None:
        """Free what the environment holds."""
        ...
