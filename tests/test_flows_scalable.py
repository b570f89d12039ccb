"""Sliced kernels and random batches against NumPy, and against the flows that they stand for."""

import dataclasses
import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, log_normal, quadratic, same_bits, tolerance, walled
from test_errors import PRELUDE, ROOT, RUNNER

import flowrl
from flowrl._flow._sliced import _rotation

NORMAL = flowrl.Density(log_normal)
FIXED = flowrl.RBF(flowrl.FixedBandwidth(1.0))
SLICED = flowrl.SlicedSVGD(FIXED)


def _same(x):
    return x


def _view(key, target=NORMAL, temperature=1.0, d=2):
    ones, alpha = jnp.ones((1, d), FLOAT), jnp.asarray(temperature, FLOAT)
    return flowrl.TargetView(alpha, None, key, target, flowrl.Unbounded(), ones, entropic=True, unravel=_same)


@eqx.filter_jit
def _velocity(flow, view, x, alive=None):
    return flow.velocity(view, x, jnp.ones(x.shape[0], bool) if alive is None else alive)


# Sliced


def _sliced(x, score, rotation, temperature, variance):
    """The formula of the docstring, in loops."""
    n, d = x.shape
    velocity = np.zeros((n, d))
    for c in range(d):
        q = rotation[:, c]
        along, pull = x @ q, score @ q
        for i in range(n):
            for j in range(n):
                apart = along[j] - along[i]
                kernel = np.exp(-(apart**2) / (2 * variance))
                velocity[i] += q * (pull[j] * kernel - temperature * apart / variance * kernel) / n
    return velocity


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_velocity_is_that_of_the_loops(temperature, key):
    x, view = draw(0, (7, 3)) + 2, _view(key, flowrl.Boltzmann(log_normal), temperature, 3)
    velocity, alive = _velocity(SLICED, view, x)
    rotation = np.asarray(_rotation(key, 3, x), np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=tolerance(1e-12, 1e-5))
    expected = _sliced(np.asarray(x, np.float64), -np.asarray(x, np.float64), rotation, temperature, 1.0)
    np.testing.assert_allclose(velocity, expected, atol=tolerance(1e-12, 1e-5))
    assert alive.all()


@pytest.mark.parametrize("kernel", [flowrl.RBF(), flowrl.IMQ(), FIXED + 0.1 * flowrl.Linear()])
def test_in_one_dimension_it_is_svgd(kernel, key):
    x, view = draw(1, (9, 1)), _view(key, d=1)
    sliced, _ = _velocity(flowrl.SlicedSVGD(kernel), view, x)
    assert_close(sliced, _velocity(flowrl.SVGD(kernel), view, x)[0], atol=tolerance(1e-12, 1e-6))


def test_rotations_are_drawn_uniformly():
    entries = np.asarray(jax.vmap(lambda key: _rotation(key, 4, draw(0, (1, 4))))(jr.split(jr.key(0), 2000)))
    assert np.abs((entries**2).mean(axis=0) - 1 / 4).max() < 0.03
    # Of a uniform point on the sphere the fourth moment is 3/(d(d + 2)).
    assert np.abs((entries**4).mean(axis=0) - 3 / 24).max() < 0.025


def test_axes_are_taken_by_blocks(monkeypatch, at_most_entries, key):
    x, view = draw(2, (12, 5)), _view(key, d=5)
    velocity = lambda: jax.jit(lambda x: SLICED.velocity(view, x, jnp.ones(12, bool))[0])(x)
    whole = velocity()
    for backend, entries in (("cpu", 40), ("gpu", 10), ("gpu", 1)):  # on accelerators 32 times as many entries
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        at_most_entries(entries)
        assert_close(velocity(), whole, atol=tolerance(1e-12, 1e-5))


def test_no_array_has_all_pairs_on_all_axes(key):
    n, d = 1000, 60
    compiled = _velocity.lower(flowrl.SlicedSVGD(FIXED), _view(key, d=d), jnp.ones((n, d), FLOAT)).compile()
    analysis = compiled.compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < 0.25 * n * n * d * jnp.dtype(FLOAT).itemsize


