"""Every kernel against its own formula: values, gradients and sums by float64 autodiff of k(x, y), pair by pair."""

import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, X64, assert_close, distances, draw, log_normal, same_bits, tolerance

import flowrl
from flowrl import IMQ, RBF, FixedBandwidth, Linear, Matern, Preconditioned
from flowrl._kernel._preconditioned import _whiten
from flowrl._kernel._scalar import _pairs

NORMAL = flowrl.Density(log_normal)
SIGMA = FixedBandwidth(0.9)
EVERYONE = jnp.ones(7, bool)


# The formulas, of two points. σ = 0.9.


def _squared(x, y):
    return jnp.sum((x - y) ** 2)


def _norm(x, y):
    """|x − y|, with gradient zero where it vanishes."""
    squared = _squared(x, y)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def _rbf(x, y):
    return jnp.exp(-_squared(x, y) / (2 * 0.81))


def _imq(x, y):
    return 1 / jnp.sqrt(1 + _squared(x, y) / 0.81)


def _imq_flat(x, y):
    return (1 + _squared(x, y) / (2 * 0.2 * 0.81)) ** (-0.2)


def _laplace(x, y):
    return jnp.exp(-_norm(x, y) / 0.9)


def _matern_3(x, y):
    t = np.sqrt(3) * _norm(x, y) / 0.9
    return (1 + t) * jnp.exp(-t)


def _matern_5(x, y):
    t = np.sqrt(5) * _norm(x, y) / 0.9
    return (1 + t + t**2 / 3) * jnp.exp(-t)


def _linear(x, y):
    return 0.49 + jnp.vdot(x, y)


KERNELS = {
    "rbf": (RBF(SIGMA), _rbf),
    "imq": (IMQ(SIGMA), _imq),
    "imq of another exponent": (IMQ(SIGMA, -0.2), _imq_flat),
    "matern 0.5": (Matern(SIGMA, 0.5), _laplace),
    "matern 1.5": (Matern(SIGMA), _matern_3),
    "matern 2.5": (Matern(SIGMA, 2.5), _matern_5),
    "linear": (Linear(0.7), _linear),
    "multiple": (np.float32(2.5) * IMQ(SIGMA), lambda x, y: 2.5 * _imq(x, y)),
    "multiple of linear": (Linear(0.7) * 0.5, lambda x, y: 0.5 * _linear(x, y)),
    "sum": (RBF(SIGMA) + Matern(SIGMA), lambda x, y: _rbf(x, y) + _matern_3(x, y)),
    "sum with linear": (Linear(0.7) + IMQ(SIGMA), lambda x, y: _linear(x, y) + _imq(x, y)),
    "product": (RBF(SIGMA) * IMQ(SIGMA), lambda x, y: _rbf(x, y) * _imq(x, y)),
    "product of Gaussians": (2 * RBF(SIGMA) * RBF(FixedBandwidth(1.8)), lambda x, y: 2 * _rbf(x, y) ** 1.25),
    "product with linear": (Linear(0.7) * RBF(SIGMA), lambda x, y: _linear(x, y) * _rbf(x, y)),
    "square of linear": (Linear(0.7) * Linear(0.7), lambda x, y: _linear(x, y) ** 2),
    "nested": (
        (0.5 * Linear(0.7) + IMQ(SIGMA)) * (Linear(0.7) + Matern(SIGMA, 2.5)),
        lambda x, y: (0.5 * _linear(x, y) + _imq(x, y)) * (_linear(x, y) + _matern_5(x, y)),
    ),
    "not smooth": (Matern(SIGMA, 0.5) * (RBF(SIGMA) + 1.0 * Linear(0.7)), None),
}
SMOOTH = [name for name in KERNELS if name not in ("matern 0.5", "not smooth")]
FORMULAS = [name for name in KERNELS if name != "not smooth"]
GIVEN = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 0.4]])
MATRICES = {"preconditioned": Preconditioned(RBF(SIGMA)), "preconditioned by": Preconditioned(IMQ(SIGMA), GIVEN)}
EVERY = {name: kernel for name, (kernel, _) in KERNELS.items()} | MATRICES
# One of each code path, where a compilation a kernel would take long.
SOME = ["rbf", "imq", "matern 0.5", "matern 1.5", "matern 2.5", "linear", "nested", *MATRICES]
# What depends on data, so that `fitted` has something to do.
LOOSE = {
    "imq": IMQ(),
    "matern": Matern(smoothness=0.5),
    "sum": RBF() + 0.3 * IMQ(flowrl.ScottBandwidth()),
    "product": Linear() * Matern(flowrl.SilvermanBandwidth(), 2.5),
    "preconditioned": Preconditioned(),
    "preconditioned by": Preconditioned(2.0 * Matern(), GIVEN),
}


