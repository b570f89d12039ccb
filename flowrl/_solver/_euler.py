"""Explicit Euler, Euler-Maruyama for diffusions, and jumps."""

from typing import Any, ClassVar, Literal, cast

import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PyTree

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow import AbstractFlow, AbstractJumpFlow, TargetView, noise_of, velocity_of
from flowrl._solution import RESULTS
from flowrl._solver._step import AbstractStepSolver


class Euler(AbstractStepSolver):
    """Explicit Euler, x ← x + ε v(x); with noise √ε for diffusions (Euler-Maruyama). First order in ε.

    Jumps are taken after the move, with the chances of a step of length ε.
    """

    handles_noise: ClassVar[Literal["none", "additive", "any"]] = "any"
    handles_jumps: ClassVar[bool] = True
    handles_restriction: ClassVar[bool] = True
    needs_energy: ClassVar[bool] = False

    def init(self, positions: Positions) -> PyTree:
        del positions

    def step(
        self,
        flow: AbstractFlow,
        view: TargetView,
        positions: Positions,
        alive: Mask,
        state: PyTree,
        step_size: Scalar,
        key: Key | None,
    ) -> tuple[Positions, PyTree, Mask, Any]:
        velocity, alive = velocity_of(flow, view, positions, alive)
        move = step_size * velocity
        if not flow.traits.diffuses and not flow.traits.jumps:
            return move, state, alive, RESULTS.successful
        assert key is not None  # `check_key` has seen to it
        noise_key, jump_key = jr.split(key)
        if flow.traits.diffuses:
            white = jr.normal(noise_key, positions.shape, positions.dtype)
            move = move + jnp.sqrt(step_size) * noise_of(flow, view, positions, alive, white)
        if flow.traits.jumps:
            moved = positions + move
            parents = cast(AbstractJumpFlow, flow).ancestors(view, moved, alive, step_size, jump_key)
            move = moved[parents] - positions
        return move, state, alive, RESULTS.successful
