"""Weights of the particles: a particle of weight two is two particles, one of weight zero moves and moves no other."""

import traceback

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from problems import FLOAT, assert_close, draw, log_normal, same_bits, tolerance, walled

import flowrl
from flowrl import IMQ, RBF, FixedBandwidth, Linear, Matern, Preconditioned, sharding

N, D = 5, 2
COUNTS = np.array([2, 1, 3, 1, 1])
TWINS = np.repeat(np.arange(N), COUNTS)
WEIGHTS = jnp.asarray(COUNTS, FLOAT)
LOGS = jnp.log(WEIGHTS)
X, SAMPLES = draw(0, (N, D)), 0.5 * draw(1, (7, D)) + 1
SIGMA = FixedBandwidth(0.8)
FIXED = RBF(SIGMA)
NORMAL = flowrl.Density(log_normal)
HILL = flowrl.Boltzmann(lambda x: -0.5 * jnp.sum((x - 1) ** 2) + jnp.sum(jnp.sin(2 * x)))
SHARED = flowrl.Empirical(SAMPLES)
CLOSE = {"rtol": tolerance(1e-9, 1e-3), "atol": tolerance(1e-11, 1e-5)}
SINKHORN = flowrl.SinkhornFlow(0.2, iterations=200)
NOTHING = jnp.full(D, jnp.nan, FLOAT)

KERNELS = {
    "rbf": FIXED,
    "imq": IMQ(SIGMA),
    "matern": Matern(SIGMA),
    "linear": Linear(),
    "sum": FIXED + 0.3 * Linear(0.5),
    "product": FIXED * IMQ(SIGMA),
    "preconditioned": Preconditioned(FIXED, np.array([[1.0, 0.3], [0.3, 0.5]])),
    "sharded": sharding.Sharded(FIXED, sharding.mesh(particles=1)),
}
FLOWS = {
    "svgd": (flowrl.SVGD(FIXED), HILL),
    "ascent": (flowrl.Ascent(), HILL),
    "consensus": (flowrl.Consensus(), HILL),
    "blob": (flowrl.Blob(FIXED), HILL),
    "mmd": (flowrl.MMDFlow(FIXED), SHARED),
    "sinkhorn": (SINKHORN, SHARED),
    "sum": (flowrl.Ascent() + 0.5 * flowrl.SVGD(FIXED), HILL),
}
ENERGIES = ("ascent", "blob", "mmd", "sinkhorn")


def _same(x):
    return x


def _view(target, logs=None, temperature=0.6):
    ones = jnp.ones((1, D), FLOAT)
    alpha = jnp.asarray(temperature, FLOAT)
    view = flowrl.TargetView(alpha, None, None, target, flowrl.Unbounded(), ones, entropic=True, unravel=_same)
    return view if logs is None else view.weighted(logs)


def _everyone(x):
    return jnp.ones(x.shape[0], bool)


@eqx.filter_jit
def _velocity(flow, view, x, alive):
    return flow.velocity(view, x, alive)


@eqx.filter_jit
def _stein(kernel, x, g, alive, weights):
    return kernel.stein(x, g, alive, jnp.asarray(0.7, x.dtype), weights)


@eqx.filter_jit
def _energy(flow, view, x):
    return flow.energy(view, x, _everyone(x))


# Kernels


@pytest.mark.parametrize("name", KERNELS)
def test_a_particle_of_weight_two_is_two_particles(name):
    kernel, g = KERNELS[name], draw(2, (N, D))
    moves = _stein(kernel, X, g, _everyone(X), WEIGHTS)
    twins = _stein(kernel, X[TWINS], g[TWINS], jnp.ones(TWINS.size, bool), None)
    assert_close(moves[TWINS], twins, **CLOSE)
    assert_close(_stein(kernel, X, g, _everyone(X), 7 * WEIGHTS), moves, **CLOSE)  # only proportions matter
    assert_close(
        _stein(kernel, X, g, _everyone(X), jnp.ones(N, FLOAT)), _stein(kernel, X, g, _everyone(X), None), **CLOSE
    )


