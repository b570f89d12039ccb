"""A flow that each of many small batches of particles follows for itself, divided anew at each step."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Mask, Positions
from flowrl._flow._base import AbstractFlow, velocity_of
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import by_rows
from flowrl._misc import check_count


class RandomBatch(AbstractFlow):
    r"""Random batch."""

    flow: AbstractFlow
    size: int = eqx.field(static=True)
    correct: bool = False

    def __check_init__(self):
        if not isinstance(self.flow, AbstractFlow):
            raise TypeError(f"RandomBatch takes a flow such as SVGD(), got {self.flow!r}.")
        traits = self.flow.traits
        if traits.diffuses or traits.jumps:
            raise ValueError(
                f"the particles of {type(self.flow).__name__} move at random already, which batches would not make "
                "cheaper; batch a deterministic flow, and add the noise to it: RandomBatch(SVGD(), 100) + Langevin()."
            )
        check_count("size", self.size, 2)

    @property
    def traits(self) -> Traits:
        """Those of the flow, with randomness."""
        return dataclasses.replace(self.flow.traits, energy_needs=None, random=True, weighs=False)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        n, size = positions.shape[0], self.size
        if n % size:
            raise ValueError(f"RandomBatch divides {n} particles into batches of {size}; take a divisor of {n}.")
        deal_key, flow_key = jr.split(view.flow_key)
        # Fitted to the whole set: the bandwidth of one batch would be noise.
        flow = self.flow.fitted(view, positions, alive)
        # Dealt like cards, the frozen last: all batches have as many living particles as others, but for one.
        order = jnp.argsort(jr.uniform(deal_key, (n,)) + ~alive)
        dealt = order.reshape(size, n // size).T

        def move(batches):
            return jax.vmap(one)(*batches)

        def one(index, x, living):
            key = jr.fold_in(flow_key, index) if flow.traits.random else None
            own = eqx.tree_at(lambda v: v.velocity_key, view, key, is_leaf=lambda leaf: leaf is None)
            v, still = velocity_of(flow, own, x, living)
            if self.correct:
                s = jax.vmap(lambda a, b: velocity_of(flow, own, a[None], b[None])[0][0])(x, living)
                v = s / n + (1 - 1 / n) / (size - 1) * (size * v - s)
            return v, still

        rows = (jnp.arange(n // size), positions[dealt], alive[dealt])
        velocity, still = by_rows(move, rows, size * size)
        order = dealt.ravel()
        return jnp.zeros_like(positions).at[order].set(velocity.reshape(n, -1)), alive.at[order].set(still.ravel())
