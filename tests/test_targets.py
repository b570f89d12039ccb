"""Targets made of others, of many data, of samples and of distributions, against closed forms and NumPy sums."""

# ruff: noqa: ARG002  (the abstract methods prescribe their arguments)

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from problems import FLOAT, X64, assert_close, draw, linear, log_normal, quadratic, same_bits, tolerance

import flowrl
from flowrl._target import _posterior

ONE = jnp.ones((), FLOAT)


def _number(x):
    return jnp.asarray(x, FLOAT)


class Noisy(flowrl.AbstractTarget):
    """A value whose gradient is a number drawn from the key."""

    knows: ClassVar[frozenset[str]] = frozenset({"gradient"})
    stochastic: ClassVar[bool] = True
    needs_positive_temperature: ClassVar[bool] = False

    def gradient(self, particle, temperature, *, key):
        return jr.normal(key, particle.shape, particle.dtype)


class NoisyDensity(Noisy):
    """The same as a density."""

    needs_positive_temperature: ClassVar[bool] = True


# Tilted

CENTRE, SLOPE = jnp.asarray([1.0, -2.0], FLOAT), jnp.asarray([0.5, 3.0], FLOAT)
DATA = draw(0, (7, 2))


def _log_likelihood(x, datum):
    return -0.5 * jnp.sum((x - datum) ** 2)


REFERENCES = {
    "function": (lambda x: quadratic(CENTRE, x), True),
    "density": (flowrl.Density(quadratic, CENTRE), True),
    "score": (flowrl.Score(lambda x: CENTRE - x), False),
    # Six copies of one datum and a prior around it: together the same distribution to the seventh power, hence the
    # weight below.
    "posterior": (
        flowrl.Posterior(
            lambda x: quadratic(CENTRE, x) / 7,
            lambda x, datum: quadratic(datum, x) / 7,
            jnp.tile(CENTRE, (6, 1)),
        ),
        True,
    ),
}
VALUES = {
    "function": (lambda x: linear(SLOPE, x), True),
    "boltzmann": (flowrl.Boltzmann(linear, SLOPE), True),
    "gradient": (flowrl.ValueGradient(lambda slope, _: slope, SLOPE), False),
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_tilted_reference_adds_the_value_and_alpha_times_the_log_density(reference, value):
    (log_reference, first), (tilt, second) = REFERENCES[reference], VALUES[value]
    target = flowrl.Tilted(log_reference, tilt)
    x, temperature = jnp.asarray([0.3, 0.7], FLOAT), _number(1.7)
    gradient = target.gradient(x, temperature, key=None)
    assert_close(gradient, SLOPE + 1.7 * (CENTRE - x), rtol=tolerance(1e-12, 1e-5))
    assert gradient.dtype == FLOAT
    assert target.knows == {"gradient"} | ({"value"} if first and second else set()) | (
        {"log_tilt"} if second else set()
    )
    assert not target.stochastic
    assert not target.needs_positive_temperature
    if first and second:
        want = np.dot(SLOPE, x) - 1.7 * 0.5 * np.sum((np.asarray(x) - CENTRE) ** 2)
        np.testing.assert_allclose(
            target.scaled_log_density(x, temperature, key=None), want, rtol=tolerance(1e-12, 1e-5)
        )
    else:
        with pytest.raises(TypeError, match="only a gradient"):
            target.scaled_log_density(x, temperature, key=None)
    if second:
        assert float(target.value(x)) == pytest.approx(np.dot(SLOPE, x))  # V alone ranks


def test_particles_of_a_tilted_gaussian_have_its_law_at_every_temperature():
    def value(x):
        return -0.5 * 3 * jnp.sum((x - 4) ** 2)

    target, start = flowrl.Tilted(lambda x: quadratic(_number(1.0), x), value), draw(1, (50, 1))
    for temperature in (0.5, 1.0, 4.0):
        # The step falls with the drift's largest slope, 3 + α.
        budget = flowrl.Budget(400, 2.0 / (3 + temperature), temperature)
        solution = flowrl.transport(target, start, budget)
        precision = 1 + 3 / temperature
        mean = (1 + 3 * 4 / temperature) / precision
        assert np.mean(solution.particles) == pytest.approx(mean, abs=0.02)
        assert np.var(solution.particles, ddof=1) == pytest.approx(1 / precision, rel=0.1)
        assert_close(solution.values, jax.vmap(value)(solution.particles))


def test_a_cold_tilt_is_its_value_alone():
    start, budget = draw(2, (6, 2)), flowrl.Budget(3, 0.1, 0.0)
    tilted = flowrl.transport(flowrl.Tilted(log_normal, flowrl.Boltzmann(linear, SLOPE)), start, budget)
    assert same_bits(tilted.particles, flowrl.transport(flowrl.Boltzmann(linear, SLOPE), start, budget).particles)


def test_tilting_takes_particles_of_any_structure_and_tilts_again():
    particle = {"a": draw(3, (2,)), "b": [draw(4, ())]}

    def log_reference(x):
        return -0.5 * jnp.sum(x["a"] ** 2) - x["b"][0] ** 2

    def value(x):
        return 3 * x["b"][0]

    target = flowrl.Tilted(log_reference, flowrl.Tilted(log_reference, value))
    want = {"a": -4 * particle["a"], "b": [3 - 8 * particle["b"][0]]}
    assert_close(target.gradient(particle, _number(2.0), key=None), want)
    assert float(target.value(particle)) == pytest.approx(3 * float(particle["b"][0]))


def test_stochastic_parts_get_the_key_and_two_of_them_independent_ones(key):
    x, minibatch = draw(5, (2,)), flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=2)
    one = flowrl.Tilted(minibatch, flowrl.Boltzmann(linear, SLOPE))
    assert one.stochastic
    assert_close(one.gradient(x, ONE, key=key), SLOPE + minibatch.gradient(x, ONE, key=key))
    first = flowrl.Tilted(NoisyDensity(), flowrl.Boltzmann(linear, SLOPE)).gradient(x, ONE, key=key)
    assert_close(first, SLOPE + jr.normal(key, (2,), FLOAT))
    both = flowrl.Tilted(NoisyDensity(), Noisy())
    assert both.stochastic
    assert not np.allclose(both.gradient(x, ONE, key=key), 2 * jr.normal(key, (2,), FLOAT))
    with pytest.raises(ValueError, match="Ascent toward Tilted is stochastic"):
        flowrl.transport(both, x[None], flowrl.Budget(1), flow=flowrl.Ascent())