def _autodiff(formula, x, y):
    """k, ∇_x k, ∇_y k and ∇_x·∇_y k at all pairs in double precision, whatever the precision of this run."""
    grad_x, grad_y = jax.grad(formula, 0), jax.grad(formula, 1)
    trace = lambda a, b: jnp.trace(jax.jacfwd(grad_x, 1)(a, b))

    def each(a, b):
        return formula(a, b), grad_x(a, b), grad_y(a, b), trace(a, b)

    with jax.enable_x64(True):  # noqa: FBT003
        x, y = jnp.asarray(np.asarray(x, np.float64)), jnp.asarray(np.asarray(y, np.float64))
        out = jax.jit(jax.vmap(jax.vmap(each, (None, 0)), (0, None)))(x, y)
        return [np.asarray(leaf) for leaf in out]


def _centred(x, *others):
    shift = np.asarray(x, np.float64).mean(axis=0)
    return [np.asarray(leaf, np.float64) - shift for leaf in (x, *others)]


def _compare(got, want):
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=scale * tolerance(1e-12, 2e-5))


# Against autodiff


@pytest.mark.parametrize("name", FORMULAS)
def test_everything_agrees_with_autodiff_of_the_formula(name):
    kernel, formula = KERNELS[name]
    x, y, score_x, score_y = draw(0, (7, 3)), draw(1, (5, 3)), draw(2, (7, 3)), draw(3, (5, 3))
    weights = draw(4, (5, 2))
    a, b = _centred(x, y)
    value, grad_x, grad_y, trace = _autodiff(formula, a, b)

    jet = kernel.jet(_pairs(jnp.asarray(a, FLOAT), jnp.asarray(b, FLOAT)))
    radial, linear = np.asarray(jet.radial), np.zeros_like(value) if jet.linear is None else np.asarray(jet.linear)
    apart = a[:, None, :] - b[None, :, :]
    _compare(jet.value, value)
    _compare(radial[..., None] * apart + linear[..., None] * b[None], grad_x)
    _compare(-radial[..., None] * apart + linear[..., None] * a[:, None], grad_y)
    if jet.rate is not None:
        _compare(jet.rate * jet.value, radial)
    assert {leaf.dtype for leaf in jax.tree.leaves(jet)} == {jnp.dtype(FLOAT)}

    _compare(kernel.gram(x, y), value)
    _compare(kernel.apply(x, y, weights), value @ np.asarray(weights))
    _compare(kernel.gradient(x, y, weights[:, 0]), np.einsum("ijk,j->ik", grad_x, np.asarray(weights[:, 0])))
    if name not in SMOOTH:
        assert jet.trace is None
        return
    _compare(jet.trace, trace)
    stein = np.zeros_like(value)
    for i, s in enumerate(np.asarray(score_x, np.float64)):
        for j, t in enumerate(np.asarray(score_y, np.float64)):
            stein[i, j] = s @ t * value[i, j] + s @ grad_y[i, j] + t @ grad_x[i, j] + trace[i, j]
    _compare(kernel.stein_gram(x, score_x, y, score_y), stein)


DEAD = np.array([True, True, False, True, True, False, True])


@pytest.mark.parametrize("name", FORMULAS)
def test_the_stein_direction_agrees_with_loops_and_the_dead_have_no_part(name):
    kernel, formula = KERNELS[name]
    x, gradient, temperature = draw(5, (7, 3)), draw(6, (7, 3)), 0.7
    (a,) = _centred(x[DEAD])
    value, grad_x, _, _ = _autodiff(formula, a, a)
    g, want = np.asarray(gradient[DEAD], np.float64), np.zeros_like(a)
    for i in range(len(a)):
        for j in range(len(a)):
            want[i] += (value[j, i] * g[j] + temperature * grad_x[j, i]) / len(a)
    spoilt = x.at[~DEAD].set(jnp.nan)
    got = np.asarray(kernel.stein(spoilt, gradient, jnp.asarray(DEAD), jnp.asarray(temperature, FLOAT)))
    _compare(got[DEAD], want)
    assert np.all(got[~DEAD] == 0)


def _matrix_formula(formula, covariance):
    with jax.enable_x64(True):  # noqa: FBT003
        whiten = jnp.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))
        matrix = jnp.asarray(covariance)
    return lambda x, y: matrix * formula(whiten @ x, whiten @ y)