def test_the_direction_is_that_of_the_loop():
    g, alive = draw(2, (N, D)), np.array([True, True, False, True, True])
    x, w = np.asarray(X, np.float64), np.where(alive, COUNTS, 0)
    want = np.zeros((N, D))
    for i, j in np.ndindex(N, N):
        gap = x[i] - x[j]
        k = np.exp(-gap @ gap / (2 * 0.64))
        want[i] += w[j] * k * (np.asarray(g[j], np.float64) + 0.7 * gap / 0.64) / w.sum()
    want[~alive] = 0
    spoilt = jnp.where(jnp.asarray(alive)[:, None], X, jnp.nan)
    moves = _stein(FIXED, spoilt, g, jnp.asarray(alive), jnp.where(jnp.asarray(alive), WEIGHTS, jnp.nan))
    assert_close(moves, want, **CLOSE)


@pytest.mark.parametrize("name", ["rbf", "linear", "preconditioned", "sharded"])
def test_what_weighs_nothing_moves_and_moves_no_other(name):
    kernel, g = KERNELS[name], draw(2, (N, D))
    weights = WEIGHTS.at[1].set(0)
    moves = _stein(kernel, X, g, _everyone(X), weights)
    rest = np.array([0, 2, 3, 4])
    alone = _stein(kernel, X[rest], g[rest], jnp.ones(4, bool), weights[rest])
    assert_close(moves[rest], alone, **CLOSE)
    assert float(jnp.abs(moves[1]).max()) > 1e-3
    # Frozen, it does not.
    frozen = _stein(kernel, X, g, _everyone(X).at[1].set(False), WEIGHTS)  # noqa: FBT003
    assert_close(frozen[rest], alone, **CLOSE)
    assert (frozen[1] == 0).all()
    assert (_stein(kernel, X, g, ~_everyone(X), WEIGHTS) == 0).all()


@pytest.mark.parametrize("kernel", [RBF(), RBF(flowrl.ScottBandwidth()), Preconditioned()])
def test_what_is_fitted_to_the_particles_counts_each_of_them_once(kernel):
    g, alpha = draw(2, (N, D)), jnp.asarray(0.7, FLOAT)
    fitted = kernel.fitted(X, _everyone(X))
    assert_close(_stein(kernel, X, g, _everyone(X), WEIGHTS), fitted.stein(X, g, _everyone(X), alpha, WEIGHTS), **CLOSE)


def test_the_linear_kernel_without_offset_never_moves_the_weighted_mean():
    moves = _stein(Linear(0), X, draw(2, (N, D)), _everyone(X), WEIGHTS)
    assert_close(WEIGHTS @ moves, np.zeros(D), atol=tolerance(1e-12, 1e-5))
    assert float(jnp.abs(moves.sum(axis=0)).max()) > 1e-2


# Flows


@pytest.mark.thorough
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_weights_is_that_of_repeated_particles(name):
    flow, target = FLOWS[name]
    velocity, alive = _velocity(flow, _view(target, LOGS), X, _everyone(X))
    twins, _ = _velocity(flow, _view(target), X[TWINS], jnp.ones(TWINS.size, bool))
    assert_close(velocity[TWINS], twins, **CLOSE)
    assert alive.all()
    assert not np.allclose(velocity, _velocity(flow, _view(target), X, _everyone(X))[0], atol=1e-3) or name == "ascent"
    if flow.traits.diffuses:
        white = draw(3, (N, D))
        noise = flow.noise(_view(target, LOGS), X, _everyone(X), white)
        assert_close(
            noise[TWINS], flow.noise(_view(target), X[TWINS], jnp.ones(TWINS.size, bool), white[TWINS]), **CLOSE
        )


@pytest.mark.parametrize("name", ENERGIES)
def test_an_energy_of_weights_is_that_of_repeated_particles_and_its_slope_the_velocity(name):
    flow, target = FLOWS[name]
    view = _view(target, LOGS)
    assert_close(_energy(flow, view, X), _energy(flow, _view(target), X[TWINS]), **CLOSE)
    slope = eqx.filter_jit(jax.grad(lambda x: flow.energy(view, x, _everyone(x))))(X)
    share = COUNTS / COUNTS.sum()
    loose = {"rtol": 1e-5, "atol": 1e-5} if name == "sinkhorn" else CLOSE  # whose potentials are iterated
    assert_close(-slope / share[:, None], _velocity(flow, view, X, _everyone(X))[0], **loose)


