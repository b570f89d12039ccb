"""Nesterov, Coin and Adaptive against their formulas, written out in NumPy, and beside plain Euler steps."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, linear, log_normal, quadratic, same_bits, tolerance, walled

import flowrl

NORMAL = flowrl.Density(log_normal)
FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
ASCENT = flowrl.Ascent()
CURVATURE = np.array([1.0, 0.01])


def _bowl(curvature, x):
    return -0.5 * jnp.sum(curvature * x**2)


BOWL = flowrl.Boltzmann(_bowl, jnp.asarray(CURVATURE, FLOAT))


def _nesterov(velocity, x, sizes, restrict=lambda x: x, restarts=True, forgets=True):
    """The recursion of the docstring in float64; `restrict` is applied to x and to y. Return the path and restarts."""
    path, momentum, count, restarted = [x], np.zeros_like(x), 0, []
    for step, size in enumerate(sizes):
        y = restrict(x + max(count - 1, 0) / (count + 2) * momentum)
        moved = y + size * velocity(y)
        if restarts and np.sum(velocity(y) * (moved - x)) < 0:
            momentum, count = np.zeros_like(x), 0
            restarted.append(step)
        else:
            momentum, count = moved - x, count + 1
        x = restrict(moved)
        if forgets:
            momentum = np.where(np.any(x != moved, axis=1, keepdims=True), 0, momentum)
        path.append(x)
    return np.array(path), restarted


def _coin(velocity, x, steps, restrict=lambda x: x):
    """The formula of the docstring in float64, begun again at a coordinate that `restrict` changed."""
    start, total, largest, absolute, reward = x, 0 * x, 0 * x, 0 * x, 0 * x
    path = [x]
    for _ in range(steps):
        v = velocity(x)
        largest, absolute = np.maximum(largest, np.abs(v)), absolute + np.abs(v)
        reward = np.maximum(reward + v * (x - start), 0)
        total = total + v
        bet = start + total / (absolute + largest) * (1 + reward / largest)
        x = restrict(bet)
        held = x != bet
        start, total, reward = np.where(held, x, start), np.where(held, 0, total), np.where(held, 0, reward)
        path.append(x)
    return np.array(path)


def _path(target, start, budget, solver, domain=None, flow=ASCENT, key=None):
    domain = flowrl.Unbounded() if domain is None else domain
    save = tuple(range(budget.bound + 1))
    solution = flowrl.transport(target, start, budget, flow=flow, solver=solver, domain=domain, save=save, key=key)
    return np.asarray(solution.trajectory, np.float64), solution


def _velocity(flow, target, x):
    """The flow's velocity at a set, from an Euler step of length 1."""
    return np.asarray(flowrl.transport(target, x, flowrl.Budget(1, 1.0), flow=flow).particles - x)


# Nesterov


def test_nesterov_is_its_recursion_with_restarts():
    start, sizes = draw(0, (3, 2)), np.where(np.arange(120) % 3 == 0, 0.3, 0.9)
    path, _ = _path(BOWL, start, flowrl.Budget(120, sizes), flowrl.Nesterov())
    expected, restarts = _nesterov(lambda y: -CURVATURE * y, np.asarray(start, np.float64), sizes)
    assert restarts  # so that they are tested
    np.testing.assert_allclose(path, expected, atol=tolerance(1e-12, 1e-4))


