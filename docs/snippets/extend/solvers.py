"""Four methods of the field as parts of one's own: the tutorial's MALA, kinetic Langevin, tempering, EKS."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr

import flowrl


# --8<-- [start:mala]
class Mala(flowrl.AbstractStepSolver):
    """Langevin's step, accepted or rejected, so that every particle samples the target exactly."""

    needs: ClassVar[flowrl.Needs] = flowrl.Needs(
        target=frozenset({"value"}), flows=(flowrl.Langevin,), noise="any", random=True, exact=True, rests=False
    )

    def init(self, step, ensemble):
        """What each particle owns: log π and its gradient where it is."""
        return ensemble.replace(own=(step.log_density(ensemble)[0], step.gradient(ensemble)[0]))

    def step(self, step, ensemble):
        """Propose a move of every particle, and take it where the dice allow."""
        noise_key, accept_key = step.keys(2)
        here, gradient = ensemble.own if step.unchanging else self.init(step, ensemble).own
        h = step.size * step.view.temperature
        move = h * gradient + jnp.sqrt(2 * h) * jr.normal(noise_key, gradient.shape, gradient.dtype)
        proposed = ensemble.moved(move)
        there, finite = step.log_density(proposed)
        slope, smooth = step.gradient(proposed)
        back_and_forth = jnp.sum((move - h * gradient) ** 2 - (move + h * slope) ** 2, axis=1) / (4 * h)
        dice = jnp.log(jr.uniform(accept_key, here.shape, here.dtype))
        accepted = finite & smooth & step.allowed(proposed) & (dice < there - here + back_and_forth)
        return proposed.replace(own=(there, slope)).where(accepted, ensemble)


# --8<-- [end:mala]
# --8<-- [start:use]
def gamma(x):  # Gamma(3, 1) in two dimensions: mean 3, variance 3
    return jnp.sum(2 * jnp.log(x) - x)


start, key = 1 + jr.uniform(jr.key(0), (400, 2)), jr.key(1)
options = {"flow": flowrl.Langevin(), "domain": flowrl.Box(0, jnp.inf), "key": key}
exact = flowrl.transport(flowrl.Density(gamma), start, flowrl.Budget(400, 0.5), solver=Mala(), **options)
capped = flowrl.Budget(50, 0.5, max_displacement=1.0)  # the cap, the domain and freezing come with the loop
near = flowrl.transport(flowrl.Density(gamma), start, capped, solver=Mala(), **options)
# --8<-- [end:use]


# --8<-- [start:kinetic]
class Kinetic(flowrl.AbstractStepSolver):
    """Kinetic Langevin dynamics, half a move, a kick and friction, half a move; each particle owns a momentum."""

    friction: float = 1.0
    needs: ClassVar[flowrl.Needs] = flowrl.Needs(
        target=frozenset({"gradient"}), flows=(flowrl.Langevin,), noise="any", random=True, rests=False
    )

    def init(self, step, ensemble):
        """Momenta at rest."""
        del step
        return ensemble.replace(own=jnp.zeros_like(ensemble.positions))

    def step(self, step, ensemble):
        """One step of the splitting."""
        (key,) = step.keys(1)
        left, white = jnp.exp(-self.friction * step.size), jr.normal(key, ensemble.own.shape, ensemble.own.dtype)
        middle = ensemble.moved(0.5 * step.size * ensemble.own)
        gradient, alive = step.gradient(middle)
        kicked = ensemble.own + 0.5 * step.size * gradient
        momentum = left * kicked + jnp.sqrt(1 - left**2) * white + 0.5 * step.size * gradient
        return middle.moved(0.5 * step.size * momentum, alive).replace(own=momentum)

    def stopped(self, ensemble, who):
        """Who was brought back by a wall turns round."""
        return ensemble.replace(own=jnp.where(who[:, None], -ensemble.own, ensemble.own))