def test_consensus_weighs_by_weight_times_density():
    flow, view = flowrl.Consensus(), _view(HILL, LOGS)
    x = np.asarray(X, np.float64)
    u = -0.5 * np.sum((x - 1) ** 2, axis=1) + np.sum(np.sin(2 * x), axis=1)
    w = COUNTS * np.exp(u / 0.6)
    assert_close(_velocity(flow, view, X, _everyone(X))[0], w @ x / w.sum() - x, **CLOSE)
    cold = _view(HILL, LOGS, temperature=1e-30)
    assert_close(_velocity(flow, cold, X, _everyone(X))[0], x[u.argmax()] - x, **CLOSE)
    # Of the best particle nothing is left: the consensus is among the others.
    light = _view(HILL, LOGS.at[int(u.argmax())].set(-1e4), temperature=1e-30)
    u[u.argmax()] = -np.inf
    assert_close(_velocity(flow, light, X, _everyone(X))[0], x[u.argmax()] - x, **CLOSE)


@pytest.mark.parametrize("name", FLOWS)
def test_a_weight_that_underflows_does_no_harm(name):
    flow, target = FLOWS[name]
    far = X.at[1].set(100.0)
    logs = LOGS.at[1].set(-1e4)
    velocity, alive = _velocity(flow, _view(target, logs), far, _everyone(X))
    rest = np.array([0, 2, 3, 4])
    without, _ = _velocity(flow, _view(target, LOGS[rest]), far[rest], jnp.ones(4, bool))
    assert alive.all()
    assert np.isfinite(velocity).all()
    assert_close(velocity[rest], without, **CLOSE)
    if name in ENERGIES:
        assert np.isfinite(_energy(flow, _view(target, logs), far))
    if name != "sum":  # It moves as one that weighs little.
        little, _ = _velocity(flow, _view(target, LOGS.at[1].set(-40.0)), far, _everyone(X))
        assert_close(velocity[1], little[1], rtol=1e-3, atol=1e-9)


@pytest.mark.thorough
def test_weights_are_differentiable():
    def moved(logs):
        flow = flowrl.SVGD(FIXED) + flowrl.Consensus(diffusion=0.0)
        return jnp.sum(flow.velocity(_view(HILL, logs), X, _everyone(X))[0] ** 2)

    slope, direction, step = jax.grad(moved)(LOGS), draw(5, (N,)), tolerance(1e-6, 1e-2)
    difference = (moved(LOGS + step * direction) - moved(LOGS - step * direction)) / (2 * step)
    assert_close(slope @ direction, difference, rtol=tolerance(1e-6, 1e-2))


# Transports


@pytest.mark.thorough
@pytest.mark.parametrize("name", FLOWS)
def test_transports_of_weights(name, key):
    flow, target = FLOWS[name]
    flow = flowrl.Consensus(diffusion=0.0) if name == "consensus" else flow
    budget = flowrl.Budget(6, 0.1, scale=jnp.asarray([1.0, 2.0], FLOAT))

    def move(x, logs):
        return flowrl.transport(target, x, budget, flow=flow, log_weights=logs, key=key)

    plain, equal = move(X, None), move(X, jnp.full(N, -3.0, FLOAT))
    assert_close(equal.particles, plain.particles, **CLOSE)
    assert_close(equal.log_weights, np.full(N, -np.log(N)), **CLOSE)
    weighted = move(X, LOGS - 500.0)
    assert_close(weighted.particles[TWINS], move(X[TWINS], None).particles, rtol=tolerance(1e-7, 1e-2), atol=1e-4)
    assert_close(weighted.log_weights, np.log(COUNTS / COUNTS.sum()), rtol=tolerance(1e-9, 1e-3))
    slot = move(jnp.concatenate([X, 50 + X[:1]]), jnp.append(LOGS, -jnp.inf))
    assert_close(slot.particles[:N], weighted.particles, **CLOSE)
    assert (slot.particles[N] == 50 + X[0]).all()  # an empty slot stays where it is
    assert slot.log_weights[N] == -jnp.inf
    assert slot.stats["nonfinite"] == 1


def test_the_noise_of_langevin_knows_no_weights(key):
    def move(logs):
        return flowrl.transport(NORMAL, X, flowrl.Budget(5, 0.1), flow=flowrl.Langevin(), log_weights=logs, key=key)

    assert same_bits(move(LOGS).particles, move(None).particles)


def test_many_sets_by_vmap_are_a_loop():
    x, logs = jnp.stack([X, 2 * X]), jnp.stack([LOGS, LOGS[::-1].at[0].set(-jnp.inf)])

    def move(x, logs):
        budget = flowrl.Budget(4, 0.2)
        return flowrl.transport(HILL, x, budget, flow=flowrl.SVGD(FIXED), log_weights=logs, throw=False)

    together = jax.vmap(move)(x, logs)
    for i in range(2):
        one = move(x[i], logs[i])
        assert_close(together.particles[i], one.particles, **CLOSE)
        assert_close(together.log_weights[i], one.log_weights, **CLOSE)


