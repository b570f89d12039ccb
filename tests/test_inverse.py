"""Ensemble Kalman flows on inverse problems, against Kalman's formulas in NumPy and a flow that knows the gradient."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, X64, assert_close, draw, log_normal, same_bits, tolerance

import flowrl

D, M = 3, 5
RNG = np.random.default_rng(0)
A = RNG.standard_normal((M, D))
DATA = RNG.standard_normal(M) + 1
PRIOR_MEAN = np.array([0.5, -1.0, 2.0])
_ROOT = 0.4 * RNG.standard_normal((M, M))
NOISE = _ROOT @ _ROOT.T + 0.2 * np.eye(M)  # covariances with correlations
PRIOR = np.array([[4.0, 1.0, 0.5], [1.0, 2.0, -0.3], [0.5, -0.3, 1.0]])
ONCE = flowrl.Budget(1, None)
KEY = jr.key(0)


def _map(x):
    return jnp.asarray(A, x.dtype) @ x


def _rounded(x):
    """The same up to 0.005, with a gradient of zero everywhere."""
    return jnp.round(100 * _map(x)) / 100


def _outside(x):
    """The same by a program outside of JAX."""
    return jax.pure_callback(
        lambda x: (A @ np.asarray(x)).astype(x.dtype),
        jax.ShapeDtypeStruct((M,), x.dtype),
        x,
        vmap_method="sequential",
    )


def _walled(x):
    """A map that fails beyond 5."""
    return jnp.where(x[0] > 5, jnp.nan, _map(x))


def _line(x):
    return jnp.sum(x, keepdims=True)


def _problem(forward_map=_map, data=DATA, noise=NOISE, prior_mean=PRIOR_MEAN, prior_scale=PRIOR):
    return flowrl.InverseProblem(forward_map, data, noise, prior_mean, prior_scale)


def _prior(seed, n):
    return jnp.asarray(PRIOR_MEAN[None], FLOAT) + draw(seed, (n, D)) @ jnp.asarray(np.linalg.cholesky(PRIOR).T, FLOAT)


def _update(mean, covariance):
    """Return Kalman's update of a mean and a covariance."""
    gain = covariance @ A.T @ np.linalg.inv(A @ covariance @ A.T + NOISE)
    return mean + gain @ (DATA - A @ mean), covariance - gain @ A @ covariance


def _moments(x, ddof):
    x = np.asarray(x, np.float64).reshape(-1, D)
    return x.mean(axis=0), np.cov(x.T, ddof=ddof)


def _whitened_errors(x, mean, covariance):
    """The largest errors of mean and covariance of draws, in coordinates where the truth is N(0, I)."""
    unroot = np.linalg.inv(np.linalg.cholesky(covariance))
    got_mean, got = _moments(x, 0)
    return np.abs(unroot @ (got_mean - mean)).max(), np.abs(unroot @ got @ unroot.T - np.eye(D)).max()


def _view(target):
    ones = jnp.ones((1, D), FLOAT)
    return flowrl.TargetView(
        jnp.ones((), FLOAT), None, None, target, flowrl.Unbounded(), ones, entropic=True, unravel=lambda x: x
    )


# The target


def test_the_value_is_the_log_density_of_the_posterior():
    """Up to one constant: N(m, P) by Kalman's update of the prior."""
    problem, x = _problem(), _prior(1, 20)
    got = np.asarray(jax.vmap(problem.value)(x), np.float64)
    mean, covariance = _update(PRIOR_MEAN, PRIOR)
    away = np.asarray(x, np.float64) - mean
    want = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)
    np.testing.assert_allclose(got - got[0], want - want[0], rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-9, 1e-2))
    parts = jax.vmap(lambda x: problem.log_prior(x) + problem.log_likelihood(x))(x)
    assert_close(parts, got)
    away = np.asarray(x, np.float64) - PRIOR_MEAN
    prior = -0.5 * np.einsum("ni,ij,nj->n", away, np.linalg.inv(PRIOR), away)
    np.testing.assert_allclose(jax.vmap(problem.log_prior)(x), prior, rtol=tolerance(1e-9, 1e-3))


def test_standard_deviations_are_a_diagonal_covariance():
    x, deviations = _prior(2, 10), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    one = _problem(noise=deviations, prior_scale=0.7)
    two = _problem(noise=np.diag(deviations**2), prior_scale=0.49 * np.eye(D))
    assert_close(jax.vmap(one.value)(x), jax.vmap(two.value)(x))


