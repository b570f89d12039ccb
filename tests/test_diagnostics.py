"""Every diagnostic against a closed form or an independent float64 computation, and the test against its level."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from problems import (
    FLOAT,
    X64,
    assert_close,
    draw,
    log_normal,
    mmd_squared as naive_mmd_squared,
    quadratic,
    rows,
    tolerance,
)

import flowrl
from flowrl import IMQ, RBF, FixedBandwidth, Linear, Matern, Preconditioned, diagnostics

N, M, D = 9, 7, 3
SIGMA = FixedBandwidth(0.9)
NORMAL = flowrl.Density(log_normal)
X, Y = 1.3 * draw(0, (N, D)), 0.4 + draw(1, (M, D))
Z = 0.8 * draw(2, (N, D)) - 0.3
CLOSE = {"rtol": tolerance(1e-9, 2e-4), "atol": tolerance(1e-12, 2e-5)}


def _imq(x, y):
    return (1 + jnp.sum((x - y) ** 2) / 0.81) ** -0.5


def _median_squared(x):
    """The default bandwidth's σ²."""
    x = rows(x)
    squared = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    return np.median(squared[~np.eye(len(x), dtype=bool)])


def _naive_stein(x, s, variance):
    """The Stein kernel of (1 + u/σ²)^(−1/2), pair by pair, with derivatives by hand."""
    x, s = rows(x), rows(s)
    gram = np.zeros((len(x), len(x)))
    for i, j in np.ndindex(*gram.shape):
        r, q = x[i] - x[j], 1 + np.sum((x[i] - x[j]) ** 2) / variance
        towards = -r / variance * q**-1.5  # ∇_x k = −∇_y k
        trace = x.shape[1] / variance * q**-1.5 - 3 * np.sum(r**2) / variance**2 * q**-2.5
        gram[i, j] = s[i] @ s[j] * q**-0.5 - s[i] @ towards + s[j] @ towards + trace
    return gram


def _off(gram):
    n = len(gram)
    return (gram.sum() - np.trace(gram)) / (n * (n - 1))


# Stein's discrepancy.


@pytest.mark.parametrize("kernel", [None, IMQ(SIGMA)])
def test_ksd_is_a_mean_over_pairs(kernel):
    score = -2.0 * X + 0.1
    gram = _naive_stein(X, score, _median_squared(X) if kernel is None else 0.81)
    assert_close(diagnostics.ksd_squared(X, score, kernel), gram.mean(), **CLOSE)
    assert_close(diagnostics.ksd(X, score, kernel), np.sqrt(gram.mean()), **CLOSE)
    assert_close(diagnostics.ksd_squared(X, score, kernel, unbiased=True), _off(gram), **CLOSE)


def test_ksd_is_twice_the_energy_of_its_descent():
    flow = flowrl.KSDDescent(RBF())
    view = flowrl.TargetView(
        jnp.ones((), FLOAT), None, None, NORMAL, flowrl.Unbounded(), jnp.ones((1, D), FLOAT), True, lambda z: z
    )
    energy = eqx.filter_jit(flow.energy)(view, X, jnp.ones(N, bool))
    assert_close(diagnostics.ksd_squared(X, -X, RBF()), 2 * energy, **CLOSE)


def test_ksd_with_the_linear_kernel_knows_two_moments():
    # κ = s·s' (1 + x·x') + s·x + s'·x' + d with s = −x and x counted from the mean: with all deviations along one axis
    # and of mean zero it is (mean s)² + Σ (mean(s x) + 1)² over coordinates.
    x = jnp.asarray([[1.5, 0.0], [-1.5, 0.0], [0.5, 0.0], [-0.5, 0.0]], FLOAT)
    want = (1 - np.mean(rows(x)[:, 0] ** 2)) ** 2 + 1
    assert_close(diagnostics.ksd_squared(x, -x, Linear()), want, **CLOSE)


def test_ksd_of_one_particle():
    # κ(x, x) = |s|² + d/σ² at one point.
    x = jnp.asarray([[3.0, 4.0]], FLOAT)
    assert_close(diagnostics.ksd_squared(x, -x, IMQ(SIGMA)), 25 + 2 / 0.81, **CLOSE)
    assert np.isfinite(diagnostics.ksd(x, -x))
    assert np.isfinite(diagnostics.ksd(jnp.ones((4, 2), FLOAT), -jnp.ones((4, 2), FLOAT)))


def test_ksd_sees_what_is_wrong():
    x = draw(3, (200, 2))
    kernel = IMQ(FixedBandwidth(1.0))
    good, shifted, narrow = (float(diagnostics.ksd(z, -z, kernel)) for z in (x, x + 0.5, 0.6 * x))
    assert good < 0.2
    assert min(shifted, narrow) > 2 * good


