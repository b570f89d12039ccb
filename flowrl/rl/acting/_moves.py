"""Stages that move every candidate: the algorithm's own flow, its control, and any transport in either space."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from flowrl._budget import Budget
from flowrl._custom_types import Key
from flowrl._misc import concrete, number_field
from flowrl._transport import Transport
from flowrl.rl.acting._choices import spread_of
from flowrl.rl.acting._spaces import AbstractSpace, Noise
from flowrl.rl.acting._stage import AbstractStage, Candidates, Situation


def _check_budget(name: str, budget: Budget) -> None:
    """Refuse a budget that no policy can spend."""
    if not isinstance(budget, Budget):
        raise TypeError(f"{name}: budget must be a flowrl.Budget, got {budget!r}.")
    if not isinstance(budget.steps, int):
        raise TypeError(f"{name}: the budget's steps must be a Python int: it says which policies share a program.")
    size = concrete(budget.step_size)
    if budget.steps and size is not None and not size.any():
        raise ValueError(f"{name}: a budget of {budget.steps} steps of size 0 moves nothing; leave it out.")


class Improve(AbstractStage):
    """The algorithm's own transport: of VGF that of its training, of a baseline the ascent of its critic.

    Attributes:
        budget: in the algorithm's unit of length, its temperature in the units of the value; its number of steps L is
            a Python int. All that it says holds: temperature, caps, tolerance.
    """

    budget: Budget

    def __check_init__(self):
        _check_budget("Improve", self.budget)
        if self.budget.scale is not None:
            raise ValueError("Improve: leave the budget's scale out; the algorithm states its own unit of length.")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"values"})

    @property
    def steps(self) -> int:
        return self.budget.bound

    @property
    def keeps_noise(self) -> bool:
        return False

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        return candidates.at(situation.improved(candidates.actions, self.budget))


class RandomDirections(AbstractStage):
    """A control: each candidate is moved as far as `Improve` would move it, but in a random direction.

    It is projected on the box of actions, which can shorten the move.

    Attributes:
        improve: what would move it.
    """

    improve: Improve

    def __init__(self, budget: Budget):
        """Create the control.

        Args:
            budget: as for `Improve`.
        """
        self.improve = Improve(budget)

    @property
    def needs(self) -> frozenset[str]:
        return self.improve.needs

    @property
    def steps(self) -> int:
        return self.improve.steps

    @property
    def keeps_noise(self) -> bool:
        return False

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        start, unit = candidates.actions, situation.unit(candidates.actions.shape[1])
        flowed = situation.improved(start, self.improve.budget)
        length = jnp.linalg.norm((flowed - start) / unit[None], axis=1, keepdims=True)
        direction = jr.normal(key, start.shape, start.dtype)
        direction = direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
        return candidates.at(jnp.clip(start + unit[None] * length * direction, -1, 1))


class Move(AbstractStage):
    r"""Any transport, toward the value in units of its spread: its standard deviation σ among the candidates.

    Over actions the target is exp(V/(σα)); over noise it is the reference tilted by it, N(z; 0, I) exp(V(z)/(σα)), so
    that a flow that samples (`Metropolis` as its solver) draws from the policy that the reference regularises. Without
    temperature α is 1.

    Attributes:
        transport: flow, solver and domain; over actions the domain should be `Box(-1, 1)`.
        budget: in lengths of the space, its temperature in units of σ.
        space: where the particles live.
    """

    transport: Transport
    budget: Budget
    space: AbstractSpace = Noise()

    def __check_init__(self):
        if not isinstance(self.transport, Transport):
            raise TypeError(f"Move: transport must be a flowrl.Transport, got {self.transport!r}.")
        _check_budget("Move", self.budget)

    @property
    def needs(self) -> frozenset[str]:
        return self.space.needs | {"values"}

    @property
    def steps(self) -> int:
        return self.budget.bound

    @property
    def keeps_noise(self) -> bool:
        return "noise" in self.space.needs

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        target = self.space.target(situation, spread_of(situation.values(candidates.actions)))
        start = self.space.particles(candidates)
        moved = self.transport(target, start, self.budget, key=key, throw=False).particles
        return self.space.decode(situation, moved, candidates.origins)


class Cool(AbstractStage):
    """A colder reference, a control of all that shrinks a set: proposals from the same noise, made smaller.

    Attributes:
        factor: of the noise, in [0, 1], an array ().
    """

    factor: Array = eqx.field(
        converter=number_field("factor", lambda x: (x >= 0) & (x <= 1), "in [0, 1]", np.float32), default=0.5
    )

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"noise"})

    def __call__(self, situation: Situation, candidates: Candidates, key: Key) -> Candidates:
        del key
        assert candidates.noise is not None
        noise = self.factor.astype(candidates.noise.dtype) * candidates.noise
        actions = situation.decode(noise)
        return Candidates(actions, noise, actions)