@pytest.mark.parametrize(
    ("log_reference", "value", "words"),
    [
        (flowrl.Boltzmann(log_normal), log_normal, "log_reference is Boltzmann.*The value comes second"),
        (flowrl.ValueGradient(jnp.negative), log_normal, "log_reference is ValueGradient"),
        (flowrl.Tilted(log_normal, log_normal), log_normal, "log_reference is Tilted"),
        (log_normal, flowrl.Density(log_normal), "value is Density.*temper a log likelihood"),
        (log_normal, flowrl.Score(jnp.negative), "value is Score"),
        (log_normal, flowrl.Posterior(log_normal, _log_likelihood, DATA), "value is Posterior"),
        (flowrl.Empirical(DATA), log_normal, "log_reference is Empirical, which has no gradient"),
        (log_normal, flowrl.Empirical(DATA), "value is Empirical, which has no gradient"),
        (3, log_normal, "log_prob must be a function of one particle.*int"),
        (log_normal, "value", "value must be a function of one particle.*str"),
    ],
)
def test_a_tilt_refuses_the_wrong_kinds(log_reference, value, words):
    with pytest.raises(TypeError, match=words):
        flowrl.Tilted(log_reference, value)


# Posterior


def _regression(x, datum):
    """A PyTree of parameters, and a datum with a count in it."""
    mean = datum["inputs"] @ x["weights"] + x["offset"]
    return -0.5 * datum["count"].astype(mean.dtype) * (datum["y"] - mean) ** 2


def _prior(x):
    return -0.5 * jnp.sum(x["weights"] ** 2) - 2 * x["offset"] ** 2


def _regression_data(size):
    return {"inputs": draw(6, (size, 2)), "y": draw(7, (size,)), "count": jnp.arange(size) % 3}


def _by_loops(x, data, rows, weight):
    """log posterior and its gradient, one datum after the other, in float64."""
    weights, offset = np.asarray(x["weights"], np.float64), float(x["offset"])
    value, slope, shift = -0.5 * np.sum(weights**2) - 2 * offset**2, -weights, -4 * offset
    for row in rows:
        inputs, y, count = (np.asarray(data[name][row], np.float64) for name in ("inputs", "y", "count"))
        residual = y - inputs @ weights - offset
        value = value - weight * 0.5 * count * residual**2
        slope = slope + weight * count * residual * inputs
        shift = shift + weight * count * residual
    return value, {"weights": slope, "offset": shift}


