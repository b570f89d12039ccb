"""New flows, solvers and domains by subclassing alone: nothing in flowrl had to change for what is defined here.

A Langevin diffusion, Heun's method, an adaptive integrator of diffrax, a proximal (JKO) solver that asks for the flow's
energy, and a domain by a change of variables with its Jacobian.
"""

# ruff: noqa: ARG002  (the abstract methods prescribe their arguments)

from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, X64, assert_close, distances, draw, linear, log_normal, quadratic, same_bits, tolerance

import flowrl

# Flows


class Langevin(flowrl.AbstractStochasticFlow):
    """dz = ∇U dt + √(2α) dW, each particle a chain of its own."""

    traits: ClassVar[flowrl.Traits] = flowrl.Traits(diffuses=True)

    def velocity(self, view, positions, alive):
        return view.gradient(positions, alive)

    def noise(self, view, positions, alive, white):
        return jnp.where(alive[:, None], jnp.sqrt(2 * view.temperature) * white, 0)


# Solvers


class Heun(flowrl.AbstractStepSolver):
    """Heun's method of order two."""

    needs: ClassVar[flowrl.Needs] = flowrl.Needs()

    def step(self, step, ensemble):
        first, alive = step.velocity(ensemble)
        second, alive = step.velocity(ensemble.moved(step.size * first, alive))
        return ensemble.moved(step.size * 0.5 * (first + second), alive)


class Proximal(flowrl.AbstractStepSolver):
    """JKO: z⁺ = argmin E(z) + Σ|z − z_k|²/(2hn), by gradient descent; |∇²V| is at most `curvature`."""

    curvature: float = 1.0
    needs: ClassVar[flowrl.Needs] = flowrl.Needs(energy=True)

    def step(self, step, ensemble):
        positions = ensemble.positions
        n = positions.shape[0]

        def inner(_, z):
            # The gradient of the objective, times h n.
            pull = n * step.size * jax.grad(lambda z: step.flow.energy(step.view, z, ensemble.alive))(z) + z - positions
            return z - pull / (1 + step.size * self.curvature)

        return ensemble.moved(jax.lax.fori_loop(0, 300, inner, positions) - positions)


class Integrator(flowrl.AbstractSolver):
    """A solver of diffrax for the whole budget: it integrates to time Σ ε with first step ε."""

    method: diffrax.AbstractSolver = diffrax.Tsit5()
    tolerance: float = 1e-9
    max_steps: int = 512
    needs: ClassVar[flowrl.Needs] = flowrl.Needs(restriction=False)

    def solve(self, problem, save):
        if save is not None:
            raise ValueError("Integrator records no trajectory.")
        budget, scale = problem.budget, problem.view.scale
        start = problem.coordinates(problem.start)
        alive = jnp.ones(start.shape[0], bool)
        sizes = jnp.broadcast_to(budget.step_size, (budget.bound,))
        ends = jnp.cumsum(jnp.where(jnp.arange(budget.bound) < budget.steps, sizes, 0))
        last = jnp.asarray(budget.bound - 1)

        def velocity(t, z, problem):
            # The temperature of the step whose interval holds t.
            view, _, _ = problem.at(jnp.minimum(jnp.sum(ends <= t), last))
            return problem.flow.velocity(view, z, alive)[0]

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(velocity),
                self.method,
                t0=jnp.zeros((), start.dtype),
                t1=ends[-1],
                dt0=sizes[0],
                y0=start / scale,
                args=problem,
                stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
                saveat=diffrax.SaveAt(t1=True),
                max_steps=self.max_steps,
                throw=False,
            )
        end = solution.ys[-1] * scale
        finite = jnp.all(jnp.isfinite(end), axis=1)
        nothing = jnp.zeros((), start.dtype)
        stats = {
            "steps": solution.stats["num_accepted_steps"],
            "time": ends[-1],
            "path_length": jnp.mean(problem.displacement(end)),
            "fraction_at_cap": nothing,
            "fraction_clipped": nothing,
        }
        return flowrl.SolverOutput(jnp.where(finite[:, None], end, start), finite, solution.result, stats, None)


# Domains


class Positive(flowrl.AbstractDomain):
    """The positive reals by x = exp(y)."""

    restricts: ClassVar[bool] = False
    maps: ClassVar[bool] = True
    mirrors: ClassVar[bool] = False

    def contains(self, particles):
        return jnp.all(particles > 0, axis=1)

    def restrict(self, particles):
        return particles

    def forward(self, particle):
        return jnp.exp(particle)

    def inverse(self, particle):
        return jnp.log(particle)

    def log_det_jacobian(self, particle):
        return jnp.sum(particle)


