"""Kernel Fisher-Rao flow against sums written out in NumPy, and against posteriors in closed form."""

import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, log_normal, quadratic, same_bits, tolerance

import flowrl

ONCE = flowrl.Budget(1, None)
DIFFRAX = flowrl.Diffrax(max_steps=256)
RBF = flowrl.RBF(flowrl.FixedBandwidth(1.3))


def _precise(centre, x):
    """The log likelihood of an observation of x with deviation 1/2."""
    return -2 * jnp.sum((x - centre) ** 2)


def _walled(x):
    """A tilt that is NaN beyond 5."""
    return jnp.sum(x) + 1e-3 * jnp.sqrt(5 - x[0])


def _two_modes(x):
    """The log likelihood of observing |x_0| = 1.5 with deviation 0.3, if the left sign is believed to 70 %."""
    left, right = ((x[0] + sign * 1.5) ** 2 / (2 * 0.3**2) for sign in (1, -1))
    return jnp.logaddexp(jnp.log(0.7) - left, jnp.log(0.3) - right)


def _tilted(value, *args):
    return flowrl.Tilted(log_normal, flowrl.Boltzmann(value, *args))


def _view(target, temperature=1.0, d=2):
    ones = jnp.ones((1, d), FLOAT)
    alpha = jnp.asarray(temperature, FLOAT)
    return flowrl.TargetView(alpha, None, None, target, flowrl.Unbounded(), ones, entropic=True, unravel=_same)


def _same(x):
    return x


@eqx.filter_jit
def _velocity(flow, view, x, alive=None):
    return flow.velocity(view, x, jnp.ones(x.shape[0], bool) if alive is None else alive)


# The velocity


def _rbf(x, y):
    return jnp.exp(-jnp.sum((x - y) ** 2) / (2 * 1.3**2))


def _imq(x, y):
    return 1 / jnp.sqrt(1 + jnp.sum((x - y) ** 2) / 0.8**2)


def _affine(x, y):
    return (1 + x @ y) ** 2


KERNELS = {
    "RBF": (RBF, _rbf),
    "IMQ": (flowrl.IMQ(flowrl.FixedBandwidth(0.8)), _imq),
    "squared linear": (flowrl.Linear() * flowrl.Linear(), _affine),
    "sum": (RBF + 0.1 * (flowrl.Linear() * flowrl.Linear()), lambda x, y: _rbf(x, y) + 0.1 * _affine(x, y)),
}


def _by_hand(kernel, x, tilt, ridge, weights=None):
    """The velocity by an array (n, n, d) of gradients, in NumPy; the kernel sees x relative to its mean."""
    x = np.asarray(x, np.float64)
    x, n = x - x.mean(axis=0), len(x)
    weights = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    pairs = jnp.asarray(np.repeat(x, n, axis=0)), jnp.asarray(np.tile(x, (n, 1)))
    value = np.asarray(jax.vmap(kernel)(*pairs), np.float64).reshape(n, n)
    gradient = np.asarray(jax.vmap(jax.grad(kernel))(*pairs), np.float64).reshape(n, n, -1)  # (k, i, d)
    gram = np.einsum("k,kid,kjd->ij", weights, gradient, gradient)
    right = (weights * (tilt - weights @ tilt)) @ value
    coefficients = np.linalg.solve(gram + ridge * np.trace(gram) / n * np.eye(n), right)
    return np.einsum("kjd,j->kd", gradient, coefficients)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_velocity_is_that_of_the_sums_written_out(name, weighted):
    kernel, formula = KERNELS[name]
    x, alpha = draw(0, (12, 2)) + 3, 0.6
    view, weights = _view(_tilted(_precise, 0.5), alpha), None
    if weighted:
        weights = np.linspace(0.2, 2, 12)
        view = view.weighted(jnp.asarray(np.log(weights), FLOAT))
    got, _ = _velocity(flowrl.KFRFlow(kernel, 0.01), view, x)
    assert got.dtype == FLOAT
    tilt = -2 * np.sum((np.asarray(x, np.float64) - 0.5) ** 2, axis=1) / alpha
    want = _by_hand(formula, x, tilt, 0.01, weights)
    np.testing.assert_allclose(got, want, rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-8, 1e-2) * np.abs(want).max())