@pytest.mark.slow
def test_in_a_hundred_dimensions_it_keeps_the_variance_that_svgd_loses(key):
    start, budget = draw(3, (100, 100), jnp.float32), flowrl.Budget(150, 0.3)
    sliced = flowrl.transport(NORMAL, start, budget, flow=SLICED, key=key).particles
    plain = flowrl.transport(NORMAL, start, budget).particles
    assert float(plain.var()) < 0.8
    assert float(sliced.var()) == pytest.approx(1, abs=0.07)
    assert float(jnp.abs(sliced.mean(axis=0)).max()) < 0.1


def test_it_finds_a_correlated_normal_from_a_wide_start(key):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    widths = np.geomspace(0.5, 2, 20)
    precision = jnp.asarray(rotation @ np.diag(widths**-2) @ rotation.T, jnp.float32)
    target = flowrl.Density(lambda p, x: -0.5 * (x - 1) @ p @ (x - 1), precision)
    start, budget = 3 * draw(4, (100, 20), jnp.float32), flowrl.Budget(300, 0.3)
    solution = flowrl.transport(target, start, budget, flow=SLICED, key=key)
    x = (np.asarray(solution.particles) - 1) @ rotation / widths
    assert np.abs(x.mean(axis=0)).max() < 0.15
    np.testing.assert_allclose(x.var(axis=0), 1, atol=0.4)
    assert x.var() == pytest.approx(1, abs=0.1)


def test_weights_enter_the_sums(key):
    x = draw(5, (6, 3))
    twice = jnp.concatenate([x, x[:1]])
    view = _view(key, d=3)
    weighed = view.weighted(jnp.log(jnp.asarray([2.0, 1, 1, 1, 1, 1], FLOAT)))
    velocity, _ = _velocity(SLICED, weighed, x)
    assert_close(velocity, _velocity(SLICED, view, twice)[0][:6], atol=tolerance(1e-12, 1e-5))


# Random batches

BATCHED = {
    "SVGD": (flowrl.SVGD(FIXED), NORMAL),
    "SVGD, fitted": (flowrl.SVGD(), NORMAL),
    "SVGD, preconditioned": (flowrl.SVGD(flowrl.Preconditioned()), NORMAL),
    "Ascent": (flowrl.Ascent(), NORMAL),
    "KSDDescent": (flowrl.KSDDescent(flowrl.IMQ(flowrl.FixedBandwidth(0.8))), NORMAL),
    "MMDFlow": (flowrl.MMDFlow(FIXED), flowrl.Empirical(draw(6, (5, 2)) + 1)),
}


