"""First steps that are small: the schedule's numbers, and ALDI with steps that are cut where its start is too wide."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, PLANE, assert_close, quadrature, tolerance

from flowrl import ALDI, Adaptive, Budget, Density, ramp, transport


def test_the_schedule_is_its_formula():
    steps, size, start, share = 200, 0.3, 1e-4, 0.25
    sizes = [float(ramp(size, steps, start=start, share=share)(step)) for step in range(steps)]
    growing = share * steps
    want = [size * start ** (1 - min(1, step / growing)) for step in range(steps)]
    np.testing.assert_allclose(sizes, want, rtol=tolerance(1e-12, 1e-5))
    np.testing.assert_allclose(sizes[0], size * start, rtol=tolerance(1e-12, 1e-5))
    np.testing.assert_allclose(sizes[50:], size, rtol=tolerance(1e-12, 1e-5))
    ratios = np.divide(sizes[1:51], sizes[:50])
    np.testing.assert_allclose(ratios, ratios[0], rtol=tolerance(1e-10, 1e-4))


def test_the_default_grows_a_thousandfold_over_a_tenth():
    sizes = np.asarray(Budget(100, ramp(0.1, 100)).step_size)
    assert sizes.shape == (100,)
    assert_close(sizes[:12], 0.1 * np.minimum(1, 10.0 ** (3 * (np.arange(12) / 10 - 1))), rtol=tolerance(1e-12, 1e-5))


def test_a_traced_step_gives_the_same_number():
    schedule = ramp(0.2, 50, share=0.5)
    traced = jax.jit(jax.vmap(schedule))(jnp.arange(50, dtype=FLOAT))
    assert_close(traced, [float(schedule(step)) for step in range(50)], rtol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("options", [{"share": 0.0}, {"start": 1.0}], ids=["no share", "no small start"])
def test_no_ramp_is_the_full_step_at_once(options):
    assert_close(Budget(5, ramp(0.1, 5, **options)).step_size, np.full(5, 0.1), rtol=tolerance(1e-12, 1e-6))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_few_steps_divide_by_nothing(steps):
    sizes = np.asarray([float(ramp(0.1, steps)(step)) for step in range(steps)])
    assert np.isfinite(sizes).all()
    np.testing.assert_allclose(sizes[1:], 0.1, rtol=1e-6)  # less than a step of growth, so the second one is full


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-0.1, 10), {}, "step_size must be"),
        ((np.inf, 10), {}, "step_size must be"),
        ((0.1, True), {}, "steps must be a Python int >= 0"),
        ((0.1, -1), {}, "steps must be a Python int >= 0"),
        ((0.1, 10), {"start": 0.0}, r"start must be in \(0, 1\]"),
        ((0.1, 10), {"start": 2.0}, r"start must be in \(0, 1\]"),
        ((0.1, 10), {"share": -0.1}, r"share must be in \[0, 1\]"),
        ((0.1, 10), {"share": 1.1}, r"share must be in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ramp(*arguments, **options)


# Posteriors that are far from the start and stiff. Data are drawn once; means and standard deviations are those of
# 60,000 draws of NUTS (blackjax).

RNG = np.random.default_rng(0)
EFFECT, ERROR = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
RIDGE = RNG.normal(size=(60, 8))
RIDGE[:, 1] = RIDGE[:, 0] + 0.1 * RIDGE[:, 1]  # nearly the same regressor twice
ANSWER = RIDGE @ RNG.normal(size=8) + 0.3 * RNG.standard_t(3, size=60)
RNG = np.random.default_rng(1)
FEATURES = RNG.normal(size=(500, 25)) @ np.linalg.qr(RNG.normal(size=(25, 25)))[0] * np.geomspace(0.3, 3, 25)
LABEL = (RNG.uniform(size=500) < 1 / (1 + np.exp(-FEATURES @ RNG.normal(size=25) * 0.5))).astype(float)


def _eight_schools(x):
    """Noncentred: the mean, the log of the spread, eight standardised effects."""
    mean, spread, effects = x[0], jnp.exp(x[1]), x[2:]
    prior = -0.5 * (mean / 5) ** 2 - jnp.log1p((spread / 5) ** 2) + x[1] - 0.5 * jnp.sum(effects**2)
    off = (jnp.asarray(EFFECT, x.dtype) - mean - spread * effects) / jnp.asarray(ERROR, x.dtype)
    return prior - 0.5 * jnp.sum(off**2)


def _student(x):
    """Regression with Student's t errors of unknown width; two weights are known only by their sum."""
    weights, log_width = x[:-1], x[-1]
    off = (jnp.asarray(ANSWER, x.dtype) - jnp.asarray(RIDGE, x.dtype) @ weights) / jnp.exp(log_width)
    prior = -0.5 * jnp.sum(weights**2) - 0.5 * log_width**2
    return prior - jnp.sum(2.5 * jnp.log1p(off**2 / 4)) - 60 * log_width