def _matrix_autodiff(formula, covariance, x, y):
    """K, ∇_x·K, ∇_y·K and Σ_ab ∂²K_ab/∂x_a∂y_b at all pairs; the divergences are over the second and first index."""
    matrix = _matrix_formula(formula, covariance)

    def each(a, b):
        second = jax.jacfwd(jax.jacfwd(matrix, 0), 1)(a, b)
        at_x = jnp.einsum("abb->a", jax.jacfwd(matrix, 0)(a, b))
        at_y = jnp.einsum("abb->a", jax.jacfwd(matrix, 1)(a, b))
        return matrix(a, b), at_x, at_y, jnp.einsum("abab->", second)

    with jax.enable_x64(True):  # noqa: FBT003
        out = jax.jit(jax.vmap(jax.vmap(each, (None, 0)), (0, None)))(jnp.asarray(x), jnp.asarray(y))
        return [np.asarray(leaf) for leaf in out]


@pytest.mark.thorough
@pytest.mark.parametrize("name", MATRICES)
def test_the_matrix_kernel_agrees_with_autodiff_of_its_formula(name):
    kernel, formula = MATRICES[name], _rbf if name == "preconditioned" else _imq
    x, gradient, temperature = draw(5, (7, 3)), draw(6, (7, 3)), 0.7
    y, score_y = draw(7, (4, 3)), draw(8, (4, 3))
    a, b = _centred(x[DEAD], y)
    covariance = np.cov(a.T) if name == "preconditioned" else GIVEN
    value, at_x, _, _ = _matrix_autodiff(formula, covariance, a, a)
    g = np.asarray(gradient[DEAD], np.float64)
    want = (np.einsum("jiab,jb->ia", value, g) + temperature * at_x.sum(axis=0)) / len(a)
    spoilt = x.at[~DEAD].set(jnp.nan)
    got = np.asarray(kernel.stein(spoilt, gradient, jnp.asarray(DEAD), jnp.asarray(temperature, FLOAT)))
    _compare(got[DEAD], want)
    assert np.all(got[~DEAD] == 0)

    value, at_x, at_y, trace = _matrix_autodiff(formula, covariance, a, b)
    t = np.asarray(score_y, np.float64)
    want = np.einsum("ia,ijab,jb->ij", g, value, t) + trace
    want += np.einsum("ia,ija->ij", g, at_y) + np.einsum("ja,ija->ij", t, at_x)
    _compare(kernel.stein_gram(x[DEAD], gradient[DEAD], y, score_y), want)


@pytest.mark.parametrize("smoothness", [1.5, 2.5])
def test_the_trace_of_matern_is_its_limit_at_coincident_points(smoothness):
    kernel, formula = KERNELS[f"matern {smoothness}"]
    x = np.zeros((1, 3))
    near = [_autodiff(formula, x, x + np.array([[h, 0, 0]]))[3][0, 0] for h in (2e-4, 1e-4)]
    here = kernel.jet(_pairs(jnp.asarray(x, FLOAT), jnp.asarray(x, FLOAT)))
    limit = 2 * near[1] - near[0]
    assert float(here.trace[0, 0]) == pytest.approx(limit, rel=tolerance(1e-6, 1e-5))
    assert limit == pytest.approx(3 * {1.5: 3, 2.5: 5 / 3}[smoothness] / 0.81, rel=1e-6)


def test_laplace_has_no_direction_at_coincident_points_that_rounding_tears_apart():
    x = draw(9, (30, 3), jnp.float32) + 3.0
    jet = Matern(SIGMA, 0.5).jet(_pairs(x, x + 0))
    assert np.all(np.diag(jet.radial) == 0)
    assert np.all(np.diag(jet.value) == 1)


@pytest.mark.parametrize("name", ["imq", "matern 2.5"])
def test_sigma_is_the_width_of_the_rbf(name):
    # 1 − |x − y|²/2σ² near the diagonal for IMQ; Matérn's curvature there is ν/(ν − 1) as large.
    value = float(KERNELS[name][1](jnp.zeros(1, FLOAT), jnp.full(1, 0.05, FLOAT)))
    curvature = (1 - value) * 2 * 0.81 / 0.05**2
    assert curvature == pytest.approx({"imq": 1.0, "matern 2.5": 5 / 3}[name], rel=0.03)


# Matrices, blocks, invariances


