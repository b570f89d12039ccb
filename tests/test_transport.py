"""The verb: what holds for every transport, whatever the target."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    FLOAT,
    X64,
    assert_close,
    distances,
    draw,
    linear,
    log_normal,
    quadratic,
    same_bits,
    tolerance,
    walled,
)

import flowrl

NORMAL = flowrl.Density(log_normal)
FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))
DTYPES = [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.skipif(not X64, reason="needs x64"))]


# Zero steps


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("solver", "domain"),
    [(flowrl.Euler(), flowrl.Unbounded()), (flowrl.Optax(), flowrl.Box(-2, 2))],
    ids=["euler", "optax-box"],
)
def test_zero_steps_give_the_input_back_bit_for_bit(solver, domain, traced):
    special = jnp.asarray([[-0.0, 2.0], [-2.0, 1e-300], [1 / 3, 0.1]], FLOAT)
    particles = jnp.concatenate([special, draw(0, (5, 2)).clip(-2, 2)])
    steps = {"steps": jnp.asarray(0), "max_steps": 3} if traced else {"steps": 0}
    # A cap and a scale, so that there would be something to round.
    budget = flowrl.Budget(**steps, step_size=0.1, max_displacement=0.3, scale=0.7)
    solution = flowrl.transport(NORMAL, particles, budget, solver=solver, domain=domain, flow=FIXED)
    assert same_bits(solution.particles, particles)
    spent = ("steps", "time", "displacement_max", "displacement_rms", "path_length", "nonfinite")
    assert [float(solution.stats[name]) for name in spent] == [0] * 6

    chosen = flowrl.best_of_n(solution.particles, solution.values)
    assert same_bits(chosen.particle, particles[int(chosen.index)])
    assert int(chosen.index) == np.argmin(np.sum(np.asarray(particles) ** 2, axis=1))


# Symmetries


def test_permuting_the_particles_permutes_the_result():
    particles = draw(1, (512, 2))
    order = np.random.default_rng(2).permutation(512)
    budget = flowrl.Budget(3, 0.2)
    direct = flowrl.transport(NORMAL, particles, budget)
    permuted = flowrl.transport(NORMAL, particles[order], budget)
    assert_close(permuted.particles, direct.particles[order], rtol=tolerance(1e-8, 1e-3), atol=tolerance(1e-9, 1e-4))


@pytest.mark.parametrize("rule", [flowrl.MedianBandwidth(), flowrl.LogNBandwidth()], ids=["median", "log-n"])
def test_an_offset_of_1000_moves_everything_along_in_float32(rule):
    # Multiples of 2^-10, so that adding 1000 is exact.
    near = jnp.round(draw(3, (50, 2), jnp.float32) * 1024) / 1024
    flow, budget = flowrl.SVGD(flowrl.RBF(rule)), flowrl.Budget(20, 0.3)

    def moved(offset):
        centre = jnp.full(2, offset, jnp.float32)
        return flowrl.transport(flowrl.Density(quadratic, centre), near + offset, budget, flow=flow).particles

    np.testing.assert_allclose(moved(1000.0) - 1000, moved(0.0), atol=2e-3)


# Batches


def _batch():
    return draw(4, (3, 8, 2)), draw(5, (3, 2))


@eqx.filter_jit
def _many(target, particles, centres, budget):
    def one(particles, centre):
        return flowrl.transport(target(quadratic, centre), particles, budget, throw=False)

    return jax.vmap(one)(particles, centres)


def test_vmap_equals_a_loop():
    particles, centres = _batch()
    budget = flowrl.Budget(4, 0.3)
    many = _many(flowrl.Density, particles, centres, budget)
    for i in range(3):
        one = flowrl.transport(flowrl.Density(quadratic, centres[i]), particles[i], budget)
        assert_close(many.particles[i], one.particles, rtol=tolerance(1e-10, 1e-3))
        assert_close(many.values[i], one.values, rtol=tolerance(1e-10, 1e-3))
        assert_close({name: stat[i] for name, stat in many.stats.items()}, one.stats, rtol=tolerance(1e-10, 1e-3))


@pytest.mark.parametrize("disturbance", [3.0, np.nan], ids=["moved", "nan"])
def test_a_set_does_not_feel_the_other_sets_of_its_batch(disturbance):
    particles, centres = _batch()
    budget = flowrl.Budget(4, 0.3)
    quiet = _many(flowrl.Density, particles, centres, budget)
    disturbed = _many(flowrl.Density, particles, centres.at[1].add(disturbance), budget)
    assert same_bits(disturbed.particles[jnp.array([0, 2])], quiet.particles[jnp.array([0, 2])])
    assert not same_bits(disturbed.particles[1], quiet.particles[1])


def test_sets_of_one_batch_may_take_different_numbers_of_steps():
    particles, _ = _batch()

    def one(particles, steps):
        budget = flowrl.Budget(steps, 0.3, max_steps=4)
        return flowrl.transport(NORMAL, particles, budget, throw=False, flow=FIXED)

    many = jax.vmap(one)(particles, jnp.array([0, 4, 1]))
    assert_close(many.stats["time"], np.array([0, 1.2, 0.3]), rtol=1e-6)
    assert same_bits(many.particles[0], particles[0])
    alone = flowrl.transport(NORMAL, particles[1], flowrl.Budget(4, 0.3), flow=FIXED)
    assert_close(many.particles[1], alone.particles, rtol=tolerance(1e-10, 1e-3))


def test_an_empty_batch_is_an_empty_result():
    empty = jnp.zeros((0, 5, 2), FLOAT)
    solution = jax.vmap(lambda p: flowrl.transport(NORMAL, p, flowrl.Budget(2, 0.1), throw=False, flow=FIXED))(empty)
    assert solution.particles.shape == (0, 5, 2)
    assert solution.values is not None
    assert solution.values.shape == (0, 5)
    assert "0 sets" in str(solution)


@pytest.mark.thorough
def test_compiled_equals_interpreted():
    particles, budget = draw(6, (8, 2)), flowrl.Budget(3, 0.3, max_displacement=0.5, scale=jnp.array([1.0, 2.0]))
    box = flowrl.Box(-1.5, 1.5)
    particles = box.restrict(particles)
    compiled = flowrl.transport(NORMAL, particles, budget, flow=FIXED, domain=box, save=(0, 2))
    with jax.disable_jit():
        interpreted = flowrl.transport(NORMAL, particles, budget, flow=FIXED, domain=box, save=(0, 2))
    assert_close(interpreted.particles, compiled.particles, atol=tolerance(1e-12, 1e-5))
    assert_close(interpreted.trajectory, compiled.trajectory, atol=tolerance(1e-12, 1e-5))
    assert_close(interpreted.stats, compiled.stats, atol=tolerance(1e-12, 1e-5))


def test_inside_the_users_jit_it_is_the_same():
    particles, budget = draw(6, (8, 2)), flowrl.Budget(3, 0.3)
    outside = flowrl.transport(NORMAL, particles, budget, flow=FIXED).particles
    inside = jax.jit(lambda p: flowrl.transport(NORMAL, p, flowrl.Budget(3, 0.3), flow=FIXED).particles)(particles)
    assert_close(inside, outside, rtol=tolerance(1e-12, 1e-5))


# Structure


def _flat_value(x):
    return -0.5 * jnp.sum(x**2 * jnp.arange(1, 8, dtype=x.dtype)) + jnp.sum(jnp.sin(x))


def _tree_value(x):
    return _flat_value(jnp.concatenate([x["a"], x["b"].reshape(-1)]))


@pytest.mark.parametrize("solver", [flowrl.Euler(), flowrl.Optax()], ids=["euler", "optax"])
def test_a_pytree_of_particles_flows_as_its_ravelled_array(solver):
    flat = draw(7, (10, 7)).clip(-1, 1)

    def tree(x):
        return {"a": x[..., :3], "b": x[..., 3:].reshape(*x.shape[:-1], 2, 2)}

    scale = jnp.linspace(0.5, 2, 7, dtype=FLOAT)
    low, high = jnp.linspace(-1.2, -1, 7, dtype=FLOAT), jnp.linspace(1, 1.3, 7, dtype=FLOAT)
    array = flowrl.transport(
        flowrl.Boltzmann(_flat_value),
        flat,
        flowrl.Budget(4, 0.2, 0.5, scale=scale, max_displacement=0.4),
        flow=FIXED,
        solver=solver,
        domain=flowrl.Box(low, high),
        save=(1,),
    )
    leaves = flowrl.transport(
        flowrl.Boltzmann(_tree_value),
        tree(flat),
        flowrl.Budget(4, 0.2, 0.5, scale=tree(scale), max_displacement=0.4),
        flow=FIXED,
        solver=solver,
        domain=flowrl.Box(tree(low), tree(high)),
        save=(1,),
    )
    assert float(array.stats["fraction_at_cap"]) > 0
    assert jax.tree.map(jnp.shape, leaves.particles) == {"a": (10, 3), "b": (10, 2, 2)}
    assert_close(leaves.particles, tree(array.particles), atol=tolerance(1e-12, 1e-5))
    assert_close(leaves.trajectory, tree(array.trajectory), atol=tolerance(1e-12, 1e-5))
    assert_close(leaves.values, array.values, atol=tolerance(1e-12, 1e-5))
    assert_close(leaves.stats, array.stats, atol=tolerance(1e-12, 1e-5))


def test_particles_may_be_scalars_in_a_row():
    line = draw(8, (6,))
    column = flowrl.transport(NORMAL, line[:, None], flowrl.Budget(3, 0.2), flow=FIXED).particles
    assert_close(flowrl.transport(NORMAL, line, flowrl.Budget(3, 0.2), flow=FIXED).particles, column[:, 0])


def test_a_method_is_a_value_and_calling_it_is_the_verb():
    particles, budget, box = draw(6, (8, 2)).clip(-1, 1), flowrl.Budget(3, 0.3), flowrl.Box(-1, 1)
    method = flowrl.Transport(flow=flowrl.Ascent(), domain=box)
    target = flowrl.Boltzmann(log_normal)
    got = method(target, particles, budget)
    want = flowrl.transport(target, particles, budget, flow=flowrl.Ascent(), domain=box)
    assert same_bits(got.particles, want.particles)


# Budget: steps, schedules, time


def test_schedules_are_the_same_as_single_steps_with_those_numbers():
    particles, target = draw(9, (8, 2)), flowrl.Boltzmann(log_normal)
    step_sizes, temperatures = np.array([0.5, 0.1, 0.3, 0.2]), np.array([2.0, 0.0, 1.0, 0.5])
    arrays = flowrl.transport(target, particles, flowrl.Budget(4, step_sizes, temperatures), flow=FIXED)
    callables = flowrl.Budget(4, lambda l: step_sizes[l], lambda l: temperatures[l])
    assert same_bits(flowrl.transport(target, particles, callables, flow=FIXED).particles, arrays.particles)
    x = particles
    for step_size, temperature in zip(step_sizes, temperatures, strict=True):
        x = flowrl.transport(target, x, flowrl.Budget(1, step_size, temperature), flow=FIXED).particles
    assert_close(arrays.particles, x, rtol=tolerance(1e-10, 1e-3))
    assert float(arrays.stats["time"]) == pytest.approx(step_sizes.sum())


def test_a_traced_number_of_steps_equals_a_static_one_and_stops_at_its_bound():
    particles, sizes = draw(9, (8, 2)), np.array([0.5, 0.1, 0.3, 0.2])

    @jax.jit
    def traced(steps):
        return flowrl.transport(NORMAL, particles, flowrl.Budget(steps, sizes, max_steps=4), throw=False, flow=FIXED)

    static = flowrl.transport(NORMAL, particles, flowrl.Budget(4, sizes), save=(0, 1, 2, 3, 4), flow=FIXED)
    for steps in range(5):
        solution = traced(jnp.asarray(steps))
        assert_close(solution.particles, static.trajectory[steps], rtol=tolerance(1e-12, 1e-4))
        assert int(solution.stats["steps"]) == steps
        assert float(solution.stats["time"]) == pytest.approx(sizes[:steps].sum())
    beyond = traced(jnp.asarray(9))
    assert same_bits(beyond.particles, traced(jnp.asarray(4)).particles)
    assert int(beyond.stats["steps"]) == 4


def test_the_saved_trajectory_is_where_shorter_transports_end():
    particles = draw(10, (6, 2))
    saved = flowrl.transport(NORMAL, particles, flowrl.Budget(3, 0.3), save=[0, 1, 3], flow=FIXED)
    assert saved.trajectory.shape == (3, 6, 2)
    assert same_bits(saved.trajectory[0], particles)
    assert same_bits(saved.trajectory[2], saved.particles)
    once = flowrl.transport(NORMAL, particles, flowrl.Budget(1, 0.3), flow=FIXED).particles
    assert_close(saved.trajectory[1], once, rtol=tolerance(1e-12, 1e-5))
    assert flowrl.transport(NORMAL, particles, flowrl.Budget(3, 0.3), flow=FIXED).trajectory is None

    # A count of steps that is not reached repeats the end.
    budget = flowrl.Budget(jnp.asarray(1), 0.3, max_steps=3)
    short = flowrl.transport(NORMAL, particles, budget, save=np.array([0, 1, 3]), flow=FIXED)
    assert same_bits(short.trajectory[2], short.particles)
    assert_close(short.trajectory[1], once, rtol=tolerance(1e-12, 1e-5))


# Budget: scale


def test_scale_multiplies_an_euler_step_by_its_square_and_an_adam_step_by_itself():
    particles, slope, scale = draw(11, (5, 3)), jnp.asarray([1.0, -2.0, 3.0], FLOAT), np.array([0.1, 1.0, 10.0])
    target, budget = flowrl.Boltzmann(linear, slope), flowrl.Budget(1, 0.01, scale=scale)
    plain = flowrl.Budget(1, 0.01).rescaled(scale)

    def move(solver, budget):
        moved = flowrl.transport(target, particles, budget, flow=flowrl.Ascent(), solver=solver).particles
        return np.asarray(moved - particles)

    want = np.broadcast_to(scale**2 * 0.01 * np.asarray(slope), (5, 3))
    np.testing.assert_allclose(move(flowrl.Euler(), budget), want, rtol=tolerance(1e-9, 1e-2))
    np.testing.assert_array_equal(move(flowrl.Euler(), plain), move(flowrl.Euler(), budget))
    want = np.broadcast_to(scale * 0.01 * np.sign(slope), (5, 3))
    np.testing.assert_allclose(move(flowrl.Optax(), budget), want, rtol=tolerance(1e-6, 1e-2))


def _squeezed(scale, z):
    return _bumpy(scale * z)


def _bumpy(x):
    return -0.25 * jnp.sum(x**2) + jnp.sum(jnp.cos(x))


@pytest.mark.parametrize(("solver", "cap"), [(flowrl.Euler(), 0.15), (flowrl.Optax(), 1.2)], ids=["euler", "optax"])
def test_scale_is_a_change_of_units_by_hand(solver, cap):
    particles, scale = draw(12, (12, 3)), jnp.asarray([0.3, 1.0, 4.0], FLOAT)
    in_x = flowrl.transport(
        flowrl.Boltzmann(_bumpy),
        particles,
        flowrl.Budget(5, 0.2, 0.5, scale=scale, max_displacement=cap),
        flow=FIXED,
        solver=solver,
    )
    in_z = flowrl.transport(
        flowrl.Boltzmann(_squeezed, scale),
        particles / scale[None],
        flowrl.Budget(5, 0.2, 0.5, max_displacement=cap),
        flow=FIXED,
        solver=solver,
    )
    assert 0 < float(in_z.stats["fraction_at_cap"]) < 1
    assert_close(in_x.particles / scale[None], in_z.particles, atol=tolerance(1e-10, 1e-4))
    assert_close(in_x.stats, in_z.stats, atol=tolerance(1e-10, 1e-4))


def test_spread_is_the_standard_deviation_within_states():
    within = np.array([0.5, 2.0, 0.0])
    states = np.random.default_rng(0).normal(size=(400, 1, 3)) * 100  # what differs between states does not count
    samples = states + within * np.random.default_rng(1).normal(size=(400, 64, 3))
    np.testing.assert_allclose(flowrl.spread(samples, floor=0.01), [0.5, 2.0, 0.01], rtol=0.02)


# Budget: the cap


def _cubic(x):
    return jnp.sum(x**3) / 3 + jnp.sum(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_particle_ends_beyond_the_cap_or_outside_the_box(dtype):
    unit = np.array([0.5, 1.0, 2.0])
    for offset, cap in [(0, 0.0), (0, 1e-3), (0, 0.1), (0, 3.0), (0, 100.0), (1000, 1e-3), (1000, 0.1), (1000, 0.5)]:
        low, high = jnp.asarray(offset - 2, dtype), jnp.asarray(offset + 2, dtype)
        particles = (draw(13, (64, 3), dtype) + jnp.asarray(offset, dtype)).clip(low, high)
        target = flowrl.Boltzmann(quadratic, jnp.full(3, offset + 9.0, dtype))
        budget = flowrl.Budget(4, 0.3, max_displacement=cap, scale=unit)
        solution = flowrl.transport(target, particles, budget, domain=flowrl.Box(low, high), flow=FIXED)
        moved = distances(particles, solution.particles, unit)
        certified = float(np.asarray(cap, dtype))
        assert moved.max() <= certified  # exactly, whatever rounding did
        if offset == 0 and cap < 1:
            assert moved.max() >= certified * (1 - 1e-5) - 3e-7  # the cap is reached
        assert float(solution.particles.min()) >= float(low)
        assert float(solution.particles.max()) <= float(high)
        assert float(solution.stats["displacement_max"]) == pytest.approx(moved.max(), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cap_holds_against_violent_moves_of_every_solver(dtype):
    particles, target = draw(14, (32, 64), dtype), flowrl.Boltzmann(_cubic)
    for solver in (flowrl.Euler(), flowrl.Optax()):
        budget = flowrl.Budget(6, 1e4, max_displacement=0.25)
        solution = flowrl.transport(target, particles, budget, flow=flowrl.Ascent(), solver=solver)
        assert distances(particles, solution.particles).max() <= 0.25
        assert float(solution.stats["fraction_at_cap"]) == 1


def _one_sided(x):
    return jnp.sum(jnp.maximum(x, 0))


def test_stats_at_the_cap_and_at_the_face_count_particles():
    target, flow = flowrl.Boltzmann(_one_sided), flowrl.Ascent()
    particles = jnp.asarray([[-1.0], [-2.0], [0.5], [0.9]], FLOAT)
    capped = flowrl.transport(target, particles, flowrl.Budget(4, 0.1, max_displacement=0.25), flow=flow)
    assert float(capped.stats["fraction_at_cap"]) == 0.5  # two never move
    assert float(capped.stats["displacement_max"]) == pytest.approx(0.25, rel=1e-5)
    assert float(capped.stats["displacement_rms"]) == pytest.approx(0.25 / np.sqrt(2), rel=1e-5)
    assert float(capped.stats["fraction_clipped"]) == 0

    # Steps of 0.1 toward 1: from 0.9 the first three arrive or fail to leave, from 0.5 none does until the fifth.
    box = flowrl.Box(-3, 1)
    clipped = flowrl.transport(target, particles.at[3].set(0.95), flowrl.Budget(4, 0.1), flow=flow, domain=box)
    assert float(clipped.stats["fraction_clipped"]) == pytest.approx(4 / 16)
    assert float(clipped.particles[3, 0]) == 1
    assert float(clipped.stats["fraction_at_cap"]) == 0


def test_the_path_counts_the_way_back_and_the_displacement_does_not():
    particles = jnp.asarray([[3.0, 4.0], [0.0, 1.0]], FLOAT)
    # Steps of 2 on this value reflect a particle at the origin, so two of them lead home.
    there_and_back = flowrl.transport(
        flowrl.Boltzmann(log_normal), particles, flowrl.Budget(2, 2.0), flow=flowrl.Ascent()
    )
    assert float(there_and_back.stats["path_length"]) == pytest.approx((20 + 4) / 2)
    assert float(there_and_back.stats["displacement_max"]) == 0
    assert float(there_and_back.stats["time"]) == 4


# Optax


def test_adam_moves_a_coordinate_by_steps_times_step_size_whatever_the_scale_of_the_value():
    particles, signs = draw(15, (4, 3)), np.array([1.0, -1.0, 1.0])
    for magnitude in (1e-3, 1.0, 1e3):
        target = flowrl.Boltzmann(linear, jnp.asarray(magnitude * np.array([1.0, -0.5, 2.0]), FLOAT))
        solution = flowrl.transport(
            target, particles, flowrl.Budget(10, 0.02), flow=flowrl.Ascent(), solver=flowrl.Optax()
        )
        moved = np.asarray(solution.particles - particles)
        np.testing.assert_allclose(moved, np.broadcast_to(0.2 * signs, (4, 3)), rtol=tolerance(1e-4, 1e-3))


def test_adam_with_svgd_moves_about_steps_times_step_size():
    particles = draw(15, (16, 3))
    moves = []
    for magnitude in (1e-3, 1.0, 1e3):
        target = flowrl.Boltzmann(linear, jnp.asarray([magnitude, -magnitude, magnitude], FLOAT))
        solution = flowrl.transport(target, particles, flowrl.Budget(5, 0.02, 0.0), flow=FIXED, solver=flowrl.Optax())
        moves.append(np.abs(solution.particles - particles))
    assert np.all(np.abs(np.stack(moves) - 0.1) < 0.005)


def test_new_optimiser_moments_in_every_transport():
    """Two transports of one step start again in between, so they are not one transport of two steps."""
    options = {"solver": flowrl.Optax(), "flow": FIXED}
    start = draw(15, (4, 3))
    once = flowrl.transport(NORMAL, start, flowrl.Budget(1, 0.1), **options).particles
    twice = flowrl.transport(NORMAL, once, flowrl.Budget(1, 0.1), **options).particles
    together = flowrl.transport(NORMAL, start, flowrl.Budget(2, 0.1), **options, save=(1, 2))
    assert_close(together.trajectory[0], once)
    # The first step of fresh moments has length ε in every coordinate, a second step of old ones has not.
    assert np.allclose(np.abs(twice - once), 0.1, atol=1e-5)
    assert not np.allclose(np.abs(together.particles - once), 0.1, atol=1e-5)


def test_adam_is_differentiable_where_a_gradient_is_exactly_zero():
    def end(slope):
        target = flowrl.Boltzmann(lambda slope, x: slope * jnp.sum(jax.nn.relu(x)), slope)
        start = jnp.asarray([[0.5, -0.5], [-1.0, 1.0]], FLOAT)
        budget = flowrl.Budget(2, 0.1)
        return flowrl.transport(
            target, start, budget, flow=flowrl.Ascent(), solver=flowrl.Optax(), throw=False
        ).particles.sum()

    assert np.isfinite(jax.grad(end)(jnp.asarray(1.0, FLOAT)))


# Outer derivatives


def test_a_transport_can_be_differentiated_through():
    particles, centre = draw(16, (5, 2)).clip(-1, 1), jnp.asarray([0.4, -0.3], FLOAT)

    def end(centre, cap):
        budget = flowrl.Budget(3, 0.4, max_displacement=cap)
        target = flowrl.Density(quadratic, centre)
        return jnp.sum(flowrl.transport(target, particles, budget, flow=FIXED, throw=False).particles ** 2)

    differentiate = jax.jit(jax.grad(end))
    for cap in (0.3, 10.0):
        gradient = differentiate(centre, cap)
        if X64:
            step = np.array([1e-6, 0.0])
            difference = (end(centre + step, cap) - end(centre - step, cap)) / 2e-6
            assert float(gradient[0]) == pytest.approx(float(difference), rel=1e-5)
        assert np.isfinite(np.asarray(gradient)).all()


# The verdict


def test_a_solution_prints_what_was_spent_and_what_to_try():
    particles = draw(17, (8, 2)).at[0, 0].set(7.0)
    budget = flowrl.Budget(5, 1.0, max_displacement=0.01)
    text = str(flowrl.transport(flowrl.Density(walled), particles, budget, flow=FIXED))
    assert "8 particles" in text
    assert "5 steps, time 5" in text
    assert "at most 0.01" in text
    assert "ran all its steps" in text
    assert "max_displacement" in text
    assert "1 particles were frozen" in text
    assert len(text.splitlines()) < 12
    inside = jax.jit(lambda p: (flowrl.transport(NORMAL, p, flowrl.Budget(1), flow=FIXED), str(p))[0])(particles)
    assert "sets" not in str(inside)
