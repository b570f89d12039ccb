"""Models and distributions of other libraries: numpyro, blackjax."""

import math
import sys

import blackjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import potential_energy
from problems import FLOAT, X64, assert_close, draw, log_normal, same_bits, tolerance
from scipy import stats

import flowrl

ONE = jnp.ones((), FLOAT)
CLOSE = {"rtol": tolerance(1e-10, 2e-4), "atol": tolerance(1e-10, 1e-5)}


def _standard():
    """numpyro's own calls are made as its users make them."""
    return jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")


# Distributions

DISTRIBUTIONS = {
    "normal": (lambda: dist.Normal(0.5, 2.0), 1.3, stats.norm(0.5, 2).logpdf),
    "whole numbers": (lambda: dist.Gamma(3, 1), 1.3, stats.gamma(3).logpdf),
    "independent": (
        lambda: dist.Normal(jnp.zeros(2, FLOAT), 2.0).to_event(1),
        [0.3, -1.0],
        lambda x: stats.norm(0, 2).logpdf(x).sum(),
    ),
    "correlated": (
        lambda: dist.MultivariateNormal(jnp.zeros(2, FLOAT), jnp.asarray([[2.0, 0.5], [0.5, 1.0]], FLOAT)),
        [0.3, -1.0],
        stats.multivariate_normal([0, 0], [[2, 0.5], [0.5, 1]]).logpdf,
    ),
    "mixture": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.asarray([0.3, 0.7], FLOAT)), dist.Normal(jnp.asarray([-2.0, 2.0], FLOAT), 1.0)
        ),
        0.4,
        lambda x: np.log(0.3 * stats.norm(-2, 1).pdf(x) + 0.7 * stats.norm(2, 1).pdf(x)),
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_of_numpyro_is_a_density(name):
    distribution, x, log_prob = DISTRIBUTIONS[name]
    target, x = flowrl.Density(distribution()), jnp.asarray(x, FLOAT)
    np.testing.assert_allclose(target.value(x), log_prob(np.asarray(x, np.float64)), rtol=tolerance(1e-9, 1e-4))
    gradient = target.gradient(x, ONE, key=None)
    assert gradient.dtype == FLOAT
    bump = 1e-5 * np.eye(x.size).reshape(x.size, *x.shape)
    up, down = ([log_prob(np.asarray(x, np.float64) + s * row) for row in bump] for s in (1, -1))
    np.testing.assert_allclose(np.ravel(gradient), (np.array(up) - down).ravel() / 2e-5, rtol=1e-3)


def test_new_parameters_of_a_numpyro_distribution_do_not_retrace(monkeypatch):
    traced = []
    original = dist.Normal.log_prob

    def log_prob(self, value, intermediates=None):
        traced.append(1)
        return original(self, value, intermediates) if intermediates is not None else original(self, value)

    monkeypatch.setattr(dist.Normal, "log_prob", log_prob)
    x, moved, counts = draw(0, (4,)), [], []
    for loc, scale in ((0.0, 1.0), (5.0, 2.0), (np.float64(1.0), 1.0)):
        target = flowrl.Density(dist.Normal(jnp.asarray(loc, FLOAT), scale))
        moved.append(flowrl.transport(target, x, flowrl.Budget(2, 0.1), flow=flowrl.Ascent()).particles)
        counts.append(len(traced))
    assert 0 < counts[0] == counts[1] == counts[2]
    assert_close(moved[1], 5 + (1 - 0.1 / 4) ** 2 * (x - 5), rtol=tolerance(1e-10, 1e-5))


def test_a_batch_of_distributions_is_told_to_become_one_event():
    with pytest.raises(ValueError, match=r"log_prob returned shape \(2,\).*to_event\(1\)"):
        flowrl.Density(dist.Normal(jnp.zeros(2, FLOAT), 1.0)).value(draw(1, (2,)))
    with pytest.raises(TypeError, match=r"is the class Normal; did you mean an instance, Normal\(\.\.\.\)"):
        flowrl.Density(dist.Normal)


def test_distributions_are_priors_and_references_too():
    normal, x = dist.Normal(0.0, 1.0).expand([2]).to_event(1), draw(2, (2,))
    data = draw(3, (5, 2))
    posterior = flowrl.Posterior(normal, lambda x, datum: -0.5 * jnp.sum((x - datum) ** 2), data)
    want = -x + np.sum(np.asarray(data) - np.asarray(x), axis=0)
    assert_close(posterior.gradient(x, ONE, key=None), want, **CLOSE)
    tilted = flowrl.Tilted(normal, log_normal)
    assert_close(tilted.gradient(x, jnp.asarray(2.0, FLOAT), key=None), -3 * x, **CLOSE)


# blackjax


