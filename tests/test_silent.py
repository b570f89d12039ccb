"""What once went wrong without a word: particles outside a support, samples outside a domain, NaN in a cap."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from problems import FLOAT, X64, draw, log_normal, quadratic, same_bits

import flowrl

NORMAL = flowrl.Density(log_normal)


def _gamma(x):
    return jnp.sum(2 * jnp.log(x) - x)


LAWS = {
    "by hand": flowrl.Density(_gamma),
    "numpyro": flowrl.Density(dist.Gamma(3.0, 1.0).expand([1]).to_event(1)),
    "half normal": flowrl.Density(dist.HalfNormal(1.0).expand([1]).to_event(1)),
    "posterior": flowrl.Posterior(_gamma, lambda x, datum: 0 * datum * x[0], jnp.zeros(3, FLOAT)),
}


@pytest.mark.parametrize("name", LAWS)
def test_particles_that_leave_the_support_are_frozen_and_counted(name, key):
    # Autodiff of log x at x < 0 is finite, so particles would move on where the distribution has no mass.
    start = jnp.abs(draw(0, (200, 1))) + 0.1
    budget = flowrl.Budget(20, 0.05)
    free = flowrl.transport(LAWS[name], start, budget, flow=flowrl.Langevin(), key=key)
    outside = np.asarray(free.particles)[:, 0] < 0
    assert outside.any()
    assert int(free.stats["nonfinite"]) == outside.sum()
    assert np.isnan(np.asarray(free.values)[outside]).all()
    assert np.asarray(free.particles).min() > -3
    assert "outside the support? then give a domain" in str(free)
    kept = flowrl.transport(LAWS[name], start, budget, flow=flowrl.Langevin(), domain=flowrl.positive(), key=key)
    assert int(kept.stats["nonfinite"]) == 0
    assert np.asarray(kept.particles).min() > 0


@pytest.mark.skipif(not X64, reason="finite differences")
def test_consensus_can_be_differentiated_where_one_particle_weighs_all():
    start = draw(1, (3, 2))
    key = jax.random.key(0)

    def end(shift):
        target = flowrl.Boltzmann(quadratic, shift * jnp.ones(2))
        budget = flowrl.Budget(2, 0.1, 1e-2)
        return flowrl.transport(target, start, budget, flow=flowrl.Consensus(), key=key).particles.sum()

    at = jnp.asarray(0.3)
    difference = (end(at + 1e-6) - end(at - 1e-6)) / 2e-6
    assert float(jax.grad(end)(at)) == pytest.approx(float(difference), rel=1e-4, abs=1e-6)


def test_a_transport_by_sinkhorn_refuses_derivatives_it_would_get_wrong():
    samples = draw(2, (5, 2))

    def end(x):
        target = flowrl.Empirical(samples)
        flow = flowrl.SinkhornFlow(iterations=5)
        return flowrl.transport(target, x, flowrl.Budget(1, 0.1), flow=flow).particles.sum()

    with pytest.raises(TypeError, match="SinkhornFlow cannot be differentiated"):
        jax.grad(end)(draw(3, (4, 2)))


@pytest.mark.parametrize(
    "flow", [flowrl.Blob, flowrl.KSDDescent, flowrl.MMDFlow, flowrl.BirthDeath], ids=lambda flow: flow.__name__
)
def test_a_kernel_about_a_moving_mean_has_no_energy(flow):
    with pytest.raises(TypeError, match=f"{flow.__name__} takes no Linear kernel"):
        flow(flowrl.RBF() + 0.5 * flowrl.Linear())


def test_one_bad_particle_does_not_void_the_cap_or_stop_the_others():
    particles = draw(4, (12, 2)).clip(-2, 2).at[3, 0].set(jnp.nan)
    budget = flowrl.Budget(200, 0.02, max_mmd=0.05, mmd_sigma=1.0)
    target = flowrl.Boltzmann(quadratic, 3 * jnp.ones(2, FLOAT))
    run = jax.jit(lambda x: flowrl.transport(target, x, budget, flow=flowrl.Ascent(), throw=False))
    capped = run(particles)
    assert capped.result == flowrl.RESULTS.mmd_reached
    assert int(capped.stats["steps"]) < 20
    boxed = jax.jit(lambda x: flowrl.transport(NORMAL, x, flowrl.Budget(3), domain=flowrl.Box(-2, 2), throw=False))(
        particles
    )
    assert boxed.result == flowrl.RESULTS.successful
    assert int(boxed.stats["nonfinite"]) == 1
    others = np.delete(np.arange(12), 3)
    assert not np.allclose(boxed.particles[others], particles[others])


def test_an_empty_box_is_noticed_also_when_traced():
    particles = jnp.ones((4, 2), FLOAT)

    @jax.jit
    def run(low, high):
        return flowrl.transport(NORMAL, particles, flowrl.Budget(2), domain=flowrl.Box(low, high), throw=False)

    assert run(0.0, 2.0).result == flowrl.RESULTS.successful
    for low, high in ((2.0, 0.0), (1.0, 1.0)):
        solution = run(low, high)
        assert solution.result == flowrl.RESULTS.outside_domain
        assert "lower face not below its upper" in str(solution)
        assert same_bits(solution.particles, particles)


def test_samples_must_be_particles_of_the_domain():
    particles = jnp.full((4, 2), 0.5, FLOAT)
    flow, budget = flowrl.SinkhornFlow(iterations=3), flowrl.Budget(1)
    with pytest.raises(ValueError, match="5 of 5 samples of the target lie outside Box"):
        flowrl.transport(
            flowrl.Empirical(particles[:1] + jnp.full((5, 1), 3.0, FLOAT)),
            particles,
            budget,
            flow=flow,
            domain=flowrl.Box(0, 1, by="bijector"),
        )
    with pytest.raises(ValueError, match="one sample of the target has the shape .*'b'.* one particle .*'a'"):
        flowrl.transport(flowrl.Empirical({"b": particles}), {"a": particles}, budget, flow=flow)
    tall, wide = jnp.ones((4, 3, 2), FLOAT), jnp.ones((4, 2, 3), FLOAT)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        flowrl.transport(flowrl.Empirical(wide), tall, budget, flow=flow)