@pytest.mark.parametrize("chunk", [3, 4, 12, 100])
def test_all_data_are_summed_whatever_the_chunks(chunk, monkeypatch):
    monkeypatch.setattr(_posterior, "CHUNK", chunk)
    data, x = _regression_data(12 if chunk != 4 else 10), {"weights": draw(8, (2,)), "offset": draw(9, ())}
    target = flowrl.Posterior(_prior, _regression, data)
    value, gradient = _by_loops(x, data, range(len(data["y"])), 1)
    close = {"rtol": tolerance(1e-12, 1e-4), "atol": tolerance(1e-12, 1e-4)}
    np.testing.assert_allclose(target.value(x), value, **close)
    np.testing.assert_allclose(target.scaled_log_density(x, _number(0.3), key=None), 0.3 * value, **close)
    assert_close(target.gradient(x, ONE, key=None), gradient, **close)
    assert_close(jax.grad(target.value)(x), gradient, **close)
    assert_close(
        jax.grad(lambda x: target.scaled_log_density(x, _number(0.3), key=None))(x),
        jax.tree.map(lambda g: 0.3 * g, gradient),
        **close,
    )
    assert not target.stochastic


def test_a_batch_stands_for_all_data(key):
    data, x = _regression_data(9), {"weights": draw(8, (2,)), "offset": draw(9, ())}
    target = flowrl.Posterior(_prior, _regression, data, batch_size=4)
    assert target.stochastic
    for step_key in jr.split(key, 3):
        rows = np.asarray(jr.randint(step_key, (4,), 0, 9))
        value, gradient = _by_loops(x, data, rows, 9 / 4)
        close = {"rtol": tolerance(1e-12, 1e-4), "atol": tolerance(1e-12, 1e-4)}
        assert_close(target.gradient(x, _number(2.0), key=step_key), jax.tree.map(lambda g: 2 * g, gradient), **close)
        np.testing.assert_allclose(target.scaled_log_density(x, _number(2.0), key=step_key), 2 * value, **close)
    # What particles are ranked by is never an estimate.
    exact = flowrl.Posterior(_prior, _regression, data)
    assert same_bits(target.value(x), exact.value(x))


def test_the_estimate_is_unbiased(key):
    x = draw(10, (2,))
    exact = flowrl.Posterior(log_normal, _log_likelihood, DATA).gradient(x, ONE, key=None)
    one = flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=1)
    estimates = jax.jit(jax.vmap(lambda k: one.gradient(x, ONE, key=k)))(jr.split(key, 300))
    each = np.unique(np.round(np.asarray(estimates, np.float64), 4), axis=0)
    assert each.shape == (7, 2)  # one a datum: all outcomes there are
    np.testing.assert_allclose(each.mean(axis=0), exact, atol=1e-3)
    some = flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=3)
    estimates = np.asarray(jax.jit(jax.vmap(lambda k: some.gradient(x, ONE, key=k)))(jr.split(key, 4000)), np.float64)
    error = estimates.std(axis=0) / np.sqrt(4000)
    # Drawn with replacement: the variance is that of one datum, over the batch.
    assert np.all(np.abs(estimates.mean(axis=0) - exact) < 4 * error)
    np.testing.assert_allclose(estimates.var(axis=0), 7**2 * np.var(DATA, axis=0) / 3, rtol=0.15)


def test_all_particles_see_the_same_batch_and_every_step_another(key):
    target, particles = flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=2), draw(11, (5, 2))
    budget = flowrl.Budget(3, 0.05)
    run = eqx.filter_jit(
        lambda k: flowrl.transport(target, particles, budget, flow=flowrl.Ascent(), key=k, save=(1, 2))
    )
    first, again, other = run(key), run(key), run(jr.fold_in(key, 1))
    assert same_bits(first.particles, again.particles)
    assert not np.allclose(first.particles, other.particles)
    # The curvature is −8 whatever the batch, so the gaps shrink as if there were no noise.
    gaps = first.particles - first.particles[:1]
    assert_close(gaps, 0.6**3 * (particles - particles[:1]), atol=tolerance(1e-12, 1e-5))
    noise = np.diff(np.asarray(first.trajectory), axis=0)[0] + 0.4 * np.asarray(first.trajectory[0])
    later = np.asarray(first.particles - first.trajectory[1]) + 0.4 * np.asarray(first.trajectory[1])
    assert not np.allclose(noise, later)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size must be from 1 to 7, got 10; None takes all 7 data"):
        flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=10)


@pytest.mark.parametrize("batch_size", [7, np.int64(7)])
def test_a_batch_of_all_data_is_all_data(batch_size):
    whole = flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=batch_size)
    assert not whole.stochastic
    assert whole.batch_size is None
    x = draw(12, (2,))
    exact = flowrl.Posterior(log_normal, _log_likelihood, np.asarray(DATA))
    assert same_bits(whole.gradient(x, ONE, key=None), exact.gradient(x, ONE, key=None))


