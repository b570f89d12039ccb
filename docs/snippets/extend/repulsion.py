"""A new flow: every particle climbs the value and keeps its distance from the others."""

# --8<-- [start:flow]
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl


class Crowd(flowrl.AbstractFlow):
    """Descend E = −mean V + α/(2n²) Σ_ij k(x_i, x_j), k(x, y) = exp(−|x − y|²/2w²): value up, crowding down."""

    width: jax.Array

    traits: ClassVar[flowrl.Traits] = flowrl.Traits(
        needs=frozenset({"gradient"}),  # of the target, by velocity()
        temperature="any",  # α ≥ 0 weighs the repulsion
        entropic=False,  # it samples no distribution, so maps of a domain add no Jacobian
        energy_needs=frozenset({"value"}),  # of the target, by energy(); left out for a flow without one
    )

    def velocity(self, view, positions, alive):
        """∇V(x_i) + (α/n) Σ_j k_ij (x_i − x_j)/w²: −n times the slope of the energy."""
        gradient, alive = view.gradient(positions, alive)  # zero for whoever is not alive; may freeze more
        kernel, centred, count = self._kernel(positions, alive)
        width = self.width.astype(positions.dtype)
        # Two matrix products in the place of an array (n, n, d).
        repulsion = (jnp.sum(kernel, axis=1, keepdims=True) * centred - kernel @ centred) / width**2
        return gradient + view.temperature * repulsion / count, alive

    def energy(self, view, positions, alive):
        """One number for the whole set."""
        log_density, alive = view.scaled_log_density(positions, alive)
        kernel, _, count = self._kernel(positions, alive)
        return -jnp.sum(log_density) / count + view.temperature * jnp.sum(kernel) / (2 * count**2)

    def _kernel(self, positions, alive):
        """k between the living, zero for the others; the positions around their mean; and how many live."""
        weight = alive.astype(positions.dtype)
        count = jnp.maximum(jnp.sum(weight), 1)
        mean = jnp.sum(jnp.where(alive[:, None], positions, 0), axis=0, keepdims=True) / count
        centred = jnp.where(alive[:, None], positions - mean, 0)  # an offset would cost the digits of small distances
        squares = jnp.sum(centred**2, axis=1)
        distances = jnp.maximum(squares[:, None] + squares[None] - 2 * centred @ centred.T, 0)
        kernel = jnp.exp(-distances / (2 * self.width.astype(positions.dtype) ** 2))
        return kernel * weight[:, None] * weight[None], centred, count


# --8<-- [end:flow]
# --8<-- [start:use]
def value(x):
    return -0.5 * jnp.sum(x**2)


flow, target = Crowd(jnp.asarray(0.5)), flowrl.Boltzmann(value)
start = 0.1 * jr.normal(jr.key(0), (40, 2))
alone = flowrl.transport(target, start, flowrl.Budget(200, 0.1, 0.0), flow=flow)
apart = flowrl.transport(target, start, flowrl.Budget(200, 0.1, 4.0), flow=flow)
proximal = flowrl.transport(target, start, flowrl.Budget(5, 4.0, 4.0), flow=flow, solver=flowrl.JKO())
both = 0.5 * flow + flowrl.Ascent()
boxed = flowrl.transport(target, start, flowrl.Budget(200, 0.1, 4.0), flow=flow, domain=flowrl.Box(-0.3, 0.3))


# --8<-- [end:use]
# --8<-- [start:check]
def slope_error(flow, target, positions, temperature):
    """How far velocity is from −n ∇energy, on a set of which one particle is frozen."""
    alive = jnp.arange(len(positions)) > 0
    view = flowrl.TargetView(
        temperature=jnp.asarray(temperature, positions.dtype),
        key=None,  # of the target, if it is stochastic
        velocity_key=jr.key(0) if flow.traits.random else None,
        target=target,
        domain=flowrl.Unbounded(),
        scale=jnp.ones_like(positions[:1]),
        entropic=flow.traits.entropic,
        unravel=lambda z: z,
    )
    velocity, _ = flow.velocity(view, positions, alive)
    slope = jax.grad(lambda x: flow.energy(view, x, alive))(positions)
    return jnp.max(jnp.abs(velocity + jnp.sum(alive).astype(positions.dtype) * slope))


# --8<-- [end:check]
# --8<-- [start:solver]
class Heun(flowrl.AbstractStepSolver):
    """Euler's step, and the mean of the velocities at its two ends: second order in ε."""

    needs: ClassVar[flowrl.Needs] = flowrl.Needs()  # any flow without noise or jumps, any domain, all caps

    def step(self, step, ensemble):
        """Return the ensemble after one step of length ε."""
        first, alive = step.velocity(ensemble)
        second, alive = step.velocity(ensemble.moved(step.size * first, alive))
        return ensemble.moved(step.size * (first + second) / 2, alive)


second_order = flowrl.transport(target, start, flowrl.Budget(200, 0.1, 4.0), flow=flow, solver=Heun())


# --8<-- [end:solver]
# --8<-- [start:domain]
class Above(flowrl.AbstractDomain):
    """Coordinates above `floor`, by x = floor + exp(y)."""

    floor: jax.Array
    restricts: ClassVar[bool] = False  # nothing is brought back after a step
    maps: ClassVar[bool] = True  # the flow runs in y
    mirrors: ClassVar[bool] = False

    def contains(self, particles):
        return jnp.all(particles > self.floor.astype(particles.dtype), axis=1)

    def restrict(self, particles):
        return particles

    def forward(self, particle):
        return self.floor.astype(particle.dtype) + jnp.exp(particle)

    def inverse(self, particle):
        return jnp.log(particle - self.floor.astype(particle.dtype))

    def log_det_jacobian(self, particle):
        return jnp.sum(particle)


def gamma(x):  # Gamma(3, 1), moved up by 1: mean 4, variance 3
    return jnp.sum(2 * jnp.log(x - 1) - x)


wide = 1 + jnp.exp(jr.normal(jr.key(1), (60, 1)))
above = flowrl.transport(flowrl.Density(gamma), wide, flowrl.Budget(400, 0.3), domain=Above(jnp.asarray(1.0)))
# --8<-- [end:domain]