class SoftPositive(Positive):
    """The positive reals by x = softplus(y)."""

    def forward(self, particle):
        return jax.nn.softplus(particle)

    def inverse(self, particle):
        return particle + jnp.log(-jnp.expm1(-particle))

    def log_det_jacobian(self, particle):
        return jnp.sum(jax.nn.log_sigmoid(particle))


# Langevin

CHAINS = 4000


def _within(sample, mean, variance, kurtosis=3.0):
    """Whether a sample has this mean and variance up to 4.5 standard errors, per coordinate."""
    n = len(sample)
    assert np.all(np.abs(sample.mean(axis=0) - mean) <= 4.5 * np.sqrt(variance / n))
    assert np.all(np.abs(sample.var(axis=0) - variance) <= 4.5 * variance * np.sqrt((kurtosis - 1) / n))


def _ornstein_uhlenbeck(mean, start, temperature, step_size, steps, scale):
    """Moments of Euler-Maruyama on V = −|x − mean|²/2, in closed form, coordinate by coordinate."""
    decay = 1 - scale**2 * step_size
    variance = 2 * temperature * scale**2 * step_size * (1 - decay ** (2 * steps)) / (1 - decay**2)
    return mean + decay**steps * (start - mean), variance


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_langevin_has_the_moments_of_its_euler_scheme(temperature, key):
    mean, scale = np.array([1.0, -2.0]), np.array([1.0, 0.5])
    target = flowrl.Boltzmann(quadratic, jnp.asarray(mean, FLOAT))
    budget = flowrl.Budget(15, 0.1, temperature, scale=scale)
    start = jnp.full((CHAINS, 2), 0.5, FLOAT)
    solution = flowrl.transport(target, start, budget, flow=Langevin(), key=key)
    _within(np.asarray(solution.particles), *_ornstein_uhlenbeck(mean, 0.5, temperature, 0.1, 15, scale))
    again = flowrl.transport(target, start, budget, flow=Langevin(), key=key)
    assert same_bits(again.particles, solution.particles)
    other = flowrl.transport(target, start, budget, flow=Langevin(), key=jr.fold_in(key, 1))
    assert not np.allclose(other.particles, solution.particles)


def test_langevin_needs_a_key_and_a_solver_that_keeps_its_noise():
    particles, target, budget = draw(0, (5, 2)), flowrl.Density(log_normal), flowrl.Budget(2)
    with pytest.raises(ValueError, match=r"Langevin toward Density is stochastic: pass key"):
        flowrl.transport(target, particles, budget, flow=Langevin())
    for solver in (flowrl.Optax(), Heun(), Integrator(), Proximal()):
        support = flowrl.supports(Langevin(), solver, flowrl.Unbounded())
        assert not support
        assert "stochastic" in support.reason
        with pytest.raises(ValueError, match="stochastic"):
            flowrl.Transport(Langevin(), solver)
    assert flowrl.supports(Langevin(), flowrl.Euler(), flowrl.Box(-1, 1))


def test_langevin_obeys_the_box_the_cap_and_the_frozen(key):
    def value(x):
        return jnp.sum(x) + 1e-3 * jnp.sum(jnp.sqrt(x[1] + 0.9))

    particles = draw(1, (40, 2)).clip(-0.8, 0.8).at[3, 1].set(-1.0)
    box, budget = flowrl.Box(-1, 1), flowrl.Budget(10, 0.1, 0.5, max_displacement=0.6)
    solution = flowrl.transport(flowrl.Boltzmann(value), particles, budget, flow=Langevin(), domain=box, key=key)
    assert np.asarray(box.contains(solution.particles)).all()
    assert distances(particles, solution.particles).max() <= 0.6
    assert same_bits(solution.particles[3], particles[3])
    assert int(solution.stats["nonfinite"]) >= 1


# Solvers of higher order


def _rugged(x):
    return -0.5 * jnp.sum(x**2) + jnp.sum(jnp.sin(2 * x))


RUGGED = flowrl.Boltzmann(_rugged)
FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
TIME, BOUND = 1.6, 64


def _integrated(solver, steps, particles):
    """Where the same time ends in this many steps; one program for all numbers of steps."""
    budget = flowrl.Budget(jnp.asarray(steps), TIME / steps, 0.7, max_steps=BOUND, scale=0.8)
    return flowrl.transport(RUGGED, particles, budget, flow=FIXED, solver=solver)