def _logistic(x):
    logits = jnp.asarray(FEATURES, x.dtype) @ x
    return jnp.sum(jnp.asarray(LABEL, x.dtype) * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(x**2)


EIGHT_MEAN = [4.406, 0.798, 0.317, 0.0932, -0.0913, 0.0589, -0.1628, -0.0719, 0.3556, 0.0783]
EIGHT_SD = [3.334, 1.175, 0.988, 0.941, 0.971, 0.944, 0.934, 0.940, 0.963, 0.975]
STUDENT_MEAN = [1.4484, 1.0412, -0.4453, 0.1216, -0.7312, -1.1471, -0.6863, -0.2634, -1.2119]
STUDENT_SD = [0.4153, 0.4122, 0.0535, 0.0443, 0.0425, 0.0495, 0.045, 0.0457, 0.1385]
LOGISTIC_MEAN = [0.4959, 0.3992, 0.1534, -0.0048, -0.2067, 0.0998, -0.0996, 0.1513, -0.9189, -0.7561, 1.0215, -0.8256]
LOGISTIC_MEAN += [0.5479, 0.6108, -0.3213, 0.1715, -0.0862, -0.9055, -1.0999, 0.464, -0.3805, -0.3447, -0.5823, 0.2463]
LOGISTIC_MEAN += [-0.0561]
LOGISTIC_SD = [0.4442, 0.4288, 0.3848, 0.3437, 0.3181, 0.2907, 0.2739, 0.2382, 0.2374, 0.2026, 0.2202, 0.1777, 0.161]
LOGISTIC_SD += [0.1485, 0.1311, 0.124, 0.11, 0.1153, 0.118, 0.0914, 0.0789, 0.0772, 0.0746, 0.0559, 0.0537]


def _plane(name):
    mean, covariance = quadrature(PLANE[name])
    return PLANE[name], mean, np.sqrt(np.diag(covariance))


POSTERIORS = {
    "eight schools": lambda: (_eight_schools, EIGHT_MEAN, EIGHT_SD),
    "Student's t": lambda: (_student, STUDENT_MEAN, STUDENT_SD),
    "logistic": lambda: (_logistic, LOGISTIC_MEAN, LOGISTIC_SD),
    "banana": lambda: _plane("banana"),
}


@pytest.mark.parametrize("name", POSTERIORS)
def test_aldi_with_adaptive_finds_posteriors_from_far(name):
    """The budget's default step and the default reach."""
    log_prob, mean, sd = POSTERIORS[name]()
    n, steps = (250, 200) if name == "logistic" else (400, 400)  # a gradient of it takes a hundred times as long
    start = jr.uniform(jr.key(100), (n, len(mean)), FLOAT, -2, 2)
    solution = transport(Density(log_prob), start, Budget(steps), flow=ALDI(), solver=Adaptive(), key=jr.key(0))
    assert int(solution.stats["nonfinite"]) == 0
    found = np.asarray(solution.particles, np.float64)
    assert np.abs((found.mean(axis=0) - mean) / np.asarray(sd)).max() < 0.2
    ratio = found.var(axis=0) / np.asarray(sd) ** 2
    assert 0.6 < ratio.min() <= ratio.max() < 1.5


def test_the_full_step_at_once_throws_aldi_out():
    """What the two are for: plain Euler steps of the same size."""
    start = jr.uniform(jr.key(100), (100, 9), FLOAT, -2, 2)
    solution = transport(Density(_student), start, Budget(50), flow=ALDI(), key=jr.key(0), throw=False)
    thrown = np.abs(np.asarray(solution.particles)).max()
    assert int(solution.stats["nonfinite"]) > 0 or not thrown < 100
