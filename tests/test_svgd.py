"""Stein variational gradient descent against its own definition, written out in float64 NumPy loops."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, X64, assert_close, distances, draw, linear, log_normal, same_bits, tolerance

import flowrl
from flowrl._kernel._distance import _middle_by_counting, _middle_by_sorting, masked_median

NORMAL = flowrl.Density(log_normal)
PULL = np.array([[2.0, 0.5], [0.5, 1.0]])


def _curved(pull, x):
    """A log density that is not Gaussian; its score is `_score`."""
    return -0.5 * jnp.vdot(x, pull @ x) + jnp.sum(jnp.sin(x))


def _score(x):
    return -PULL @ x + np.cos(x)


def _loops(x, score, temperature, variance):
    """v(x_i) = 1/n Σ_j [k(x_j, x_i) ∇V(x_j) + α ∇_{x_j} k(x_j, x_i)], nothing clever."""
    n = len(x)
    velocity = np.zeros_like(x)
    for i in range(n):
        for j in range(n):
            kernel = np.exp(-np.sum((x[i] - x[j]) ** 2) / (2 * variance))
            velocity[i] += (kernel * score(x[j]) + temperature * kernel * (x[i] - x[j]) / variance) / n
    return velocity


def _median(x):
    n = len(x)
    return np.median([np.sum((x[i] - x[j]) ** 2) for i in range(n) for j in range(i)])


RULES = {
    "fixed": (flowrl.FixedBandwidth(0.7), lambda _: 0.49),
    "median": (flowrl.MedianBandwidth(), _median),
    "log-n": (flowrl.LogNBandwidth(), lambda x: _median(x) / (2 * np.log(len(x) + 1))),
}


def _svgd(rule):
    return flowrl.SVGD(flowrl.RBF(rule))


# Against NumPy


@pytest.mark.parametrize("name", RULES)
def test_it_reaches_the_fixed_point_of_the_numpy_loops(name):
    rule, variance = RULES[name]
    x = np.random.default_rng(0).normal(size=(7, 2))
    start = jnp.asarray(x, FLOAT)
    target = flowrl.Density(_curved, jnp.asarray(PULL, FLOAT))
    steps = 400
    solution = flowrl.transport(target, start, flowrl.Budget(steps, 0.5), flow=_svgd(rule), save=(1, 10))
    for step in range(steps):
        x = x + 0.5 * _loops(x, _score, 1.0, variance(x))
        if step + 1 in (1, 10):
            np.testing.assert_allclose(solution.trajectory[(1, 10).index(step + 1)], x, atol=tolerance(1e-12, 1e-5))
    np.testing.assert_allclose(solution.particles, x, atol=tolerance(1e-9, 1e-3))
    if name == "fixed":  # the median may keep hopping between pairs; here there is a fixed point
        velocity = _loops(np.asarray(solution.particles, np.float64), _score, 1.0, variance(x))
        assert np.abs(velocity).max() < 1e-3


# Figures of the design, section 3: n = 50 particles on N(0, I_d).
VARIANCES = {
    ("median", 1): 1.01,
    ("median", 2): 1.00,
    ("median", 10): 0.96,
    ("log-n", 1): 0.95,
    ("log-n", 2): 0.87,
    ("log-n", 10): 0.34,
}


@pytest.mark.parametrize(("name", "d"), VARIANCES)
def test_stationary_variance(name, d):
    # The unbiased variance, averaged over coordinates; other starts give the same to about 0.03.
    solution = flowrl.transport(
        NORMAL, draw(d, (50, d), jnp.float32), flowrl.Budget(1000, 0.5), flow=_svgd(RULES[name][0])
    )
    variance = np.var(np.asarray(solution.particles), axis=0, ddof=1).mean()
    assert variance == pytest.approx(VARIANCES[name, d], abs=0.035)


# Limits


def _one_step(target, particles, temperature, flow, step_size=0.1):
    moved = flowrl.transport(target, particles, flowrl.Budget(1, step_size, temperature), flow=flow).particles
    return np.asarray(moved - particles) / step_size


def test_temperature_enters_linearly_and_only_in_the_repulsion():
    target, flow = flowrl.Boltzmann(log_normal), _svgd(flowrl.FixedBandwidth(0.7))
    particles = draw(1, (9, 2))
    x = np.asarray(particles, np.float64)
    cold = _one_step(target, particles, 0.0, flow)
    np.testing.assert_allclose(cold, _loops(x, np.negative, 0.0, 0.49), atol=tolerance(1e-12, 1e-5))
    repulsion = _loops(x, np.zeros_like, 1.0, 0.49)
    for temperature in (1e-3, 0.1, 1.0, 10.0):
        slope = (_one_step(target, particles, temperature, flow) - cold) / temperature
        np.testing.assert_allclose(slope, repulsion, atol=tolerance(1e-10, 1e-2))
        assert np.linalg.norm(slope, axis=1).max() <= 1 / (0.7 * np.sqrt(np.e)) + tolerance(1e-10, 1e-2)


def test_density_and_boltzmann_agree_at_temperature_one_only():
    particles, flow = draw(2, (9, 2)), _svgd(flowrl.FixedBandwidth(0.7))
    value = flowrl.Boltzmann(log_normal)
    assert_close(_one_step(NORMAL, particles, 1.0, flow), _one_step(value, particles, 1.0, flow))
    # Density scales with the temperature as a whole, so its distribution does not depend on it.
    assert_close(_one_step(NORMAL, particles, 3.0, flow), 3 * _one_step(NORMAL, particles, 1.0, flow), atol=1e-5)
    assert not np.allclose(_one_step(NORMAL, particles, 3.0, flow), _one_step(value, particles, 3.0, flow))


def test_a_wide_kernel_moves_all_by_the_mean_score():
    particles = draw(3, (9, 2))
    velocity = _one_step(NORMAL, particles, 1.0, _svgd(flowrl.FixedBandwidth(1e5)))
    np.testing.assert_allclose(velocity, np.broadcast_to(-particles.mean(axis=0), (9, 2)), atol=tolerance(1e-8, 1e-5))


def test_a_narrow_kernel_leaves_each_its_own_score_over_n():
    particles = draw(3, (9, 2))
    velocity = _one_step(NORMAL, particles, 1.0, _svgd(flowrl.FixedBandwidth(1e-2)))
    np.testing.assert_allclose(velocity, -particles / 9, atol=tolerance(1e-9, 5e-3))


@pytest.mark.parametrize("name", ["fixed", "median", "log-n"])
def test_one_particle_climbs_the_value(name):
    particle, target = jnp.asarray([[2.0, -1.0]], FLOAT), flowrl.Boltzmann(log_normal)
    flow = _svgd(RULES[name][0])
    got = flowrl.transport(target, particle, flowrl.Budget(4, 0.2, 5.0), flow=flow).particles
    assert_close(got, 0.8**4 * particle, rtol=tolerance(1e-12, 1e-5))
    assert_close(got, flowrl.transport(target, particle, flowrl.Budget(4, 0.2), flow=flowrl.Ascent()).particles)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("name", ["median", "log-n"])
def test_coincident_particles_stay_together_and_finite(name, d):
    particles = jnp.ones((6, d), FLOAT)
    solution = flowrl.transport(NORMAL, particles, flowrl.Budget(3, 0.1), flow=_svgd(RULES[name][0]))
    assert_close(solution.particles, 0.9**3 * particles, rtol=tolerance(1e-12, 1e-5))
    # Most pairs coincide, so the median is zero and the mean takes over.
    apart = flowrl.transport(NORMAL, particles.at[0].add(1), flowrl.Budget(3, 0.1), flow=_svgd(RULES[name][0]))
    assert np.isfinite(apart.particles).all()
    assert int(apart.stats["nonfinite"]) == 0


def test_two_particles_repel_by_the_formula():
    particles = jnp.asarray([[-0.3], [0.3]], FLOAT)
    target = flowrl.Boltzmann(linear, jnp.zeros(1, FLOAT))
    velocity = _one_step(target, particles, 2.0, _svgd(flowrl.FixedBandwidth(0.5)))
    push = 2.0 / 2 * np.exp(-(0.6**2) / 0.5) * 0.6 / 0.25
    np.testing.assert_allclose(velocity, [[-push], [push]], rtol=tolerance(1e-12, 1e-5))


# The exact median

_values = st.one_of(
    st.just(0.0), st.just(1.0), st.sampled_from([0.25, 0.5, 3.0]), st.floats(0, 1e6, allow_subnormal=False, width=32)
)
_find = jax.jit(masked_median)
_by_counting, _by_sorting = jax.jit(_middle_by_counting), jax.jit(_middle_by_sorting)


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.skipif(not X64, reason=""))])
@hypothesis.given(values=hnp.arrays(np.float64, 40, elements=_values), mask=hnp.arrays(bool, 40))
@hypothesis.settings(max_examples=150)
def test_the_median_is_exact(values, mask, dtype):
    values = values.astype(dtype)
    if dtype == np.float64:
        values = values * (1 + 1e-12)  # digits that float32 does not hold
    got = _find(jnp.asarray(values), jnp.asarray(mask))
    assert got.dtype == dtype
    assert float(got) == (np.median(values[mask]) if mask.any() else 0)


@pytest.mark.parametrize("total", [1, 2, 5, 6, 39, 40])
@pytest.mark.parametrize("ties", [1, 3])
def test_the_median_of_gpus_is_that_of_cpus(total, ties):
    # A GPU sorts, where a CPU counts; the places beyond the total are infinite.
    kept = np.where(np.arange(40) < total, 1 + np.random.default_rng(total).permutation(40) // ties, np.inf)[::-1]
    middle = np.sort(kept)[[(total - 1) // 2, total // 2]]
    for way in (_by_counting, _by_sorting):
        np.testing.assert_array_equal(way(jnp.asarray(kept, FLOAT), jnp.asarray(total)), middle)


def test_a_median_over_more_pairs_than_can_be_counted_is_refused():
    many = jax.ShapeDtypeStruct((65_537, 1), FLOAT), jax.ShapeDtypeStruct((65_537,), bool)
    with pytest.raises(ValueError, match="median of all pairs of 65537 particles"):
        jax.eval_shape(flowrl.MedianBandwidth(max_particles=None), *many)
    assert jax.eval_shape(flowrl.MedianBandwidth(), *many).shape == ()


def test_distances_have_all_digits_whatever_products_have():
    # On a CPU the setting changes nothing, so the program is asked.
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(lambda x: flowrl.RBF(flowrl.FixedBandwidth(1.0)).gram(x, x))(jnp.zeros((3, 2))))
    assert program.count("dot_general") == 1
    assert "HIGHEST" in program


def test_the_median_can_be_interpreted():
    values = jnp.asarray([3.0, 1.0, 2.0, 9.0], FLOAT)
    with jax.disable_jit():
        assert float(masked_median(values, values < 5)) == 2


@pytest.mark.thorough
def test_the_median_is_over_all_pairs_when_asked():
    particles, alive = draw(4, (601, 2)), jnp.arange(601) % 3 > 0
    kept = np.asarray(particles, np.float64)[np.asarray(alive)]
    squared = ((kept[:, None] - kept[None]) ** 2).sum(-1)[np.triu_indices(len(kept), 1)]
    got = flowrl.MedianBandwidth(max_particles=None)(particles, alive)
    np.testing.assert_allclose(got, np.median(squared), rtol=tolerance(1e-12, 1e-5))
    assert float(flowrl.MedianBandwidth()(particles, alive)) != float(got)
    with pytest.raises(ValueError, match="max_particles must be a Python int >= 2"):
        flowrl.LogNBandwidth(1)


def test_above_512_particles_the_median_is_taken_over_a_fixed_subset():
    rule, particles = flowrl.MedianBandwidth(), draw(4, (600, 2))
    everyone = jnp.ones(600, bool)
    assert same_bits(rule(particles, everyone), rule(particles, everyone))
    exact = _median(np.asarray(particles[:300], np.float64))
    assert float(rule(particles, everyone)) == pytest.approx(exact, rel=0.1)


# Blocks and memory


@pytest.mark.parametrize("n", [128, 150])
def test_rows_in_blocks_give_the_same_direction(n, at_most_entries):
    x, gradient = draw(5, (n, 3)), draw(6, (n, 3))
    alive = jnp.asarray(np.random.default_rng(7).random(n) < 0.8)
    rule, temperature = flowrl.FixedBandwidth(1.3), jnp.asarray(0.7, FLOAT)
    dense = flowrl.RBF(rule).stein(x, gradient, alive, temperature)
    at_most_entries(64 * n)
    blocks = flowrl.RBF(rule).stein(x, gradient, alive, temperature)
    assert_close(blocks, dense, rtol=tolerance(1e-10, 1e-3), atol=tolerance(1e-12, 1e-5))
    assert np.all(np.asarray(dense)[~alive] == 0)
    # What stands at a particle that does not count has no part in the sums.
    loud = jnp.where(alive[:, None], gradient, 1e3)
    assert same_bits(flowrl.RBF(rule).stein(x, loud, alive, temperature), blocks)


def _sizes(jaxpr):
    """The number of entries of every array in a jaxpr, those of inner loops and calls included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


