"""What a flow is: a velocity for every particle, and the energy it descends where one exists. Sums of flows are flows.

`AbstractFlow` and `SumFlow` stand together because each names the other: `flow_a + flow_b` is a `SumFlow`.
"""

import abc
from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float, Int

from flowrl._custom_types import Key, Mask, Positions, Scalar
from flowrl._flow._target_view import TargetView
from flowrl._flow._traits import TemperatureNeed, Traits
from flowrl._misc import concrete


class AbstractFlow(eqx.Module):
    """A velocity field on sets of particles. `flow_a + flow_b` and `2.0 * flow` are flows too, see `SumFlow`.

    A subclass declares `traits` and writes `velocity`; a flow with an energy also writes `energy`, and `fitted` if
    anything in it depends on data.

    Attributes:
        traits: what the flow asks of target, budget and solver.
    """

    traits: AbstractVar[Traits]

    @abc.abstractmethod
    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        """Return the velocity of every particle.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Returns:
            The velocity (n, d), zero for frozen particles, and who is still alive.
        """

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "AbstractFlow":
        """Return the same flow with all that depends on data (a bandwidth) fixed, so that its energy is one function.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
        """
        del view, positions, alive
        return self

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        """Return the functional of the particles that the flow descends: velocity = −n ∇energy.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.

        Raises:
            TypeError: the flow has no energy on finite sets of particles (`traits.energy_needs` is None).
        """
        del view, positions, alive
        raise TypeError(
            f"{type(self).__name__} has no energy on particles: it descends none, or one such as KL(q|p) that is "
            "infinite for an empirical measure. Use a flow with an energy (Ascent, Blob, KSDDescent), or follow the "
            "value and the variance of its particles."
        )

    def __add__(self, other: "AbstractFlow") -> "SumFlow":
        return SumFlow(self, other) if isinstance(other, AbstractFlow) else NotImplemented

    def __mul__(self, other: Any) -> "SumFlow":
        if not isinstance(other, float | int | Array) or isinstance(other, bool):
            return NotImplemented
        return SumFlow(self, weights=jnp.reshape(jnp.asarray(other), (1,)) if isinstance(other, Array) else [other])

    def __rmul__(self, other: Any) -> "SumFlow":
        return self * other


class AbstractStochasticFlow(AbstractFlow):
    """A flow with a diffusion, dz = velocity dt + noise(dW) in the sense of Itô."""

    @abc.abstractmethod
    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        """Return the diffusion applied to white noise; linear in `white`.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            white: independent standard normal numbers for unit time, (n, d).

        Returns:
            The noise of unit time (n, d), zero for frozen particles.
        """

    def drift_and_noise(
        self, view: TargetView, positions: Positions, alive: Mask, white: Positions
    ) -> tuple[Positions, Positions, Mask]:
        """Return velocity and noise together; write it where both need the same costly evaluation.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen.
            white: independent standard normal numbers for unit time, (n, d).

        Returns:
            The velocity (n, d), the noise of unit time (n, d), and who is still alive.
        """
        velocity, alive = velocity_of(self, view, positions, alive)
        return velocity, noise_of(self, view, positions, alive, white), alive


class AbstractJumpFlow(AbstractFlow):
    """A flow by which particles jump to the places of others."""

    @abc.abstractmethod
    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        """Return the index of the particle whose place each one takes; its own if it does not jump.

        Args:
            view: the target at this step's temperature.
            positions: z, (n, d).
            alive: particles that are not frozen; the others neither jump nor are jumped to.
            time: length of the step in the flow's time.
            key: randomness of this step.
        """


