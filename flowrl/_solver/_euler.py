"""Explicit Euler, and Euler-Maruyama for stochastic flows."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import PyTree

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow import AbstractFlow, AbstractStochasticFlow, Field
from flowrl._solver._step import AbstractStepSolver


class Euler(AbstractStepSolver):
    """Explicit Euler, x ← x + ε v(x); with noise √ε for stochastic flows (Euler-Maruyama). First order in ε."""

    handles_noise: ClassVar[bool] = True
    handles_restriction: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = False

    def init(self, positions: Positions) -> PyTree:
        """Start without state.

        Args:
            positions: unused.
        """
        del positions

    def step(
        self,
        flow: AbstractFlow,
        field: Field,
        positions: Positions,
        alive: Mask,
        state: PyTree,
        step_size: Scalar,
        key: Key | None,
    ) -> tuple[Positions, PyTree, Mask]:
        """Propose ε v(x), plus noise.

        Args:
            flow: the velocity field.
            field: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            state: passed through.
            step_size: ε.
            key: randomness of this step for stochastic flows, else None.
        """
        velocity, alive = flow.velocity(field, positions, alive)
        move = step_size * velocity
        if isinstance(flow, AbstractStochasticFlow):
            assert key is not None  # the door of `transport` has seen to it
            move = move + jnp.sqrt(step_size) * flow.noise(field, positions, alive, key)
        return move, state, alive