def test_scores_are_the_gradient_over_the_temperature():
    particles = {"a": X, "b": draw(4, (N,))}

    def log_prob(x):
        return -0.5 * jnp.sum(x["a"] ** 2) - 2 * x["b"] ** 2

    want = {"a": -X, "b": -4 * particles["b"]}
    assert_close(diagnostics.scores(flowrl.Density(log_prob), particles, 0.3), want, **CLOSE)
    halved = jax.tree.map(lambda s: s / 0.5, want)
    assert_close(diagnostics.scores(flowrl.Boltzmann(log_prob), particles, 0.5), halved, **CLOSE)
    flat = jnp.concatenate([X, particles["b"][:, None]], axis=1), jnp.concatenate([want["a"], want["b"][:, None]], 1)
    assert_close(diagnostics.ksd(particles, want), diagnostics.ksd(*flat), **CLOSE)


def test_scores_of_a_stochastic_target_take_a_key(key):
    target = flowrl.Posterior(
        lambda x: -0.5 * jnp.sum(x**2), lambda x, y: -0.5 * (y - x[0]) ** 2, jnp.ones(4, FLOAT), 2
    )
    with pytest.raises(ValueError, match="pass key"):
        diagnostics.scores(target, X)
    assert diagnostics.scores(target, X, key=key).shape == X.shape


# The test of fit.


@functools.partial(jax.jit, static_argnames=("count", "n"))
def _p_values(key, shift, count, n):
    def one(key):
        draws, signs = jr.split(key)
        x = shift + jr.normal(draws, (n, 1), FLOAT)
        return diagnostics.ksd_test(x, -x, key=signs, bootstraps=199).p_value

    return jax.vmap(one)(jr.split(key, count))


def test_the_p_value_is_calibrated_and_has_power(key):
    p = np.asarray(_p_values(key, jnp.asarray(0.0, FLOAT), 200, 50))
    assert p.min() >= 1 / 200
    assert p.max() <= 1
    # Bounds that a calibrated test leaves with probability 1e-3.
    for level in (0.05, 0.2, 0.5):
        low, high = scipy.stats.binom.interval(0.999, 200, level)
        assert low <= np.sum(p <= level) <= high, (level, np.mean(p <= level))
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
    shifted = np.asarray(_p_values(key, jnp.asarray(0.7, FLOAT), 200, 50))
    assert np.mean(shifted <= 0.05) > 0.95


def test_the_statistic_of_the_test_is_unbiased_ksd(key):
    found = diagnostics.ksd_test(X, -X, IMQ(SIGMA), key=key, bootstraps=50)
    assert_close(found.statistic, _off(_naive_stein(X, -X, 0.81)), **CLOSE)
    assert found.p_value.dtype == FLOAT
    again = diagnostics.ksd_test(X, -X, IMQ(SIGMA), key=key, bootstraps=50)
    assert again.p_value == found.p_value


def _normal(key, n, d):
    return jr.normal(key, (n, d), FLOAT)


def _gamma(key, n, d):
    return jr.gamma(key, 3.0, (n, d), FLOAT)


def _laplace(key, n, d):
    return jr.laplace(key, (n, d), FLOAT) / 2**0.5


def _autoregression(key, n, d):
    noise = jr.normal(key, (n + 1, d), FLOAT)
    step = lambda x, e: (0.9 * x + 0.19**0.5 * e,) * 2
    return jax.lax.scan(step, noise[0], noise[1:])[1]


@functools.partial(jax.jit, static_argnames=("draw", "score", "n", "d"))
def _rejections(key, draw, score, n, d):
    """How many of 1000 tests reject at level 0.05."""

    def one(key):
        draws, signs = jr.split(key)
        x = draw(draws, n, d)
        return diagnostics.ksd_test(x, score(x), key=signs, bootstraps=199).p_value <= 0.05

    return jnp.sum(jax.lax.map(one, jr.split(key, 1000), batch_size=50))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("draw", "score", "n", "d", "rate"),
    [
        # The distribution itself, at the rates of the docstring.
        (_normal, jnp.negative, 50, 1, 0.044),
        (_normal, jnp.negative, 20, 5, 0.046),
        (_gamma, lambda x: 2 / x - 1, 50, 1, 0.09),
        (_autoregression, jnp.negative, 200, 1, 0.8),
        # Alternatives of the right mean and variance, of the right mean, and of the right shape.
        (_laplace, jnp.negative, 100, 1, 0.62),
        (lambda key, n, d: 0.6 * _normal(key, n, d), jnp.negative, 50, 1, 0.84),
        (lambda key, n, d: 0.3 + _normal(key, n, d), jnp.negative, 100, 5, 1.0),
    ],
    ids=["normal", "normal in 5-d", "gamma", "correlated", "Laplace", "narrow", "shifted"],
)
def test_how_often_the_test_rejects(draw, score, n, d, rate, key):
    low, high = scipy.stats.binom.interval(0.9999, 1000, rate)
    assert low - 10 <= int(_rejections(key, draw, score, n, d)) <= high + 10  # and 1 % for the rate, itself an estimate