@pytest.mark.parametrize("held", ["domain", "cap"])
def test_what_is_brought_back_goes_on_without_momentum(held):
    start, slopes = jnp.asarray([[0.0, 0.0], [-1.0, 3.0], [1.4, 1.0]], FLOAT), np.array([0.1, 0.02])
    target = flowrl.Boltzmann(lambda a, x: -0.5 * jnp.sum(a * (x - 2) ** 2), jnp.asarray(slopes, FLOAT))
    first = np.asarray(start, np.float64)
    if held == "domain":
        budget, domain = flowrl.Budget(60, 1.0), flowrl.Box(-5, jnp.asarray([1.5, 5.0], FLOAT))
        restrict = lambda x: np.minimum(x, [1.5, 5.0])
    else:
        budget, domain = flowrl.Budget(60, 1.0, max_displacement=1.0), None
        away = lambda x: np.linalg.norm(x - first, axis=1, keepdims=True)
        restrict = lambda x: np.where(away(x) > 1, first + (x - first) / np.maximum(away(x), 1), x)
    path, _ = _path(target, start, budget, flowrl.Nesterov(), domain)
    recursion = lambda **kept: _nesterov(lambda y: slopes * (2 - y), first, np.ones(60), restrict, **kept)[0]
    np.testing.assert_allclose(path, recursion(), atol=tolerance(1e-9, 1e-4))
    assert np.abs(recursion(forgets=False) - recursion()).max() > 0.01


def test_the_momentum_of_stopped_particles_alone_is_forgotten():
    own = jnp.asarray([[1.0, 2.0], [3.0, 4.0]], FLOAT)
    ensemble = flowrl.Ensemble(draw(0, (2, 2)), jnp.ones((1, 2), FLOAT), jnp.ones(2, bool), own=own, memory=7)
    after = flowrl.Nesterov().stopped(ensemble, jnp.asarray([True, False]))
    np.testing.assert_array_equal(after.own, [[0, 0], [3, 4]])
    assert after.memory == 7


def test_momentum_shortens_a_long_way_and_restarts_end_its_swings():
    start = draw(1, (4, 2)) + 2
    distance = lambda x: np.abs(np.asarray(x)).max()
    euler = distance(_path(BOWL, start, flowrl.Budget(200, 1.0), flowrl.Euler())[0][-1])
    nesterov = distance(_path(BOWL, start, flowrl.Budget(200, 1.0), flowrl.Nesterov())[0][-1])
    without = _nesterov(lambda y: -CURVATURE * y, np.asarray(start, np.float64), np.ones(200), restarts=False)[0]
    assert euler > 0.3
    assert nesterov < 1e-4 * euler
    assert nesterov < 0.1 * distance(without[-1])


def test_accelerated_svgd_finds_the_variance_of_wide_directions_sooner():
    widths = jnp.asarray(np.geomspace(1, 10, 5), FLOAT)
    target, start = flowrl.Density(lambda w, x: -0.5 * jnp.sum((x / w) ** 2), widths), draw(2, (50, 5))
    ends = {}
    for solver in (flowrl.Euler(), flowrl.Nesterov()):
        solution = flowrl.transport(target, start, flowrl.Budget(150, 0.5), solver=solver)
        ends[type(solver)] = np.asarray(jnp.var(solution.particles, axis=0) / widths**2)
    assert ends[flowrl.Euler].min() < 0.15
    assert ends[flowrl.Nesterov].min() > 0.75
    assert ends[flowrl.Nesterov].max() < 1.15


def _cliff(x):
    """Highest at 0.9, and without a finite score beyond 1."""
    return -0.5 * jnp.sum((x - 0.9) ** 2) + 1e-9 * jnp.sum(jnp.sqrt(1 - x))


def test_a_particle_that_its_momentum_would_carry_over_a_cliff_stays_alive():
    start = jnp.asarray([[-5.0], [0.5]], FLOAT)
    path, solution = _path(flowrl.Boltzmann(_cliff), start, flowrl.Budget(200, 0.1), flowrl.Nesterov())
    assert int(solution.stats["nonfinite"]) == 0
    np.testing.assert_allclose(solution.particles, 0.9, atol=1e-3)
    free, _ = _nesterov(lambda y: 0.9 - y, np.asarray(start, np.float64), np.full(200, 0.1))
    assert free.max() > 1 > path.max()
    beyond = flowrl.transport(
        flowrl.Boltzmann(_cliff), start + 2, flowrl.Budget(5, 0.1), flow=ASCENT, solver=flowrl.Nesterov()
    )
    assert int(beyond.stats["nonfinite"]) == 1  # one that starts there is frozen
    assert same_bits(beyond.particles[1], start[1] + 2)


# Coin