def test_a_differentiable_map_gives_targets_with_a_gradient():
    problem, x = _problem(), _prior(3, 50)
    density = flowrl.Density(problem.value)
    tilted = flowrl.Tilted(problem.log_prior, problem.log_likelihood)
    budget = flowrl.Budget(5, 0.01)
    assert_close(*(flowrl.transport(target, x, budget).particles for target in (density, tilted)), atol=1e-5)


# The ensemble Kalman sampler


@pytest.mark.thorough
def test_eks_samples_the_posterior_of_a_linear_map():
    """500 particles from the prior; ten sets, two units of time apart, of which Euler's variance is 1/(1 - 0.05/2)."""
    sizes = 0.05 * np.minimum(1, 0.02 * 1.08 ** np.arange(600))
    saved = tuple(range(240, 601, 40))
    solution = flowrl.transport(
        _problem(), _prior(4, 500), flowrl.Budget(600, sizes), flow=flowrl.EKS(), key=KEY, save=saved
    )
    mean, covariance = _update(PRIOR_MEAN, PRIOR)
    away, apart = _whitened_errors(solution.trajectory, mean, covariance)
    assert away < 0.05
    assert apart < 0.1


@pytest.mark.thorough
def test_eks_samples_it_with_few_particles_too():
    """Posterior draws in sets of 8 stay draws. Without the correction (d + 1)/n the sets would shrink."""
    mean, covariance = _update(PRIOR_MEAN, PRIOR)
    start = mean + np.asarray(draw(5, (300, 8, D))) @ np.linalg.cholesky(covariance).T
    problem = _problem()

    @jax.jit
    @jax.vmap
    def run(x, key):
        budget = flowrl.Budget(150, 0.02)
        return flowrl.transport(problem, x, budget, flow=flowrl.EKS(), key=key, throw=False).particles

    x = run(jnp.asarray(start, FLOAT), jr.split(KEY, 300))
    assert np.abs(np.asarray(x) - start).max() > 1
    away, apart = _whitened_errors(x, mean, covariance)
    assert away < 0.15
    assert apart < 0.25


@pytest.mark.parametrize("n", [3, 30], ids=["in a plane", "many"])
def test_eks_of_a_linear_map_is_aldi(n):
    """Step by step, with the same noise: the differences between particles are the derivative."""
    problem, start, budget = _problem(), _prior(6, n), flowrl.Budget(20, 0.01, temperature=1.5)
    got = flowrl.transport(problem, start, budget, flow=flowrl.EKS(), key=KEY)
    want = flowrl.transport(flowrl.Density(problem.value), start, budget, flow=flowrl.ALDI(), key=KEY)
    # In their plane alone, three particles see the same line.
    assert_close(got.particles, want.particles, rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-8, 1e-2))
    assert not np.allclose(got.particles, start, atol=0.1)
    assert_close(got.values, want.values, rtol=tolerance(1e-7, 1e-2), atol=tolerance(1e-7, 1e-1))


def test_a_map_without_a_derivative_and_one_outside_of_jax():
    start, budget = _prior(7, 20), flowrl.Budget(10, 0.02)
    exact, rounded, outside = (
        flowrl.transport(_problem(forward_map), start, budget, flow=flowrl.EKS(), key=KEY).particles
        for forward_map in (_map, _rounded, _outside)
    )
    assert_close(outside, exact, rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-8, 1e-3))
    assert not same_bits(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.allclose(exact, start, atol=0.3)


@pytest.mark.parametrize("name", ["EKS", "EKI"])
def test_the_map_is_evaluated_once_a_step_and_once_for_the_values(name):
    calls = []

    def count(x):
        calls.append(x.shape)
        return (np.asarray(x) @ A.T).astype(x.dtype)

    def counted(x):
        return jax.pure_callback(count, jax.ShapeDtypeStruct((M,), x.dtype), x, vmap_method="broadcast_all")

    budget = flowrl.Budget(7, None if name == "EKI" else 0.02)
    flow, key = (flowrl.EKI(), None) if name == "EKI" else (flowrl.EKS(), KEY)
    solution = flowrl.transport(_problem(counted, noise=20.0), _prior(8, 10), budget, flow=flow, key=key)
    jax.block_until_ready(solution.particles)
    assert calls == [(10, D)] * 8


# Ensemble Kalman inversion


def test_eki_is_kalmans_update_of_the_ensembles_own_moments():
    start = _prior(9, 20)
    solver = flowrl.Diffrax(
        diffrax.Tsit5(), diffrax.PIDController(rtol=tolerance(1e-8, 1e-4), atol=tolerance(1e-9, 1e-6))
    )
    solution = flowrl.transport(_problem(), start, flowrl.Budget(100, None), flow=flowrl.EKI(), solver=solver)
    want, got = _update(*_moments(start, 1)), _moments(solution.particles, 1)
    assert float(solution.stats["time"]) == pytest.approx(1)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(1e-6, 1e-2), atol=tolerance(1e-7, 2e-3))
    assert not np.allclose(got[1], np.cov(np.asarray(start, np.float64).T), rtol=0.5)


