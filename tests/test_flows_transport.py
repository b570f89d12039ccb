"""The flow of the Sinkhorn divergence against a naive Sinkhorn in float64 NumPy, and against transport without ε."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, X64, assert_close, draw, log_normal, same_bits, tolerance

import flowrl
from flowrl import _sinkhorn

pytestmark = pytest.mark.thorough  # compilation


def _view(target, d=2, dtype=FLOAT):
    one = jnp.ones((), dtype)
    return flowrl.TargetView(one, None, None, target, flowrl.Unbounded(), jnp.ones((1, d), dtype), False, lambda z: z)


@eqx.filter_jit
def _energy(flow, samples, x, alive):
    return flow.energy(_view(flowrl.Empirical(samples), x.shape[1], x.dtype), x, alive)


@eqx.filter_jit
def _velocity(flow, samples, x, alive):
    return flow.velocity(_view(flowrl.Empirical(samples), x.shape[1], x.dtype), x, alive)[0]


_gradient = eqx.filter_jit(lambda flow, samples, x, alive: jax.grad(lambda z: _energy(flow, samples, z, alive))(x))
_potentials = jax.jit(_sinkhorn.potentials, static_argnums=5)
_divergence = jax.jit(_sinkhorn.divergence, static_argnums=5)
_displacements = jax.jit(_sinkhorn.displacements, static_argnums=5)


def _everyone(x):
    return jnp.ones(len(x), bool)


# Naive Sinkhorn


def _naive(x, y, a, b, epsilon, iterations=40000):
    """Potentials and plan, by alternating sums of exponentials; fine for small costs."""
    cost = 0.5 * np.sum((x[:, None] - y[None]) ** 2, axis=-1)
    kernel = np.exp(-cost / epsilon)
    v = np.ones(len(y))
    for _ in range(iterations):
        u = 1 / (kernel @ (b * v))
        v, before = 1 / (kernel.T @ (a * u)), v
        if np.abs(v / before - 1).max() < 1e-14:
            break
    f, g = epsilon * np.log(u), epsilon * np.log(v)
    return f, g, a[:, None] * u[:, None] * kernel * v[None] * b[None]


def _naive_divergence(x, y, a, b, epsilon):
    cost = lambda p, q, s, t: (lambda f, g, _: s @ f + t @ g)(*_naive(p, q, s, t, epsilon))
    return cost(x, y, a, b) - 0.5 * cost(x, x, a, a) - 0.5 * cost(y, y, b, b)


def _naive_displacements(x, y, a, b, epsilon):
    toward, own = _naive(x, y, a, b, epsilon)[2], _naive(x, x, a, a, epsilon)[2]
    return (toward @ y - own @ x) / a[:, None]


def _sets(seed=0, n=6, m=5, d=2):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 0.7 * rng.normal(size=(m, d)) + 0.5
    a, b = rng.random(n) + 0.2, rng.random(m) + 0.2
    return x, y, a / a.sum(), b / b.sum()


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_potentials_divergence_and_displacements_are_those_of_the_naive_iterations(epsilon):
    x, y, a, b = _sets()
    # Weights of any sum, and points of weight zero wherever they are.
    padded = np.concatenate([x, [[np.nan, np.inf]]]), y, np.append(3 * a, 0), b
    arguments = *(jnp.asarray(v, FLOAT) for v in padded), jnp.asarray(epsilon, FLOAT), 200
    atol = tolerance(1e-9, 3e-5)
    f, g, _ = _naive(x, y, a, b, epsilon)
    got_f, got_g = (np.asarray(v, np.float64) for v in _potentials(*arguments))
    np.testing.assert_allclose(got_f[:-1] + got_f.dtype.type(got_g[0]), f + g[0], atol=atol)  # up to a constant
    np.testing.assert_allclose(got_g - got_g[0], g - g[0], atol=atol)
    np.testing.assert_allclose(_divergence(*arguments), _naive_divergence(x, y, a, b, epsilon), atol=atol)
    moves = np.asarray(_displacements(*arguments))
    np.testing.assert_allclose(moves[:-1], _naive_displacements(x, y, a, b, epsilon), atol=atol)
    assert np.isfinite(moves).all()
    assert np.isfinite(got_f).all()


def test_the_flow_is_the_naive_one_at_a_regularisation_relative_to_the_samples():
    x, y, _, _ = _sets(1)
    epsilon = 0.2 * y.var(axis=0).sum()
    a, b = np.full(6, 1 / 6), np.full(5, 1 / 5)
    flow, samples, particles = flowrl.SinkhornFlow(0.2), jnp.asarray(y, FLOAT), jnp.asarray(x, FLOAT)
    atol = tolerance(1e-9, 1e-5)
    want = _naive_displacements(x, y, a, b, epsilon)
    np.testing.assert_allclose(_velocity(flow, samples, particles, _everyone(x)), want, atol=atol)
    energy = _energy(flow, samples, particles, _everyone(x))
    np.testing.assert_allclose(energy, _naive_divergence(x, y, a, b, epsilon), atol=atol)
    solution = flowrl.transport(flowrl.Empirical(samples), particles, flowrl.Budget(1, 0.3), flow=flow)
    np.testing.assert_allclose(solution.particles, x + 0.3 * want, atol=atol)
    # In units of a scale, the same in its coordinates.
    budget = flowrl.Budget(1, 0.3, scale=0.1)
    scaled = flowrl.transport(flowrl.Empirical(0.1 * samples), 0.1 * particles, budget, flow=flow)
    np.testing.assert_allclose(scaled.particles, 0.1 * (x + 0.3 * want), atol=atol)


@pytest.mark.parametrize(("d", "regularisation"), [(1, 0.05), (2, 0.05), (10, 0.05), (2, 0.01)])
def test_the_marginals_are_as_exact_as_the_docstring_says(d, regularisation):
    worst = 0.0
    for seed in range(3):
        x, y = draw(seed, (80, d)), draw(seed + 10, (100, d))
        epsilon = jnp.asarray(regularisation * np.var(y, axis=0).sum(), FLOAT)
        f, g = _potentials(x, y, jnp.ones(80, FLOAT), jnp.ones(100, FLOAT), epsilon, 100)
        x, y, f, g = (np.asarray(v, np.float64) for v in (x, y, f, g))
        cost = 0.5 * np.sum((x[:, None] - y[None]) ** 2, axis=-1)
        plan = np.exp((f[:, None] + g[None] - cost) / float(epsilon)) / (80 * 100)
        np.testing.assert_allclose(plan.sum(axis=1), 1 / 80, rtol=tolerance(1e-9, 1e-3))
        worst = max(worst, np.abs(plan.sum(axis=0) - 1 / 100).sum())
    assert worst < (tolerance(1e-5, 1e-3) if regularisation == 0.05 else 2e-3)


# Velocity and energy


def test_the_velocity_is_minus_n_times_the_gradient_of_the_energy():
    flow, x, samples = flowrl.SinkhornFlow(0.5, 200), draw(0, (7, 2)), 2 + 0.5 * draw(1, (9, 2))
    alive = _everyone(x).at[2].set(False)
    velocity = np.asarray(_velocity(flow, samples, x, alive))
    assert np.all(velocity[2] == 0)
    np.testing.assert_allclose(velocity, -6 * _gradient(flow, samples, x, alive), atol=tolerance(1e-10, 1e-5))
    if X64:
        for i, k in ((0, 0), (4, 1), (2, 0)):
            step = 1e-4 * jnp.zeros_like(x).at[i, k].set(1)
            change = _energy(flow, samples, x + step, alive) - _energy(flow, samples, x - step, alive)
            assert float(-6 * change / 2e-4) == pytest.approx(velocity[i, k], abs=1e-6)


@pytest.mark.skipif(not X64, reason="finite differences")
def test_the_divergence_is_differentiable_in_both_sets_and_symmetric():
    x, y, a, b = (jnp.asarray(v) for v in _sets(2))
    epsilon = jnp.asarray(0.3)
    run = jax.jit(lambda x, y: _sinkhorn.divergence(x, y, a, b, epsilon, 150))
    slopes = jax.grad(run, argnums=(0, 1))(x, y)
    for which, slope in enumerate(slopes):
        step = [jnp.zeros_like(x), jnp.zeros_like(y)]
        step[which] = step[which].at[3, 1].set(1e-4)
        change = run(x + step[0], y + step[1]) - run(x - step[0], y - step[1])
        assert float(change / 2e-4) == pytest.approx(float(slope[3, 1]), abs=1e-7)
    assert float(run(x, y)) == pytest.approx(float(_divergence(y, x, b, a, epsilon, 150)), abs=1e-12)


def test_a_set_is_at_rest_on_itself_and_elsewhere_the_divergence_is_positive():
    flow, x = flowrl.SinkhornFlow(0.5, 200), draw(3, (12, 2))
    np.testing.assert_allclose(_velocity(flow, x[::-1], x, _everyone(x)), 0, atol=tolerance(1e-6, 1e-4))
    assert float(_energy(flow, x[::-1], x, _everyone(x))) == pytest.approx(0, abs=tolerance(1e-8, 1e-5))
    assert float(_energy(flow, x + 0.1, x, _everyone(x))) == pytest.approx(0.01, rel=tolerance(1e-6, 1e-2))
    assert float(_energy(flow, 1.1 * x, x, _everyone(x))) > 1e-3


def test_a_large_regularisation_sees_the_means_alone():
    flow, x, y = flowrl.SinkhornFlow(1e6), draw(4, (8, 3)), 2 + 0.3 * draw(5, (5, 3))
    apart = np.asarray(y.mean(axis=0) - x.mean(axis=0))
    atol = tolerance(1e-4, 1e-3)
    np.testing.assert_allclose(_velocity(flow, y, x, _everyone(x)), np.broadcast_to(apart, (8, 3)), atol=atol)
    np.testing.assert_allclose(_energy(flow, y, x, _everyone(x)), 0.5 * np.sum(apart**2), rtol=1e-3)


def test_a_small_regularisation_sorts_on_the_line():
    flow, x, y = flowrl.SinkhornFlow(1e-3, 400), draw(6, (8, 1)), 0.2 + 0.3 * draw(7, (8, 1))
    exact = 0.5 * np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2)
    assert float(_energy(flow, y, x, _everyone(x))) == pytest.approx(exact, rel=1e-2)
    blurred = float(_energy(flowrl.SinkhornFlow(10.0, 400), y, x, _everyone(x)))
    assert abs(blurred - exact) > 0.05 * exact


def test_one_step_of_size_one_arrives_at_the_samples():
    side = np.stack(np.meshgrid(np.arange(3.0), np.arange(3.0)), axis=-1).reshape(-1, 2)
    samples = jnp.asarray(side + 20, FLOAT)
    start = jnp.asarray(np.random.default_rng(8).normal(size=(9, 2)), FLOAT)
    flow = flowrl.SinkhornFlow(5e-3, 400)
    solution = flowrl.transport(flowrl.Empirical(samples), start, flowrl.Budget(1, 1.0), flow=flow)
    apart = np.linalg.norm(np.asarray(solution.particles)[:, None] - np.asarray(samples)[None], axis=-1)
    assert sorted(apart.argmin(axis=1)) == list(range(9))  # each sample is taken
    assert apart.min(axis=1).max() < 0.05
    assert solution.values is None


def test_the_divergence_falls_along_the_flow_to_nothing():
    x, samples = draw(9, (30, 2)), jnp.concatenate([0.3 * draw(10, (20, 2)) - 3, 0.3 * draw(11, (10, 2)) + 3])
    flow = flowrl.SinkhornFlow()
    solution = flowrl.transport(
        flowrl.Empirical(samples), x, flowrl.Budget(30, 0.3), flow=flow, save=tuple(range(0, 31, 3))
    )
    energies = np.asarray([_energy(flow, samples, z, _everyone(x)) for z in solution.trajectory])
    assert np.all(np.diff(energies) < 0)
    assert energies[-1] < 1e-3 * energies[0]
    assert int(np.sum(np.asarray(solution.particles)[:, 0] < 0)) == 20  # the shares of the two clusters


# Invariants


def test_the_dead_have_no_part_and_give_no_nan():
    flow, x, samples = flowrl.SinkhornFlow(0.1), draw(0, (7, 2)), draw(1, (9, 2))
    alive = _everyone(x).at[2].set(False)
    quiet = _velocity(flow, samples, x, alive)
    for bad in (np.nan, np.inf, 1e30):
        assert same_bits(_velocity(flow, samples, x.at[2].set(bad), alive), quiet)
        assert same_bits(_energy(flow, samples, x.at[2].set(bad), alive), _energy(flow, samples, x, alive))
        assert np.isfinite(_gradient(flow, samples, x.at[2].set(bad), alive)).all()
    kept = np.asarray(alive)
    assert_close(quiet[kept], _velocity(flow, samples, x[kept], _everyone(x)[kept]), atol=tolerance(1e-12, 1e-5))
    assert np.all(np.asarray(_velocity(flow, samples, x, ~_everyone(x))) == 0)
    assert np.isfinite(_energy(flow, samples, x, ~_everyone(x)))


def test_translation_far_from_the_origin_in_single_precision():
    flow, x, samples = flowrl.SinkhornFlow(), draw(0, (20, 2), jnp.float32), draw(1, (25, 2), jnp.float32)
    x, samples = jnp.round(x * 1024) / 1024, jnp.round(samples * 1024) / 1024  # exact at the offset
    here, there = _velocity(flow, samples, x, _everyone(x)), _velocity(flow, samples + 1000, x + 1000, _everyone(x))
    np.testing.assert_allclose(there, here, atol=1e-3)
    assert there.dtype == jnp.float32
    energies = [float(_energy(flow, samples + s, x + s, _everyone(x))) for s in (0, 1000)]
    assert energies[1] == pytest.approx(energies[0], rel=1e-2)


def test_the_order_of_particles_and_samples_does_not_matter():
    flow, x, samples = flowrl.SinkhornFlow(), draw(0, (7, 2)), draw(1, (9, 2))
    order = np.random.default_rng(0).permutation(7)
    want = _velocity(flow, samples, x, _everyone(x))[order]
    assert_close(_velocity(flow, samples[::-1], x[order], _everyone(x)), want, atol=tolerance(1e-10, 1e-5))


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (1, 4, 2), (4, 1, 2)])
def test_few_points(n, m, d):
    flow, x, samples = flowrl.SinkhornFlow(), draw(0, (n, d)), draw(1, (m, d))
    solution = flowrl.transport(flowrl.Empirical(samples), x, flowrl.Budget(1, 1.0), flow=flow)
    # One particle goes to the mean; many toward one sample arrive up to what holds them apart.
    assert np.isfinite(solution.particles).all()
    assert_close(solution.particles.mean(axis=0), samples.mean(axis=0), atol=tolerance(1e-6, 1e-4))
    coincident = jnp.ones((3, d), FLOAT)
    same = flowrl.transport(flowrl.Empirical(coincident), coincident, flowrl.Budget(2, 1.0), flow=flow)
    assert_close(same.particles, coincident)


def test_a_batch_of_sets_is_a_loop_over_them_and_new_numbers_do_not_retrace():
    x, samples = draw(2, (3, 6, 2)), draw(3, (3, 5, 2))
    traces = []

    @jax.jit
    def run(x, samples, regularisation):
        traces.append(None)
        flow = flowrl.SinkhornFlow(regularisation)
        return flowrl.transport(flowrl.Empirical(samples), x, flowrl.Budget(3, 0.2), flow=flow, throw=False).particles

    loop = jnp.stack([run(a, b, 0.1) for a, b in zip(x, samples, strict=True)])
    assert len(traces) == 1
    assert not np.allclose(run(x[0], samples[0], 0.5), loop[0])
    assert len(traces) == 1
    batch = jax.vmap(run, in_axes=(0, 0, None))(x, samples, 0.1)
    assert_close(batch, loop, atol=tolerance(1e-10, 1e-5))


def test_samples_and_particles_may_be_trees():
    samples = {"a": draw(0, (9, 2)), "b": draw(1, (9,))}
    particles = {"a": draw(2, (5, 2)), "b": draw(3, (5,))}
    solution = flowrl.transport(flowrl.Empirical(samples), particles, flowrl.Budget(2, 0.5), flow=flowrl.SinkhornFlow())
    flat = lambda t: jnp.concatenate([t["a"], t["b"][:, None]], axis=1)
    matrix = flowrl.transport(
        flowrl.Empirical(flat(samples)), flat(particles), flowrl.Budget(2, 0.5), flow=flowrl.SinkhornFlow()
    )
    assert_close(flat(solution.particles), matrix.particles)


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (int(np.prod(variable.aval.shape)) for variable in equation.outvars)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def test_no_matrix_of_all_pairs_is_held(at_most_entries):
    flow, x, samples = flowrl.SinkhornFlow(), draw(0, (128, 2)), draw(1, (100, 2))
    view = _view(flowrl.Empirical(samples))
    run = lambda z: (
        flow.velocity(view, z, _everyone(z))[0],
        jax.grad(lambda y: flow.energy(view, y, _everyone(y)))(z),
    )
    dense = jax.jit(run)(x)
    assert max(_sizes(jax.make_jaxpr(run)(x).jaxpr)) == 128 * 128
    at_most_entries(16 * 128)
    blocks = jax.jit(lambda z: run(z))(x)
    assert_close(blocks, dense, atol=tolerance(1e-10, 1e-4))
    assert max(_sizes(jax.make_jaxpr(lambda z: run(z))(x).jaxpr)) <= 20 * 128


# Misuse


def test_it_needs_samples_and_has_no_temperature():
    flow, x = flowrl.SinkhornFlow(), draw(0, (4, 2))
    with pytest.raises(ValueError, match=r"SinkhornFlow needs the samples of its target.*Empirical\(samples\)"):
        flowrl.transport(flowrl.Density(log_normal), x, flowrl.Budget(1), flow=flow)
    with pytest.raises(ValueError, match="no temperature"):
        flowrl.transport(flowrl.Empirical(x), x, flowrl.Budget(1, 0.1, 1.0), flow=flow)
    with pytest.raises(ValueError, match="one sample of the target has the shape"):
        flowrl.transport(flowrl.Empirical(draw(0, (4, 3))), x, flowrl.Budget(1), flow=flow)


@pytest.mark.parametrize("regularisation", [0, -1.0, np.nan, np.inf, [0.1, 0.2]])
def test_a_regularisation_is_one_positive_number(regularisation):
    with pytest.raises(ValueError, match="regularisation must be"):
        flowrl.SinkhornFlow(np.asarray(regularisation, float))


@pytest.mark.parametrize("iterations", [0, 2.5, True])
def test_iterations_are_counted(iterations):
    with pytest.raises((ValueError, TypeError), match=r"iterations"):
        flowrl.SinkhornFlow(iterations=iterations)
