"""The core on a GPU, against the same on the CPU; skipped where there is none, as on the machines of the CI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowrl
from flowrl import sharding
from flowrl.rl import ReferenceLearner, Standardizer, make_replay, train
from flowrl.rl.data import Transitions
from flowrl.rl.learning import presets


def _gpus():
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not _gpus(), reason="no GPU")]


def _moved(device, flow, n):
    x = jax.device_put(3 * jax.random.normal(jax.random.key(0), (n, 5), jnp.float32), device)
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    with jax.default_matmul_precision("highest"):
        return flowrl.transport(target, x, flowrl.Budget(5, 0.3), flow=flow).particles


@pytest.mark.parametrize("n", [64, 3000, 9000])
def test_svgd_on_a_gpu_is_that_of_the_cpu(n):
    flow = flowrl.SVGD()
    there, here = _moved(_gpus()[0], flow, n), _moved(jax.devices("cpu")[0], flow, n)
    assert next(iter(there.devices())).platform == "gpu"
    np.testing.assert_allclose(np.asarray(there), np.asarray(here), atol=1e-4)


def test_points_that_coincide_are_not_apart_as_products_come():
    x = 10 * jax.device_put(jax.random.normal(jax.random.key(0), (300, 5), jnp.float32), _gpus()[0])
    gram = flowrl.Matern(flowrl.FixedBandwidth(1.0)).gram(x, x)
    np.testing.assert_array_equal(np.diag(np.asarray(gram)), 1)


def test_the_median_of_a_gpu_is_exact():
    x = np.random.default_rng(0).normal(size=(301, 3)).astype(np.float32)
    alive = np.arange(301) % 5 > 0
    kept = x[alive].astype(np.float64)
    squared = ((kept[:, None] - kept[None]) ** 2).sum(-1)[np.triu_indices(len(kept), 1)]
    with jax.default_matmul_precision("highest"):
        got = jax.jit(flowrl.MedianBandwidth())(jnp.asarray(x), jnp.asarray(alive))
    np.testing.assert_allclose(float(got), np.median(squared), rtol=1e-5)


def test_particles_over_all_gpus():
    devices = sharding.mesh(particles=len(_gpus()))
    x = jax.random.normal(jax.random.key(0), (256 * len(_gpus()), 3), jnp.float32)
    everyone, alpha = jnp.ones(len(x), bool), jnp.ones((), jnp.float32)
    kernel = flowrl.RBF()
    with jax.default_matmul_precision("highest"):
        got = sharding.Sharded(kernel, devices).stein(sharding.split(x, devices), -x, everyone, alpha)
        expected = kernel.stein(x, -x, everyone, alpha)
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=1e-5)


def test_a_vgf_learner_learns_on_a_gpu():
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(400, 5)).astype(np.float32)
    actions = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    ends = (np.arange(400) % 100 == 99).astype(np.float32)
    data = Transitions(observations, actions, ends, np.roll(observations, -1, 0), np.ones_like(ends), ends)
    replay = make_replay(data, Standardizer.fit(observations), discount=0.99)
    vgf = presets.authors(1, 0.05, particles=4, hidden=(16,), reference=ReferenceLearner(hidden=(16,)), batch_size=32)
    state, metrics = train(vgf, vgf.init(5, 2, key=jax.random.key(1)), replay, 4)
    assert int(state.step) == 4
    assert all(np.isfinite(x) for x in metrics.values())
