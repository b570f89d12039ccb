"""Diffusions against the closed forms of their Euler-Maruyama schemes on Gaussians and against their symmetries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, linear, log_normal, quadratic, same_bits, tolerance, walled

import flowrl

pytestmark = pytest.mark.thorough  # Monte Carlo and compilation

FLOWS = {"langevin": flowrl.Langevin(), "aldi": flowrl.ALDI()}
NORMAL = flowrl.Density(log_normal)
STATISTICS = jnp.float32
"""Monte-Carlo errors are far above its rounding, and its random numbers cost half."""


def _bowl(mean, precision, x):
    return -0.5 * jnp.vdot(x - mean, precision @ (x - mean))


def _gaussian(d, condition):
    """A mean, orthonormal directions and the precisions along them, between 1/condition and 1."""
    rng = np.random.default_rng(d)
    directions = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=d), directions, np.geomspace(1 / condition, 1, d) if d > 1 else np.ones(1)


def _target(mean, directions, eigenvalues):
    precision = (directions * eigenvalues[None]) @ directions.T
    return flowrl.Boltzmann(_bowl, jnp.asarray(mean, STATISTICS), jnp.asarray(precision, STATISTICS))


def _has_moments(sample, mean, variance, slack=0.0, errors=5.0):
    """Whether independent Gaussian coordinates have this mean and covariance, entry by entry, up to standard errors."""
    n = len(sample)
    unit = np.sqrt(variance)
    assert np.all(np.abs(sample.mean(axis=0) - mean) <= unit * (errors / np.sqrt(n) + slack))
    deviations = (sample - sample.mean(axis=0)) / unit
    covariance = deviations.T @ deviations / n
    error = errors * np.sqrt((1 + np.eye(len(unit))) / n) + slack
    assert np.all(np.abs(covariance - np.eye(len(unit))) <= error)


def _view(target, temperature=1.0, d=2, dtype=None):
    dtype = dtype or FLOAT
    ones = jnp.ones((1, d), dtype)
    return flowrl.TargetView(
        jnp.asarray(temperature, dtype), None, None, target, flowrl.Unbounded(), ones, entropic=True, unravel=_same
    )


def _same(x):
    return x


@eqx.filter_jit
def _drift(flow, view, x, alive=None):
    return flow.velocity(view, x, jnp.ones(x.shape[0], bool) if alive is None else alive)


@eqx.filter_jit
def _noise(flow, view, x, white, alive=None):
    return flow.noise(view, x, jnp.ones(x.shape[0], bool) if alive is None else alive, white)


# Moments


@pytest.mark.parametrize("d", [1, 2, 10, 50])
def test_langevin_has_the_moments_of_its_euler_scheme(d, key):
    n, steps, step_size, temperature = 10_000, 30, 0.2, 0.7
    mean, directions, eigenvalues = _gaussian(d, 10)
    start = np.full((1, d), 2.0)
    solution = flowrl.transport(
        _target(mean, directions, eigenvalues),
        jnp.broadcast_to(jnp.asarray(start, STATISTICS), (n, d)),
        flowrl.Budget(steps, step_size, temperature),
        flow=flowrl.Langevin(),
        key=key,
    )
    # Along an eigenvector of the precision, z ← (1 − ελ) z + √(2αε) w; for many steps the variance is α/λ(1 − ελ/2).
    decay = 1 - step_size * eigenvalues
    centre = (mean + decay**steps * ((start - mean) @ directions) @ directions.T) @ directions
    variance = 2 * temperature * step_size * (1 - decay ** (2 * steps)) / (1 - decay**2)
    np.testing.assert_allclose(2 * step_size / (1 - decay**2), 1 / (eigenvalues * (1 - step_size * eigenvalues / 2)))
    _has_moments(np.asarray(solution.particles, np.float64) @ directions, centre[0], variance)


@pytest.mark.parametrize(("d", "n"), [(1, 10_000), (2, 10_000), (10, 2000), (50, 10_000)])
def test_aldi_has_the_moments_of_its_euler_scheme_whatever_the_condition(d, n, key):
    mean, directions, eigenvalues = _gaussian(d, 1e4)
    target, temperature, last = _target(mean, directions, eigenvalues), 0.7, 0.07
    # Steps grow while the set contracts: ε times the largest eigenvalue of C P stays near 1/2.
    steps = 60 if d == 50 else 110  # the costly one starts near its end
    sizes = np.minimum(last, 0.5e-4 * 1.25 ** np.arange(50 if d == 50 else 0, steps + 50)[:steps])
    budget = flowrl.Budget(steps, sizes, temperature)
    width = np.sqrt(temperature / eigenvalues)
    shape = directions * width[None]
    white = np.asarray(draw(d, (n, d)), np.float64)
    starts = {
        "of the target's shape": mean + white @ shape.T + 0.3 * shape.sum(axis=1),
        "ten times as wide": mean + 10 * white @ shape.T - 10 * shape.sum(axis=1),
        "round, as wide as the widest direction": mean + width.max() * white,
    }
    for start in list(starts.values())[: 1 if d == 50 else 3]:
        solution = flowrl.transport(target, jnp.asarray(start, STATISTICS), budget, flow=flowrl.ALDI(), key=key)
        # Where C = v α P⁻¹ at rest, one step makes v = (1 − εαv)² v + 2εαv, so 1 − εαv = √(1 − 2εα).
        v = (1 - np.sqrt(1 - 2 * last * temperature)) / (last * temperature)
        assert v == pytest.approx(1.03, abs=0.01)
        sample = np.asarray(solution.particles, np.float64) @ directions
        # The set's own finite size changes v by about d/n, and the start is forgotten as exp(−time).
        _has_moments(sample, mean @ directions, v * temperature / eigenvalues, slack=0.01)


@pytest.mark.parametrize(
    # Four particles in six dimensions keep their hull: they find the distribution in its three directions, and have in
    # the three others what their mean had at the start, the variance 1/4.
    ("n", "d", "second_moment"),
    [(8, 2, 1.0), (4, 6, (3 + 3 / 4) / 6)],
    ids=["few", "in-their-hull"],
)
def test_aldi_samples_the_exact_law_with_few_particles(n, d, second_moment, key):
    sets = 800
    start = draw(n, (sets, n, d), STATISTICS)
    budget = flowrl.Budget(150, 0.02)
    run = lambda x, k: flowrl.transport(NORMAL, x, budget, flow=flowrl.ALDI(), key=k, throw=False).particles
    sample = np.asarray(jax.jit(jax.vmap(run))(start, jr.split(key, sets)), np.float64)
    moment = (sample**2).mean(axis=(1, 2))
    # Without the correction the particles would come to rest at about n/(n + d + 1) of it.
    assert moment.mean() == pytest.approx(second_moment, abs=4 * moment.std() / np.sqrt(sets) + 0.01)


def _gamma(x):
    """Log density of Gamma(3, 1): mean 3, variance 3, excess kurtosis 2."""
    return jnp.sum(2 * jnp.log(x) - x)


@pytest.mark.parametrize("name", ["langevin", "aldi", "svgd", "blob"])
def test_a_gamma_law_through_a_map_of_the_positive_reals(name, key):
    flows = FLOWS | {"svgd": flowrl.SVGD(), "blob": flowrl.Blob(flowrl.RBF(flowrl.LogNBandwidth()))}
    n, budget = (10_000, flowrl.Budget(400, 0.05)) if name in FLOWS else (100, flowrl.Budget(300, 0.3))
    start = 3 * jnp.exp(0.5 * draw(11, (n, 1), STATISTICS))
    solution = flowrl.transport(
        flowrl.Density(_gamma), start, budget, flow=flows[name], domain=flowrl.Box(0, jnp.inf, by="bijector"), key=key
    )
    sample = np.asarray(solution.particles, np.float64)
    # Without the Jacobian these would be the moments of Gamma(2, 1), both 2. Beyond 4 Monte-Carlo errors: the bias of
    # the schemes, which is O(ε); or what 100 particles that do not wander hold of the tail.
    random, biased = (1, 0.02) if name in FLOWS else (0, 0.15)
    assert sample.mean() == pytest.approx(3, abs=4 * random * np.sqrt(3 / n) + biased)
    assert sample.var() == pytest.approx(3, abs=4 * random * 3 * np.sqrt(4 / n) + 3 * biased)


# The drift and the noise of ALDI


def _covariance(z):
    x = z - z.mean(axis=0, keepdims=True)
    return x.T @ x / len(z)


@pytest.mark.parametrize(("n", "d"), [(7, 3), (2, 1), (5, 4)])
def test_the_correction_is_the_divergence_of_the_diffusion(n, d):
    z = draw(n, (n, d))
    slope = draw(d, (d,))
    moved, _ = _drift(flowrl.ALDI(), _view(flowrl.Boltzmann(linear, slope), 0.6, d), z)
    jacobian = np.asarray(jax.jacfwd(_covariance)(z), np.float64)  # (a, b, i, c)
    divergence = np.einsum("abib->ia", jacobian)
    want = np.asarray(slope) @ np.asarray(_covariance(z)) + 0.6 * divergence
    np.testing.assert_allclose(moved, want, atol=tolerance(1e-12, 1e-5))


def _root(flow, view, x):
    """The matrix R with noise = white @ R, from its rows."""
    d = x.shape[1]
    white = jnp.zeros(x.shape, x.dtype).at[:d].set(jnp.eye(*x[:d].shape, dtype=x.dtype))
    return np.asarray(_noise(flow, view, x, white)[:d], np.float64)


def test_aldi_is_the_same_in_all_affine_coordinates():
    n, d, temperature = 9, 3, 0.6
    z = draw(0, (n, d))
    skewed = np.asarray(draw(1, (d, d)), np.float64) + 2 * np.eye(d)
    lower = np.tril(skewed, -1) + np.diag([0.01, 1.0, 30.0])
    own = _view(flowrl.Boltzmann(_bowl, jnp.ones(d, FLOAT), jnp.asarray(np.diag([1.0, 2.0, 3.0]), FLOAT)), 0.6, d)
    drift, root = np.asarray(_drift(flowrl.ALDI(), own, z)[0], np.float64), _root(flowrl.ALDI(), own, z)
    np.testing.assert_allclose(root.T @ root, 2 * temperature * _covariance(np.asarray(z)), atol=tolerance(1e-12, 1e-5))
    white = draw(2, (n, d))
    kick = np.asarray(_noise(flowrl.ALDI(), own, z, white), np.float64)
    for a in (skewed, lower):
        back = np.linalg.inv(a)
        offset = np.array([5.0, -3.0, 1.0])
        # log p'(y) = log p(A⁻¹(y − b))
        precision = back.T @ np.diag([1.0, 2.0, 3.0]) @ back
        target = flowrl.Boltzmann(_bowl, jnp.asarray(a @ np.ones(d) + offset, FLOAT), jnp.asarray(precision, FLOAT))
        view, y = _view(target, temperature, d), jnp.asarray(np.asarray(z) @ a.T + offset, FLOAT)
        size = np.abs(a).max()
        close = lambda x, y, size=size: np.testing.assert_allclose(x, y, atol=size * tolerance(1e-10, 2e-3))
        close(_drift(flowrl.ALDI(), view, y)[0], drift @ a.T)
        other = _root(flowrl.ALDI(), view, y)
        close(other.T @ other / size, a @ (root.T @ root) @ a.T / size)
        if a is lower:  # then the triangular roots correspond, and so does the noise itself
            close(_noise(flowrl.ALDI(), view, y, white), kick @ a.T)


def test_a_unit_of_length_changes_nothing_for_aldi(key):
    start = draw(3, (12, 2))
    plain, scaled = (
        flowrl.transport(NORMAL, start, flowrl.Budget(5, 0.1, scale=scale), flow=flowrl.ALDI(), key=key).particles
        for scale in (None, [0.1, 7.0])
    )
    assert_close(scaled, plain, atol=tolerance(1e-10, 1e-4))
    assert not np.allclose(plain, start, atol=0.1)


def test_the_noise_of_aldi_is_linear_and_follows_the_particles():
    x, one, two = draw(4, (6, 3)), draw(5, (6, 3)), draw(6, (6, 3))
    view = _view(NORMAL, 0.6, 3)
    noise = lambda x, white, alive=None: np.asarray(_noise(flowrl.ALDI(), view, x, white, alive))
    assert_close(noise(x, 2 * one - two), 2 * noise(x, one) - noise(x, two), atol=tolerance(1e-12, 1e-5))
    order = np.array([3, 1, 5, 0, 2, 4])
    for flip in (order, order[::-1]):  # the signs of a QR depend on the first row
        assert_close(noise(x[flip], one[flip]), noise(x, one)[flip], atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize(("n", "d"), [(1, 1), (1, 3), (3, 5), (2, 2)])
def test_sets_that_do_not_span_space_stay_in_their_hull(n, d):
    x, view = draw(n + d, (n, d)), _view(NORMAL, 0.6, d)
    moved, noise = _drift(flowrl.ALDI(), view, x)[0], _noise(flowrl.ALDI(), view, x, draw(7, (n, d)))
    hull = np.linalg.svd(x - x.mean(axis=0, keepdims=True))[2][: n - 1]
    for step in (np.asarray(moved), np.asarray(noise)):
        assert np.isfinite(step).all()
        np.testing.assert_allclose(step @ hull.T @ hull, step, atol=tolerance(1e-12, 1e-5))
    if n == 3:  # the covariance of the noise is that of the particles, whatever their number
        root = _root(flowrl.ALDI(), view, x)
        np.testing.assert_allclose(root.T @ root, 2 * 0.6 * _covariance(np.asarray(x)), atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("d", [1, 3])
def test_coincident_particles_do_not_move_by_aldi(d, key):
    particles = jnp.full((6, d), 1.5, FLOAT)
    solution = flowrl.transport(NORMAL, particles, flowrl.Budget(3, 0.1), flow=flowrl.ALDI(), key=key)
    assert_close(solution.particles, particles)
    assert int(solution.stats["nonfinite"]) == 0


# What holds for both


@pytest.mark.parametrize("name", FLOWS)
def test_the_frozen_have_no_part(name, key):
    flow, view, bad = FLOWS[name], _view(flowrl.Density(walled), 0.6), 4
    x, white = draw(8, (10, 2)).at[bad].set(jnp.asarray([9.0, jnp.nan], FLOAT)), draw(9, (10, 2))
    others = np.delete(np.arange(10), bad)
    velocity, alive = _drift(flow, view, x)
    noise = _noise(flow, view, x, white, alive)
    assert np.asarray(alive).tolist() == [i != bad for i in range(10)]
    assert np.all(np.asarray(velocity[bad]) == 0)
    assert np.all(np.asarray(noise[bad]) == 0)
    assert_close(velocity[others], _drift(flow, view, x[others])[0], atol=tolerance(1e-13, 1e-6))
    assert_close(noise[others], _noise(flow, view, x[others], white[others]), atol=tolerance(1e-13, 1e-6))
    start = draw(8, (10, 2)).at[bad].set(9.0)
    solution = flowrl.transport(flowrl.Density(walled), start, flowrl.Budget(3, 0.1), flow=flow, key=key)
    assert same_bits(solution.particles[bad], start[bad])
    assert int(solution.stats["nonfinite"]) == 1
    assert np.isfinite(solution.particles).all()


@pytest.mark.parametrize("name", FLOWS)
def test_one_set_of_many_and_far_away(name, key):
    flow, budget = FLOWS[name], flowrl.Budget(4, 0.1, 0.5)
    centres = jnp.asarray([[0.0, 0.0], [1000.0, -1000.0]], jnp.float32)
    start = draw(10, (8, 2), jnp.float32)[None] + centres[:, None]

    @jax.jit
    def one(centre, x):
        return flowrl.transport(flowrl.Boltzmann(quadratic, centre), x, budget, flow=flow, key=key).particles

    near, far = one(centres[0], start[0]), one(centres[1], start[1])
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(far - centres[1][None], near, atol=2e-3)
    assert np.abs(near - start[0]).max() > 0.1
    both = jax.jit(
        jax.vmap(
            lambda c, x: (
                flowrl.transport(flowrl.Boltzmann(quadratic, c), x, budget, flow=flow, key=key, throw=False).particles
            )
        )
    )(centres, start)
    np.testing.assert_allclose(both, jnp.stack([near, far]), atol=2e-3)


@pytest.mark.parametrize("name", FLOWS)
def test_a_diffusion_needs_a_key_and_has_no_energy(name):
    flow, particles = FLOWS[name], draw(0, (5, 2))
    with pytest.raises(ValueError, match=rf"{type(flow).__name__} toward Density is stochastic: pass key"):
        flowrl.transport(NORMAL, particles, flowrl.Budget(2), flow=flow)
    with pytest.raises(ValueError, match="stochastic flow"):
        flowrl.Transport(flow, flowrl.Optax())
    with pytest.raises(TypeError, match="infinite for an empirical measure"):
        flow.energy(_view(NORMAL), particles, jnp.ones(5, bool))