def test_two_particles_always_pass(key):
    # All signs give ± the statistic, and the statistic itself is counted.
    x = jnp.asarray([[3.0], [3.1]], FLOAT)
    assert 0.3 < diagnostics.ksd_test(x, -x, IMQ(SIGMA), key=key, bootstraps=199).p_value < 0.7


# Thinning.


def _naive_thinning(gram, log_probs, weight, m):
    """The greedy choice by evaluating the whole criterion for every candidate."""
    chosen = []
    for _ in range(m):
        costs = []
        for i in range(len(gram)):
            trial = [*chosen, i]
            costs.append(gram[np.ix_(trial, trial)].sum() - weight * len(trial) * log_probs[trial].sum())
        chosen.append(int(np.argmin(costs)))
    return chosen


@pytest.mark.parametrize("weight", [None, 1.5])
def test_thinning_is_greedy(weight):
    x = 1.5 * draw(5, (20, 2)) + 0.5
    log_probs = -0.5 * np.sum(rows(x) ** 2, axis=1)
    gram = _naive_stein(x, -x, _median_squared(x))
    plain = _naive_thinning(gram, log_probs, 0, 8)
    assert diagnostics.stein_thinning(x, -x, 8).tolist() == plain
    got = diagnostics.stein_thinning(x, -x, 8, log_probs=jnp.asarray(log_probs, FLOAT), regularisation=weight)
    want = _naive_thinning(gram, log_probs, 1 / 8 if weight is None else weight, 8)
    assert got.tolist() == want
    assert weight is None or want != plain


def test_thinning_goes_through_kernels_that_are_not_translation_invariant():
    x = draw(6, (12, 2)) + 3
    kernel = RBF(FixedBandwidth(1.0)) + Linear(0.5)
    gram = np.asarray(eqx.filter_jit(kernel.stein_gram)(x, -x, x, -x), np.float64)
    want = _naive_thinning(gram, np.zeros(12), 0, 6)
    assert diagnostics.stein_thinning(x, -x, 6, kernel).tolist() == want


def test_thinning_helps_and_avoids_what_is_not_finite():
    x = 3 * draw(7, (200, 2))
    x = x.at[11].set(jnp.nan)
    score = (-x).at[5].set(jnp.inf)
    chosen = diagnostics.stein_thinning(x, score, 20)
    assert not set(chosen.tolist()) & {5, 11}
    few = x[chosen]
    kernel = IMQ(FixedBandwidth(1.0))
    assert diagnostics.ksd(few, -few, kernel) < 0.5 * diagnostics.ksd(x[20:40], -x[20:40], kernel)
    assert 0.5 < float(jnp.var(few)) < 1.5  # the pool's is 9


# Sums over pairs of two sets.


def test_mmd_is_the_distance_of_mean_embeddings():
    assert_close(diagnostics.mmd_squared(X, Y, RBF(SIGMA)), naive_mmd_squared(X, Y, 0.9), **CLOSE)
    assert_close(diagnostics.mmd(X, Y, RBF(SIGMA)), np.sqrt(naive_mmd_squared(X, Y, 0.9)), **CLOSE)
    fitted = naive_mmd_squared(X, Y, np.sqrt(_median_squared(Y)))
    assert_close(diagnostics.mmd_squared(X, Y), fitted, **CLOSE)
    k = lambda a, b: np.exp(-np.sum((rows(a)[:, None] - rows(b)[None]) ** 2, axis=-1) / 1.62)
    unbiased = _off(k(X, X)) + _off(k(Y, Y)) - 2 * k(X, Y).mean()
    assert_close(diagnostics.mmd_squared(X, Y, RBF(SIGMA), unbiased=True), unbiased, **CLOSE)


def test_mmd_with_the_linear_kernel_is_the_distance_of_the_means():
    want = np.linalg.norm(rows(X).mean(0) - rows(Y).mean(0))
    assert_close(diagnostics.mmd(X, Y, Linear()), want, **CLOSE)


def test_energy_distance_in_one_dimension_is_scipys():
    x, y = X[:, 0], Y[:, 0]
    want = scipy.stats.energy_distance(rows(x)[:, 0], rows(y)[:, 0])
    assert_close(diagnostics.energy_distance(x, y), want, **CLOSE)