def test_the_heaviest_particle_can_freeze():
    x = 3 + 0.5 * draw(7, (N, D))
    x = x.at[2, 0].set(6.0)  # beyond the wall its score is NaN
    logs = jnp.zeros(N, FLOAT).at[2].set(8.0)
    budget, rest = flowrl.Budget(6, 0.2), np.array([0, 1, 3, 4])
    target = flowrl.Density(walled)
    with_it = flowrl.transport(target, x, budget, flow=flowrl.SVGD(FIXED), log_weights=logs)
    without = flowrl.transport(target, x[rest], budget, flow=flowrl.SVGD(FIXED))
    assert_close(with_it.particles[rest], without.particles, rtol=tolerance(1e-8, 1e-3))
    assert (with_it.particles[2] == x[2]).all()
    assert_close(with_it.log_weights[rest], np.full(4, -np.log(4)), **CLOSE)


@pytest.mark.thorough
def test_single_precision_is_kept():
    x, logs = X.astype(jnp.float32), LOGS.astype(jnp.float32)
    for name, (flow, _) in FLOWS.items():
        target = flowrl.Empirical(SAMPLES.astype(jnp.float32)) if name in ("mmd", "sinkhorn") else HILL
        done = flowrl.transport(target, x, flowrl.Budget(2, 0.1), flow=flow, log_weights=logs, key=jr.key(0))
        assert done.particles.dtype == done.log_weights.dtype == jnp.float32


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [flowrl.Optax(optax.sgd(1.0)), flowrl.Diffrax()])
def test_solvers_pass_weights_on(solver):
    budget = flowrl.Budget(4, 0.05)
    weighted = flowrl.transport(HILL, X, budget, flow=flowrl.SVGD(FIXED), solver=solver, log_weights=LOGS)
    twins = flowrl.transport(HILL, X[TWINS], budget, flow=flowrl.SVGD(FIXED), solver=solver)
    assert_close(weighted.particles[TWINS], twins.particles, rtol=tolerance(1e-4, 1e-2))  # adaptive steps differ


@pytest.mark.parametrize("name", ["ascent", "blob", "mmd"])
def test_a_proximal_step_is_that_of_repeated_particles(name):
    flow, target = FLOWS[name]
    budget = flowrl.Budget(1, 0.5)
    weighted = flowrl.transport(target, X, budget, flow=flow, solver=flowrl.JKO(), log_weights=LOGS)
    twins = flowrl.transport(target, X[TWINS], budget, flow=flow, solver=flowrl.JKO())
    assert_close(weighted.particles[TWINS], twins.particles, rtol=1e-2, atol=1e-3)


def test_a_proximal_step_moves_the_lightest_all_the_way():
    target = flowrl.Boltzmann(log_normal)  # the proximal point of a quadratic is x / (1 + h), whatever it weighs
    logs = jnp.asarray([0.0, -5.0, -15.0, 0.0, 1.0], FLOAT)
    done = flowrl.transport(
        target, X, flowrl.Budget(1, 9.0), flow=flowrl.Ascent(), solver=flowrl.JKO(), log_weights=logs
    )
    assert_close(done.particles, X / 10, atol=2e-2)


def test_a_sum_knows_weights_if_all_its_flows_do():
    assert (flowrl.SVGD() + 0.5 * flowrl.Langevin()).traits.weighs
    assert not (flowrl.Langevin() + flowrl.BirthDeath()).traits.weighs
    assert not (2.0 * flowrl.ALDI()).traits.weighs


# Misuse


