"""Equipartition: 1 for draws of the density, the ratio of variances for a normal one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, draw

import flowrl
from flowrl.diagnostics import equipartition, scores


def _wide(x):
    return -0.5 * jnp.sum((x / jnp.asarray([1.0, 20.0], x.dtype)) ** 2)


def test_of_a_normal_it_is_the_ratio_of_variances():
    particles = draw(0, (50, 2)) * jnp.asarray([[0.5, 30.0]], FLOAT) + 100
    measured = equipartition(particles, scores(flowrl.Density(_wide), particles))
    np.testing.assert_allclose(measured.values, np.asarray(particles).var(axis=0) / [1, 400], rtol=1e-4)


def test_errors_are_those_of_independent_draws():
    sets = draw(1, (400, 200, 2)) * jnp.asarray([[[1.0, 20.0]]], FLOAT)
    target = flowrl.Density(_wide)
    measured = jax.vmap(lambda x: equipartition(x, scores(target, x)))(sets)
    np.testing.assert_allclose(measured.values.mean(axis=0), 1, atol=0.02)
    np.testing.assert_allclose(measured.values.std(axis=0), measured.errors.mean(axis=0), rtol=0.12)


def test_a_particle_of_weight_two_is_two_and_an_empty_slot_is_none():
    x = draw(2, (6, 2))
    s = scores(flowrl.Density(_wide), x)
    twice = equipartition(jnp.concatenate([x, x[:1]]), jnp.concatenate([s, s[:1]])).values
    spoilt, logs = jnp.concatenate([x, jnp.full((1, 2), jnp.nan, FLOAT)]), jnp.log(jnp.asarray([2, 1, 1, 1, 1, 1, 0]))
    weighted = equipartition(spoilt, jnp.concatenate([s, s[:1]]), log_weights=logs.astype(FLOAT))
    np.testing.assert_allclose(weighted.values, twice, rtol=1e-4)
    assert np.isfinite(np.asarray(weighted.errors)).all()


def test_the_collapse_of_svgd_in_many_dimensions_is_seen():
    target = flowrl.Density(lambda x: -0.5 * jnp.sum(x**2))
    solution = flowrl.transport(target, draw(3, (30, 50)), flowrl.Budget(100, 0.5))
    measured = equipartition(solution.particles, scores(target, solution.particles))
    assert float(measured.values.mean()) < 0.6  # for 1


def test_misuse_is_refused_in_words():
    x = draw(4, (5, 2))
    with pytest.raises(ValueError, match="5 particles but 4 scores"):
        equipartition(x, x[:4])