def test_energy_distance_is_a_sum_over_pairs():
    d = lambda a, b: np.linalg.norm(rows(a)[:, None] - rows(b)[None], axis=-1).mean()
    assert_close(diagnostics.energy_distance(X, Y), np.sqrt(2 * d(X, Y) - d(X, X) - d(Y, Y)), **CLOSE)


# Optimal transport.


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_wasserstein_is_the_cheapest_assignment(p):
    cost = np.linalg.norm(rows(X)[:, None] - rows(Z)[None], axis=-1) ** p
    i, j = scipy.optimize.linear_sum_assignment(cost)
    assert_close(diagnostics.wasserstein(X, Z, p), cost[i, j].mean() ** (1 / p), **CLOSE)


def test_wasserstein_of_a_hundred_points_is_the_cheapest_assignment():
    x, y = draw(8, (100, 2)), 0.5 * draw(9, (100, 2)) + 1000
    for a, b in ((x, y - 1000), (x, y), (jnp.round(x), jnp.round(y - 1000))):  # near, far apart, with many ties
        cost = np.sum((rows(a)[:, None] - rows(b)[None]) ** 2, axis=-1)
        i, j = scipy.optimize.linear_sum_assignment(cost)
        assert_close(diagnostics.wasserstein(a, b), np.sqrt(cost[i, j].mean()), rtol=tolerance(1e-9, 1e-4))


def _program(x, y, p):
    """W_p^p by linear programming over couplings."""
    n, m = len(x), len(y)
    cost = np.abs(x[:, None] - y[None]) ** p
    marginals = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    right = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return scipy.optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=right).fun


def test_wasserstein_in_one_dimension_takes_any_sizes():
    x, y = rows(X)[:, 0], rows(Y)[:6, 1]
    a, b = jnp.asarray(x, FLOAT), jnp.asarray(y, FLOAT)
    assert_close(diagnostics.wasserstein(a, b, 1), scipy.stats.wasserstein_distance(x, y), **CLOSE)
    assert_close(diagnostics.wasserstein(a, b), np.sqrt(_program(x, y, 2)), rtol=tolerance(1e-7, 2e-4))
    assert_close(diagnostics.wasserstein(a[:6], b), np.sqrt(np.mean((np.sort(x[:6]) - np.sort(y)) ** 2)), **CLOSE)


def test_a_shift_is_its_own_distance():
    shift = jnp.asarray([[3.0, 0.0, 4.0]], FLOAT)
    for p in (1, 2, 3):
        assert_close(diagnostics.wasserstein(X, X + shift, p), 5.0, rtol=tolerance(1e-9, 1e-5))
    x = draw(10, (500, 1))
    # Quantiles of a normal are an affine map of another's: W_2² = (m − m')² + (σ − σ')².
    x = (x - jnp.mean(x)) / jnp.std(x)
    assert_close(diagnostics.wasserstein(x, 2 + 3 * x), np.sqrt(8.0), rtol=tolerance(1e-9, 1e-5))


def test_sliced_wasserstein_averages_over_directions(key):
    # A shift Δ projects to θ·Δ in every direction, of mean square |Δ|²/d.
    shift = jnp.asarray([[3.0, 0.0, 4.0]], FLOAT)
    got = diagnostics.sliced_wasserstein(X, X + shift, key=key, projections=4000)
    assert_close(got, 5 / np.sqrt(3), rtol=0.03)
    # In one dimension every direction is ±1.
    x, y = X[:, :1], Y[:, :1]
    for p in (1, 3):
        one = diagnostics.sliced_wasserstein(x, y, key=key, projections=5, p=p)
        assert_close(one, diagnostics.wasserstein(x, y, p), **CLOSE)


def test_sliced_wasserstein_is_below_the_exact_one_and_repeats(key):
    sliced = functools.partial(diagnostics.sliced_wasserstein, X, Z, key=key, projections=16)
    assert 0 < sliced() < diagnostics.wasserstein(X, Z)
    assert sliced() == sliced()


# Other libraries on the same points.


@pytest.fixture
def pot(monkeypatch):
    """POT on NumPy alone: it imports every framework that it finds otherwise."""
    for framework in ("JAX", "PYTORCH", "TENSORFLOW", "CUPY"):
        monkeypatch.setenv(f"POT_BACKEND_DISABLE_{framework}", "1")
    import ot

    return ot


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_is_pots_over_all_couplings(p, pot):
    cost = pot.dist(rows(X), rows(Z), metric="euclidean") ** p
    assert_close(diagnostics.wasserstein(X, Z, p), pot.emd2([], [], cost) ** (1 / p), **CLOSE)
    x, y = rows(X)[:, 0], rows(Y)[:, 0]
    want = pot.wasserstein_1d(x, y, p=p) ** (1 / p)
    assert_close(diagnostics.wasserstein(X[:, 0], Y[:, 0], p), want, **CLOSE)


