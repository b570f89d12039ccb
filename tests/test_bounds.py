"""The certificates hold against what is measured, and are attained where the mathematics says so."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, distances, linear, mmd_squared

import flowrl
from flowrl import bounds

N, D, STEPS = 8, 3, 4
SLACK = 1e-5  # float32 rounding, relative


def _soft(weights, directions, offsets, x):
    """Σ_i w_i softplus(u_i·x + b_i): the gradient is a combination of the u_i with factors below w_i."""
    return jnp.sum(weights * jax.nn.softplus(directions @ x + offsets))


numbers = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sigma": st.floats(0.1, 5),
        "temperature": st.floats(0, 3),
        "step_size": st.floats(1e-3, 1),
        "lipschitz": st.floats(0, 5),
    }
)


def _measure(target, start, problem, domain, cap=None):
    budget = flowrl.Budget(STEPS, problem["step_size"], problem["temperature"], max_displacement=cap)
    flow = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(problem["sigma"])))
    end = flowrl.transport(target, start, budget, flow=flow, domain=domain).particles
    return budget, distances(start, end).max(), mmd_squared(start, end, problem["sigma"])


def _hold(budget, moved, mmd, problem):
    lipschitz, sigma = problem["lipschitz"], problem["sigma"]
    certified = float(bounds.displacement(budget, lipschitz, sigma))
    assert moved <= certified * (1 + SLACK) + SLACK
    assert mmd <= float(bounds.mmd_squared(budget, lipschitz, sigma)) * (1 + SLACK) + SLACK
    assert mmd <= float(bounds.mmd_squared_from_displacement(moved, sigma)) * (1 + SLACK) + SLACK
    assert mmd <= float(bounds.mmd_squared_from_displacement(certified, sigma)) * (1 + SLACK) + SLACK


@hypothesis.given(problem=numbers)
@hypothesis.settings(max_examples=25)
def test_the_bounds_hold_for_linear_values(problem):
    rng = np.random.default_rng(problem["seed"])
    slope = rng.normal(size=D)
    slope *= problem["lipschitz"] / np.linalg.norm(slope)
    start = jnp.asarray(rng.normal(size=(N, D)) * rng.choice([0.01, 1, 3]), FLOAT)
    target = flowrl.Boltzmann(linear, jnp.asarray(slope, FLOAT))
    _hold(*_measure(target, start, problem, flowrl.Unbounded()), problem)


@hypothesis.given(problem=numbers, cap=st.floats(1e-3, 1))
@hypothesis.settings(max_examples=25)
def test_the_bounds_hold_for_curved_values_in_a_box_and_under_a_cap(problem, cap):
    rng = np.random.default_rng(problem["seed"])
    directions = rng.normal(size=(5, D))
    weights = rng.random(5)
    weights *= problem["lipschitz"] / np.sum(weights * np.linalg.norm(directions, axis=1))
    target = flowrl.Boltzmann(_soft, *(jnp.asarray(a, FLOAT) for a in (weights, directions * 1.0, rng.normal(size=5))))
    start = jnp.asarray(rng.uniform(-1, 1, size=(N, D)), FLOAT)
    _hold(*_measure(target, start, problem, flowrl.Box(-1, 1), cap), problem)


def test_the_displacement_bound_is_attained():
    # A linear value and a wide kernel: every particle moves by Σ ε c.
    slope, step_sizes = jnp.asarray([3.0, 0.0, 4.0], FLOAT), np.array([0.1, 0.2, 0.3, 0.4])
    problem = {"sigma": 1e6, "temperature": 0.0, "step_size": step_sizes, "lipschitz": 5.0}
    start = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), FLOAT)
    budget, moved, _ = _measure(flowrl.Boltzmann(linear, slope), start, problem, flowrl.Unbounded())
    assert float(bounds.displacement(budget, 5.0, 1e6)) == pytest.approx(5.0)
    assert moved == pytest.approx(5.0, rel=1e-5)


def test_the_mmd_bounds_are_attained_or_nearly_by_one_particle():
    for moved in (0.01, 1.0, 3.0):
        measured = mmd_squared(np.zeros((1, 1)), np.full((1, 1), moved), 1.0)
        assert float(bounds.mmd_squared_from_displacement(moved, 1.0)) == pytest.approx(measured, rel=1e-4)
    budget = flowrl.Budget(2, 0.5, 0.0)
    at_sigma = mmd_squared(np.zeros((1, 1)), np.ones((1, 1)), 1.0)
    assert 0.64 < at_sigma / float(bounds.mmd_squared(budget, 1.0, 1.0)) < 0.65  # (1 − 1/√e) √e


def test_the_paper_bound_by_hand():
    budget = flowrl.Budget(5, 0.1, 0.3)
    want = 2 * 0.1 * 5 / (0.7 * np.sqrt(np.e)) * (2.0 + 0.3 / (0.7 * np.sqrt(np.e)))
    assert float(bounds.mmd_squared(budget, 2.0, 0.7)) == pytest.approx(want, rel=1e-6)
    # In the paper's units, step size ε = α·step_size and c/α: the same number.
    paper = 2 * 0.03 * 5 / (0.7 * np.sqrt(np.e)) * (2.0 / 0.3 + 1 / (0.7 * np.sqrt(np.e)))
    assert paper == pytest.approx(want)
    assert float(bounds.displacement(flowrl.Budget(5, 0.1, max_displacement=0.2), 9.0, 1.0)) == pytest.approx(0.2)
    assert float(bounds.best_of_n_kl(1)) == 0
    assert float(bounds.best_of_n_kl(8)) == pytest.approx(np.log(8) - 7 / 8)


def test_support_breaking_by_exactly_the_budget():
    # mu = U[-1, 1], V(a) = a, one particle a set: the mass outside is min(1, ε L c / 2), and best-of-N has none.
    grid = jnp.linspace(-1, 1, 4001, dtype=FLOAT)[:, None, None]
    slope = jnp.ones(1, FLOAT)

    @jax.jit
    def outside(step_size):
        def one(start):
            budget = flowrl.Budget(5, step_size, 0.0)
            return flowrl.transport(flowrl.Boltzmann(linear, slope), start, budget, throw=False).particles

        return jnp.mean((jax.vmap(one)(grid) > 1).astype(FLOAT))

    for step_size in (0.0, 0.02, 0.1, 0.2, 0.5):
        assert float(outside(step_size)) == pytest.approx(min(1, step_size * 5 / 2), abs=1e-3)