@pytest.mark.skipif(not X64, reason="one compilation of NUTS is enough")
@pytest.mark.thorough
def test_the_log_density_of_blackjax_is_a_density(key):
    def logdensity_fn(position):
        """A normal scale with an exponential prior, in its logarithm, and a shift given it."""
        return -jnp.exp(position["log_scale"]) + position["log_scale"] - 0.5 * jnp.sum((position["shift"] - 1) ** 2)

    particles = {"log_scale": draw(4, (60,)), "shift": draw(5, (60, 1))}
    solution = flowrl.transport(flowrl.Density(logdensity_fn), particles, flowrl.Budget(300, 0.5))
    assert_close(solution.values, jax.vmap(logdensity_fn)(solution.particles))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        kernel = blackjax.nuts(logdensity_fn, step_size=0.6, inverse_mass_matrix=jnp.ones(2, FLOAT))
        start = kernel.init(jax.tree.map(lambda leaf: leaf[0], particles))
        _, chain = jax.lax.scan(lambda s, k: (kernel.step(k, s)[0],) * 2, start, jr.split(key, 2000))
    # The scale is exponential: the mean of its logarithm is minus Euler's constant.
    for name, mean in (("log_scale", -np.euler_gamma), ("shift", 1.0)):
        assert np.mean(solution.particles[name]) == pytest.approx(mean, abs=0.12)
        assert np.mean(chain.position[name]) == pytest.approx(mean, abs=0.12)


# Models of numpyro


def _gamma():
    numpyro.sample("rate", dist.Gamma(3.0, 1.0))


@pytest.mark.thorough
def test_a_bounded_site_brings_its_jacobian():
    posterior = flowrl.from_numpyro(_gamma, key=jr.key(0))
    for y in (-2.0, 0.0, 0.7, 2.5):
        # Gamma(3, 1) in y = log x: x² exp(−x)/Γ(3) · x.
        got = posterior.target.value({"rate": jnp.asarray(y, FLOAT)})
        assert float(got) == pytest.approx(3 * y - math.exp(y) - math.log(2), rel=tolerance(1e-12, 1e-5))
    start = posterior.initial(80, jr.key(1))
    solution = flowrl.transport(posterior.target, start, flowrl.Budget(400, 0.5))
    rate = np.asarray(posterior.constrain(solution.particles)["rate"])
    assert rate.min() > 0
    assert rate.mean() == pytest.approx(3, abs=0.15)
    assert rate.var() == pytest.approx(3, abs=0.4)


def _model(inputs, group, width, n_groups, y=None):
    """A regression with groups; every kind of support there is to move in."""
    weights = numpyro.sample("weights", dist.Normal(0.0, width).expand([2]).to_event(1))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    mix = numpyro.sample("mix", dist.Dirichlet(jnp.ones(3)))
    above = numpyro.sample("above", dist.Uniform(spread, spread + 2))  # its support moves with another site
    with numpyro.plate("groups", n_groups):
        offset = numpyro.sample("offset", dist.Normal(0.0, spread))
    mean = numpyro.deterministic("mean", inputs @ weights + offset[group] + mix[0])
    with numpyro.plate("data", len(inputs)):
        numpyro.sample("y", dist.Normal(mean, above), obs=y)


TRACES = []


def _counted(*args, **kwargs):
    TRACES.append(1)
    return _model(*args, **kwargs)


RNG = np.random.default_rng(0)
ARGS = (RNG.normal(size=(10, 2)).astype(FLOAT), RNG.integers(0, 4, 10), 1.5, 4)
Y = RNG.normal(size=10).astype(FLOAT)
SHAPES = {"weights": (2,), "spread": (), "mix": (2,), "above": (), "offset": (4,)}


@pytest.fixture(scope="module")
def posterior():
    return flowrl.from_numpyro(_counted, *ARGS, key=jr.key(0), y=Y)


@pytest.fixture(scope="module")
def particles(posterior):
    return posterior.initial(6, jr.key(1))


def test_the_particles_of_a_model_are_draws_of_its_prior_by_site(posterior, particles):
    assert jax.tree.map(jnp.shape, particles) == {name: (6, *shape) for name, shape in SHAPES.items()}
    assert set(posterior.sites) == set(SHAPES)
    assert {leaf.dtype for leaf in jax.tree.leaves(particles)} == {np.dtype(FLOAT)}
    assert same_bits(posterior.initial(6, jr.key(1)), particles)
    assert not np.allclose(posterior.initial(6, jr.key(2))["mix"], particles["mix"])