def test_wasserstein_in_the_plane_is_scipys():
    x, y = X[:6, :2], Y[:6, :2]
    assert_close(diagnostics.wasserstein(x, y, 1), scipy.stats.wasserstein_distance_nd(rows(x), rows(y)), **CLOSE)


@pytest.mark.parametrize("p", [1, 3])
def test_sliced_wasserstein_is_pots_over_the_same_directions(p, pot, key):
    directions = rows(jr.normal(key, (16, D), FLOAT))  # as they are drawn inside
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    want = pot.sliced_wasserstein_distance(rows(X), rows(Y), projections=directions.T, p=p)
    assert_close(diagnostics.sliced_wasserstein(X, Y, key=key, projections=16, p=p), want, **CLOSE)


@pytest.mark.parametrize("regularisation", [1.0, 0.5])
def test_sinkhorn_divergence_is_pots(regularisation, pot):
    x, y = rows(X), rows(Y)
    epsilon = regularisation * y.var(axis=0).sum()
    cost = lambda a, b: pot.solve(0.5 * pot.dist(a, b), reg=epsilon, max_iter=20_000, tol=1e-10).value
    want = cost(x, y) - 0.5 * cost(x, x) - 0.5 * cost(y, y)
    assert_close(diagnostics.sinkhorn_divergence(X, Y, regularisation), want, rtol=tolerance(1e-9, 1e-3))


def test_sinkhorn_divergence_has_its_limits():
    exact = 0.5 * diagnostics.wasserstein(X, Z) ** 2
    assert_close(diagnostics.sinkhorn_divergence(X, Z, 1e-3, 3000), exact, rtol=0.01)
    means = 0.5 * np.sum((rows(X).mean(0) - rows(Y).mean(0)) ** 2)
    assert_close(diagnostics.sinkhorn_divergence(X, Y, 1e4), means, rtol=1e-3)
    assert_close(diagnostics.sinkhorn_divergence(X, X + 2), 0.5 * 4 * D, rtol=tolerance(1e-6, 1e-3))


# Moments and weights.


def test_variance_ratio_is_a_mean_over_coordinates():
    variance = np.array([0.5, 1.0, 4.0])
    want = np.mean(np.var(rows(X), axis=0, ddof=1) / variance)
    assert_close(diagnostics.variance_ratio(X, jnp.asarray(variance, FLOAT)), want, **CLOSE)
    assert_close(diagnostics.variance_ratio(X, 2), np.mean(np.var(rows(X), axis=0, ddof=1)) / 2, **CLOSE)
    tree = {"a": X[:, :2], "b": X[:, 2]}
    reference = {"a": jnp.asarray(variance[:2], FLOAT), "b": jnp.asarray(4.0, FLOAT)}
    assert_close(diagnostics.variance_ratio(tree, reference), want, **CLOSE)
    assert diagnostics.variance_ratio(X[:1], 1.0) == 0
    assert diagnostics.variance_ratio(jnp.full((4, 2), 0.1, FLOAT), 1.0) == 0


def test_effective_sample_size():
    size = diagnostics.effective_sample_size
    logs = draw(11, (50,))
    w = np.exp(np.asarray(logs, np.float64))
    assert_close(size(logs), w.sum() ** 2 / (w**2).sum(), **CLOSE)
    assert_close(size(logs - 500), size(logs), rtol=tolerance(1e-9, 1e-3))
    assert_close(size(jnp.full(8, -700.0, FLOAT)), 8.0, rtol=tolerance(1e-9, 1e-3))
    assert_close(size(jnp.asarray([0.0, -jnp.inf, 0.0, -900.0], FLOAT)), 2.0, **CLOSE)
    assert size(jnp.full(3, -jnp.inf, FLOAT)) == 0
    assert np.isnan(size(jnp.asarray([0.0, jnp.nan], FLOAT)))


# Weighted particles.