@pytest.mark.skipif(not X64, reason="the errors compared are below float32's")
@pytest.mark.thorough
def test_euler_and_heun_converge_to_diffrax_at_their_orders():
    particles = draw(2, (6, 2))
    exact = _integrated(Integrator(), 8, particles)
    assert float(exact.stats["time"]) == pytest.approx(TIME)
    assert int(exact.stats["steps"]) > 8
    assert exact.result == flowrl.RESULTS.successful
    for solver, order in ((flowrl.Euler(), 1), (Heun(), 2)):
        errors = [
            distances(exact.particles, _integrated(solver, steps, particles).particles).max() for steps in (16, 32, 64)
        ]
        assert errors[-1] < (0.03 if order == 1 else 1e-3)
        for coarse, fine in zip(errors, errors[1:], strict=False):
            assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)


def test_the_results_of_diffrax_pass_through():
    particles, budget = draw(2, (6, 2)), flowrl.Budget(4, 0.4)
    hasty = Integrator(max_steps=2)
    solution = flowrl.transport(RUGGED, particles, budget, flow=FIXED, solver=hasty, throw=False)
    assert solution.result == flowrl.RESULTS.max_steps_reached
    assert "maximum number of solver steps" in str(solution)
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        flowrl.transport(RUGGED, particles, budget, flow=FIXED, solver=hasty)
    zero = flowrl.Budget(jnp.asarray(0), 0.4, max_steps=3)
    assert same_bits(flowrl.transport(RUGGED, particles, zero, flow=FIXED, solver=Integrator()).particles, particles)


def test_an_integrator_cannot_project_and_says_so():
    with pytest.raises(ValueError, match="Integrator in Box: .* not an ordinary differential equation"):
        flowrl.Transport(flowrl.SVGD(), Integrator(), flowrl.Box(-1, 1))
    assert flowrl.supports(flowrl.SVGD(), Integrator(), Positive())


# The proximal solver

PULL = np.array([[2.0, 0.5], [0.5, 1.0]])


def _bowl(pull, x):
    return -0.5 * jnp.vdot(x - 1, pull @ (x - 1))


@pytest.mark.parametrize("h", [0.1, 1.0, 50.0])
def test_the_proximal_solver_takes_the_closed_form_steps_of_a_quadratic(h):
    target, particles = flowrl.Boltzmann(_bowl, jnp.asarray(PULL, FLOAT)), draw(3, (5, 2))
    solution = flowrl.transport(
        target, particles, flowrl.Budget(3, h), flow=flowrl.Ascent(), solver=Proximal(2.5), save=(0, 1, 2, 3)
    )
    x, before = np.asarray(particles, np.float64), np.inf
    for step in range(1, 4):
        x = np.linalg.solve(np.eye(2) + h * PULL, (x + h * PULL @ np.ones(2)).T).T
        np.testing.assert_allclose(solution.trajectory[step], x, atol=tolerance(1e-9, 1e-3))
        # At every h, since the proximal point is a minimiser; Euler leaves the bowl at h = 50.
        energy = -np.mean([_bowl(PULL, p) for p in x])
        assert energy < before
        before = energy


def test_the_proximal_solver_needs_an_energy():
    support = flowrl.supports(flowrl.SVGD(), Proximal(), flowrl.Unbounded())
    assert not support
    assert "SVGD has none" in support.reason
    assert flowrl.supports(flowrl.Ascent(), Proximal(), flowrl.Box(-1, 1))

    class Careless(Proximal):
        needs: ClassVar[flowrl.Needs] = flowrl.Needs()

    with pytest.raises(TypeError, match="infinite for an empirical measure"):
        flowrl.transport(
            flowrl.Density(log_normal), draw(0, (3, 2)), flowrl.Budget(1), flow=flowrl.SVGD(), solver=Careless()
        )


# The domain by a change of variables


def _gamma(x):
    """Log density of independent Gamma(3, 1): mean 3, variance 3."""
    return jnp.sum(2 * jnp.log(x) - x)


def test_langevin_on_the_positive_reals_samples_a_gamma_law(key):
    # Without the Jacobian these would be the moments of Gamma(2, 1), both 2.
    start = jnp.full((CHAINS, 1), 2.0, FLOAT)
    budget = flowrl.Budget(250, 0.02)
    solution = flowrl.transport(flowrl.Density(_gamma), start, budget, flow=Langevin(), domain=Positive(), key=key)
    sample = np.asarray(solution.particles)[:, 0]
    assert sample.min() > 0
    # Excess kurtosis of Gamma(3, 1) is 2; the step leaves a bias of a few per cent.
    assert sample.mean() == pytest.approx(3, abs=4 * np.sqrt(3 / CHAINS) + 0.03)
    assert sample.var() == pytest.approx(3, abs=4 * 3 * np.sqrt(4 / CHAINS) + 0.1)