def test_the_target_is_numpyros_potential(posterior, particles):
    values = jax.jit(jax.vmap(posterior.target.value))(particles)
    with _standard()[0], _standard()[1]:
        want = jax.jit(jax.vmap(lambda x: -potential_energy(_model, ARGS, {"y": Y}, x)))(particles)
    assert_close(values, want, **CLOSE)
    gradient = jax.jit(jax.vmap(lambda x: posterior.target.gradient(x, ONE, key=None)))(particles)
    assert jax.tree.structure(gradient) == jax.tree.structure(particles)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_particles_of_a_model_travel_and_come_back_in_its_space(posterior, particles):
    solution = flowrl.transport(posterior.target, particles, flowrl.Budget(3, 0.01))
    assert jax.tree.map(jnp.shape, solution.particles) == jax.tree.map(jnp.shape, particles)
    assert np.mean(solution.values) > np.mean(flowrl.transport(posterior.target, particles, flowrl.Budget(0)).values)
    space = posterior.constrain(solution.particles)
    assert set(space) == {*SHAPES, "mean"}
    assert space["mix"].shape == (6, 3)
    np.testing.assert_allclose(space["mix"].sum(axis=1), 1, rtol=1e-5)
    assert (np.asarray(space["spread"]) > 0).all()
    assert ((space["above"] > space["spread"]) & (space["above"] < space["spread"] + 2)).all()
    inputs, group, _, _ = ARGS
    mean = np.einsum("di,ni->nd", inputs, space["weights"]) + np.asarray(space["offset"])[:, group]
    assert_close(space["mean"], mean + np.asarray(space["mix"])[:, :1], rtol=1e-4, atol=1e-5)


def test_new_data_of_a_model_do_not_retrace(posterior, particles):
    budget = flowrl.Budget(3, 0.01)
    first = flowrl.transport(posterior.target, particles, budget).particles
    other = flowrl.from_numpyro(_counted, ARGS[0] + 1, ARGS[1], 2.5, 4, key=jr.key(5), y=Y + 1)
    before = len(TRACES)
    assert not np.allclose(flowrl.transport(other.target, particles, budget).particles["mix"], first["mix"])
    other.initial(6, jr.key(1))
    other.constrain(particles)
    assert len(TRACES) == before


@pytest.mark.skipif(not X64, reason="needs two precisions")
def test_particles_of_a_model_keep_their_precision(posterior, particles):
    single = jax.tree.map(lambda leaf: leaf[0].astype(jnp.float32), particles)
    assert jax.eval_shape(posterior.target.value, single).dtype == jnp.float32


def test_the_wrong_particles_are_refused(posterior, particles):
    with pytest.raises(ValueError, match="dict over the latent sites.*'above'.*got .*'mix'"):
        posterior.constrain({"mix": particles["mix"]})
    with pytest.raises(ValueError, match="got ndarray"):
        posterior.constrain(np.ones((3, 2)))
    for n in (0, -1, True):
        with pytest.raises(ValueError, match="n must be a Python int >= 1"):
            posterior.initial(n, jr.key(0))


def _discrete():
    component = numpyro.sample("component", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(1.0 * component, 1.0))


def _subsampled():
    loc = numpyro.sample("loc", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 10, subsample_size=3):
        numpyro.sample("x", dist.Normal(loc, 1.0), obs=jnp.zeros(3))


def _optimised():
    scale = numpyro.param("scale", 1.0)
    numpyro.sample("x", dist.Normal(0.0, scale))


def _fixed():
    numpyro.sample("x", dist.Delta(1.0))


def _observed():
    numpyro.sample("x", dist.Normal(0.0, 1.0), obs=jnp.ones(()))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_discrete, r"'component' is discrete \(Bernoulli.*MixtureSameFamily"),
        (_subsampled, "plate 'data'.*subsample_size.*Posterior"),
        (_optimised, "'scale' is a numpyro.param"),
        (_fixed, r"numpyro.deterministic\('x'"),
        (_observed, "no latent site"),
    ],
)
def test_models_whose_sites_cannot_all_flow_are_refused(model, words):
    with pytest.raises(ValueError, match=words):
        flowrl.from_numpyro(model, key=jr.key(0))


def _flat():
    numpyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))


def test_a_prior_that_cannot_be_drawn_from_starts_near_zero():
    posterior = flowrl.from_numpyro(_flat, key=jr.key(0))
    start = posterior.initial(5, jr.key(1))["x"]
    assert start.shape == (5, 2)
    assert (np.abs(start) < 2).all()
    # A flat density of x is exp(y) in y = log x.
    assert_close(posterior.target.value({"x": start[0]}), np.sum(start[0]), rtol=1e-5)


def _random_features():
    shift = jr.normal(numpyro.prng_key(), (), FLOAT)
    numpyro.sample("x", dist.Normal(shift, 1.0))


def test_what_a_model_draws_beside_its_sites_is_drawn_once():
    x = {"x": jnp.zeros((), FLOAT)}
    first, again, other = (
        flowrl.from_numpyro(_random_features, key=jr.key(seed)).target.value(x) for seed in (0, 0, 1)
    )
    assert same_bits(first, again)
    assert float(first) != float(other)


def test_without_numpyro_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(ImportError, match=r'pip install "flowrl-transport\[bayes\]"'):
        flowrl.from_numpyro(_gamma, key=jr.key(0))