COUNTS = np.array([1, 3, 2, 1, 1, 4, 1, 2, 1])
LOGS = jnp.asarray(np.log(COUNTS), FLOAT)
TWINS = np.repeat(np.arange(N), COUNTS)
WEIGHTED = {
    "ksd": lambda x, logs: diagnostics.ksd(x, -x, IMQ(SIGMA), log_weights=logs),
    "mmd": lambda x, logs: diagnostics.mmd(x, Y, log_weights=logs),
    "energy_distance": lambda x, logs: diagnostics.energy_distance(x, Y, log_weights=logs),
    "wasserstein": lambda x, logs: diagnostics.wasserstein(x[:, 0], Y[:, 0], log_weights=logs),
    "wasserstein_1": lambda x, logs: diagnostics.wasserstein(x[:, 1:2], Y[:, 1:2], 1, log_weights=logs),
    "sliced_wasserstein": lambda x, logs: diagnostics.sliced_wasserstein(
        x, Y, key=jr.key(0), projections=8, log_weights=logs
    ),
    "sinkhorn_divergence": lambda x, logs: diagnostics.sinkhorn_divergence(x, Y, iterations=60, log_weights=logs),
}
CHANCES = {  # whose weights are chances and no counts
    "ksd_unbiased": lambda x, logs: diagnostics.ksd_squared(x, -x, IMQ(SIGMA), unbiased=True, log_weights=logs),
    "mmd_unbiased": lambda x, logs: diagnostics.mmd_squared(x, Y, unbiased=True, log_weights=logs),
    "variance_ratio": lambda x, logs: diagnostics.variance_ratio(x, 2.0, log_weights=logs),
}
NEAR = {"rtol": tolerance(1e-7, 2e-3), "atol": tolerance(1e-10, 1e-4)}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_particle_of_weight_two_is_two_particles(name):
    function = WEIGHTED[name]
    assert_close(function(X, LOGS), function(X[TWINS], None), **NEAR)
    assert_close(function(X, LOGS - 300), function(X, LOGS), **NEAR)


@pytest.mark.parametrize("name", [*WEIGHTED, *CHANCES])
def test_equal_weights_are_none_and_empty_slots_are_left_out_whatever_they_hold(name):
    function = (WEIGHTED | CHANCES)[name]
    equal = function(X, jnp.zeros(N, FLOAT))
    assert_close(equal, function(X, None), **NEAR)
    assert equal.dtype == FLOAT
    spoilt = jnp.concatenate([X[:3], jnp.full((2, D), jnp.nan, FLOAT), X[3:]])
    nothing = jnp.full(2, -jnp.inf, FLOAT)
    assert_close(function(spoilt, jnp.concatenate([LOGS[:3], nothing, LOGS[3:]])), function(X, LOGS), **NEAR)
    assert np.isnan(function(X.at[4, 1].set(jnp.nan).at[4, 0].set(jnp.nan), LOGS))
    x, logs = jnp.stack([X, Z]), jnp.stack([LOGS, LOGS[::-1]])
    assert_close(jax.vmap(function)(x, logs), jnp.stack([function(X, LOGS), function(Z, LOGS[::-1])]), **NEAR)
    slope = jax.grad(function)(X, LOGS)
    assert np.isfinite(slope).all()


def test_pairs_of_two_different_particles_weigh_the_product_of_their_weights():
    w = COUNTS / COUNTS.sum()
    off = np.outer(w, w) * ~np.eye(N, dtype=bool)
    gram = _naive_stein(X, -X, 0.81)
    assert_close(CHANCES["ksd_unbiased"](X, LOGS), np.sum(off * gram) / off.sum(), **NEAR)
    x = rows(X)
    variance = np.cov(x.T, aweights=w, ddof=1)  # NumPy divides by 1 − Σ w², too
    assert_close(CHANCES["variance_ratio"](X, LOGS), np.mean(np.diag(variance)) / 2, **NEAR)
    one = jnp.where(jnp.arange(N) == 3, 0.0, -jnp.inf).astype(FLOAT)
    assert CHANCES["variance_ratio"](X, one) == 0
    assert np.isnan(CHANCES["ksd_unbiased"](X, one))


def test_importance_weights_correct_the_sampler(key):
    x = 1 + 1.5 * jr.normal(key, (4000, 1))
    logs = -0.5 * x[:, 0] ** 2 + 0.5 * ((x[:, 0] - 1) / 1.5) ** 2
    kernel = IMQ(FixedBandwidth(1.0))
    assert diagnostics.ksd(x, -x, kernel, log_weights=logs) < 0.05 < 0.5 < diagnostics.ksd(x, -x, kernel)
    reference = jnp.asarray(scipy.stats.norm.ppf((np.arange(2000) + 0.5) / 2000), x.dtype)[:, None]
    assert diagnostics.wasserstein(x, reference, log_weights=logs) < 0.1 < 1 < diagnostics.wasserstein(x, reference)


# What holds for all of them.

