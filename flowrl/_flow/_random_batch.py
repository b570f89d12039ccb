"""A flow of many small batches, into which the particles are divided anew at each step."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int

from flowrl._custom_types import Count, Mask, Positions
from flowrl._flow._base import AbstractFlow, velocity_of
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import Traits
from flowrl._kernel import by_rows
from flowrl._misc import check_count


class RandomBatch(AbstractFlow):
    r"""A flow by random batches: at each step the particles are divided at random, and each batch flows for itself.

    A flow whose velocity is a mean over the set, $v(x_i) = \frac{1}{n} \sum_j F(x_i, x_j)$, costs O(n²). In a batch B
    of m particles the others stand for all others,

    $$\hat v(x_i) = \frac{1}{n} F(x_i, x_i) + \frac{1 - 1/n}{m - 1} \sum_{j ∈ B,\, j ≠ i} F(x_i, x_j)$$

    which is right in the mean over divisions and costs O(n m). It is exact in the mean for `SVGD`, `SlicedSVGD`,
    `KSDDescent` and `MMDFlow`, and an approximation for `Blob` and `SinkhornFlow`. F(x_i, x_i) is the velocity of a
    particle that is alone, so each score is asked for twice in a step.

    What the flow fits to data (a bandwidth, a covariance) it fits to the whole set. The particles never come to rest:
    what the batches miss acts as a noise that grows with the step size. Frozen particles are dealt out last, so that
    all batches have as many living ones, but for one.

    Attributes:
        flow: a deterministic flow; its velocity may be random, as that of `SlicedSVGD`.
        size: m >= 2, particles in a batch; it must divide n.

    Raises:
        TypeError: flow is not a flow.
        ValueError: the flow has noise or jumps, or runs in unit time; or size is not a Python int >= 2, or, when the
            transport begins, does not divide n.

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
        start, budget = 2 + jr.normal(jr.key(0), (2000, 5)), flowrl.Budget(100, 0.5)
        flow = flowrl.RandomBatch(flowrl.SVGD(), size=100)
        solution = flowrl.transport(target, start, budget, flow=flow, key=jr.key(1))
        assert abs(float(solution.particles.var()) - 1) < 0.1
        ```

    ??? cite "Source"
        Jin, Li and Liu, *Random Batch Methods (RBM) for interacting particle systems*, Journal of Computational Physics
        400, 2020. Li, Li, Liu, Liu and Lu, *A stochastic version of Stein variational gradient descent for efficient
        sampling*, Communications in Applied Mathematics and Computational Science 15(1), 2020.
    """

    flow: AbstractFlow
    size: int = eqx.field(static=True)

    def __check_init__(self):
        if not isinstance(self.flow, AbstractFlow):
            raise TypeError(f"RandomBatch takes a flow such as SVGD(), got {self.flow!r}.")
        traits, name = self.flow.traits, type(self.flow).__name__
        if traits.diffuses or traits.jumps:
            raise ValueError(
                f"{name} is stochastic, and only deterministic flows are divided into batches; add the noise to them: "
                "RandomBatch(SVGD(), 100) + Langevin()."
            )
        if traits.unit_time:
            raise ValueError(f"{name} solves for all its particles at once, so it cannot be divided into batches.")
        check_count("size", self.size, 2)

    @property
    def traits(self) -> Traits:
        """Those of the flow, with randomness and without an energy."""
        return dataclasses.replace(self.flow.traits, energy_needs=None, random=True, weighs=False)

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        (n, d), size = positions.shape, self.size
        if n % size:
            raise ValueError(f"RandomBatch cannot divide {n} particles into batches of {size}; size must divide n.")
        deal_key, flow_key = jr.split(view.flow_key)
        flow, random = self.flow.fitted(view, positions, alive), self.flow.traits.random
        # Dealt like cards, the frozen last.
        shuffled = jr.uniform(deal_key, (n,))
        dealt = jnp.argsort(jnp.where(alive, shuffled, 1 + shuffled)).reshape(size, n // size).T

        def parts(
            index: Count, x: Float[Array, "m d"], living: Bool[Array, " m"]
        ) -> tuple[Float[Array, "m d"], Float[Array, "m d"], Bool[Array, " m"]]:
            """Return F(x_i, x_i), the sum over the others, and who is still alive."""
            key = jr.fold_in(flow_key, index) if random else None
            own = eqx.tree_at(lambda v: v.velocity_key, view, key, is_leaf=lambda leaf: leaf is None)
            velocity, living = velocity_of(flow, own, x, living)
            alone, _ = jax.vmap(lambda z, lives: velocity_of(flow, own, z, lives))(x[:, None], living[:, None])
            return alone[:, 0], jnp.sum(living.astype(x.dtype)) * velocity - alone[:, 0], living

        def batches(
            rows: tuple[Int[Array, " b"], Float[Array, "b m d"], Bool[Array, "b m"]],
        ) -> tuple[Float[Array, "b m d"], Float[Array, "b m d"], Bool[Array, "b m"]]:
            return jax.vmap(parts)(*rows)

        rows = (jnp.arange(n // size), positions[dealt], alive[dealt])
        alone, others, living = by_rows(batches, rows, size * max(size, d))
        counts = jnp.sum(living.astype(positions.dtype), axis=1)
        total = jnp.maximum(jnp.sum(counts), 1)
        share = (1 - 1 / total) / jnp.maximum(counts - 1, 1)
        velocity = jnp.where(living[..., None], alone / total + share[:, None, None] * others, 0)
        place = dealt.ravel()
        return jnp.zeros_like(positions).at[place].set(velocity.reshape(n, d)), alive.at[place].set(living.ravel())
