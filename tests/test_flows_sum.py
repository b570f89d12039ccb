"""Birth-death against the replicator equation, and sums of flows against their parts."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from problems import FLOAT, assert_close, draw, log_normal, quadratic, same_bits, tolerance, walled

import flowrl

pytestmark = pytest.mark.thorough  # Monte Carlo and compilation

FIXED = flowrl.RBF(flowrl.FixedBandwidth(0.5))
JUMPS = flowrl.BirthDeath(FIXED)
NORMAL = flowrl.Density(log_normal)


def _view(target, temperature=1.0, d=2, dtype=FLOAT):
    alpha, scale = jnp.asarray(temperature, dtype), jnp.ones((1, d), dtype)
    return flowrl.TargetView(alpha, None, None, target, flowrl.Unbounded(), scale, True, lambda z: z)


def _everyone(x):
    return jnp.ones(len(x), bool)


@eqx.filter_jit
def _drawn(flow, target, x, alive, time, keys):
    view = _view(target, d=x.shape[1], dtype=x.dtype)
    return jax.vmap(lambda k: flow.ancestors(view, x, alive, time, k))(keys)


def _parents(flow, target, x, alive, time, keys):
    """The ancestors drawn with every key."""
    return _drawn(flow, target, x, alive, jnp.asarray(time, x.dtype), keys)


@eqx.filter_jit
def _rates(flow, target, temperature, x, alive):
    return flow.rates(_view(target, temperature, x.shape[1], x.dtype), x, alive)[0]


def _naive_rates(x, log_target, temperature, sigma):
    n = len(x)
    density = [np.mean([np.exp(-np.sum((x[i] - x[j]) ** 2) / (2 * sigma**2)) for j in range(n)]) for i in range(n)]
    surplus = np.log(density) - np.array([log_target(z) for z in x]) / temperature
    return surplus - surplus.mean()


# Birth and death


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_rates_are_those_of_the_definition(temperature):
    particles = draw(0, (7, 2))
    alive = _everyone(particles).at[3].set(False)
    kept = np.asarray(alive)
    x = np.asarray(particles, np.float64)[kept]
    want = np.zeros(7)
    want[kept] = _naive_rates(x, lambda z: -0.5 * np.sum(z**2), temperature, 0.5)
    got = _rates(JUMPS, flowrl.Boltzmann(log_normal), temperature, particles.at[3].set(jnp.nan), alive)
    np.testing.assert_allclose(got, want, atol=tolerance(1e-12, 1e-5))
    # A density is the same distribution at every temperature.
    at_one = _rates(JUMPS, flowrl.Boltzmann(log_normal), 1.0, particles, alive)
    assert_close(_rates(JUMPS, NORMAL, temperature, particles, alive), at_one, atol=tolerance(1e-12, 1e-5))


def test_the_expected_copies_follow_the_replicator_equation(key):
    particles, time, runs = 2.5 * draw(1, (6, 2)), 0.01, 100_000
    parents = np.asarray(_parents(JUMPS, NORMAL, particles, _everyone(particles), time, jr.split(key, runs)))
    rates = _naive_rates(np.asarray(particles, np.float64), lambda z: -0.5 * np.sum(z**2), 1.0, 0.5)
    assert rates.max() > 0.5  # some die
    assert rates.min() < -0.5  # some double
    copies = np.stack([(parents == i).sum(axis=1) for i in range(6)])
    change = copies.mean(axis=1) - 1
    error = copies.std(axis=1) / np.sqrt(runs)
    # First order in time: the second is of size (Λ time)².
    second = (np.abs(rates).max() * time) ** 2
    assert np.all(np.abs(change + rates * time) <= 4.5 * error + second)
    assert np.all(error < 0.15 * np.abs(rates).max() * time)  # so that the comparison says something
    # Uniform partners: where a dying particle goes.
    worst = int(rates.argmax())
    gone = parents[parents[:, worst] != worst, worst]
    shares = np.bincount(gone, minlength=6) / len(gone)
    assert shares[worst] == 0
    assert np.all(shares[np.arange(6) != worst] > 0.1)


def test_chances_saturate_in_a_long_step(key):
    # Two particles; the one at the mode has the negative rate −Λ and the other +Λ. In an endless step both ring: each
    # draws the other with chance 1/2, and every jump is to the mode.
    x = jnp.asarray([[0.0], [4.0]], FLOAT)
    parents = np.asarray(_parents(JUMPS, NORMAL, x, _everyone(x), 1e6, jr.split(key, 4000)))
    assert np.all(parents[:, 0] == 0)
    assert np.mean(parents[:, 1] == 0) == pytest.approx(3 / 4, abs=4.5 * np.sqrt(3 / 16 / 4000))
    still = np.asarray(_parents(JUMPS, NORMAL, x, _everyone(x), 0.0, jr.split(key, 10)))
    assert np.all(still == np.arange(2))


def test_the_dead_neither_jump_nor_are_jumped_to(key):
    x = 2 * draw(2, (9, 2))
    alive = _everyone(x).at[jnp.asarray([0, 4, 8])].set(False)
    x = x.at[4].set(jnp.nan)
    parents = np.asarray(_parents(JUMPS, NORMAL, x, alive, 5.0, jr.split(key, 200)))
    dead = ~np.asarray(alive)
    assert np.all(parents[:, dead] == np.flatnonzero(dead))
    assert not np.isin(parents[:, ~dead], np.flatnonzero(dead)).any()
    assert np.any(parents[:, ~dead] != np.flatnonzero(~dead))
    # The living among themselves go on as if the dead were elsewhere.
    again = _parents(JUMPS, NORMAL, x.at[4].set(jnp.inf), alive, 5.0, jr.split(key, 200))
    assert same_bits(again, jnp.asarray(parents))
    nobody = _parents(JUMPS, NORMAL, x, ~_everyone(x), 5.0, jr.split(key, 3))
    assert np.all(np.asarray(nobody) == np.arange(9))


def test_frozen_particles_stay_and_are_counted(key):
    start = draw(3, (12, 2)).at[4, 0].set(6.0)
    solution = flowrl.transport(flowrl.Density(walled), start, flowrl.Budget(10, 0.3), flow=JUMPS, key=key)
    assert int(solution.stats["nonfinite"]) == 1
    assert same_bits(solution.particles[4], start[4])
    ended, began = np.asarray(solution.particles), np.asarray(start)
    apart = np.linalg.norm(np.delete(ended, 4, 0)[:, None] - np.delete(began, 4, 0)[None], axis=-1).min(axis=1)
    assert apart.max() < 1e-5  # everyone stands where someone stood
    assert len(np.unique(np.round(ended, 4), axis=0)) < 12


def test_alone_or_in_one_place_nobody_moves(key):
    for start in (draw(4, (1, 2)), jnp.ones((5, 1), FLOAT)):
        solution = flowrl.transport(NORMAL, start, flowrl.Budget(4, 1.0), flow=JUMPS, key=key)
        assert_close(solution.particles, start)


def test_a_batch_of_sets_is_a_loop_over_them(key):
    start, keys = 2 * draw(5, (3, 6, 2)), jr.split(key, 3)
    flow = flowrl.Langevin() + 2.0 * JUMPS
    run = jax.jit(
        lambda x, k: flowrl.transport(NORMAL, x, flowrl.Budget(4, 0.2), flow=flow, key=k, throw=False).particles
    )
    loop = jnp.stack([run(x, k) for x, k in zip(start, keys, strict=True)])
    assert_close(jax.vmap(run)(start, keys), loop, atol=tolerance(1e-10, 1e-5))


def test_single_precision_is_kept(key):
    start = draw(6, (8, 2), jnp.float32)
    for flow in (flowrl.Langevin() + 0.5 * JUMPS, 0.5 * flowrl.SVGD()):
        solution = flowrl.transport(NORMAL, start, flowrl.Budget(3, 0.2), flow=flow, key=key)
        assert solution.particles.dtype == jnp.float32
        assert np.isfinite(solution.particles).all()


def test_birth_death_refuses_what_it_cannot_do(key):
    with pytest.raises(TypeError, match="infinite for an empirical measure"):
        JUMPS.energy(_view(NORMAL), draw(0, (3, 2)), jnp.ones(3, bool))
    with pytest.raises(TypeError, match="kernel"):
        flowrl.BirthDeath(0.5)  # pyright: ignore
    with pytest.raises(ValueError, match="jump to the places of others"):
        flowrl.transport(NORMAL, draw(0, (3, 2)), flowrl.Budget(1, max_displacement=1.0), flow=JUMPS, key=key)
    with pytest.raises(ValueError, match="BirthDeath with Optax: .* use Euler"):
        flowrl.Transport(JUMPS, flowrl.Optax())
    with pytest.raises(ValueError, match="BirthDeath needs the value"):
        flowrl.transport(flowrl.Score(jax.grad(log_normal)), draw(0, (3, 2)), flowrl.Budget(1), flow=JUMPS, key=key)


# Two modes that no path connects

APART, SHARE = 5.0, 0.8


def _two_modes(x):
    """A narrow barrier of height 12: 0.8 of the mass at −5 and 0.2 at 5, both of unit variance."""
    left = jnp.log(SHARE) - 0.5 * jnp.sum((x + APART) ** 2)
    return jnp.logaddexp(left, jnp.log(1 - SHARE) - 0.5 * jnp.sum((x - APART) ** 2))


def test_jumps_give_the_modes_their_shares_where_diffusion_alone_cannot(key):
    n, budget = 500, flowrl.Budget(200, 0.05)
    centres = np.where(np.arange(n) < 0.1 * n, -APART, APART)[:, None]  # a tenth on the left
    start = jnp.asarray(centres, FLOAT) + draw(7, (n, 1))
    share = lambda flow: float(
        np.mean(
            np.asarray(flowrl.transport(flowrl.Density(_two_modes), start, budget, flow=flow, key=key).particles) < 0
        )
    )
    assert share(flowrl.Langevin()) == pytest.approx(0.1, abs=0.01)
    assert share(flowrl.Langevin() + JUMPS) == pytest.approx(SHARE, abs=4.5 * np.sqrt(SHARE * (1 - SHARE) / n) + 0.02)


# Sums

ENERGETIC = (flowrl.Ascent(), flowrl.Blob(FIXED))


def _run(flow, start, budget, target=NORMAL, **keywords):
    return flowrl.transport(target, start, budget, flow=flow, **keywords)


def test_a_sum_of_one_is_that_flow(key):
    start, budget = draw(8, (7, 2)), flowrl.Budget(5, 0.1)
    for flow in (flowrl.Langevin(), JUMPS):
        alone = _run(flow, start, budget, key=key).particles
        assert_close(_run(flowrl.SumFlow(flow), start, budget, key=key).particles, alone, atol=tolerance(1e-13, 1e-6))
        assert flowrl.SumFlow(flow).traits == flow.traits
    svgd, view, alive = flowrl.SVGD(FIXED), _view(NORMAL), _everyone(start)
    run = jax.jit(lambda x: (flowrl.SumFlow(svgd).velocity(view, x, alive), svgd.velocity(view, x, alive)))
    assert same_bits(*run(start))


def test_a_multiple_is_the_same_flow_so_much_faster():
    start = draw(9, (7, 2))
    twice = _run(2.0 * flowrl.SVGD(), start, flowrl.Budget(6, 0.1)).particles
    assert_close(twice, _run(flowrl.SVGD(), start, flowrl.Budget(6, 0.2)).particles, rtol=tolerance(1e-10, 1e-4))
    assert_close(_run(flowrl.SVGD() * 2, start, flowrl.Budget(6, 0.1)).particles, twice)


def test_half_a_diffusion_keeps_its_law_and_takes_twice_the_time(key):
    # On V = −|x|²/2 the scheme with weight w is x⁺ = (1 − wε) x + √(2wεα) ξ: weight 1/2 is half the step, bit for bit.
    n, alpha, epsilon, steps = 4000, 0.5, 0.2, 12
    start, target = jnp.full((n, 1), 2.0, FLOAT), flowrl.Boltzmann(quadratic, jnp.zeros(1, FLOAT))
    half = np.asarray(
        _run(0.5 * flowrl.Langevin(), start, flowrl.Budget(steps, epsilon, alpha), target, key=key).particles
    )
    decay = 1 - 0.5 * epsilon
    variance = alpha * epsilon * (1 - decay ** (2 * steps)) / (1 - decay**2)
    assert abs(half.mean() - 2 * decay**steps) <= 4.5 * np.sqrt(variance / n)
    assert abs(half.var() / variance - 1) <= 4.5 * np.sqrt(2 / n)
    slow = _run(flowrl.Langevin(), start, flowrl.Budget(steps, epsilon / 2, alpha), target, key=key).particles
    assert_close(half, slow, rtol=tolerance(1e-9, 1e-4), atol=tolerance(1e-12, 1e-5))
    # √w, not w: the stationary distribution is still α's, up to the scheme's own 1/(1 − wε/2).
    rest = np.asarray(
        _run(0.5 * flowrl.Langevin(), start, flowrl.Budget(80, epsilon, alpha), target, key=key).particles
    )
    assert abs(rest.var() / (alpha / (1 - 0.25 * epsilon)) - 1) <= 4.5 * np.sqrt(2 / n)


def test_the_time_of_jumps_is_weighed(key):
    x, keys = 2 * draw(10, (6, 2)), jr.split(key, 50)
    thrice = _parents(3.0 * JUMPS, NORMAL, x, _everyone(x), 0.1, keys)
    assert same_bits(thrice, _parents(JUMPS, NORMAL, x, _everyone(x), 0.3, keys))
    assert not same_bits(thrice, _parents(JUMPS, NORMAL, x, _everyone(x), 0.1, keys))


def test_velocities_and_energies_add_up():
    x, view = draw(11, (6, 2)), _view(NORMAL, 0.7)
    ascent, blob = ENERGETIC
    flow = flowrl.SumFlow(*ENERGETIC, weights=[0.5, 2.0])
    velocity = flow.velocity(view, x, _everyone(x))[0]
    parts = [f.velocity(view, x, _everyone(x))[0] for f in ENERGETIC]
    assert_close(velocity, 0.5 * parts[0] + 2.0 * parts[1], atol=1e-6)
    energy = lambda z: flow.energy(view, z, _everyone(z))
    assert_close(
        energy(x), 0.5 * ascent.energy(view, x, _everyone(x)) + 2.0 * blob.energy(view, x, _everyone(x)), rtol=1e-5
    )
    assert_close(velocity, -6 * jax.grad(energy)(x), rtol=1e-4, atol=tolerance(1e-10, 1e-5))
    nested = 0.5 * ascent + 2.0 * blob
    assert_close(nested.velocity(view, x, _everyone(x))[0], velocity, atol=1e-6)
    assert nested.traits.energy_needs is not None
    assert np.all(np.asarray(flow.noise(view, x, _everyone(x), x)) == 0)
    own = flow.ancestors(view, x, _everyone(x), jnp.ones((), FLOAT), jr.key(0))
    assert np.array_equal(own, np.arange(6))


def test_a_sum_asks_what_its_parts_ask():
    combined = (flowrl.Langevin() + 0.3 * JUMPS).traits
    assert combined.needs == {"gradient", "value"}
    assert combined.temperature == "positive"
    assert combined.entropic
    assert combined.diffuses
    assert combined.jumps
    assert combined.energy_needs is None
    cold = (flowrl.Ascent() + flowrl.SinkhornFlow()).traits
    assert cold.needs == {"gradient", "samples"}
    assert cold.energy_needs == {"value", "samples"}
    assert (cold.temperature, cold.entropic) == ("none", False)
    assert not cold.stochastic
    assert (flowrl.Ascent() + flowrl.SVGD()).traits.temperature == "any"
    assert (flowrl.Ascent() + flowrl.SVGD()).traits.entropic
    with pytest.raises(ValueError, match="SumFlow with Optax"):
        flowrl.Transport(flowrl.SVGD() + flowrl.Langevin(), flowrl.Optax())


class Shaken(flowrl.AbstractFlow):
    """A velocity drawn again at every step."""

    traits: ClassVar[flowrl.Traits] = flowrl.Traits(temperature="none", entropic=False, random=True)

    def velocity(self, view, positions, alive):
        return jnp.where(alive[:, None], jr.normal(view.flow_key, positions.shape, positions.dtype), 0), alive


def test_random_flows_of_a_sum_have_randomness_of_their_own(key):
    start, budget = jnp.zeros((2000, 1), FLOAT), flowrl.Budget(1, 1.0)
    one = np.asarray(_run(flowrl.Ascent() + Shaken(), start, budget, key=key).particles)
    two = np.asarray(_run(Shaken() + Shaken(), start, budget, key=key).particles)
    assert one.var() == pytest.approx(1, abs=0.15)
    assert two.var() == pytest.approx(2, abs=0.3)  # 4 if they shared it


class Undeclared(Shaken):
    """The same, but its traits are silent about it."""

    traits: ClassVar[flowrl.Traits] = flowrl.Traits(temperature="none", entropic=False)


@pytest.mark.parametrize("flow", [Undeclared(), Undeclared() + Shaken(), 2.0 * Undeclared()])
def test_randomness_is_given_to_those_alone_who_declare_it(flow, key):
    with pytest.raises(ValueError, match="random=True"):
        _run(flow, jnp.zeros((3, 1), FLOAT), flowrl.Budget(1, 1.0), key=key)


def test_what_one_flow_freezes_rests_in_all(key):
    start = draw(12, (9, 2)).at[4, 0].set(6.0)
    for flow in (flowrl.SVGD() + 0.5 * JUMPS, Shaken() + flowrl.Ascent()):
        solution = _run(flow, start, flowrl.Budget(4, 0.1), flowrl.Density(walled), key=key)
        assert int(solution.stats["nonfinite"]) == 1
        assert same_bits(solution.particles[4], start[4])
        assert np.isfinite(solution.particles).all()


def test_new_weights_do_not_retrace():
    start, traces = draw(13, (5, 2)), []

    @eqx.filter_jit
    def run(flow):
        traces.append(None)
        return _run(flow, start, flowrl.Budget(2, 0.1), throw=False).particles

    slow, fast = run(0.5 * flowrl.SVGD()), run(2.0 * flowrl.SVGD())
    traced = run(jnp.asarray(2.0, FLOAT) * flowrl.SVGD())
    assert not np.allclose(slow, fast)
    assert_close(traced, fast)
    assert len(traces) == 1
    inside = jax.jit(lambda w: _run(w * flowrl.SVGD(), start, flowrl.Budget(2, 0.1), throw=False).particles)
    assert_close(inside(2.0), fast, rtol=tolerance(1e-10, 1e-4))


def test_sums_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="only one flow of a sum has noise, got Langevin and Consensus"):
        flowrl.Langevin() + flowrl.Consensus()
    with pytest.raises(ValueError, match="only one flow of a sum jumps, got BirthDeath and BirthDeath"):
        JUMPS + 2.0 * JUMPS
    with pytest.raises(ValueError, match="at least one flow"):
        flowrl.SumFlow()
    with pytest.raises(TypeError, match="flows"):
        flowrl.SumFlow(flowrl.SVGD(), 2.0)  # pyright: ignore
    with pytest.raises(ValueError, match="one number for each of the 2 flows"):
        flowrl.SumFlow(flowrl.SVGD(), flowrl.Ascent(), weights=[1.0])
    for bad in (0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="weights must be finite and > 0"):
            bad * flowrl.SVGD()
    for other in ("2", None, True):
        with pytest.raises(TypeError):
            flowrl.SVGD() * other  # pyright: ignore
    with pytest.raises(TypeError):
        flowrl.SVGD() + 1  # pyright: ignore
    flow, x = flowrl.Ascent() + flowrl.SVGD() + JUMPS, draw(0, (3, 2))
    with pytest.raises(TypeError, match="only if all its flows do, but not SVGD, BirthDeath"):
        flow.energy(_view(NORMAL), x, _everyone(x))