def _divisions(flow, target, x, alive=None, count=200):
    """The distinct velocities of many divisions into two batches, and what the whole set has."""
    alive, halves = jnp.ones(x.shape[0], bool) if alive is None else alive, flowrl.RandomBatch(flow, x.shape[0] // 2)
    divided = jax.jit(jax.vmap(lambda key: halves.velocity(_view(key, target), x, alive)[0]))
    batched = np.asarray(divided(jr.split(jr.key(1), count)))
    distinct = np.unique(np.round(batched, tolerance(8, 3)), axis=0, return_index=True)[1]
    return batched[distinct], np.asarray(_velocity(flow, _view(None, target), x, alive)[0])


@pytest.mark.parametrize("name", BATCHED)
def test_the_mean_over_all_divisions_is_the_flow(name):
    flow, target = BATCHED[name]
    batched, whole = _divisions(flow, target, draw(7, (4, 2)))
    assert len(batched) == (1 if name == "Ascent" else 3)  # pairs of four particles
    np.testing.assert_allclose(batched.mean(axis=0), whole, atol=tolerance(1e-10, 1e-4))
    assert name == "Ascent" or np.abs(batched - whole).max() > 0.01


@pytest.mark.parametrize("name", ["SVGD", "SVGD, fitted", "MMDFlow"])
def test_frozen_particles_do_not_bias_it(name):
    flow, target = BATCHED[name]
    alive = jnp.asarray([True, True, False, True, True, True])
    x = draw(8, (6, 2)).at[2].set(1e6)
    batched, whole = _divisions(flow, target, x, alive, 1000)
    assert len(batched) == 10  # five living particles as three and two
    np.testing.assert_allclose(batched.mean(axis=0), whole, atol=tolerance(1e-10, 1e-4))
    assert (batched[:, 2] == 0).all()


class _Crowd(flowrl.AbstractFlow):
    """Moves every particle by the number of living ones in its set."""

    traits = flowrl.Traits(needs=frozenset())

    def velocity(self, view, positions, alive):
        del view
        return jnp.where(alive[:, None], jnp.sum(alive.astype(positions.dtype)), 0 * positions), alive


@pytest.mark.parametrize("frozen", [0, 3, 6, 9, 12])
def test_living_particles_are_dealt_out_evenly(frozen, key):
    alive = jnp.asarray(np.random.default_rng(0).permutation(12) >= frozen)
    velocity, _ = _velocity(flowrl.RandomBatch(_Crowd(), 4), _view(key), draw(9, (12, 2)), alive)
    living = 12 - frozen
    m = living // 3  # of each of the three batches
    # A particle alone has the velocity 1, and in its batch m: m² − 1 for the m − 1 others.
    expected = 1 / max(living, 1) + (1 - 1 / max(living, 1)) * (m + 1 if m > 1 else 0)
    np.testing.assert_allclose(velocity[alive], expected, rtol=1e-5)
    assert (np.asarray(velocity[~alive]) == 0).all()


def test_one_batch_is_the_flow(key):
    x = draw(10, (8, 2))
    velocity, _ = _velocity(flowrl.RandomBatch(flowrl.SVGD(), 8), _view(key), x)
    assert_close(velocity, _velocity(flowrl.SVGD(), _view(key), x)[0], atol=tolerance(1e-12, 1e-5))


@pytest.mark.thorough
def test_batches_of_svgd_come_to_its_variance(key):
    # Batches that count each particle's own score as one of 20, not of 200, would end at a variance of 0.6.
    start, budget = draw(11, (200, 5), jnp.float32), flowrl.Budget(150, 0.2)
    whole = flowrl.transport(NORMAL, start, budget).particles
    batched = flowrl.transport(NORMAL, start, budget, flow=flowrl.RandomBatch(flowrl.SVGD(), 20), key=key).particles
    assert float(batched.var()) == pytest.approx(float(whole.var()), abs=0.05)
    assert float(jnp.abs(batched.mean(axis=0)).max()) < 0.05


@pytest.mark.thorough
def test_batches_of_a_random_flow_and_with_noise(key):
    start, budget = draw(12, (60, 4)), flowrl.Budget(60, 0.2)
    for flow in (flowrl.RandomBatch(SLICED, 20), flowrl.RandomBatch(flowrl.SVGD(), 20) + 0.1 * flowrl.Langevin()):
        solution = flowrl.transport(NORMAL, start + 1, budget, flow=flow, key=key)
        assert float(solution.particles.var()) == pytest.approx(1, abs=0.3)
        assert float(jnp.abs(solution.particles.mean(axis=0)).max()) < 0.3


# What holds for both

FLOWS = {"SlicedSVGD": SLICED, "RandomBatch": flowrl.RandomBatch(flowrl.SVGD(FIXED), 5)}


@pytest.mark.parametrize("name", FLOWS)
def test_a_particle_without_a_finite_score_stays(name, key):
    particles = draw(13, (10, 2)).at[4].set(jnp.asarray([9.0, 0.5], FLOAT))
    solution = flowrl.transport(flowrl.Density(walled), particles, flowrl.Budget(5, 0.2), flow=FLOWS[name], key=key)
    assert same_bits(solution.particles[4], particles[4])
    assert int(solution.stats["nonfinite"]) == 1
    assert np.isfinite(np.asarray(solution.particles)).all()
    assert np.abs(np.delete(np.asarray(solution.particles - particles), 4, axis=0)).min() > 1e-5


@pytest.mark.parametrize("name", FLOWS)
def test_a_unit_of_length_is_a_change_of_coordinates(name, key):
    scale, start = jnp.asarray([0.5, 4.0], FLOAT), draw(14, (10, 2))
    target = flowrl.Density(quadratic, jnp.asarray([1.0, -1.0], FLOAT))
    inside = flowrl.Density(lambda c, z: quadratic(c, scale * z), jnp.asarray([1.0, -1.0], FLOAT))
    one = flowrl.transport(target, start, flowrl.Budget(6, 0.2, scale=scale), flow=FLOWS[name], key=key)
    two = flowrl.transport(inside, start / scale[None], flowrl.Budget(6, 0.2), flow=FLOWS[name], key=key)
    assert_close(one.particles, two.particles * scale[None], rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-9, 1e-4))


