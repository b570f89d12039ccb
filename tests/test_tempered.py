"""Adaptive tempering: log evidence against closed forms and quadrature, modes that keep their mass."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, draw, log_normal

import flowrl
from flowrl import Budget, Langevin, Metropolis, Tempered, Tilted

N, SEEDS, WIDTH = 500, 10, 5.0


def _prior(x):
    """N(0, 25 I), normalised."""
    return -0.5 * jnp.sum((x / WIDTH) ** 2) - 0.5 * x.size * jnp.log(2 * jnp.pi * WIDTH**2)


def _narrow(x):
    return -0.5 * jnp.sum((x - 1) ** 2)


def _modes(x):
    """Mass 1 around 4 and mass 2 around −4, of unit variance."""
    return jnp.logaddexp(-0.5 * jnp.sum((x - 4) ** 2), -0.5 * jnp.sum((x + 4) ** 2) + jnp.log(2.0))


def _exact(d, centre):
    """Log of the integral of N(x; 0, 25) exp(−(x − c)²/2) in d dimensions."""
    return -0.5 * d * np.log(1 + WIDTH**2) - 0.5 * d * centre**2 / (1 + WIDTH**2)


def _runs(target, start, budget, solver, seeds=SEEDS):
    """Log evidence, its error and the particles of many seeds; `start(key)` draws the reference."""

    def one(seed):
        start_key, key = jr.split(jr.key(seed))
        solution = flowrl.transport(
            target, start(start_key), budget, flow=Langevin(), solver=solver, key=key, throw=False
        )
        return solution.extras, solution.particles, solution.result == flowrl.RESULTS.successful

    extras, particles, fine = jax.jit(jax.vmap(one))(jnp.arange(seeds))
    assert bool(fine.all())
    assert (np.asarray(extras["inverse_temperature"]) == 1).all()
    return np.asarray(extras["log_evidence"]), np.asarray(extras["log_evidence_error"]), particles


def _wide(d):
    return lambda key: WIDTH * jr.normal(key, (N, d), FLOAT)


@pytest.mark.parametrize("inner", [Metropolis(), Metropolis(flowrl.Hamiltonian(4))], ids=["MALA", "HMC"])
@pytest.mark.thorough
def test_log_evidence_of_a_gaussian_in_ten_dimensions(inner):
    estimate, error, particles = _runs(Tilted(_prior, _narrow), _wide(10), Budget(280, None), Tempered(inner))
    exact = _exact(10, 1.0)
    assert abs(estimate.mean() - exact) < 0.1
    # The error that each run states is about the spread over runs.
    assert 0.4 < error.mean() / np.sqrt(np.mean((estimate - exact) ** 2)) < 3
    shrunk = WIDTH**2 / (1 + WIDTH**2)
    np.testing.assert_allclose(particles.mean(axis=(0, 1)), shrunk, atol=0.1)
    np.testing.assert_allclose(particles.var(axis=(0, 1)), shrunk, atol=0.15)


@pytest.mark.thorough
def test_modes_keep_their_mass_and_evidence():
    estimate, error, particles = _runs(Tilted(_prior, _modes), _wide(2), Budget(150, None), Tempered())
    exact = _exact(2, 4.0) + np.log(3)
    assert abs(estimate.mean() - exact) < 0.1
    assert 0.4 < error.mean() / np.sqrt(np.mean((estimate - exact) ** 2)) < 3
    assert np.mean(np.asarray(particles)[..., 0] > 0) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.thorough
def test_log_evidence_of_a_logistic_regression_is_within_its_own_error():
    random = np.random.default_rng(0)
    inputs = random.standard_normal((40, 3))
    labels = random.random(40) < 1 / (1 + np.exp(-inputs @ np.array([1.0, -2.0, 0.5])))
    signed = jnp.asarray(inputs * np.where(labels, 1, -1)[:, None], FLOAT)

    def log_likelihood(w):
        return jnp.sum(jax.nn.log_sigmoid(signed @ w))

    # Importance sampling by 400,000 draws of a wide normal around the mode, in NumPy.
    proposals = random.standard_normal((400_000, 3)) * 1.5 + np.array([1.0, -2.0, 0.5])
    log_proposal = -0.5 * np.sum((proposals - [1.0, -2.0, 0.5]) ** 2, axis=1) / 2.25 - 1.5 * np.log(2 * np.pi * 2.25)
    log_prior = -0.5 * np.sum(proposals**2, axis=1) / WIDTH**2 - 1.5 * np.log(2 * np.pi * WIDTH**2)
    logs = -np.logaddexp(0, -proposals @ np.asarray(signed, float).T).sum(axis=1) + log_prior - log_proposal
    exact = np.log(np.mean(np.exp(logs - logs.max()))) + logs.max()

    estimate, error, _ = _runs(Tilted(_prior, log_likelihood), _wide(3), Budget(200, None), Tempered())
    misses = (estimate - exact) / error
    assert np.abs(misses).max() < 4
    assert np.sqrt(np.mean(misses**2)) < 1.8
    assert abs(estimate.mean() - exact) < 0.1


@pytest.mark.thorough
def test_a_bridge_from_a_normalised_start_has_the_evidence_of_the_density():
    def start(x):  # N(0, 9 I), normalised
        return -0.5 * jnp.sum(x**2) / 9 - jnp.log(2 * jnp.pi * 9)

    target = flowrl.bridge(start, lambda x: _narrow(x) + 5.0)
    estimate, _, particles = _runs(target, lambda key: 3 * jr.normal(key, (N, 2), FLOAT), Budget(120, None), Tempered())
    assert abs(estimate.mean() - (np.log(2 * np.pi) + 5)) < 0.1
    np.testing.assert_allclose(particles.mean(axis=(0, 1)), 1, atol=0.05)


def test_the_tilt_to_a_temperature_other_than_one():
    """At α = 2 the target is μ exp(V/2)."""
    solution = flowrl.transport(
        Tilted(_prior, _narrow),
        _wide(1)(jr.key(0)),
        Budget(120, None, temperature=2.0),
        flow=Langevin(),
        solver=Tempered(),
        key=jr.key(1),
    )
    assert float(solution.extras["inverse_temperature"]) == 0.5
    precision = 1 / WIDTH**2 + 0.5
    assert float(solution.particles.mean()) == pytest.approx(0.5 / precision, abs=0.25)
    assert float(solution.particles.var()) == pytest.approx(1 / precision, rel=0.25)


@pytest.mark.parametrize(
    "inner",
    [flowrl.Euler(), flowrl.Hamiltonian(1, 1.0), Metropolis(flowrl.Microcanonical())],
    ids=["Euler", "kinetic", "MAMS"],
)
def test_any_solver_moves_between_temperatures(inner):
    budget = Budget(160, None if isinstance(inner, Metropolis) else 0.2)
    solution = flowrl.transport(
        Tilted(_prior, _modes), _wide(2)(jr.key(0)), budget, flow=Langevin(), solver=Tempered(inner), key=jr.key(1)
    )
    assert float(jnp.mean(solution.particles[:, 0] > 0)) == pytest.approx(1 / 3, abs=0.12)
    assert float(solution.extras["log_evidence"]) == pytest.approx(_exact(2, 4.0) + np.log(3), abs=0.3)


def test_particles_without_a_likelihood_take_the_places_of_others():
    """A likelihood with a support: half of the prior is outside, and the evidence is a half."""

    def inside(x):
        return jnp.where(x[0] > 0, 0.0, -jnp.inf)

    start = draw(0, (1000, 1)) * WIDTH
    solution = flowrl.transport(
        Tilted(_prior, inside), start, Budget(40, None), flow=Langevin(), solver=Tempered(), key=jr.key(1)
    )
    assert float(solution.particles.min()) > 0
    assert float(start[solution.extras["origin"]].min()) > 0
    assert int(solution.stats["nonfinite"]) == 0
    assert float(solution.extras["log_evidence"]) == pytest.approx(np.log(float(jnp.mean(start > 0))), abs=1e-3)


def test_empty_slots_are_filled():
    start = _wide(2)(jr.key(0))
    log_weights = jnp.where(jnp.arange(N) < N // 2, 0.0, -jnp.inf)
    solution = flowrl.transport(
        Tilted(_prior, _modes),
        start,
        Budget(150, None),
        flow=Langevin(),
        solver=Tempered(),
        log_weights=log_weights,
        key=jr.key(1),
    )
    assert float(solution.extras["log_evidence"]) == pytest.approx(_exact(2, 4.0) + np.log(3), abs=0.4)
    np.testing.assert_allclose(np.exp(solution.log_weights), 1 / N, rtol=1e-5)


def test_a_budget_that_ends_too_early_says_so():
    method = dict(flow=Langevin(), solver=Tempered(), key=jr.key(1))
    with pytest.raises(RuntimeError, match="spent before the last temperature"):
        flowrl.transport(Tilted(_prior, _narrow), _wide(10)(jr.key(0)), Budget(16, None), **method)
    solution = flowrl.transport(Tilted(_prior, _narrow), _wide(10)(jr.key(0)), Budget(16, None), throw=False, **method)
    assert float(solution.extras["inverse_temperature"]) < 1
    assert "last temperature" in str(solution)


MISUSE = {
    "a density without a reference": (flowrl.Density(log_normal), {}, "Tempered needs the log_tilt of its target"),
    "a cap": (Tilted(_prior, _narrow), {"max_displacement": 1.0}, "Tempered cannot keep max_displacement"),
    "a cap on discrepancy": (Tilted(_prior, _narrow), {"max_mmd": 1.0}, "Tempered cannot keep max_displacement"),
    "a schedule": (Tilted(_prior, _narrow), {"temperature": np.array([2.0, 1.0])}, "give the budget the last one"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused_in_a_sentence(case):
    target, numbers, message = MISUSE[case]
    with pytest.raises(ValueError, match=message):
        flowrl.transport(
            target, draw(0, (5, 2)), Budget(2, 0.1, **numbers), flow=Langevin(), solver=Tempered(), key=jr.key(0)
        )


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"ess must be in \(0, 1\)"):
        Tempered(ess=1.0)
    with pytest.raises(ValueError, match="moves must be a Python int >= 1"):
        Tempered(moves=0)
    with pytest.raises(TypeError, match="Tempered itself"):
        Tempered(Tempered())