PAIRS = {
    "ksd": lambda x, y: diagnostics.ksd(x, -x + 0 * y),
    "ksd_unbiased": lambda x, y: diagnostics.ksd_squared(x, -x + 0 * y, Matern(SIGMA, 2.5), unbiased=True),
    "mmd": lambda x, y: diagnostics.mmd(x, y, IMQ()),
    "mmd_unbiased": lambda x, y: diagnostics.mmd_squared(x, y, unbiased=True),
    "energy_distance": diagnostics.energy_distance,
    "wasserstein": diagnostics.wasserstein,
    "sliced_wasserstein": lambda x, y: diagnostics.sliced_wasserstein(x, y, key=jr.key(0), projections=8),
    "sinkhorn_divergence": lambda x, y: diagnostics.sinkhorn_divergence(x, y, iterations=60),
    "variance_ratio": lambda x, y: diagnostics.variance_ratio(x, 1.0) + 0 * jnp.sum(y),
}


@pytest.mark.parametrize("name", PAIRS)
def test_order_does_not_matter_and_nan_does(name):
    function = PAIRS[name]
    want = function(X, Z)
    assert want.shape == ()
    assert want.dtype == FLOAT
    if not name.startswith("ksd"):
        assert_close(function(X[::-1], jnp.roll(Z, 3, axis=0)), want, rtol=tolerance(1e-9, 1e-3))
    else:
        assert_close(function(X[::-1], Z), want, rtol=tolerance(1e-9, 1e-3))
    assert np.isnan(function(X.at[4, 1].set(jnp.nan), Z))
    if "ksd" not in name and name != "variance_ratio":
        assert np.isnan(function(X, Z.at[4, 1].set(jnp.nan)))


@pytest.mark.parametrize("name", ["ksd", "mmd", "wasserstein", "sliced_wasserstein"])
def test_vmap_is_a_loop(name):
    function = PAIRS[name]
    x, y = jnp.stack([X, Z]), jnp.stack([Z, 2 * X])
    assert_close(jax.vmap(function)(x, y), jnp.stack([function(*one) for one in zip(x, y, strict=True)]), **CLOSE)


@pytest.mark.parametrize("name", ["mmd", "energy_distance", "wasserstein", "sliced_wasserstein"])
def test_equal_sets_have_no_distance_and_a_finite_gradient(name):
    function = PAIRS[name]
    assert float(function(X, X[::-1])) <= tolerance(1e-7, 1e-3)
    assert np.isfinite(jax.grad(function)(X, X)).all()
    one = X[:1]
    assert float(function(one, one)) <= tolerance(1e-7, 1e-3)


@pytest.mark.parametrize("name", ["wasserstein", "sliced_wasserstein", "mmd", "energy_distance"])
@pytest.mark.skipif(not X64, reason="finite differences need double precision")
def test_the_gradient_is_that_of_the_distance(name):
    function, direction = PAIRS[name], draw(12, X.shape)
    # The bandwidth is fitted to the second set.
    slope = jnp.sum(jax.grad(function)(X, Z) * direction)
    step = 1e-5
    assert_close(slope, (function(X + step * direction, Z) - function(X - step * direction, Z)) / (2 * step), rtol=1e-6)


def test_double_precision_is_not_needed_and_kept():
    x, y = X.astype(jnp.float32), Z.astype(jnp.float32)
    for function in PAIRS.values():
        assert jax.eval_shape(function, x, y).dtype == jnp.float32


@pytest.mark.parametrize("name", ["ksd", "mmd", "energy_distance", "wasserstein", "sliced_wasserstein"])
def test_single_precision_far_from_the_origin(name):
    x, y = (1e5 + X).astype(jnp.float32), (1e5 + Z).astype(jnp.float32)
    near = x - 1e5, y - 1e5  # exact
    if name == "ksd":
        assert_close(diagnostics.ksd(x, -near[0]), diagnostics.ksd(near[0], -near[0]), rtol=1e-4)
    else:
        assert_close(PAIRS[name](x, y), PAIRS[name](*near), rtol=1e-5 if "wasserstein" in name else 1e-4)