def test_eki_by_euler_is_of_first_order():
    start = _prior(10, 20)
    mean, covariance = _update(*_moments(start, 1))

    def error(steps):
        x = flowrl.transport(_problem(), start, flowrl.Budget(steps, None), flow=flowrl.EKI()).particles
        got_mean, got = _moments(x, 1)
        return np.abs(got_mean - mean).max(), np.abs(got - covariance).max()

    for coarse, fine in zip(error(400), error(800), strict=True):
        assert 1.7 < coarse / fine < 2.3
        assert fine < 0.05


def test_eki_knows_the_prior_by_its_particles_alone():
    start, budget = _prior(11, 15), flowrl.Budget(100, None)
    one, two = (
        flowrl.transport(_problem(prior_mean=mean, prior_scale=scale), start, budget, flow=flowrl.EKI())
        for mean, scale in ((PRIOR_MEAN, PRIOR), (np.zeros(D), 10.0))
    )
    assert same_bits(one.particles, two.particles)
    assert not np.allclose(one.values, two.values)


# What both keep


FLOWS = {"EKS": (flowrl.EKS(), flowrl.Budget(20, 0.01), KEY), "EKI": (flowrl.EKI(), flowrl.Budget(100, None), None)}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("scale", [0.1, np.array([0.5, 2.0, 10.0])], ids=["one", "each"])
def test_a_unit_of_length_changes_nothing(name, scale):
    flow, budget, key = FLOWS[name]
    start = _prior(12, 15)
    plain, scaled = (
        flowrl.transport(_problem(), start, given, flow=flow, key=key).particles
        for given in (budget, budget.rescaled(scale))
    )
    assert_close(scaled, plain, rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-8, 1e-2))
    assert not np.allclose(plain, start, atol=0.3)


@pytest.mark.parametrize("name", FLOWS)
def test_a_map_that_fails_freezes_its_particle_alone(name):
    flow, budget, key = FLOWS[name]
    bad, n = 4, 12
    start = _prior(13, n).clip(-4, 4).at[bad, 0].set(9.0)
    others = np.delete(np.arange(n), bad)
    solution = flowrl.transport(_problem(_walled), start, budget, flow=flow, key=key)
    assert same_bits(solution.particles[bad], start[bad])
    assert int(solution.stats["nonfinite"]) == 1
    assert np.isfinite(solution.particles).all()
    assert np.all(np.abs(np.asarray(solution.particles - start)[others]).max(axis=1) > 1e-3)
    velocity = eqx.filter_jit(lambda x: flow.velocity(_view(_problem(_walled)), x, jnp.ones(x.shape[0], bool)))
    got, alive = velocity(start)
    assert np.asarray(alive).tolist() == [i != bad for i in range(n)]
    assert np.all(np.asarray(got[bad]) == 0)
    assert_close(got[others], velocity(start[others])[0], rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-9, 1e-2))


@pytest.mark.parametrize("name", FLOWS)
def test_a_pytree_is_the_same_as_one_row(name):
    flow, budget, key = FLOWS[name]
    start = _prior(14, 10)

    def by_name(x):
        row = _map(jnp.concatenate([x["a"], x["b"][None]]))
        return {"left": row[:2], "right": row[2:].reshape(3, 1)}

    data = {"left": DATA[:2], "right": DATA[2:].reshape(3, 1)}
    tree = _problem(by_name, data, prior_mean={"a": PRIOR_MEAN[:2], "b": PRIOR_MEAN[2]})
    got = flowrl.transport(tree, {"a": start[:, :2], "b": start[:, 2]}, budget, flow=flow, key=key)
    want = flowrl.transport(_problem(), start, budget, flow=flow, key=key)
    rtol = tolerance(1e-9, 1e-3)
    assert_close(jnp.column_stack([got.particles["a"], got.particles["b"]]), want.particles, rtol=rtol, atol=rtol)
    assert_close(got.values, want.values, rtol=tolerance(1e-8, 1e-2), atol=rtol)