def test_coin_is_its_formula():
    start = draw(3, (4, 2))
    path, solution = _path(BOWL, start, flowrl.Budget(80, None), flowrl.Coin())
    np.testing.assert_allclose(
        path, _coin(lambda x: -CURVATURE * x, np.asarray(start, np.float64), 80), atol=tolerance(1e-10, 1e-3)
    )
    np.testing.assert_allclose(np.abs(path[1] - path[0]), 0.5, rtol=1e-5)
    assert float(solution.stats["time"]) == 80


def _turning(x):
    """Pulls the first coordinate to 2; pushes the second down until the first has passed 1.2, then up."""
    return jnp.stack([2 - x[0], jnp.tanh(4 * (x[0] - 1.2)) - 0.1 * x[1]])


def test_coin_begins_anew_where_a_coordinate_was_brought_back():
    start, domain = jnp.asarray([[0.2, 0.2], [1.0, -0.5], [0.9, 0.9]], FLOAT), flowrl.Box(-1, 3)
    velocity = lambda x: np.stack([2 - x[:, 0], np.tanh(4 * (x[:, 0] - 1.2)) - 0.1 * x[:, 1]], axis=1)
    path, _ = _path(flowrl.Score(_turning), start, flowrl.Budget(25, None), flowrl.Coin(), domain)
    first = np.asarray(start, np.float64)
    expected = _coin(velocity, first, 25, lambda x: np.clip(x, -1, 3))
    np.testing.assert_allclose(path, expected, atol=tolerance(1e-9, 1e-3))
    # Pressed to the wall and turned, a coordinate leaves it at once, gently; the other one is not disturbed.
    assert path[3, 0, 1] == -1
    assert -1 < path[4, 0, 1] < -0.7
    np.testing.assert_allclose(path[:, 0, 0], _coin(velocity, first, 25)[:, 0, 0], atol=tolerance(1e-9, 1e-3))


@pytest.mark.parametrize("multiple", [2.0**-20, 2.0**20])
def test_coin_does_not_see_a_multiple_of_the_value(multiple):
    start = draw(4, (6, 3))
    steep = flowrl.Boltzmann(lambda a, x: a * -0.5 * jnp.sum(x**2), multiple)
    plain = flowrl.Boltzmann(lambda a, x: a * -0.5 * jnp.sum(x**2), 1.0)
    one, other = (_path(t, start, flowrl.Budget(30, None), flowrl.Coin())[0] for t in (plain, steep))
    np.testing.assert_allclose(one, other, rtol=tolerance(1e-10, 1e-4), atol=tolerance(1e-10, 1e-4))


def test_coin_stays_where_there_is_no_velocity():
    flat = flowrl.Boltzmann(lambda x: jnp.sum(x[1:] ** 2) * -0.5)
    path, _ = _path(flat, draw(5, (4, 2)), flowrl.Budget(10, None), flowrl.Coin())
    assert same_bits(path[0, :, 0], path[-1, :, 0])
    assert np.isfinite(path).all()