def test_new_numbers_do_not_recompile():
    traces = []

    @jax.jit
    def run(x, y, sigma):
        traces.append(None)
        return diagnostics.mmd(x, y, RBF(FixedBandwidth(sigma))), diagnostics.wasserstein(x, y)

    for sigma in (0.5, 0.7):
        run(X, Z, sigma)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: diagnostics.ksd(X, -X[:5]), ValueError, "9 particles but 5 scores"),
        (lambda: diagnostics.ksd(X, -X[:, :2]), ValueError, "same shape"),
        (lambda: inspect.unwrap(diagnostics.ksd_squared)(X, -X, "rbf"), TypeError, "kernel must be a kernel"),
        (lambda: diagnostics.ksd(X, -X, Matern(smoothness=0.5)), TypeError, "no Stein kernel"),
        (lambda: diagnostics.ksd(jnp.arange(3), X), TypeError, "particles must form a set"),
        (lambda: diagnostics.ksd_squared(X[:1], X[:1], unbiased=True), ValueError, "two particles"),
        (lambda: diagnostics.ksd_test(X[:1], X[:1], key=jr.key(0)), ValueError, "two particles"),
        (lambda: diagnostics.ksd_test(X, X, key=jr.key(0), bootstraps=0), ValueError, "bootstraps must be"),
        (lambda: inspect.unwrap(diagnostics.scores)(log_normal, X), TypeError, "target must be a flowrl target"),
        (lambda: diagnostics.scores(flowrl.Empirical(X), X), TypeError, "has no gradient"),
        (lambda: diagnostics.scores(NORMAL, X, 0), ValueError, "finite number > 0"),
        (lambda: diagnostics.scores(flowrl.Density(quadratic, X[0]), X, jnp.ones(1)), ValueError, "one finite number"),
        (lambda: diagnostics.mmd(X, Y[:, :2]), ValueError, "same shape"),
        (lambda: diagnostics.mmd(X, {"y": Y}), ValueError, "same shape"),
        (lambda: inspect.unwrap(diagnostics.mmd_squared)(X, Y, Preconditioned()), TypeError, "scalar kernel"),
        (lambda: diagnostics.mmd_squared(X, Y[:1], unbiased=True), ValueError, "two points in each set"),
        (lambda: diagnostics.mmd(X, Y.astype(jnp.float16)), TypeError, "cast one of them"),
        (lambda: diagnostics.energy_distance(X, Y[:0]), ValueError, "y must form a set"),
        (lambda: diagnostics.wasserstein(X, Y), ValueError, "sliced_wasserstein, sinkhorn_divergence"),
        (lambda: diagnostics.wasserstein(X, Z, 0.5), ValueError, "p must be"),
        (lambda: diagnostics.wasserstein(X, Z, float("inf")), ValueError, "p must be"),
        (lambda: diagnostics.sliced_wasserstein(X, Y, key=jr.key(0), projections=True), ValueError, "projections must"),
        (lambda: diagnostics.sinkhorn_divergence(X, Y, 0.0), ValueError, "regularisation must be"),
        (lambda: diagnostics.sinkhorn_divergence(X, Y, iterations=0), ValueError, "iterations must be"),
        (lambda: diagnostics.variance_ratio(X, jnp.ones(2, FLOAT)), ValueError, "does not broadcast"),
        (lambda: diagnostics.variance_ratio(X, 0.0), ValueError, "must be positive"),
        (lambda: diagnostics.effective_sample_size(jnp.zeros(0, FLOAT)), ValueError, "shape"),
        (
            lambda: diagnostics.ksd(X, -X, log_weights=LOGS[:4]),
            ValueError,
            r"shape \(9,\), one per particle; got \(4,\)",
        ),
        (lambda: diagnostics.mmd(X, Y, log_weights=LOGS.at[0].set(jnp.nan)), ValueError, "log_weights must be < inf"),
        (lambda: diagnostics.energy_distance(X, Y, log_weights=LOGS.at[0].set(jnp.inf)), ValueError, "not NaN"),
        (lambda: diagnostics.variance_ratio(X, 1.0, log_weights=LOGS - jnp.inf), ValueError, "all -inf"),
        (lambda: diagnostics.sinkhorn_divergence(X, Y, log_weights=LOGS - jnp.inf), ValueError, "all -inf"),
        (lambda: diagnostics.wasserstein(X, Z, log_weights=LOGS), ValueError, "takes no log_weights there"),
        (lambda: diagnostics.stein_thinning(X, -X, 0), ValueError, "m must be"),
        (lambda: diagnostics.stein_thinning(X, -X, 2, regularisation=1.0), ValueError, "pass log_probs"),
        (lambda: diagnostics.stein_thinning(X, -X, 2, log_probs=X[:4, 0]), ValueError, "one per particle"),
        (
            lambda: diagnostics.stein_thinning(X, -X, 2, log_probs=X[:, 0], regularisation=-1.0),
            ValueError,
            "regularisation must be",
        ),
    ],
)
def test_misuse_is_refused_in_words(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.thorough
def test_blocks_change_nothing(at_most_entries, key):  # the last, since it forgets all programs
    def measure():
        test = diagnostics.ksd_test(X, -X, key=key, bootstraps=20)
        names = ("ksd_unbiased", "mmd_unbiased", "energy_distance", "sliced_wasserstein")
        return [*(PAIRS[name](X, Z) for name in names), test.statistic, test.p_value]

    whole = measure()
    at_most_entries(40)  # blocks of 4 of 9, and 2 of 18
    jax.clear_caches()
    assert_close(measure(), whole, rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-12, 1e-5))
    jax.clear_caches()