@pytest.mark.parametrize("name", FLOWS)
def test_many_problems_are_a_loop_over_them(name):
    flow, budget, _ = FLOWS[name]
    starts = jnp.stack([_prior(seed, 10) for seed in range(3)])
    data, keys = jnp.asarray(DATA[None], FLOAT) + draw(15, (3, M)), jr.split(KEY, 3)
    noises = jnp.asarray(NOISE * np.array([0.5, 1.0, 2.0])[:, None, None], FLOAT)

    @jax.jit
    def run(x, y, noise, key):
        problem = _problem(data=y, noise=noise, prior_mean=x.mean(axis=0), prior_scale=jnp.cov(x.T))
        key = key if flow.traits.stochastic else None
        return flowrl.transport(problem, x, budget, flow=flow, key=key, throw=False).particles

    each = jnp.stack([run(*one) for one in zip(starts, data, noises, keys, strict=True)])
    assert_close(
        jax.vmap(run)(starts, data, noises, keys), each, rtol=tolerance(1e-8, 1e-2), atol=tolerance(1e-8, 1e-2)
    )
    assert run._cache_size() == 1


@pytest.mark.skipif(not X64, reason="there is one precision only")
@pytest.mark.parametrize("name", FLOWS)
def test_particles_keep_their_precision(name):
    flow, budget, key = FLOWS[name]
    start = _prior(16, 10).astype(jnp.float32)
    solution = flowrl.transport(_problem(), start, budget, flow=flow, key=key)
    assert solution.particles.dtype == solution.values.dtype == jnp.float32
    double = start.astype(FLOAT)
    if name == "EKI":  # the noise of EKS is another in another precision
        want = flowrl.transport(_problem(), double, budget, flow=flow)
        np.testing.assert_allclose(solution.particles, want.particles, rtol=1e-3, atol=1e-3)


# Refusals


def _move(flow, target=None, budget=ONCE, particles=None, **options):
    particles = _prior(0, 6) if particles is None else particles
    return flowrl.transport(_problem() if target is None else target, particles, budget, flow=flow, **options)


class _Half(flowrl.AbstractTarget):
    """It knows its map, but not how far a result is from the data."""

    knows = frozenset({"forward"})
    needs_positive_temperature = True
    forward = staticmethod(_map)