@pytest.mark.parametrize("name", EVERY)
def test_gram_matrices_are_positive_semi_definite(name):
    kernel = EVERY[name]
    x = draw(10, (12, 3))
    x, score = jnp.concatenate([x, x[:2]]), draw(11, (14, 3))
    matrices = [] if name in MATRICES else [kernel.gram(x, x)]
    if name not in ("matern 0.5", "not smooth"):
        matrices.append(kernel.stein_gram(x, score, x, score))
    for matrix in matrices:
        matrix = np.asarray(matrix, np.float64)
        np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=np.abs(matrix).max() * tolerance(1e-13, 1e-5))
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        assert values[0] > -tolerance(1e-12, 1e-4) * values[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["rbf", "imq", "sum with linear", "product with linear", "preconditioned by"])
def test_rows_in_blocks_give_the_same_sums(name, at_most_entries):
    kernel, n = EVERY[name], 23
    x, gradient, alive = draw(12, (n, 3)), draw(13, (n, 3)), jnp.arange(n) != 4

    def sums():
        out = [kernel.stein(x, gradient, alive, jnp.asarray(0.7, FLOAT))]
        if name not in MATRICES:
            out += [kernel.apply(x, x, gradient), kernel.gradient(x, x, gradient[:, 0])]
        return out

    dense = sums()
    at_most_entries(8 * n)
    assert_close(sums(), dense, rtol=0, atol=tolerance(1e-12, 2e-3))


@pytest.mark.thorough
@pytest.mark.parametrize("name", SOME)
def test_single_precision_survives_an_offset_of_a_thousand(name):
    kernel, temperature = EVERY[name], jnp.asarray(0.7, jnp.float32)
    # On a grid, so that the offset itself rounds nothing.
    x = jnp.round(draw(14, (7, 3), jnp.float32) * 2**12) / 2**12
    score = draw(15, (7, 3), jnp.float32)

    def everything(x):
        out = [kernel.stein(x, score, EVERYONE, temperature)]
        if name not in MATRICES:
            out.append(kernel.gram(x, x))
        if name not in ("matern 0.5", "not smooth"):
            out.append(kernel.stein_gram(x, score, x, score))
        return out

    here, there = everything(x), everything(x + 1000)
    assert {leaf.dtype for leaf in here} == {jnp.dtype(jnp.float32)}
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-4 * max(1.0, np.abs(np.asarray(a)).max()))


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*(f"fixed {name}" for name in SOME if name != "preconditioned by"), *LOOSE])
def test_one_particle_and_coincident_particles(name):
    kernel = EVERY[name.removeprefix("fixed ")] if name.startswith("fixed ") else LOOSE[name]
    for shape in ((1, 1), (7, 3)):
        x, g = jnp.full(shape, 3.0, FLOAT), draw(16, shape)
        if name == "preconditioned by":
            kernel = Preconditioned(2.0 * Matern(), np.eye(shape[1]))
        alive, temperature = jnp.ones(shape[0], bool), jnp.asarray(1.0, FLOAT)
        velocity = np.asarray(kernel.stein(x, g, alive, temperature))
        # All gradients of a kernel about the mean vanish there, so each moves by k(0, 0) times the mean gradient.
        diagonal = 1.0 if isinstance(kernel, Preconditioned) else float(kernel.gram(x[:1], x[:1])[0, 0])
        diagonal = 2.0 if name == "preconditioned by" else diagonal
        want = np.broadcast_to(diagonal * np.asarray(g).mean(axis=0), shape)
        np.testing.assert_allclose(velocity, want, rtol=0, atol=tolerance(1e-12, 1e-5))
        assert np.all(np.asarray(kernel.stein(x, g, ~alive, temperature)) == 0)


@pytest.mark.parametrize("name", LOOSE)
def test_fitted_kernels_are_those_of_the_particles(name):
    kernel, x, g = LOOSE[name], draw(17, (7, 3)), draw(18, (7, 3))
    alive, temperature = jnp.asarray(DEAD), jnp.asarray(0.7, FLOAT)
    spoilt = x.at[~DEAD].set(jnp.nan)
    fitted = kernel.fitted(spoilt, alive)
    moves = kernel.stein(spoilt, g, alive, temperature)
    assert_close(fitted.stein(spoilt, g, alive, temperature), moves, atol=tolerance(1e-12, 1e-5))
    # And stay what they are elsewhere.
    wide = x * jnp.asarray([[1.0, 2.0, 5.0]], FLOAT)
    moved = fitted.stein(wide, g, alive, temperature)
    assert_close(fitted.fitted(wide, alive).stein(wide, g, alive, temperature), moved, atol=tolerance(1e-12, 1e-5))
    assert not np.allclose(kernel.stein(wide, g, alive, temperature), moved, atol=1e-3)
    if name != "matern":
        everyone = jnp.ones(7, bool)
        want = kernel.fitted(x, everyone).stein_gram(x, g, wide, g)
        assert_close(kernel.stein_gram(x, g, wide, g), want, atol=tolerance(1e-9, 1e-3))