def _transport(logs, flow=flowrl.SVGD(), x=X):  # noqa: B008
    return lambda: flowrl.transport(NORMAL, x, flowrl.Budget(2), flow=flow, log_weights=logs, key=jr.key(0))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (_transport(LOGS.at[1].set(jnp.nan)), ValueError, "log_weights must be < inf and not NaN"),
        (_transport(LOGS.at[1].set(jnp.inf)), ValueError, "log_weights must be < inf and not NaN"),
        (_transport(jnp.full(N, -jnp.inf, FLOAT)), ValueError, "all -inf: no particle is left"),
        (_transport(LOGS[:3]), ValueError, r"shape \(5,\), one per particle; got \(3,\)"),
        (_transport(LOGS, flowrl.ALDI()), ValueError, "ALDI does not know weights; resample"),
        (_transport(LOGS, flowrl.KSDDescent()), ValueError, "KSDDescent does not know weights"),
        (_transport(LOGS, flowrl.Langevin() + flowrl.BirthDeath()), ValueError, "SumFlow does not know weights"),
    ],
)
def test_what_are_no_log_weights_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("particles", [[[0.0, 1.0], [2.0, 3.0]], [0.0, 1.0], ((0.0, 1.0), (2.0, 3.0))])
def test_a_list_of_numbers_is_no_array(particles):
    with pytest.raises(ValueError, match=r"A list is a PyTree of its entries; for one array pass jnp.asarray\(...\)"):
        flowrl.transport(NORMAL, particles, flowrl.Budget(2))


def _batched(x):
    return -0.5 * jnp.sum(x**2, axis=1)


def _forgetful(x):
    jnp.sum(x**2)


BROKEN = {
    "batched": (lambda: flowrl.Density(_batched), ValueError, "log_prob failed at one particle of shape (2,)"),
    "batched value": (lambda: flowrl.Boltzmann(_batched), ValueError, "value failed at one particle of shape (2,)"),
    "columns": (lambda: flowrl.Density(lambda x: -(x[:, 0] ** 2)), ValueError, "log_prob failed at one particle"),
    "batched score": (lambda: flowrl.Score(lambda x: -x[:, :2]), ValueError, "score failed at one particle"),
    "layer": (lambda: flowrl.Density(lambda x: jnp.dot(x, jnp.ones((3, 1), FLOAT))), TypeError, "log_prob failed"),
    "nothing": (lambda: flowrl.Density(_forgetful), TypeError, "log_prob returned None"),
    "nothing of a value": (lambda: flowrl.Boltzmann(_forgetful), TypeError, "value returned None"),
    "words": (lambda: flowrl.Density(lambda x: {"log_prob": -jnp.sum(x**2)}), TypeError, "log_prob returned a dict"),
    "vector": (lambda: flowrl.Density(lambda x: -(x**2)), ValueError, "log_prob returned shape (2,) for one particle"),
    "prior": (
        lambda: flowrl.Posterior(_batched, lambda x, d: -jnp.sum((x - d) ** 2), X),
        ValueError,
        "log_prior failed",
    ),
    "likelihood": (
        lambda: flowrl.Posterior(log_normal, lambda x, d: _batched(x - d), X, 2),
        ValueError,
        "log_likelihood",
    ),
    "tilt": (lambda: flowrl.Tilted(log_normal, _batched), ValueError, "value failed at one particle of shape (2,)"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_function_of_all_particles_is_told_that_it_gets_one(name):
    make, kind, message = BROKEN[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        flowrl.transport(make(), X, flowrl.Budget(2, 0.1), key=jr.key(0))
    error = caught.value
    assert isinstance(error, kind)
    assert str(error).startswith(message)
    if "failed" in str(error):
        assert "a single particle, without the particle axis" in str(error)
        assert error.__cause__ is not None  # what went wrong, and where
    else:
        assert "expected one scalar" in str(error)
    text = "".join(traceback.format_exception(error))
    assert "_ensemble.py" not in text  # not from within the loop over steps
    assert "During handling" not in text or name == "words"


def test_an_error_that_no_shape_explains_is_left_as_it_is():
    def branch(x):
        return -jnp.sum(x**2) if x[0] > 0 else jnp.zeros((), x.dtype)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        flowrl.transport(flowrl.Density(branch), X, flowrl.Budget(2))

    def unfinished(x):
        raise NotImplementedError("later")

    with pytest.raises(NotImplementedError, match="later"):
        flowrl.transport(flowrl.Density(unfinished), X, flowrl.Budget(2))


def test_a_target_that_works_is_traced_no_more_than_before():
    seen = []

    def value(x):
        seen.append(None)
        return -0.5 * jnp.sum(x**2)

    target = flowrl.Boltzmann(value)
    flowrl.transport(target, X, flowrl.Budget(3, 0.1), flow=flowrl.Ascent())
    first = len(seen)
    flowrl.transport(target, 2 * X, flowrl.Budget(3, 0.2), flow=flowrl.Ascent())
    assert first <= 4  # the loop's body, and the values at the end
    assert len(seen) == first