@pytest.mark.parametrize("width", [0.1, 1.0, 10.0])
def test_svgd_by_coins_comes_to_rest_at_every_width(width):
    target, start = flowrl.Density(quadratic, jnp.zeros(3, FLOAT)), draw(6, (40, 3))
    target = flowrl.Density(lambda w, x: -0.5 * jnp.sum((x / w) ** 2), width)
    solution = flowrl.transport(target, start, flowrl.Budget(300, None), solver=flowrl.Coin())
    x = np.asarray(solution.particles) / width
    assert np.abs(x.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(x.var(axis=0, ddof=1), 1, atol=0.1)


# Adaptive


def _whitened(x, v):
    """|C^(-1/2) v| of each row; C has the divisor n − 1."""
    root = np.linalg.cholesky(np.cov(x.T))
    return np.linalg.norm(np.linalg.solve(root, v.T), axis=0)


@pytest.mark.parametrize("reach", [0.05, 0.5, 1e6])
def test_no_particle_drifts_further_than_the_reach(reach):
    start, stretch = draw(7, (30, 3)), np.array([1.0, 10.0, 0.1])
    start = start * jnp.asarray(stretch[None], FLOAT)
    velocity = lambda x: -np.array([3.0, 2.0, 1.0]) * x
    target = flowrl.Boltzmann(_bowl, jnp.asarray([3.0, 2.0, 1.0], FLOAT))
    path, solution = _path(target, start, flowrl.Budget(8, 0.2), flowrl.Adaptive(reach))
    x, spent = np.asarray(start, np.float64), 0.0
    for moved in path[1:]:
        size = min(0.2, reach / _whitened(x, velocity(x)).max())
        x, spent = x + size * velocity(x), spent + size
        np.testing.assert_allclose(moved, x, rtol=tolerance(1e-7, 1e-2), atol=tolerance(1e-8, 1e-3))
    assert float(solution.stats["time"]) == pytest.approx(spent, rel=tolerance(1e-7, 1e-2))
    if reach > 1e3:
        assert_close(solution.particles, flowrl.transport(target, start, flowrl.Budget(8, 0.2), flow=ASCENT).particles)


def test_adaptive_steps_are_the_same_in_all_affine_coordinates():
    a = np.array([[2.0, 0.0], [30.0, 0.5]])
    flow = flowrl.SVGD(flowrl.Preconditioned())
    there = flowrl.Density(lambda b, x: log_normal(b @ (x - 1)), jnp.asarray(np.linalg.inv(a), FLOAT))
    start, budget = 4 * draw(8, (20, 2)) + 1, flowrl.Budget(30, 1.0)
    here, one = _path(NORMAL, start, budget, flowrl.Adaptive(), flow=flow)
    mapped, two = _path(there, start @ jnp.asarray(a.T, FLOAT) + 1, budget, flowrl.Adaptive(), flow=flow)
    assert float(one.stats["time"]) < 29  # some steps are shortened
    assert float(two.stats["time"]) == pytest.approx(float(one.stats["time"]), rel=tolerance(1e-6, 1e-2))
    np.testing.assert_allclose(mapped[-1], here[-1] @ a.T + 1, atol=tolerance(1e-4, 0.3))


def test_the_noise_has_the_variance_of_the_shortened_step(key):
    # Without drift nothing is shortened; with a steep one the noise shrinks as its root.
    start, slope = draw(9, (4000, 2)), jnp.asarray([0.0, 300.0], FLOAT)
    target = flowrl.Boltzmann(linear, slope)
    solution = flowrl.transport(
        target, start, flowrl.Budget(1, 0.1), flow=flowrl.Langevin(), solver=flowrl.Adaptive(0.3), key=key
    )
    size = float(solution.stats["time"])
    x = np.asarray(start, np.float64)
    assert size == pytest.approx(0.3 / _whitened(x, np.tile([0.0, 300.0], (4000, 1))).max(), rel=1e-3)
    moved = np.asarray(solution.particles, np.float64) - x
    np.testing.assert_allclose(moved.mean(axis=0), [0, 300 * size], atol=5 * np.sqrt(2 * size / 4000))
    np.testing.assert_allclose(moved.var(axis=0), 2 * size, rtol=5 * np.sqrt(2 / 4000))


def test_coincident_particles_stay_finite(key):
    solution = flowrl.transport(
        NORMAL, jnp.ones((5, 3), FLOAT), flowrl.Budget(3, 0.1), flow=flowrl.ALDI(), solver=flowrl.Adaptive(), key=key
    )
    assert np.isfinite(np.asarray(solution.particles)).all()


# What holds for all of them

SOLVERS = {"Nesterov": flowrl.Nesterov(), "Coin": flowrl.Coin(), "Adaptive": flowrl.Adaptive()}


def _budget(name, steps, **options):
    return flowrl.Budget(steps, None if name == "Coin" else 0.3, **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_frozen_particle_moves_no_other(name):
    particles = draw(10, (10, 2)).at[4].set(jnp.asarray([9.0, 0.5], FLOAT))
    others = np.delete(np.arange(10), 4)
    run = lambda x: flowrl.transport(flowrl.Density(walled), x, _budget(name, 6), flow=FIXED, solver=SOLVERS[name])
    solution, without = run(particles), run(particles[others])
    assert same_bits(solution.particles[4], particles[4])
    assert int(solution.stats["nonfinite"]) == 1
    assert_close(solution.particles[others], without.particles, atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_unit_of_length_is_a_change_of_coordinates(name):
    scale, start = jnp.asarray([0.5, 4.0], FLOAT), draw(11, (8, 2))
    target = flowrl.Density(quadratic, jnp.asarray([1.0, -1.0], FLOAT))
    inside = flowrl.Density(lambda c, z: quadratic(c, scale * z), jnp.asarray([1.0, -1.0], FLOAT))
    one = flowrl.transport(target, start, _budget(name, 10, scale=scale), flow=FIXED, solver=SOLVERS[name])
    two = flowrl.transport(inside, start / scale[None], _budget(name, 10), flow=FIXED, solver=SOLVERS[name])
    assert_close(one.particles, two.particles * scale[None], rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-10, 1e-3))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_is_a_loop(name):
    starts = draw(12, (3, 7, 2))
    run = lambda x: flowrl.transport(NORMAL, x, _budget(name, 6), flow=FIXED, solver=SOLVERS[name], throw=False)
    together = jax.jit(jax.vmap(run))(starts)
    for x, moved in zip(starts, together.particles, strict=True):
        assert_close(moved, run(x).particles, rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-10, 1e-4))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_set_rests_where_the_flow_is_slow(name):
    solution = flowrl.transport(
        NORMAL, draw(13, (10, 2)) + 2, _budget(name, 2000, tolerance=1e-2), flow=FIXED, solver=SOLVERS[name]
    )
    assert solution.result == flowrl.RESULTS.stationary
    assert 5 < int(solution.stats["steps"]) < 1000
    speed = np.linalg.norm(_velocity(FIXED, NORMAL, solution.particles), axis=1)
    assert np.sqrt(np.mean(speed**2)) < 2e-2


@pytest.mark.parametrize("name", SOLVERS)
def test_reverse_mode_is_finite(name):
    run = lambda x: flowrl.transport(NORMAL, x, _budget(name, 4), flow=FIXED, solver=SOLVERS[name], throw=False)
    gradient = jax.grad(lambda x: jnp.sum(run(x).particles ** 2))(draw(14, (5, 2)))
    assert np.isfinite(np.asarray(gradient)).all()
    assert np.abs(np.asarray(gradient)).max() > 0


REFUSED = {
    "a number for Coin": (
        lambda: _path(BOWL, draw(0, (3, 2)), flowrl.Budget(3, 0.1), flowrl.Coin()),
        "Budget(steps, None)",
    ),
    "no number for Nesterov": (
        lambda: _path(BOWL, draw(0, (3, 2)), flowrl.Budget(3, None), flowrl.Nesterov()),
        "Nesterov does not choose one",
    ),
    "noise": (lambda: flowrl.Transport(flowrl.Langevin(), flowrl.Nesterov()), "use Euler()"),
    "noise for Coin": (lambda: flowrl.Transport(flowrl.ALDI(), flowrl.Coin()), "use Euler()"),
    "jumps": (lambda: flowrl.Transport(flowrl.Langevin() + flowrl.BirthDeath(), flowrl.Adaptive()), "jump"),
    "no reach": (lambda: flowrl.Adaptive(0.0), "reach must be > 0"),
    "two reaches": (lambda: flowrl.Adaptive(np.ones(2)), "reach must be one number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_misuse_is_refused_in_words(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
        call()


def test_adaptive_may_be_left_without_a_step_size(key):
    start = jr.uniform(key, (50, 2), FLOAT)
    method = flowrl.Transport(flowrl.ALDI(), flowrl.Adaptive())
    one, two = (method(NORMAL, start, flowrl.Budget(5, size), key=key).particles for size in (None, 0.1))
    assert same_bits(one, two)