@pytest.mark.parametrize("name", FLOWS)
def test_a_batch_of_sets_is_a_loop(name, key):
    starts, keys = draw(15, (3, 10, 2)), jr.split(key, 3)
    run = lambda x, k: flowrl.transport(NORMAL, x, flowrl.Budget(4, 0.2), flow=FLOWS[name], key=k, throw=False)
    together = jax.jit(jax.vmap(run))(starts, keys)
    for x, k, moved in zip(starts, keys, together.particles, strict=True):
        assert_close(moved, run(x, k).particles, rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-10, 1e-5))


@pytest.mark.parametrize("name", FLOWS)
def test_reverse_mode_is_finite(name, key):
    run = lambda x: flowrl.transport(NORMAL, x, flowrl.Budget(3, 0.2), flow=FLOWS[name], key=key, throw=False)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(run(x).particles ** 2))(draw(16, (10, 2))))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).min() > 0


def test_traits_of_batches_are_those_of_the_flow():
    for flow in (flowrl.SVGD(), flowrl.KSDDescent(), flowrl.MMDFlow()):
        traits = flowrl.RandomBatch(flow, 10).traits
        assert traits == dataclasses.replace(flow.traits, random=True, weighs=False, energy_needs=None)


# Calls as strings, in a process without the type checker of these tests.
REFUSED = {
    "no kernel": ("flowrl.SlicedSVGD(1.0)", TypeError, ["kernel must be a kernel such as RBF()"]),
    "no key": ("transport(normal, x, budget, flow=flowrl.SlicedSVGD())", ValueError, ["pass key=jax.random.key(seed)"]),
    "no flow": ("flowrl.RandomBatch(flowrl.SVGD, 2)", TypeError, ["RandomBatch takes a flow such as SVGD()"]),
    "noise": ("flowrl.RandomBatch(flowrl.Langevin(), 2)", ValueError, ["Langevin is stochastic", "add the noise"]),
    "jumps": ("flowrl.RandomBatch(flowrl.BirthDeath(), 2)", ValueError, ["BirthDeath is stochastic"]),
    "unit time": ("flowrl.RandomBatch(flowrl.KFRFlow(), 2)", ValueError, ["cannot be divided into batches"]),
    "one": ("flowrl.RandomBatch(flowrl.SVGD(), 1)", ValueError, ["size must be a Python int >= 2, got 1"]),
    "half": ("flowrl.RandomBatch(flowrl.SVGD(), 2.5)", ValueError, ["size must be a Python int >= 2, got 2.5"]),
    "a remainder": (
        "transport(normal, x, budget, flow=flowrl.RandomBatch(flowrl.SVGD(), 3), key=jax.random.key(0))",
        ValueError,
        ["cannot divide 4 particles into batches of 3"],
    ),
    "no key for batches": (
        "transport(normal, x, budget, flow=flowrl.RandomBatch(flowrl.SVGD(), 2))",
        ValueError,
        ["RandomBatch", "pass key="],
    ),
    "weights": (
        "transport(normal, x, budget, flow=flowrl.RandomBatch(flowrl.SVGD(), 2), key=jax.random.key(0),"
        " log_weights=jnp.zeros(4))",
        ValueError,
        ["RandomBatch does not know weights"],
    ),
}


def test_misuse_is_refused_in_words():
    calls = [call for call, _, _ in REFUSED.values()]
    command = [sys.executable, "-W", "error", "-c", RUNNER, json.dumps([str(ROOT)]), PRELUDE]
    done = subprocess.run(command, input=json.dumps(calls), capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    for (_, kind, words), line in zip(REFUSED.values(), done.stdout.splitlines(), strict=True):
        _, bases, message = json.loads(line)
        assert kind.__name__ in bases, line
        assert all(word in message for word in words), line