# Stein's identity: the Stein kernel has mean zero under the distribution whose score it is made with.


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*SMOOTH, "preconditioned", "by"])
def test_the_mean_of_the_stein_kernel_over_exact_samples_is_zero(name):
    covariance = jnp.asarray([[1.5, 0.4], [0.4, 0.5]], FLOAT)
    kernel = Preconditioned(IMQ(SIGMA), covariance) if name == "by" else EVERY[name]
    points, samples = draw(19, (6, 2)), draw(20, (20_000, 2))
    rows = np.asarray(kernel.stein_gram(points, -points, samples, -samples), np.float64)
    error = rows.std(axis=1) / np.sqrt(rows.shape[1])
    assert np.all(np.abs(rows.mean(axis=1)) < 4 * error)
    # A score of another distribution has no such mean, so the test can fail.
    rows = np.asarray(kernel.stein_gram(points, -points, samples, -2.0 * samples), np.float64)
    assert np.any(np.abs(rows.mean(axis=1)) > 6 * rows.std(axis=1) / np.sqrt(rows.shape[1]))


def test_the_linear_kernel_gives_a_normal_its_exact_moments():
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    precision, centre = jnp.asarray(np.linalg.inv(covariance), FLOAT), jnp.asarray([3.0, -1.0], FLOAT)
    target = flowrl.Density(lambda p, c, x: -0.5 * jnp.vdot(x - c, p @ (x - c)), precision, centre)
    start = draw(21, (5, 2))
    got = flowrl.transport(target, start, flowrl.Budget(600, 0.1), flow=flowrl.SVGD(Linear())).particles
    np.testing.assert_allclose(np.mean(got, axis=0), centre, atol=tolerance(1e-8, 1e-4))
    np.testing.assert_allclose(np.cov(np.asarray(got).T, bias=True), covariance, atol=tolerance(1e-8, 1e-3))


# Numbers are arrays, and everything can be differentiated


def test_new_numbers_never_retrace():
    count = []

    @eqx.filter_jit
    def moves(kernel, x):
        count.append(1)
        return kernel.stein(x, -x, jnp.ones(x.shape[0], bool), jnp.ones((), x.dtype))

    def kernels(a, b):
        scalar = a * IMQ(FixedBandwidth(b), -b) + Linear(a) * Matern(FixedBandwidth(a))
        return scalar, Preconditioned(RBF(FixedBandwidth(a)), b * np.eye(2))

    x = draw(22, (4, 2))
    numbers = ((1.5, 0.5), (2, 0.25), (np.float32(0.5), np.float64(0.75)), (np.array(3.0), jnp.asarray(0.3, FLOAT)))
    moved = [[np.asarray(moves(kernel, x)) for kernel in kernels(a, b)] for a, b in numbers]
    assert len(count) == 2
    assert not np.allclose(moved[0][0], moved[1][0])
    assert not np.allclose(moved[0][1], moved[1][1])
    # What is static is another program.
    moves(Matern(FixedBandwidth(1.0), 1.5), x)
    moves(Matern(FixedBandwidth(1.0), 2.5), x)
    assert len(count) == 4


