"""Sums and multiples of flows."""

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, cast

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow._base import AbstractFlow, AbstractJumpFlow, AbstractStochasticFlow, Traits, noise_of, velocity_of
from flowrl._flow._target_view import TargetView
from flowrl._misc import concrete


class SumFlow(AbstractStochasticFlow, AbstractJumpFlow):
    r"""Several flows at the same time, v = Σ w_i v_i; also written `flow_a + flow_b` and `2.0 * flow`.

    A multiple w of a flow is the same flow w times as fast: its velocity is multiplied by w, its noise by √w, and the
    time of its jumps by w. So `0.5 * Langevin()` has the law of `Langevin()`, and takes twice the steps to it. The
    energy is Σ w_i E_i where all have one.

    At most one flow of a sum has noise, and at most one jumps. All are asked at the temperature of the budget. If one
    of them samples a law (`entropic`), all see the target with the Jacobian of a mapped domain. A particle that one
    flow freezes rests in all; the flows before that one in the sum still count it in that step.

    Attributes:
        flows: the flows; one freezes particles for those after it.
        weights: w > 0, (k,).

    Example:
        ```python
        import jax.numpy as jnp
        import jax.random as jr
        import flowrl

        def two_modes(x):
            return jnp.logaddexp(-0.5 * jnp.sum((x - 4) ** 2), -0.5 * jnp.sum((x + 4) ** 2))

        flow = flowrl.Langevin() + 0.5 * flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(0.7)))
        key = jr.key(0)
        particles = 4 * jr.normal(key, (100, 1))
        solution = flowrl.transport(flowrl.Density(two_modes), particles, flowrl.Budget(100, 0.05), flow=flow, key=key)
        ```
    """

    flows: tuple[AbstractFlow, ...]
    weights: Float[Array, " k"]

    def __init__(self, *flows: AbstractFlow, weights: Any = None):
        """Make the sum.

        Args:
            flows: one or more flows.
            weights: w > 0, one for each flow; None for 1.

        Raises:
            TypeError: one of the flows is none.
            ValueError: there is no flow, more than one has noise or jumps, or a concrete weight is not positive.
        """
        if not flows:
            raise ValueError("SumFlow needs at least one flow, e.g. SumFlow(SVGD(), Ascent()).")
        for flow in flows:
            if not isinstance(flow, AbstractFlow):
                raise TypeError(f"SumFlow takes flows such as SVGD(), got {flow!r}.")
        for trait, what in (("diffuses", "has noise"), ("jumps", "jumps")):
            several = _named(flows, lambda traits, trait=trait: getattr(traits, trait))
            if len(several) > 1:
                raise ValueError(
                    f"only one flow of a sum {what}, got {' and '.join(several)}: a step draws one "
                    f"{'white noise' if trait == 'diffuses' else 'set of ancestors'}. Weigh one flow, e.g. 2.0 * flow, "
                    "or transport with one after the other."
                )
        weights = jnp.ones(len(flows)) if weights is None else weights
        value = concrete(weights)
        shape = jnp.shape(weights) if value is None else value.shape
        if shape != (len(flows),):
            raise ValueError(f"weights must be one number for each of the {len(flows)} flows, got shape {shape}.")
        if value is not None and not ((value > 0) & (value < float("inf"))).all():
            raise ValueError(f"weights must be finite and > 0, got {value}; leave a flow out to weigh it 0.")
        self.flows = flows
        self.weights = jnp.asarray(weights, jnp.result_type(float))

    @property
    def traits(self) -> Traits:
        """What the flows ask together."""
        every = [flow.traits for flow in self.flows]
        temperatures = {traits.temperature for traits in every}
        temperature: Literal["none", "any", "positive"] = "none"
        if temperatures != {"none"}:
            temperature = "positive" if "positive" in temperatures else "any"
        energies = [traits.energy_needs for traits in every]
        return Traits(
            needs=frozenset().union(*(traits.needs for traits in every)),
            temperature=temperature,
            entropic=any(traits.entropic for traits in every),
            energy_needs=None if None in energies else frozenset().union(*(e for e in energies if e is not None)),
            random=any(traits.random for traits in every),
            diffuses=any(traits.diffuses for traits in every),
            additive=any(traits.additive for traits in every),  # at most one has noise
            jumps=any(traits.jumps for traits in every),
        )

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Give Σ w_i v_i at every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        velocities = []
        for flow, seen in zip(self.flows, self._views(view), strict=True):
            velocity, alive = velocity_of(flow, seen, positions, alive)
            velocities.append(velocity)
        weights = self.weights.astype(positions.dtype)
        velocity = reduce(jnp.add, [w * v for w, v in zip(weights, velocities, strict=True)])
        return jnp.where(alive[:, None], velocity, 0), alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        """Give √w times the noise of the flow that has one, zero if none has.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            white: independent standard normal numbers, (n, d).
        """
        for weight, flow in zip(self.weights.astype(positions.dtype), self.flows, strict=True):
            if flow.traits.diffuses:
                return jnp.sqrt(weight) * noise_of(flow, view, positions, alive, white)
        return jnp.zeros_like(positions)

    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        """Say whose place each particle takes, by the flow that jumps in w times the time; its own if none does.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            time: length of the step in the flow's time.
            key: randomness of this step.
        """
        for weight, flow in zip(self.weights.astype(positions.dtype), self.flows, strict=True):
            if flow.traits.jumps:
                return cast(AbstractJumpFlow, flow).ancestors(view, positions, alive, weight * time, key)
        return jnp.arange(positions.shape[0])

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "SumFlow":
        """Give the flow with all its flows fixed at these particles.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        views = self._views(view)
        flows = [flow.fitted(f, positions, alive) for flow, f in zip(self.flows, views, strict=True)]
        return SumFlow(*flows, weights=self.weights)

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Give Σ w_i E_i.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Raises:
            TypeError: one of the flows has no energy on finite sets of particles.
        """
        without = _named(self.flows, lambda traits: traits.energy_needs is None)
        if without:
            raise TypeError(f"a sum has an energy on particles only if all its flows do, but not {', '.join(without)}.")
        weights = self.weights.astype(positions.dtype)
        energies = [w * f.energy(view, positions, alive) for w, f in zip(weights, self.flows, strict=True)]
        return reduce(jnp.add, energies)

    def _views(self, view: TargetView) -> list[TargetView]:
        """Give each flow the view, with randomness of its own where several ask for it, and none where none is."""
        if view.velocity_key is None:
            return [view] * len(self.flows)
        random = [flow.traits.random for flow in self.flows]
        keys = jr.split(view.velocity_key, len(self.flows)) if sum(random) > 1 else [view.velocity_key] * len(random)
        return [
            eqx.tree_at(lambda f: f.velocity_key, view, key if draws else None)
            for key, draws in zip(keys, random, strict=True)
        ]


def _named(flows: tuple[AbstractFlow, ...], ask: Callable[[Traits], bool]) -> list[str]:
    """Give the names of the flows, those within sums too, of which something is true."""
    names = []
    for flow in flows:
        if isinstance(flow, SumFlow):
            names += _named(flow.flows, ask)
        elif ask(flow.traits):
            names.append(type(flow).__name__)
    return names
