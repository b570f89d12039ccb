"""A transport within `jax.shard_map`, every device with a set of its own; one device shows the types of many."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from problems import assert_close, draw, log_normal, tolerance

import flowrl

METHODS = {
    "SVGD": flowrl.Transport(),
    "Langevin": flowrl.Transport(flowrl.Langevin()),
    "Adam": flowrl.Transport(flowrl.Ascent(), flowrl.Optax()),
    "jumps": flowrl.Transport(flowrl.Langevin() + flowrl.BirthDeath()),
    "Sinkhorn": flowrl.Transport(flowrl.SinkhornFlow(iterations=5)),
    "MALA": flowrl.Transport(flowrl.Langevin(), flowrl.Metropolis()),
    "HMC": flowrl.Transport(flowrl.Langevin(), flowrl.Metropolis(flowrl.Hamiltonian(2))),
    "MAMS": flowrl.Transport(flowrl.Langevin(), flowrl.Metropolis(flowrl.Microcanonical(2))),
    "monotone": flowrl.Transport(flowrl.Ascent(), flowrl.Monotone()),
}
START = draw(0, (24, 2))


def _sharded(method, particles, **options):
    target = flowrl.Empirical(START[:5]) if method.flow.traits.needs == {"samples"} else flowrl.Density(log_normal)

    def moved(particles, key):
        return method(target, particles, flowrl.Budget(3, 0.1), key=key, throw=False).particles

    axes = PartitionSpec("sets")
    devices = flowrl.sharding.mesh(sets=1)
    program = jax.shard_map(moved, mesh=devices, in_specs=(axes, PartitionSpec()), out_specs=axes, **options)
    return jax.jit(program)(particles, jr.key(1)), moved(particles, jr.key(1))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_transport_of_one_device(name):
    got, want = _sharded(METHODS[name], START)
    assert_close(got, want, rtol=tolerance(1e-9, 1e-4), atol=1e-6)


def test_sums_by_tiles_within_it(at_most_entries):
    at_most_entries(100)
    got, want = _sharded(flowrl.Transport(), draw(1, (50, 1)))
    assert_close(got, want, rtol=tolerance(1e-8, 1e-3), atol=1e-5)


def test_data_in_chunks_within_it():
    data = jnp.asarray(np.random.default_rng(0).standard_normal((3000, 2)), START.dtype)
    target = flowrl.Posterior(log_normal, lambda x, y: -0.5 * jnp.sum((x - y) ** 2), data)

    def moved(particles):
        return flowrl.transport(target, particles, flowrl.Budget(2, 1e-4), throw=False).particles

    axes = PartitionSpec("sets")
    program = jax.shard_map(moved, mesh=flowrl.sharding.mesh(sets=1), in_specs=axes, out_specs=axes)
    assert_close(jax.jit(program)(START), moved(START), rtol=tolerance(1e-9, 1e-4), atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [flowrl.Transport(flowrl.Ascent(), flowrl.Diffrax()), flowrl.Transport(flowrl.Ascent(), flowrl.JKO())],
    ids=["Diffrax", "JKO"],
)
@pytest.mark.thorough
def test_loops_of_other_libraries_ask_for_no_check(method):
    with pytest.raises(ValueError, match="pass check_vma=False"):
        _sharded(method, START)
    got, want = _sharded(method, START, check_vma=False)
    assert_close(got, want, rtol=tolerance(1e-9, 1e-4), atol=1e-6)