def test_a_minibatch_without_a_key_is_refused():
    target = flowrl.Posterior(log_normal, _log_likelihood, DATA, batch_size=2)
    with pytest.raises(ValueError, match="draws its data at random"):
        target.gradient(draw(12, (2,)), ONE, key=None)
    with pytest.raises(ValueError, match="SVGD toward Posterior is stochastic"):
        flowrl.transport(target, draw(12, (3, 2)), flowrl.Budget(1))


def test_minibatches_reach_the_posterior_of_a_normal_mean(key):
    data = 2 + draw(13, (400, 1))
    target = flowrl.Posterior(log_normal, _log_likelihood, data, batch_size=20)
    budget = flowrl.Budget(400, lambda step: 0.5 / (401 * (1 + step / 40)))
    solution = flowrl.transport(target, 1.6 + 0.1 * draw(14, (30, 1)), budget, key=key)
    sample = np.asarray(solution.particles)
    mean = float(np.sum(data)) / 401
    # The last batches leave a noise of about the posterior's standard deviation in the common mean.
    assert sample.mean() == pytest.approx(mean, abs=2 / np.sqrt(401))
    assert sample.std(ddof=1) == pytest.approx(1 / np.sqrt(401), rel=0.25)


def _largest(jaxpr):
    sizes = [int(np.prod(v.aval.shape)) for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape")]
    for equation in jaxpr.eqns:
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            sizes += [_largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes, default=0)


def test_memory_does_not_grow_with_particles_times_data(monkeypatch):
    monkeypatch.setattr(_posterior, "CHUNK", 16)
    target, x = flowrl.Posterior(log_normal, _log_likelihood, draw(15, (1000, 2))), draw(16, (64, 2))
    for function in (target.value, jax.grad(target.value), lambda x: target.gradient(x, ONE, key=None)):
        assert _largest(jax.make_jaxpr(jax.vmap(function))(x).jaxpr) <= 64 * 16 * 2


def test_the_precision_is_that_of_the_particles():
    x = draw(17, (2,), jnp.float32)
    target = flowrl.Posterior(log_normal, _log_likelihood, DATA.astype(jnp.float32), batch_size=2)
    temperature = jnp.ones((), jnp.float32)
    for out in (target.value(x), target.gradient(x, temperature, key=jr.key(0))):
        assert out.dtype == jnp.float32


def test_new_data_do_not_retrace(key):
    traces = []

    def log_likelihood(x, datum):
        traces.append(1)
        return _log_likelihood(x, datum)

    def run(data):
        target = flowrl.Posterior(log_normal, log_likelihood, data, batch_size=3)
        flowrl.transport(target, draw(18, (4, 2)), flowrl.Budget(2, 0.1), flow=flowrl.Ascent(), key=key)
        return len(traces)

    first = run(DATA)
    assert first > 0
    assert run(DATA + 1) == run(np.asarray(DATA) - 1) == first
    assert run(DATA[:6]) > first


# Empirical


def test_samples_are_given_back_and_nothing_else():
    samples = {"a": draw(19, (5, 2)), "b": draw(20, (5,))}
    target = flowrl.Empirical(samples)
    assert same_bits(target.samples(), samples)
    assert target.knows == {"samples"}
    for call in (
        target.value,
        lambda x: target.gradient(x, ONE, key=None),
        lambda x: target.scaled_log_density(x, ONE, key=None),
    ):
        with pytest.raises(TypeError, match=r"Empirical knows only samples.*Density\(log_prob\)"):
            call(samples)


def test_only_flows_toward_samples_take_samples():
    target, start, flow = flowrl.Empirical(2 + draw(21, (9, 2))), draw(22, (4, 2)), flowrl.MMDFlow()
    moved = flowrl.transport(target, start, flowrl.Budget(20, 1.0), flow=flow)
    gap = [np.linalg.norm(np.mean(target.points, axis=0) - np.mean(x, axis=0)) for x in (moved.particles, start)]
    assert gap[0] < 0.9 * gap[1]
    assert moved.values is None
    refused = flowrl.supports(flowrl.SVGD(), flowrl.Euler(), flowrl.Unbounded(), target)
    assert not refused
    assert "SVGD needs the gradient of its target, which Empirical does not know" in refused.reason
    with pytest.raises(ValueError, match="SVGD needs the gradient"):
        flowrl.transport(target, start, flowrl.Budget(1))
    density = flowrl.supports(flow, flowrl.Euler(), flowrl.Unbounded(), flowrl.Density(log_normal))
    assert "Empirical(samples)" in density.reason


# Objects with a method log_prob


class Gaussian(eqx.Module):
    """A distribution as other libraries have them."""

    mean: jax.Array | float
    sd: float

    def log_prob(self, x):
        traces.append(1)
        return -0.5 * jnp.sum(((x - self.mean) / self.sd) ** 2)


class Callable(Gaussian):
    """One that can be called, as those of numpyro can: it draws."""

    def __call__(self, key):
        raise AssertionError("called")


class Conditional(eqx.Module):
    """A distribution of a particle given a state."""

    def log_prob(self, state, x):
        return -0.5 * jnp.sum((x - state) ** 2)


traces = []


def test_new_parameters_of_a_distribution_do_not_retrace():
    x, budget = draw(23, (4, 2)), flowrl.Budget(2, 0.1)
    results, counts = [], []
    for mean, sd in ((jnp.zeros(2, FLOAT), 1.0), (jnp.ones(2, FLOAT), 2.0), (np.ones(2, FLOAT) * 3, 0.5)):
        results.append(flowrl.transport(flowrl.Density(Gaussian(mean, sd)), x, budget, flow=flowrl.Ascent()))
        counts.append(len(traces))
    assert 0 < counts[0] == counts[1] == counts[2]
    want = 3 + 0.6**2 * (np.asarray(x) - 3)
    assert_close(results[2].particles, want, rtol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("kind", [Gaussian, Callable])
def test_log_prob_is_asked_also_of_what_can_be_called(kind):
    x = draw(24, (2,))
    for target in (flowrl.Density(kind(1.0, 2.0)), flowrl.Boltzmann(kind(1.0, 2.0))):
        assert_close(target.value(x), -0.125 * np.sum((np.asarray(x) - 1) ** 2), rtol=tolerance(1e-12, 1e-5))
    posterior = flowrl.Posterior(kind(0.0, 1.0), _log_likelihood, DATA)
    assert_close(posterior.value(x), flowrl.Posterior(log_normal, _log_likelihood, DATA).value(x))


def test_a_conditional_distribution_takes_its_arguments():
    target = flowrl.Density(Conditional(), CENTRE)
    assert_close(target.gradient(CENTRE + 1, _number(2.0), key=None), jnp.full(2, -2.0, FLOAT))


@pytest.mark.skipif(not X64, reason="needs two precisions")
def test_a_distribution_in_another_precision_does_not_change_that_of_the_particles():
    target = flowrl.Density(Gaussian(jnp.zeros(2), 1.0))
    x = draw(25, (3, 2), jnp.float32)
    solution = flowrl.transport(target, x, flowrl.Budget(1, 0.5), flow=flowrl.Ascent())
    assert solution.particles.dtype == solution.values.dtype == jnp.float32
    assert_close(solution.particles, 0.5 * x, rtol=1e-6)


# Annealing


def _modes(x):
    """The log density, up to a constant, of two normals of unit variance at −4 and 4."""
    return jnp.logaddexp(quadratic(_number(-4.0), x), quadratic(_number(4.0), x))


ANNEALED = optax.exponential_decay(30.0, transition_steps=50, decay_rate=0.5, end_value=1.0)


@pytest.mark.parametrize(
    ("target", "size"),
    [
        (flowrl.Boltzmann(_modes), 3.0),
        # A wide prior; only the likelihood is tempered, and its drift α ∇ log μ asks for a smaller step.
        (flowrl.Tilted(lambda x: 0.04 * log_normal(x), flowrl.Boltzmann(_modes)), 2.0),
    ],
    ids=["boltzmann", "tilted"],
)
@pytest.mark.thorough
def test_annealing_reaches_both_modes_and_without_it_particles_stay_at_one(target, size):
    start = -4 + jnp.linspace(-1, 1, 60, dtype=FLOAT)[:, None]
    steady = np.asarray(flowrl.transport(target, start, flowrl.Budget(500, 1.0)).particles)
    assert np.all(steady < 0)
    budget = flowrl.Budget(500, lambda step: size / np.sqrt(ANNEALED(step)), ANNEALED)
    annealed = np.asarray(flowrl.transport(target, start, budget).particles)
    right = annealed[annealed > 0]
    assert 20 <= len(right) <= 40
    assert np.median(right) == pytest.approx(4, abs=0.4)
    assert np.median(annealed[annealed < 0]) == pytest.approx(-4, abs=0.4)