@pytest.mark.parametrize("domain", [Positive(), SoftPositive()], ids=["exp", "softplus"])
def test_svgd_on_the_positive_reals_finds_the_same_law_through_any_map(domain):
    start = jnp.exp(draw(4, (60, 1)))
    budget = flowrl.Budget(400, 0.3)
    sample = np.asarray(flowrl.transport(flowrl.Density(_gamma), start, budget, domain=domain).particles)
    assert sample.min() > 0
    assert sample.mean() == pytest.approx(3, abs=0.12)
    assert sample.var(ddof=1) == pytest.approx(3, abs=0.5)


def test_a_mapped_domain_keeps_zero_steps_the_cap_and_the_maximum():
    particles = jnp.exp(draw(5, (20, 2)))
    target = flowrl.Boltzmann(_gamma)
    still = flowrl.transport(target, particles, flowrl.Budget(0), flow=FIXED, domain=Positive())
    assert same_bits(still.particles, particles)
    capped = flowrl.transport(
        target, particles, flowrl.Budget(5, 0.5, max_displacement=0.2), flow=FIXED, domain=Positive()
    )
    assert distances(particles, capped.particles).max() <= 0.2
    assert float(capped.stats["fraction_at_cap"]) > 0.5
    # Without entropy there is no Jacobian: the mode of x, which is 2, and not that of y.
    top = flowrl.transport(target, particles, flowrl.Budget(300, 0.1), flow=flowrl.Ascent(), domain=Positive())
    np.testing.assert_allclose(top.particles, 2, rtol=1e-3)
    with pytest.raises(ValueError, match="1 of 20 particles start outside Positive"):
        flowrl.transport(target, particles.at[2, 0].set(-1), flowrl.Budget(1), flow=FIXED, domain=Positive())


def test_a_target_that_knows_only_its_gradient_gains_the_same_jacobian():
    particles, budget = jnp.exp(draw(6, (8, 2))), flowrl.Budget(3, 0.1, 0.5)
    density = flowrl.transport(flowrl.Density(_gamma), particles, budget, flow=FIXED, domain=Positive())
    score = flowrl.transport(flowrl.Score(jax.grad(_gamma)), particles, budget, flow=FIXED, domain=Positive())
    assert_close(score.particles, density.particles)


# Targets


class Minibatch(flowrl.AbstractTarget):
    """A normal whose centre is estimated again at every step from a few of its data."""

    data: jax.Array
    knows: ClassVar[frozenset[str]] = frozenset({"gradient"})
    stochastic: ClassVar[bool] = True
    needs_positive_temperature: ClassVar[bool] = False

    def gradient(self, particle, temperature, *, key):
        return self.data[jr.randint(key, (4,), 0, len(self.data))].mean(axis=0) - particle


def test_a_stochastic_target_gets_one_key_a_step_shared_by_all_particles(key):
    data, particles = draw(7, (100, 2)), draw(8, (6, 2))
    run = eqx.filter_jit(lambda k: flowrl.transport(Minibatch(data), particles, BUDGET, flow=flowrl.Ascent(), key=k))
    first, again, other = run(key), run(key), run(jr.fold_in(key, 1))
    assert same_bits(first.particles, again.particles)
    assert not np.allclose(first.particles, other.particles)
    # All see the same minibatch, so differences between particles shrink as if there were no noise.
    gaps = first.particles - first.particles[:1]
    assert_close(gaps, 0.8**3 * (particles - particles[:1]), atol=tolerance(1e-12, 1e-5))
    with pytest.raises(ValueError, match="Ascent toward Minibatch is stochastic"):
        flowrl.transport(Minibatch(data), particles, BUDGET, flow=flowrl.Ascent())


BUDGET = flowrl.Budget(3, 0.2)


def test_a_flow_of_two_lines_is_a_flow():
    class Drift(flowrl.AbstractFlow):
        traits: ClassVar[flowrl.Traits] = flowrl.Traits(temperature="none", entropic=False)

        def velocity(self, view, positions, alive):
            return jnp.ones_like(positions), alive

    particles = draw(9, (3, 2))
    solution = flowrl.transport(flowrl.Boltzmann(linear, jnp.ones(2, FLOAT)), particles, BUDGET, flow=Drift())
    assert_close(solution.particles, particles + 0.6, rtol=1e-6)