def test_numbers_may_be_traced():
    @jax.jit
    def gram(c, exponent, covariance, x):
        kernel = c * IMQ(FixedBandwidth(c), exponent) + Linear(c)
        matrix = Preconditioned(kernel, covariance).stein_gram(x, -x, x, -x)
        return matrix, jnp.asarray(2, x.dtype) * kernel.gram(x, x)

    x = draw(23, (4, 3))
    matrix, scalar = gram(jnp.asarray(1.2, FLOAT), jnp.asarray(-0.3, FLOAT), jnp.asarray(GIVEN, FLOAT), x)
    kernel = 1.2 * IMQ(FixedBandwidth(1.2), -0.3) + Linear(1.2)
    assert_close(matrix, Preconditioned(kernel, GIVEN).stein_gram(x, -x, x, -x), atol=tolerance(1e-11, 1e-3))
    assert_close(scalar, 2 * kernel.gram(x, x), atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("name", [name for name in SOME if name not in ("rbf", "matern 2.5", "linear")])
def test_reverse_mode_is_finite_and_right(name):
    kernel, alive = EVERY[name], jnp.asarray(DEAD)
    x = draw(24, (7, 3))
    x = x.at[1].set(x[0]).at[~DEAD].set(jnp.nan)  # coincident particles, and dead ones that are nowhere
    g, direction = draw(25, (7, 3)), draw(26, (7, 3))

    @jax.jit
    def loss(x):
        v = kernel.stein(x, g, alive, jnp.asarray(0.7, FLOAT))
        total = jnp.sum(v**2)
        if name not in ("matern 0.5", "not smooth"):
            living = x[jnp.asarray(np.flatnonzero(DEAD))]
            total = total + jnp.mean(kernel.stein_gram(living, -living, living, -living))
        return total

    gradient = np.asarray(jax.jit(jax.grad(loss))(x))
    assert np.isfinite(gradient).all()
    assert np.all(gradient[~DEAD] == 0)
    if X64 and name in ("imq", "preconditioned by"):
        # The others have a kink where particles coincide, or the fit and the mean are constants to autodiff alone.
        step = 1e-6 * direction
        slope = float(loss(x + step) - loss(x - step)) / 2e-6
        assert slope == pytest.approx(np.sum(gradient[DEAD] * np.asarray(direction)[DEAD]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["matern 0.5", "nested", "preconditioned by", "median preconditioned"])
def test_svgd_takes_every_kernel(name):
    kernel = EVERY.get(name, Preconditioned())
    x = draw(27, (30, 3))
    kernel = 0.2 * kernel if isinstance(kernel, flowrl.AbstractScalarKernel) else kernel
    flow = flowrl.SVGD(kernel)
    got = flowrl.transport(NORMAL, 0.5 * x + 2, flowrl.Budget(50, 0.1), flow=flow).particles
    assert np.linalg.norm(np.mean(got, axis=0)) < np.linalg.norm(np.mean(0.5 * x + 2, axis=0))


# Preconditioning


def _rotated(d, condition, seed=0):
    """A factor B of the covariance of a normal, and its log density's precision."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    widths = np.geomspace(1, np.sqrt(condition), d)
    return rotation * widths, (rotation / widths**2) @ rotation.T


def _bilinear(precision, x):
    return -0.5 * jnp.vdot(x, precision @ x)


@pytest.mark.skipif(not X64, reason="a condition of 1e4 is squared on the way")
@pytest.mark.thorough
def test_a_rotated_normal_of_condition_1e4_is_as_easy_as_a_round_one():
    factor, precision = _rotated(10, 1e4)
    target, budget = flowrl.Density(_bilinear, jnp.asarray(precision)), flowrl.Budget(600, 1.0)
    start = 2 * np.random.default_rng(1).normal(size=(100, 10))

    def error(target, start, whiten, kernel):
        moved = flowrl.transport(target, jnp.asarray(start), budget, flow=flowrl.SVGD(kernel)).particles
        return np.linalg.norm(np.cov((np.asarray(moved) @ whiten.T).T) - np.eye(10), 2)

    plain = error(flowrl.Density(_bilinear, jnp.eye(10)), start, np.eye(10), RBF())
    assert plain < 0.1
    whiten, wide = np.linalg.inv(factor), start @ factor.T
    for kernel in (Preconditioned(), Preconditioned(covariance=factor @ factor.T)):
        assert error(target, wide, whiten, kernel) < 1.1 * plain
    # Also from a round start, of twice the least width: the shape of the target is not given away.
    assert error(target, start, whiten, Preconditioned()) < 1.5 * plain
    # Without it the widest direction, with a curvature of 1e-4, is still far from its width.
    assert error(target, start, whiten, RBF()) > 0.5


@pytest.mark.parametrize("kernel", [RBF(), IMQ(), Matern(flowrl.ScottBandwidth()), Linear() + RBF(SIGMA)])
def test_preconditioned_moves_follow_affine_maps(kernel):
    x, g = draw(28, (7, 3)), draw(29, (7, 3))
    matrix = np.array([[3.0, 1.0, 0.0], [0.0, 0.2, 0.5], [-1.0, 0.0, 2.0]])
    alive, temperature = jnp.asarray(DEAD), jnp.asarray(0.7, FLOAT)
    here = np.asarray(Preconditioned(kernel).stein(x, g, alive, temperature), np.float64)
    mapped = jnp.asarray(np.asarray(x, np.float64) @ matrix.T + 5.0, FLOAT)
    pulled = jnp.asarray(np.asarray(g, np.float64) @ np.linalg.inv(matrix), FLOAT)
    there = Preconditioned(kernel).stein(mapped, pulled, alive, temperature)
    want = here @ matrix.T
    np.testing.assert_allclose(there, want, rtol=0, atol=np.abs(want).max() * tolerance(1e-12, 5e-4))
    # The Stein kernel is a number, and does not change.
    gram = np.asarray(Preconditioned(kernel).stein_gram(x, g, x, g), np.float64)
    again = Preconditioned(kernel).stein_gram(mapped, pulled, mapped, pulled)
    np.testing.assert_allclose(again, gram, rtol=0, atol=np.abs(gram).max() * tolerance(1e-12, 5e-4))


def test_the_identity_as_covariance_changes_nothing():
    x, alive = draw(30, (7, 3)), EVERYONE
    plain = IMQ().stein(x, -x, alive, jnp.asarray(0.7, FLOAT))
    assert_close(Preconditioned(IMQ(), np.eye(3)).stein(x, -x, alive, jnp.asarray(0.7, FLOAT)), plain, atol=1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.skipif(not X64, reason=""))]
)
def test_fewer_particles_than_coordinates_stay_finite(dtype):
    everyone, one = jnp.ones(4, bool), jnp.ones((), dtype)
    moves = jax.jit(lambda x: Preconditioned().stein(x, -x, everyone, one))
    few = draw(31, (4, 10), dtype)
    flat = few.at[:, 3].set(1.0).at[:, 5].set(few[:, 4])  # one coordinate shared by all, two that are the same
    for start in (few, flat, flat.at[1].set(flat[0])):
        x = start
        for _ in range(50):
            x = x + 0.1 * moves(x)
        assert x.dtype == dtype
        assert np.isfinite(x).all()
        assert np.linalg.norm(np.mean(x, axis=0)) < np.linalg.norm(np.mean(start, axis=0))
    assert np.isfinite(jax.grad(lambda x: jnp.sum(moves(x) ** 2))(flat)).all()
    gram = jax.jit(lambda x: Preconditioned().stein_gram(x, -x, x, -x))
    assert np.isfinite(gram(flat)).all()


@pytest.mark.thorough
def test_the_units_of_the_coordinates_do_not_matter_even_in_single_precision():
    x, g = draw(32, (20, 3), jnp.float32), draw(33, (20, 3), jnp.float32)
    unit = jnp.asarray([[2.0**-30, 1.0, 2.0**25]], jnp.float32)
    moves = lambda x, g: Preconditioned().stein(x, g, jnp.ones(20, bool), jnp.ones((), jnp.float32))
    assert_close(moves(x * unit, g / unit), moves(x, g) * unit, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.skipif(not X64, reason=""))]
)
def test_whitening_is_forward_substitution_at_every_size(dtype):
    """The ways of few, of halved and of many coordinates, at a covariance of condition 1e4, against long doubles."""
    for d in (3, 49, 129):
        factor, _ = _rotated(d, 1e4)
        factor = jnp.asarray(np.linalg.cholesky(factor @ factor.T), dtype)
        x = (np.random.default_rng(d).normal(size=(7, d)) @ np.asarray(factor, np.float64).T).astype(dtype)
        wide, rows = np.asarray(factor, np.longdouble), x.astype(np.longdouble)
        z = np.zeros_like(rows)
        for i in range(d):
            z[:, i] = (rows[:, i] - z[:, :i] @ wide[i, :i]) / wide[i, i]
        error = np.abs(np.asarray(_whiten(factor, jnp.asarray(x)), np.longdouble) - z).max() / np.abs(z).max()
        assert error < 1e3 * np.finfo(dtype).eps, d


def test_half_precision_has_a_factor_too():
    x = draw(34, (8, 3), jnp.bfloat16)
    moves = Preconditioned(RBF(SIGMA)).stein(x, -x, jnp.ones(8, bool), jnp.ones((), jnp.bfloat16))
    assert moves.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(moves, np.float32)).all()


# Bandwidth rules


@pytest.mark.parametrize("d", [1, 4])
def test_the_rules_of_thumb(d):
    x, alive = draw(35, (9, d)), np.arange(9) != 2
    spoilt = x.at[2].set(jnp.nan)
    living = np.asarray(x, np.float64)[alive]
    s, n = np.sqrt(np.var(living, axis=0, ddof=1).mean()), 8
    wanted = {
        flowrl.ScottBandwidth(): s * n ** (-1 / (d + 4)),
        flowrl.SilvermanBandwidth(): s * (n * (d + 2) / 4) ** (-1 / (d + 4)),
    }
    for rule, sigma in wanted.items():
        fitted = RBF(rule).fitted(spoilt, jnp.asarray(alive)).bandwidth
        assert float(fitted.sigma) == pytest.approx(sigma, rel=tolerance(1e-12, 1e-5))
        for same in (jnp.ones((5, d), FLOAT), jnp.ones((1, d), FLOAT)):
            assert float(rule(same, jnp.ones(len(same), bool))) == 1
        assert same_bits(rule(x, jnp.zeros(9, bool)), jnp.ones((), FLOAT))
        gradient = jax.grad(lambda x, rule=rule: rule(x, jnp.ones(9, bool)))(x)
        assert np.all(np.asarray(gradient) == 0)


def test_kernels_take_the_rules():
    x = draw(36, (8, 2))
    squared = np.stack([distances(np.broadcast_to(a, (8, 2)), x) for a in np.asarray(x)]) ** 2
    s = np.sqrt(np.var(np.asarray(x, np.float64), axis=0, ddof=1).mean())
    want = 1 / np.sqrt(1 + squared / (s * 8 ** (-1 / 6)) ** 2)
    np.testing.assert_allclose(IMQ(flowrl.ScottBandwidth()).gram(x, x), want, rtol=tolerance(1e-10, 1e-4))


# Errors


@pytest.mark.parametrize("name", ["matern 0.5", "not smooth"])
def test_a_kernel_with_a_kink_has_no_stein_kernel(name):
    x = draw(37, (4, 3))
    kernel = EVERY[name]
    for rough in (kernel, kernel + RBF(), RBF() * kernel, 2.0 * kernel, Preconditioned(kernel)):
        with pytest.raises(TypeError, match=r"infinite at coincident points.*Matern\(smoothness=1\.5\)"):
            rough.stein_gram(x, -x, x, -x)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: IMQ(SIGMA, 0.0), ValueError, r"exponent must be in \(-1, 0\), got 0"),
        (lambda: IMQ(SIGMA, -1), ValueError, r"exponent must be in \(-1, 0\), got -1"),
        (lambda: IMQ(SIGMA, np.nan), ValueError, "got nan"),
        (lambda: IMQ(SIGMA, jnp.full(2, -0.5)), ValueError, r"one number, got shape \(2,\)"),
        (lambda: Matern(SIGMA, 1.0), ValueError, r"one of \(0.5, 1.5, 2.5\), got 1.0"),
        (lambda: Matern(SIGMA, jnp.asarray(1.5)), TypeError, "smoothness"),
        (lambda: Linear(-1.0), ValueError, "offset must be >= 0 and finite, got -1"),
        (lambda: Linear(np.inf), ValueError, "offset must be >= 0 and finite, got inf"),
        (lambda: -1 * RBF(), ValueError, "must be > 0 and finite, got -1"),
        (lambda: RBF() * 0.0, ValueError, "must be > 0 and finite, got 0"),
        (lambda: np.array([1.0, 2.0]) * RBF(), ValueError, r"must be one number, got shape \(2,\)"),
        (lambda: True * RBF(), TypeError, "must be a real number, got dtype bool"),
        (lambda: RBF() * (1 + 1j), TypeError, "unsupported operand"),
        (lambda: "a" * RBF(), TypeError, "RBF"),
        (lambda: RBF() + 1, TypeError, "RBF"),
        (lambda: RBF() + Preconditioned(), TypeError, "RBF"),
        (lambda: Preconditioned(Preconditioned()), TypeError, "kernel"),
        (lambda: Preconditioned(covariance=np.ones(3)), ValueError, r"square matrix \(d, d\), got shape \(3,\)"),
        (lambda: Preconditioned(covariance=np.ones((2, 3))), ValueError, r"got shape \(2, 3\)"),
        (lambda: Preconditioned(covariance=np.array([[1.0, 0.5], [0.0, 1.0]])), ValueError, "symmetric"),
        (lambda: Preconditioned(covariance=np.full((2, 2), np.nan)), ValueError, "finite"),
        (lambda: Preconditioned(covariance=np.array([[1.0, 2.0], [2.0, 1.0]])), ValueError, "least eigenvalue is -1"),
    ],
)
def test_misuse_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.thorough
def test_a_matrix_of_another_size_is_refused():
    x = draw(38, (7, 2))
    with pytest.raises(ValueError, match=r"covariance has shape \(3, 3\), but one particle has 2 coordinates"):
        Preconditioned(covariance=GIVEN).stein(x, x, EVERYONE, jnp.ones((), FLOAT))


MEDIANS = """
import jax, jax.numpy as jnp, numpy as np
from flowrl import RBF
for n in (5, 12, 20):
    sets = jnp.asarray(np.random.default_rng(n).normal(size=(200, n, 1)), jnp.float32)
    median = lambda x: RBF().fitted(x, jnp.ones(n, bool)).bandwidth.sigma
    upper = np.triu_indices(n, 1)
    exact = np.asarray([np.median((np.asarray(x, float) - np.asarray(x, float).T)[upper] ** 2) for x in sets])
    together = np.asarray(jax.jit(jax.vmap(median))(sets), float) ** 2
    np.testing.assert_allclose(together / together[0], exact / exact[0], rtol=1e-4)
"""


@pytest.mark.thorough
def test_medians_of_many_sets_at_once_are_those_of_each():
    """In a process with XLA's optimisation, which computes entries again after the loop that counts them."""
    settings = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", MEDIANS], env=settings, check=True)