def _largest(n, d, flow):
    particles = jnp.zeros((n, d), FLOAT)
    run = lambda x: flowrl.transport(NORMAL, x, flowrl.Budget(2, 0.1), flow=flow, throw=False)
    return max(_sizes(jax.make_jaxpr(lambda x: run(x).particles)(particles).jaxpr))


@pytest.mark.parametrize("name", ["fixed", "median"])
def test_no_tensor_of_n_by_n_by_d(name):
    largest = _largest(64, 33, _svgd(RULES[name][0]))
    assert 64 * 64 <= largest < 64 * 64 * 33 / 4


def test_memory_grows_with_the_block(at_most_entries):
    at_most_entries(640 * 32)
    assert 640 * 32 / 4 <= _largest(640, 3, _svgd(RULES["fixed"][0])) <= 640 * 32
    # Above 512 particles the median holds at most 512² pairs.
    assert _largest(2048, 3, _svgd(RULES["median"][0])) <= 2 * 512 * 512


@pytest.mark.thorough
def test_the_gram_matrix_is_the_kernel():
    x, y = draw(8, (5, 3)), draw(9, (4, 3))
    squared = np.stack([distances(np.broadcast_to(a, (4, 3)), y) for a in np.asarray(x)]) ** 2
    gram = flowrl.RBF(flowrl.FixedBandwidth(0.7)).gram(x, y)
    np.testing.assert_allclose(gram, np.exp(-squared / (2 * 0.49)), rtol=tolerance(1e-10, 1e-4))
    median = _median(np.asarray(x, np.float64))
    np.testing.assert_allclose(flowrl.RBF().gram(x, y), np.exp(-squared / (2 * median)), rtol=tolerance(1e-9, 1e-4))