def test_the_velocity_solves_the_weak_equation_for_functions_of_its_space():
    """E[∇f · v] = Cov(f, V/α) for the quadratic functions f, as λ → 0."""
    x = draw(1, (30, 2))
    flow = flowrl.KFRFlow(flowrl.Linear() * flowrl.Linear(), 1e-12)
    v = np.asarray(_velocity(flow, _view(_tilted(_precise, 0.5), 2.0), x)[0], np.float64)
    x = np.asarray(x, np.float64)
    tilt = -np.sum((x - 0.5) ** 2, axis=1)
    for f, gradient in (
        (x[:, 0], [np.ones(30), np.zeros(30)]),
        (x[:, 0] ** 2, [2 * x[:, 0], np.zeros(30)]),
        (x[:, 0] * x[:, 1], [x[:, 1], x[:, 0]]),
    ):
        want = np.mean((f - f.mean()) * tilt)
        assert np.mean(np.sum(np.stack(gradient, axis=1) * v, axis=1)) == pytest.approx(want, rel=tolerance(1e-6, 1e-2))


# Where it ends


@pytest.mark.thorough
def test_an_affine_flow_of_an_exact_quadrature_has_the_posterior_in_closed_form():
    """Hermite's nodes have all moments of N(0, 1) that a quadratic tilt and a quadratic kernel ask for.

    An affine map keeps that, so at time 1 the nodes are those of the posterior: N(1.2, 0.2) for an observation of 1.5
    with deviation 1/2, and N(0.75, 0.5) at the temperature 4.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    flow = flowrl.KFRFlow(flowrl.Linear() * flowrl.Linear(), 1e-12)
    solver = flowrl.Diffrax(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-7, atol=1e-9))
    for temperature, mean, variance in ((1.0, 1.2, 0.2), (4.0, 0.75, 0.5)):
        solution = flowrl.transport(
            _tilted(_precise, 1.5),
            jnp.asarray(nodes[:, None], FLOAT),
            flowrl.Budget(1, None, temperature),
            flow=flow,
            solver=solver,
            log_weights=jnp.asarray(np.log(weights), FLOAT),
        )
        want = mean + np.sqrt(variance) * nodes
        np.testing.assert_allclose(solution.particles[:, 0], want, atol=tolerance(1e-5, 2e-2))
        assert float(solution.stats["time"]) == pytest.approx(1)


@pytest.mark.thorough
def test_a_gaussian_posterior_in_unit_time():
    """N(0, I) and an observation of 1.5 with deviation 1: N(0.75, I/2).

    What 150 draws know of it is what they say when weighed by the tilt, and the flow ends there.
    """
    target = _tilted(quadratic, jnp.full(2, 1.5, FLOAT))
    for seed in range(2):
        start = draw(seed, (150, 2))
        solution = flowrl.transport(target, start, ONCE, flow=flowrl.KFRFlow(), solver=DIFFRAX)
        x, start = np.asarray(solution.particles, np.float64), np.asarray(start, np.float64)
        weights = np.exp(-0.5 * np.sum((start - 1.5) ** 2, axis=1))
        weights /= weights.sum()
        mean = weights @ start
        np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.04)
        np.testing.assert_allclose(x.var(axis=0), weights @ (start - mean) ** 2, atol=0.12)
        np.testing.assert_allclose(mean, 0.75, atol=0.3)


@pytest.mark.thorough
def test_two_modes_get_their_shares():
    """Of N(0, 1) in the first coordinate two modes are left, at ±1.38 with variance 0.083."""
    sets = [
        flowrl.transport(_tilted(_two_modes), draw(seed, (100, 2)), ONCE, flow=flowrl.KFRFlow(), solver=DIFFRAX)
        for seed in range(3)
    ]
    x = np.concatenate([np.asarray(solution.particles) for solution in sets])
    left = x[:, 0] < 0
    assert left.mean() == pytest.approx(0.7, abs=0.1)
    at = 1.5 / (1 + 0.3**2)
    assert x[left, 0].mean() == pytest.approx(-at, abs=0.3)
    assert x[~left, 0].mean() == pytest.approx(at, abs=0.3)
    assert np.mean(np.abs(x[:, 0]) > 0.6) > 0.95
    # The other coordinate is that of the reference.
    assert x[:, 1].mean() == pytest.approx(0, abs=0.25)
    assert x[:, 1].var() == pytest.approx(1, abs=0.35)


@pytest.mark.thorough
def test_euler_and_diffrax_agree_where_steps_are_small():
    start, target = draw(3, (60, 2)), _tilted(quadratic, jnp.full(2, 0.5, FLOAT))
    coarse = flowrl.transport(target, start, flowrl.Budget(100, None), flow=flowrl.KFRFlow())
    fine = flowrl.transport(target, start, ONCE, flow=flowrl.KFRFlow(), solver=DIFFRAX)
    assert float(coarse.stats["time"]) == pytest.approx(1)
    np.testing.assert_allclose(coarse.particles, fine.particles, atol=0.03)
    assert np.abs(coarse.particles - start).max() > 0.2


@pytest.mark.thorough
def test_a_map_of_the_domain_changes_nothing_but_the_coordinates():
    """The flow asks for values alone, so a tilt of log x in the half line is that of y in the line."""
    y = draw(4, (15, 1))

    def square(y):
        return -0.2 * jnp.sum((y - 1) ** 2)

    free = flowrl.transport(_tilted(square), y, flowrl.Budget(10, None), flow=flowrl.KFRFlow())
    positive = flowrl.Box(0, jnp.inf, by="bijector")
    start = positive.forward(y)
    mapped = flowrl.transport(
        flowrl.Tilted(log_normal, lambda x: square(positive.inverse(x))),
        start,
        flowrl.Budget(10, None),
        flow=flowrl.KFRFlow(),
        domain=positive,
    )
    assert_close(positive.inverse(mapped.particles), free.particles, rtol=tolerance(1e-6, 1e-2), atol=1e-3)


# What every flow keeps


def test_the_frozen_have_no_part():
    bad = 4
    x = draw(5, (10, 2)).at[bad].set(jnp.asarray([9.0, jnp.nan], FLOAT))
    others = np.delete(np.arange(10), bad)
    flow, view = flowrl.KFRFlow(RBF + 0.1 * flowrl.Linear()), _view(_tilted(_walled), 0.6)
    velocity, alive = _velocity(flow, view, x)
    assert np.asarray(alive).tolist() == [i != bad for i in range(10)]
    assert np.all(np.asarray(velocity[bad]) == 0)
    want, _ = _velocity(flow, view, x[others])
    assert_close(velocity[others], want, rtol=tolerance(1e-7, 1e-2), atol=tolerance(1e-9, 1e-3))
    start = draw(5, (10, 2)).at[bad].set(9.0)
    solution = flowrl.transport(_tilted(_walled), start, flowrl.Budget(3, None), flow=flow)
    assert same_bits(solution.particles[bad], start[bad])
    assert int(solution.stats["nonfinite"]) == 1
    assert np.isfinite(solution.particles).all()


def test_an_empty_slot_is_as_if_it_were_not_there():
    x = draw(6, (8, 2))
    target, flow, budget = _tilted(_precise, 0.5), flowrl.KFRFlow(), flowrl.Budget(20, None)
    weights = jnp.where(jnp.arange(8) == 3, -jnp.inf, jnp.zeros(8, FLOAT))
    full = flowrl.transport(target, x, budget, flow=flow, log_weights=weights).particles
    kept = np.arange(8) != 3
    assert same_bits(full[3], x[3])
    want = flowrl.transport(target, x[kept], budget, flow=flow).particles
    assert_close(full[kept], want, rtol=tolerance(1e-6, 2e-2), atol=1e-3)


def test_a_unit_of_length_changes_nothing_with_a_bandwidth_from_the_particles():
    x, target, flow = draw(7, (15, 2)), _tilted(_precise, 0.5), flowrl.KFRFlow()
    plain, scaled = (
        flowrl.transport(target, x, flowrl.Budget(20, None, scale=scale), flow=flow).particles for scale in (None, 0.1)
    )
    assert_close(scaled, plain, rtol=tolerance(1e-6, 2e-2), atol=tolerance(1e-8, 2e-3))
    assert not np.allclose(plain, x, atol=0.1)


def test_many_sets_are_a_loop_over_them():
    starts, centres = draw(8, (3, 10, 2)), draw(9, (3, 2))
    flow, budget = flowrl.KFRFlow(), flowrl.Budget(10, None)

    @jax.jit
    def run(x, centre):
        return flowrl.transport(_tilted(quadratic, centre), x, budget, flow=flow, throw=False).particles

    each = jnp.stack([run(*pair) for pair in zip(starts, centres, strict=True)])
    assert_close(jax.vmap(run)(starts, centres), each, rtol=tolerance(1e-7, 2e-2), atol=tolerance(1e-9, 2e-3))


@pytest.mark.parametrize("particles", [np.zeros((1, 2)), np.full((5, 2), 1.5)], ids=["one", "in one place"])
def test_particles_that_know_of_no_difference_stay(particles):
    start = jnp.asarray(particles, FLOAT)
    solution = flowrl.transport(_tilted(_precise, 0.5), start, flowrl.Budget(3, None), flow=flowrl.KFRFlow())
    assert_close(solution.particles, start)


@pytest.mark.parametrize("regularisation", [1e-12, 1e-4])
def test_many_particles_close_together_are_finite_in_single_precision(regularisation):
    start = draw(10, (300, 1), jnp.float32)
    flow = flowrl.KFRFlow(flowrl.RBF(), regularisation)
    solution = flowrl.transport(_tilted(quadratic, jnp.ones(1, jnp.float32)), start, flowrl.Budget(5, None), flow=flow)
    assert np.isfinite(solution.particles).all()
    assert int(solution.stats["nonfinite"]) == 0
    assert not np.allclose(solution.particles, start, atol=0.1)


# Refusals


REFUSED = {
    "a density": (
        lambda x: flowrl.transport(flowrl.Density(log_normal), x, ONCE, flow=flowrl.KFRFlow()),
        ValueError,
        r"KFRFlow needs the log_tilt of its target, which Density does not know; use Tilted\(log_reference, value\)",
    ),
    "steps of another sum": (
        lambda x: flowrl.transport(_tilted(_precise, 0.5), x, flowrl.Budget(10, 0.2), flow=flowrl.KFRFlow()),
        ValueError,
        r"target at time 1, but the steps sum to 2; write Budget\(steps, None\)",
    ),
    "a solver with a time of its own": (
        lambda x: flowrl.transport(
            _tilted(_precise, 0.5), x, flowrl.Budget(10, None), flow=flowrl.KFRFlow(), solver=flowrl.Optax()
        ),
        ValueError,
        r"KFRFlow with Optax: the flow ends at time 1, .* use Euler\(\) or Diffrax\(\)",
    ),
    "temperature 0": (
        lambda x: flowrl.transport(_tilted(_precise, 0.5), x, flowrl.Budget(10, None, 0.0), flow=flowrl.KFRFlow()),
        ValueError,
        "KFRFlow divides by the temperature, so it must be > 0",
    ),
    "no regularisation": (
        lambda _: flowrl.KFRFlow(regularisation=0.0),
        ValueError,
        "regularisation must be > 0 and finite, got 0",
    ),
    "a multiple": (lambda _: 2.0 * flowrl.KFRFlow(), ValueError, "KFRFlow has the law of its target at time 1"),
    "a sum": (
        lambda _: flowrl.KFRFlow() + flowrl.Langevin(),
        ValueError,
        "not at another speed or with other flows; transport with one flow after the other",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused_in_one_sentence(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call(draw(0, (4, 2)))


@pytest.mark.thorough
def test_only_scalar_kernels_are_taken():
    """In a process without the type checker of these tests, whose error would come first."""
    program = """
import flowrl

for kernel in (flowrl.Preconditioned(), flowrl.RBF):
    try:
        flowrl.KFRFlow(kernel)
    except TypeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    one, two = done.stdout.splitlines()
    assert one.startswith("kernel must be a scalar kernel such as RBF(), got Preconditioned(")
    assert two.startswith("kernel must be a scalar kernel such as RBF(), got <class")


def test_another_regularisation_does_not_compile_again():
    start = draw(11, (6, 2))

    @jax.jit
    def run(flow):
        return flowrl.transport(_tilted(_precise, 0.5), start, flowrl.Budget(2, None), flow=flow, throw=False).particles

    one, two = run(flowrl.KFRFlow(RBF, 0.1)), run(flowrl.KFRFlow(RBF, 1.0))
    assert run._cache_size() == 1
    assert not np.allclose(one, two)