class SumFlow(AbstractStochasticFlow, AbstractJumpFlow):
    r"""Several flows at the same time, v = Σ w_i v_i; also written `flow_a + flow_b` and `2.0 * flow`.

    A multiple w of a flow is the same flow w times as fast: its velocity is multiplied by w, its noise by √w, and the
    time of its jumps by w. So `0.5 * Langevin()` samples the same distribution as `Langevin()`, in twice the steps.
    The energy is Σ w_i E_i where all have one.

    At most one flow of a sum has noise, and at most one jumps. All are asked at the temperature of the budget. If one
    is `entropic`, all see the target with the Jacobian of a mapped domain. A particle that one flow freezes rests in
    all; the flows before that one in the sum still count it in that step.

    Attributes:
        flows: one or more flows; one freezes particles for those after it.
        weights: w > 0, (k,); 1 for each by default.

    Raises:
        TypeError: one of the flows is not a flow.
        ValueError: there is no flow, more than one has noise or jumps, one has its law at time 1, or a concrete weight
            is not positive.

    Example:
        ```python
        import flowrl

        flow = flowrl.Langevin() + 0.5 * flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(0.7)))
        ```
    """

    flows: tuple[AbstractFlow, ...]
    weights: Float[Array, " k"]

    def __init__(self, *flows: AbstractFlow, weights: Any = None):
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
        timed = _named(flows, lambda traits: traits.unit_time)
        if timed:
            raise ValueError(
                f"{timed[0]} has the law of its target at time 1 by itself, not at another speed or with other flows; "
                "transport with one flow after the other."
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
        temperature: TemperatureNeed = "none"
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
            unmapped=any(traits.unmapped for traits in every),
            weighs=all(traits.weighs for traits in every),
        )

    def velocity(self, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
        velocities = []
        for flow, seen in zip(self.flows, self._views(view), strict=True):
            velocity, alive = velocity_of(flow, seen, positions, alive)
            velocities.append(velocity)
        weights = self.weights.astype(positions.dtype)
        velocity = reduce(jnp.add, [w * v for w, v in zip(weights, velocities, strict=True)])
        return jnp.where(alive[:, None], velocity, 0), alive

    def noise(self, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
        for weight, flow in zip(self.weights.astype(positions.dtype), self.flows, strict=True):
            if flow.traits.diffuses:  # at most one does
                return jnp.sqrt(weight) * noise_of(flow, view, positions, alive, white)
        return jnp.zeros_like(positions)

    def ancestors(
        self, view: TargetView, positions: Positions, alive: Mask, time: Scalar, key: Key
    ) -> Int[Array, " n"]:
        for weight, flow in zip(self.weights.astype(positions.dtype), self.flows, strict=True):
            if flow.traits.jumps:
                return cast(AbstractJumpFlow, flow).ancestors(view, positions, alive, weight * time, key)
        return jnp.arange(positions.shape[0])

    def fitted(self, view: TargetView, positions: Positions, alive: Mask) -> "SumFlow":
        views = self._views(view)
        flows = [flow.fitted(f, positions, alive) for flow, f in zip(self.flows, views, strict=True)]
        return SumFlow(*flows, weights=self.weights)

    def energy(self, view: TargetView, positions: Positions, alive: Mask) -> Scalar:
        without = _named(self.flows, lambda traits: traits.energy_needs is None)
        if without:
            raise TypeError(f"a sum has an energy on particles only if all its flows do, but not {', '.join(without)}.")
        weights = self.weights.astype(positions.dtype)
        energies = [w * f.energy(view, positions, alive) for w, f in zip(weights, self.flows, strict=True)]
        return reduce(jnp.add, energies)

    def _views(self, view: TargetView) -> list[TargetView]:
        """Return the view of each flow: with a key of its own if it declares randomness, else without a key."""
        if view.velocity_key is None:
            return [view] * len(self.flows)
        random = [flow.traits.random for flow in self.flows]
        keys = jr.split(view.velocity_key, len(self.flows)) if sum(random) > 1 else [view.velocity_key] * len(random)
        return [
            eqx.tree_at(lambda f: f.velocity_key, view, key if draws else None)
            for key, draws in zip(keys, random, strict=True)
        ]


def _named(flows: tuple[AbstractFlow, ...], ask: Callable[[Traits], bool]) -> list[str]:
    """Return the names of the flows, those within sums too, of which something is true."""
    names = []
    for flow in flows:
        if isinstance(flow, SumFlow):
            names += _named(flow.flows, ask)
        elif ask(flow.traits):
            names.append(type(flow).__name__)
    return names


def velocity_of(flow: AbstractFlow, view: TargetView, positions: Positions, alive: Mask) -> tuple[Positions, Mask]:
    """Return a flow's velocity, checked: (n, 1) would be broadcast to (n, d) silently."""
    given = flow.velocity(view, positions, alive)
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(
            f"{type(flow).__name__}.velocity gave a {type(given).__name__}; expected two things, the velocity (n, d) "
            "and who is still alive (n,)."
        )
    velocity, alive = given
    _expect(flow, "velocity", velocity, positions.shape)
    _expect(flow, "velocity", alive, positions.shape[:1], " for who is alive")
    return velocity, alive


def noise_of(flow: Any, view: TargetView, positions: Positions, alive: Mask, white: Positions) -> Positions:
    """Return a stochastic flow's noise, checked as its velocity is."""
    noise = flow.noise(view, positions, alive, white)
    _expect(flow, "noise", noise, positions.shape)
    return noise


def drift_and_noise_of(
    flow: Any, view: TargetView, positions: Positions, alive: Mask, white: Positions
) -> tuple[Positions, Positions, Mask]:
    """Return a stochastic flow's velocity and noise, checked."""
    velocity, noise, alive = flow.drift_and_noise(view, positions, alive, white)
    _expect(flow, "drift_and_noise", velocity, positions.shape, " for the velocity")
    _expect(flow, "drift_and_noise", noise, positions.shape, " for the noise")
    return velocity, noise, alive


def _expect(flow: AbstractFlow, method: str, given: Any, shape: tuple[int, ...], what: str = "") -> None:
    if jnp.shape(given) != shape:
        raise ValueError(f"{type(flow).__name__}.{method} gave shape {jnp.shape(given)}{what}; expected {shape}.")
