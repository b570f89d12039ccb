"""The contract that every supported combination of parts keeps, whatever the parts.

The cases are a covering array: every pair of levels (of flow, solver, domain, target, budget, structure, precision)
that occurs in a supported combination is in at least one. By default those are run that hold a level for the first
time; the others are slow. All flows with all solvers, domains and targets:

    pytest tests/test_contract.py --full-product -m ""
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import X64, same_bits

import flowrl

N, BOUND = 6, 3
IMQ = flowrl.IMQ(flowrl.FixedBandwidth(0.8))

FLOWS = {
    "SVGD": flowrl.SVGD(IMQ + 0.1 * flowrl.Linear()),
    "SVGD, preconditioned": flowrl.SVGD(flowrl.Preconditioned()),
    "Ascent": flowrl.Ascent(),
    "Langevin": flowrl.Langevin(),
    "ALDI": flowrl.ALDI(),
    "Blob": flowrl.Blob(),
    "MMDFlow": flowrl.MMDFlow(noise=0.1),
    "KSDDescent": flowrl.KSDDescent(IMQ),
    "SinkhornFlow": flowrl.SinkhornFlow(iterations=5),
    "Consensus": flowrl.Consensus(),
    "EKS": flowrl.EKS(),
    "EKI": flowrl.EKI(),
    "KFRFlow": flowrl.KFRFlow(IMQ, 0.01),
    "Langevin + BirthDeath": flowrl.Langevin() + flowrl.BirthDeath(),
    "RandomBatch": flowrl.RandomBatch(flowrl.SVGD(IMQ), 3),
    "SlicedSVGD": flowrl.SlicedSVGD(),
}
SOLVERS = {
    "Euler": flowrl.Euler(),
    "Adam": flowrl.Optax(optax.adam(1.0, eps_root=1e-16)),
    "Nesterov": flowrl.Nesterov(),
    "Coin": flowrl.Coin(),
    "Adaptive": flowrl.Adaptive(),
    "Monotone": flowrl.Monotone(),
    "MALA": flowrl.Metropolis(),
    "HMC": flowrl.Metropolis(flowrl.Hamiltonian(2)),
    "kinetic": flowrl.Hamiltonian(1, 1.0),
    "MAMS": flowrl.Metropolis(flowrl.Microcanonical(2)),
    # The last temperature at the first step, since a case has three.
    "Tempered": flowrl.Tempered(ess=0.01, moves=1),
}
# Particles are probability vectors of three entries, so that they lie in every domain.
DOMAINS = {
    "Unbounded": flowrl.Unbounded(),
    "Box, project": flowrl.Box(-0.1, 1.1),
    "Box, reflect": flowrl.Box(-0.1, 1.1, by="reflect"),
    "Box, bijector": flowrl.Box(-0.1, np.inf, by="bijector"),
    "positive, mirror": flowrl.positive(by="mirror"),
    "Ball, project": flowrl.Ball(0.3, 2.0),
    "Ball, bijector": flowrl.Ball(0.3, 2.0, by="bijector"),
    "Simplex, project": flowrl.Simplex(by="project"),
    "Simplex, mirror": flowrl.Simplex(),
    "Product": None,  # depends on the structure
}
TARGETS = ("Boltzmann", "Density", "Score", "Tilted", "Posterior", "InverseProblem", "Empirical")
BUDGETS = ("plain", "scaled", "capped", "schedules", "stops")
STRUCTURES = ("matrix", "tree")
DTYPES = (jnp.float32, jnp.float64) if X64 else (jnp.float32,)


class Case(NamedTuple):
    """One level of every factor."""

    flow: str
    solver: str
    domain: str
    target: str
    budget: str
    structure: str
    dtype: str

    def __str__(self):
        return " | ".join(self)


LEVELS = (
    tuple(FLOWS),
    tuple(SOLVERS),
    tuple(DOMAINS),
    TARGETS,
    BUDGETS,
    STRUCTURES,
    tuple(jnp.dtype(dtype).name for dtype in DTYPES),
)


def _particles(structure, dtype):
    rows = np.random.default_rng(0).dirichlet([3, 3, 3], size=N)
    if structure == "matrix":
        return jnp.asarray(rows, dtype)
    return {"a": jnp.asarray(rows, dtype), "b": jnp.asarray(rows[::-1, None, :], dtype)}


def _domain(case):
    if case.domain != "Product":
        return DOMAINS[case.domain]
    parts = flowrl.Simplex(), flowrl.Box(-0.1, 1.1, by="reflect")
    return flowrl.Product(parts[0] if case.structure == "matrix" else {"a": parts[0], "b": parts[1]})


def _sum(particle):
    return sum(jnp.sum((leaf - 0.3) ** 2) for leaf in jax.tree.leaves(particle))


def _value(particle):
    return -2 * _sum(particle)


def _score(particle):
    return jax.tree.map(lambda leaf: -2 * (leaf - 0.3), particle)


def _likelihood(particle, datum):
    return -0.1 * (_sum(particle) - datum) ** 2


def _forward(particle):
    leaves = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(particle)])
    return jnp.stack([jnp.sum(leaves), jnp.sum(leaves**2)])


def _target(case, particles):
    dtype = jnp.dtype(case.dtype)
    if case.target == "Empirical":
        return flowrl.Empirical(jax.tree.map(lambda leaf: jnp.flip(leaf, axis=0)[:4], particles))
    return {
        "Boltzmann": lambda: flowrl.Boltzmann(_value),
        "Density": lambda: flowrl.Density(_value),
        "Score": lambda: flowrl.Score(_score),
        "Tilted": lambda: flowrl.Tilted(_value, _value),
        "Posterior": lambda: flowrl.Posterior(_value, _likelihood, jnp.arange(5, dtype=dtype), batch_size=2),
        "InverseProblem": lambda: flowrl.InverseProblem(
            _forward, jnp.ones(2, dtype), 0.5, jax.tree.map(lambda leaf: jnp.full(leaf.shape[1:], 0.3), particles), 0.5
        ),
    }[case.target]()


def _budget(case, steps):
    traits = FLOWS[case.flow].traits
    temperature = None if traits.temperature == "none" else 0.7
    options = {
        "plain": {},
        "scaled": {"scale": 0.5},
        "capped": {"max_displacement": 0.05},
        "schedules": {"step_size": np.array([0.02, 0.01, 0.03])},
        "stops": {"max_mmd": 0.5, "check_every": 2, "tolerance": 1e-6},
    }[case.budget]
    if traits.unit_time:
        options["step_size"] = np.array([0.3, 0.2, 0.5]) if case.budget == "schedules" else None
    if case.budget == "schedules" and temperature is not None:
        temperature = np.array([1.0, 0.9, 0.8])
    if "step_size" in SOLVERS[case.solver].needs.chooses:
        options = options | {"step_size": None}
    return flowrl.Budget(
        **({"steps": jnp.asarray(steps), "step_size": 0.02, "temperature": temperature, "max_steps": BOUND} | options)
    )


def _refused_by_budget(case):
    traits, needs = FLOWS[case.flow].traits, SOLVERS[case.solver].needs
    rests = needs.rests and not traits.diffuses and not traits.jumps
    return {
        "capped": traits.jumps or not needs.caps,
        "stops": not rests or not needs.caps,
        "schedules": isinstance(SOLVERS[case.solver], flowrl.Tempered),  # it chooses its temperatures
    }.get(case.budget, False)


@functools.cache
def _example(name):
    return _target(Case("", "", "", name, "", "matrix", "float32"), _particles("matrix", jnp.float32))


@functools.cache
def _go_together(flow, solver, domain, target):
    domain = _domain(Case(flow, solver, domain, target, "", "matrix", "float32"))
    return bool(flowrl.supports(FLOWS[flow], SOLVERS[solver], domain, _example(target)))


def _supported(case):
    return _go_together(*case[:4]) and not _refused_by_budget(case)


def _pairs(case):
    return set(itertools.combinations(enumerate(case), 2))


@functools.cache
def _covering_array():
    """Greedily: as long as a pair is not covered, the best of some supported cases that hold it."""
    random = np.random.default_rng(0)
    # What decides on support: flow, solver, domain, target, budget. So a pair is left out only if no case can hold it.
    supported = [parts for parts in itertools.product(*LEVELS[:5]) if _supported(Case(*parts, *_REST))]
    cases, covered = [], set()
    for i, j in itertools.combinations(range(len(LEVELS)), 2):
        for a, b in itertools.product(LEVELS[i], LEVELS[j]):
            pair = ((i, a), (j, b))
            if pair in covered:
                continue
            fits = [parts for parts in supported if all(k >= 5 or parts[k] == level for k, level in pair)]
            if not fits:
                continue
            candidates = []
            for index in random.integers(len(fits), size=30):
                rest = [dict(pair).get(k, levels[random.integers(len(levels))]) for k, levels in _rest_levels()]
                candidates.append(Case(*fits[index], *rest))
            best = max(candidates, key=lambda case: len(_pairs(case) - covered))
            cases.append(best)
            covered |= _pairs(best)
    assert {case.flow for case in cases} == set(FLOWS)
    return cases


def _rest_levels():
    return list(enumerate(LEVELS))[5:]


_REST = tuple(levels[0] for levels in LEVELS[5:])


def _full_product():
    """Every flow, solver, domain and target; budgets, structures and precisions in turn."""
    rest = itertools.cycle(itertools.product(*LEVELS[4:]))
    cases = []
    for parts in itertools.product(*LEVELS[:4]):
        for _ in range(len(BUDGETS)):
            case = Case(*parts, *next(rest))
            if _supported(case):
                cases.append(case)
                break
    return cases


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        cases = _full_product() if metafunc.config.getoption("--full-product") else _covering_array()
        seen, marked = set(), []
        for case in cases:
            levels = set(enumerate(case))
            marked.append(pytest.param(case, id=str(case), marks=() if levels - seen else pytest.mark.slow))
            seen |= levels
        metafunc.parametrize("case", marked)


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_the_contract(case, key):
    particles = _particles(case.structure, jnp.dtype(case.dtype))
    domain, target = _domain(case), _target(case, particles)
    method = flowrl.Transport(FLOWS[case.flow], SOLVERS[case.solver], domain)

    def run(steps, particles=particles):
        return method(target, particles, _budget(case, steps), key=key)

    # Zero steps: the same bits. (The number of steps is traced, so all that follows is one program.)
    still = run(0)
    assert same_bits(still.particles, particles)
    assert float(still.stats["displacement_max"]) == 0
    moved = run(BOUND)
    assert jax.tree.structure(moved.particles) == jax.tree.structure(particles)
    for before, after in zip(_leaves(particles), _leaves(moved.particles), strict=True):
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert np.isfinite(after).all()
    assert moved.result in (flowrl.RESULTS.successful, flowrl.RESULTS.stationary, flowrl.RESULTS.mmd_reached)
    assert np.asarray(domain.contains(moved.particles)).all()
    if case.budget != "stops" and case.solver != "Monotone":  # it may keep no move
        assert float(moved.stats["displacement_max"]) > 0
    if case.budget == "capped":
        ends = zip(_leaves(particles), _leaves(moved.particles), strict=True)
        squared = sum(np.sum((b.astype(float) - a.astype(float)) ** 2, axis=tuple(range(1, a.ndim))) for a, b in ends)
        assert np.sqrt(squared).max() <= float(np.asarray(0.05, case.dtype))
    # The same seed gives the same bits, and what came back may be sent on.
    assert same_bits(run(BOUND).particles, moved.particles)
    onward = run(1, moved.particles)
    assert all(np.isfinite(leaf).all() for leaf in _leaves(onward.particles))
    if ("value" in target.knows) != (moved.values is not None):
        raise AssertionError("a target that knows its value has values, and no other")
    # The order of the particles does not matter where no noise is dealt out by it.
    if not (method.flow.traits.stochastic or method.solver.needs.random or target.stochastic):
        turned = run(BOUND, jax.tree.map(lambda leaf: jnp.roll(leaf, 2, axis=0), particles))
        for a, b in zip(_leaves(turned.particles), _leaves(moved.particles), strict=True):
            np.testing.assert_allclose(
                a, np.roll(b, 2, axis=0), rtol=2e-3 if a.dtype == np.float32 else 1e-7, atol=1e-5
            )


@pytest.mark.thorough
def test_what_is_not_supported_is_refused_with_the_reason_of_the_table(key):
    """Every flow with every solver, domain and target, without compiling anything."""
    refused = 0
    for flow, solver, domain, target in itertools.product(*LEVELS[:4]):
        case = Case(flow, solver, domain, target, "plain", "matrix", "float32")
        particles = _particles("matrix", jnp.float32)
        parts, density = (FLOWS[flow], SOLVERS[solver], _domain(case)), _example(target)
        support = flowrl.supports(*parts, density)
        if support:
            assert support.reason == ""
            continue
        refused += 1
        assert len(support.reason) > 40
        assert "use" in support.reason
        with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared next)
            flowrl.Transport(*parts)(density, particles, flowrl.Budget(1), key=key)
        assert str(error.value) == support.reason
    assert refused > 0