# --8<-- [end:kinetic]
# --8<-- [start:tempered]
class Smc(flowrl.AbstractStepSolver):
    """Tempering from a reference to its tilt in equal powers, resampled by weight, moved by Metropolis' rule."""

    inner: flowrl.AbstractStepSolver = flowrl.Metropolis()
    needs: ClassVar[flowrl.Needs] = flowrl.Needs(
        target=frozenset({"log_tilt"}),
        noise="any",
        random=True,
        adapts=frozenset({"step_size"}),
        caps=False,
        rests=False,
    )

    def init(self, step, ensemble):
        """The inner solver's start at power 0; the set remembers the log evidence."""
        inner = self.inner.init(step.toward(step.view.target.at_power(jnp.zeros_like(step.size))), ensemble)
        return inner.replace(memory=(inner.memory, jnp.zeros_like(step.size)))

    def step(self, step, ensemble):
        """Reweight to the next power, resample, move."""
        resample_key, move_key = step.keys(2)
        rise = 1 / jnp.asarray(step.problem.budget.steps).astype(step.size.dtype)
        power = rise * (step.index + 1).astype(step.size.dtype)
        tilt, finite = step.view.ask("log_tilt", ensemble.positions, ensemble.alive)
        log_weights = jnp.where(finite, rise * tilt, -jnp.inf)
        gained = jax.nn.logsumexp(log_weights) - jnp.log(float(tilt.shape[0]))
        ensemble = ensemble.take(jr.categorical(resample_key, log_weights, shape=tilt.shape))
        tempered = step.toward(step.view.target.at_power(power)).replace(key=move_key)
        moved = self.inner.step(tempered, ensemble.replace(memory=ensemble.memory[0]))
        return moved.replace(memory=(moved.memory, ensemble.memory[1] + gained))

    def extras(self, ensemble):
        """What comes out in `Solution.extras`."""
        return {"log_evidence": ensemble.memory[1]}


# --8<-- [end:tempered]
# --8<-- [start:eks]
class Kalman(flowrl.AbstractStochasticFlow):
    """The ensemble Kalman sampler: differences between particles in the place of derivatives."""

    traits: ClassVar[flowrl.Traits] = flowrl.Traits(needs=frozenset({"simulate"}), diffuses=True)

    def velocity(self, view, positions, alive):
        """Down the misfit of data and prior, as the spread of the set sees it."""
        predicted, alive = view.ask("simulate", positions, alive)
        target, n = view.target, positions.shape[0]
        x = positions - positions.mean(axis=0, keepdims=True)
        slope = x.T @ (predicted - predicted.mean(axis=0, keepdims=True)) / n
        misfit = (predicted - target.data[None]) / target.noise**2
        pull = positions @ (x.T @ x) / n / target.width**2  # a prior N(0, width² I)
        return -misfit @ slope.T - pull + (x.shape[1] + 1) / n * x, alive

    def noise(self, view, positions, alive, white):
        """White noise of the covariance of the set."""
        del view, alive
        x = positions - positions.mean(axis=0, keepdims=True)
        return jnp.sqrt(2.0) * white @ jnp.linalg.qr(x / jnp.sqrt(x.shape[0]), mode="r")


class Observed(flowrl.AbstractTarget):
    """Data y = G(x) + noise of a map G that need not be differentiable; `simulate` is a word of its own."""

    matrix: jax.Array
    data: jax.Array
    noise: jax.Array
    width: jax.Array
    knows: ClassVar[frozenset[str]] = frozenset({"simulate"})
    needs_positive_temperature: ClassVar[bool] = True

    def simulate(self, x):
        """The map: here a matrix."""
        return self.matrix @ x


# --8<-- [end:eks]
normal = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
kinetic = flowrl.transport(
    normal, 3 + jr.normal(key, (500, 2)), flowrl.Budget(200, 0.2), flow=flowrl.Langevin(), solver=Kinetic(), key=key
)
tilted = flowrl.Tilted(lambda x: -0.5 * jnp.sum(x**2) - jnp.log(2 * jnp.pi), lambda x: -2.0 * jnp.sum((x - 1) ** 2))
tempered = flowrl.transport(
    tilted, jr.normal(key, (1000, 2)), flowrl.Budget(40, None), flow=flowrl.Langevin(), solver=Smc(), key=key
)
observed = Observed(jnp.array([[1.0, 1.0], [1.0, -1.0]]), jnp.array([3.0, 1.0]), jnp.array(0.5), jnp.array(2.0))
sizes = jnp.array([min(0.1, 0.001 * 1.1**step) for step in range(150)])
kalman = flowrl.transport(observed, 2 * jr.normal(key, (1000, 2)), flowrl.Budget(150, sizes), flow=Kalman(), key=key)