SINGULAR = np.outer(DATA, DATA)
STEPS = flowrl.Budget(5, 0.1)
REFUSED = {
    "a class": (lambda: _problem(flowrl.Density), TypeError, "forward_map must be a function of one particle"),
    "a map alone": (_Half, TypeError, r"_Half.knows has 'forward'; then write misfit\(\) and prior_misfit\(\)"),
    "singular noise": (
        lambda: _problem(noise=SINGULAR),
        ValueError,
        "noise is a covariance, which must be positive definite; its smallest eigenvalue is",
    ),
    "noise without symmetry": (
        lambda: _problem(noise=np.eye(M) + np.eye(M, k=1)),
        ValueError,
        "noise is a covariance, which must be symmetric",
    ),
    "singular prior": (
        lambda: _problem(prior_scale=np.ones((D, D))),
        ValueError,
        "prior_scale is a covariance, which must be positive definite; its smallest eigenvalue is",
    ),
    "noise of zero": (lambda: _problem(noise=0.0), ValueError, "noise must be > 0 and finite, got"),
    "noise of another shape": (
        lambda: _problem(noise=np.ones(4)),
        ValueError,
        r"noise has shape \(4,\); expected one number, standard deviations \(5,\) as data has, or a covariance",
    ),
    "prior of another shape": (
        lambda: _problem(prior_scale=np.ones(M)),
        ValueError,
        r"prior_scale has shape \(5,\); expected one number, standard deviations \(3,\) as prior_mean has",
    ),
    "data of another shape": (
        lambda: _problem(data=np.ones(4), noise=1.0),
        ValueError,
        r"what forward_map returns for one particle has shape \(5,\); expected \(4,\), that of the data",
    ),
    "NaN in the data": (lambda: _problem(data=np.full(M, np.nan)), ValueError, "data must be finite"),
    "no data": (lambda: _problem(data={}), ValueError, "data has no array leaves"),
    "particles of another shape": (
        lambda: _move(flowrl.EKI(), particles=draw(0, (6, 2))),
        ValueError,
        r"one particle has shape \(2,\); expected \(3,\)",
    ),
    "EKS in a domain that maps": (
        lambda: _move(flowrl.EKS(), budget=STEPS, domain=flowrl.Box(-50, 50, by="bijector"), key=KEY),
        ValueError,
        "EKS in Box: the prior is no longer normal in the coordinates of a map; use Unbounded",
    ),
    "EKI in a domain that maps": (
        lambda: _move(flowrl.EKI(), domain=flowrl.Box(-50, 50, by="bijector")),
        ValueError,
        "EKI in Box: the prior is no longer normal in the coordinates of a map; use Unbounded",
    ),
    "a density for EKS": (
        lambda: _move(flowrl.EKS(), flowrl.Density(log_normal), STEPS, key=KEY),
        ValueError,
        r"EKS needs the forward of its target, which Density does not know; use InverseProblem\(forward_map, data",
    ),
    "a density for EKI": (
        lambda: _move(flowrl.EKI(), flowrl.Density(log_normal)),
        ValueError,
        "EKI needs the forward of its target, which Density does not know",
    ),
    "an inverse problem for Langevin": (
        lambda: _move(flowrl.Langevin(), budget=STEPS, key=KEY),
        ValueError,
        "Langevin needs the gradient of its target, which InverseProblem does not know; use Density",
    ),
    "an inverse problem for KFRFlow": (
        lambda: _move(flowrl.KFRFlow()),
        ValueError,
        "KFRFlow needs the log_tilt of its target, which InverseProblem does not know; use Tilted",
    ),
    "steps of another sum": (
        lambda: _move(flowrl.EKI(), budget=flowrl.Budget(20, 0.1)),
        ValueError,
        r"target at time 1, but the steps sum to 2; write Budget\(steps, None\)",
    ),
    "steps left to EKS": (
        lambda: _move(flowrl.EKS(), key=KEY),
        ValueError,
        "step_size=None, but Euler does not choose one",
    ),
    "EKI with an optimiser": (
        lambda: _move(flowrl.EKI(), solver=flowrl.Optax()),
        ValueError,
        r"EKI with Optax: the flow ends at time 1, .* use Euler\(\) or Diffrax\(\)",
    ),
    "EKS in Stratonovich's sense": (
        lambda: _move(
            flowrl.EKS(), budget=STEPS, solver=flowrl.Diffrax(diffrax.ShARK(), diffrax.ConstantStepSize()), key=KEY
        ),
        ValueError,
        r"EKS with Diffrax: the flow's noise depends on the particles .* use Euler\(\)",
    ),
    "EKS without a key": (lambda: _move(flowrl.EKS(), budget=STEPS), ValueError, "EKS toward InverseProblem is stoch"),
    "EKS at temperature 0": (
        lambda: _move(flowrl.EKS(), budget=flowrl.Budget(5, 0.1, 0.0), key=KEY),
        ValueError,
        "InverseProblem has no force at temperature 0",
    ),
    "EKI at a temperature": (
        lambda: _move(flowrl.EKI(), budget=flowrl.Budget(5, None, 1.0)),
        ValueError,
        "EKI has no entropy, so it has no temperature",
    ),
    "weights for EKI": (
        lambda: _move(flowrl.EKI(), log_weights=jnp.zeros(6, FLOAT)),
        ValueError,
        "EKI does not know weights; resample by them first",
    ),
    "a multiple of EKI": (lambda: 2.0 * flowrl.EKI(), ValueError, "EKI has the law of its target at time 1"),
    "a sum with EKI": (lambda: flowrl.EKI() + flowrl.Ascent(), ValueError, "transport with one flow after the other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused_in_one_sentence_before_anything_is_compiled(name, monkeypatch):
    call, error, words = REFUSED[name]
    if name != "particles of another shape":  # seen while the program is traced
        monkeypatch.setattr("flowrl._transport._run", None)
    with pytest.raises(error, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_new_data_do_not_compile_again():
    traces = []

    @eqx.filter_jit
    def run(problem, x):
        traces.append(1)
        return flowrl.transport(problem, x, flowrl.Budget(3, None), flow=flowrl.EKI(), throw=False).particles

    start = draw(17, (6, 2))
    one, two = (
        run(flowrl.InverseProblem(_line, jnp.asarray([y], FLOAT), noise, jnp.zeros(2, FLOAT), 1.0), start)
        for y, noise in ((1.0, 0.5), (2.0, 0.7))
    )
    assert len(traces) == 1
    assert not np.allclose(one, two)


@pytest.mark.thorough
def test_a_stiff_start_does_not_stall_the_default_integrator():
    """The whole unit of time as a first step overflowed, and no step after it was accepted."""
    problem = flowrl.InverseProblem(_stiff, [2.0], 0.1, prior_mean=[0.0, 0.0], prior_scale=1.0)
    solution = flowrl.transport(
        problem, draw(0, (100, 2)), flowrl.Budget(1, None), flow=flowrl.EKI(), solver=flowrl.Diffrax()
    )
    assert solution.result == flowrl.RESULTS.successful
    assert float(solution.particles.sum(axis=1).mean()) == pytest.approx(2, abs=0.05)


def _stiff(x):
    return x[:1] + x[1:]
