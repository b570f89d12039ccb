"""Steps that are accepted or rejected: what they sample is exact, at every step size, in every domain."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from problems import FLOAT, assert_close, draw, log_normal, same_bits, tolerance

import flowrl
from flowrl import Budget, Density, Hamiltonian, Langevin, Metropolis, Microcanonical, Monotone

FIXED = dict(share=0.0)  # the budget's own step size
EXACT = {
    "MALA": (Metropolis(**FIXED), 0.9),
    "HMC": (Metropolis(Hamiltonian(3, scale=None), **FIXED), 0.8),
    "GHMC": (Metropolis(Hamiltonian(1, 1.0, None), **FIXED), 1.0),
    "MAMS": (Metropolis(Microcanonical(3, scale=None), **FIXED), 0.8),
}


def run(target, start, budget, solver, seed=0, **options):
    return flowrl.transport(target, start, budget, flow=Langevin(), solver=solver, key=jr.key(seed), **options)


# Reversibility on a line: pairs of places before and after one step are exchangeable.

LINES = {
    "line": (lambda x: -0.5 * jnp.sum(x**2), scipy.stats.norm, {}, {}),
    "box": (
        lambda x: -0.5 * jnp.sum(x**2),
        scipy.stats.truncnorm(-0.5, 1.5),
        {"domain": flowrl.Box(-0.5, 1.5)},
        {},
    ),
    "positive": (
        lambda x: jnp.sum(2 * jnp.log(x) - x),
        scipy.stats.gamma(3),
        {"domain": flowrl.positive(by="bijector")},
        {},
    ),
    "scaled": (lambda x: -0.5 * jnp.sum((x / 4) ** 2), scipy.stats.norm(0, 4), {}, {"scale": 3.0}),
    "tempered": (lambda x: -0.5 * jnp.sum(x**2), scipy.stats.norm(0, 2), {}, {"temperature": 4.0}),
}


def _asymmetry(solver, step_size, log_prob, law, options, numbers, n=100_000):
    """P value of symmetry of the counts of (bin before, bin after), from particles drawn of the law."""
    quantiles = (np.random.default_rng(3).permutation(n) + 0.5) / n
    start = jnp.asarray(law.ppf(quantiles)[:, None], FLOAT)
    target = flowrl.Boltzmann(log_prob) if "temperature" in numbers else Density(log_prob)
    moved = run(target, start, Budget(1, step_size, **numbers), solver, **options).particles
    edges = law.ppf(np.linspace(0, 1, 13)[1:-1])
    before, after = np.digitize(np.asarray(start)[:, 0], edges), np.digitize(np.asarray(moved)[:, 0], edges)
    counts = np.histogram2d(before, after, bins=np.arange(13) - 0.5)[0]
    upper = np.triu_indices(12, 1)
    there, back = counts[upper], counts.T[upper]
    seen = there + back >= 20
    statistic = np.sum((there - back)[seen] ** 2 / (there + back)[seen])
    return scipy.stats.chi2(seen.sum()).sf(statistic), np.mean(before != after)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("method", ["MALA", "HMC", "GHMC"])
def test_detailed_balance_on_a_grid(method, line):
    solver, step_size = EXACT[method]
    p, moved = _asymmetry(solver, step_size, *LINES[line])
    assert p > 1e-3
    assert moved > 0.2


def test_detailed_balance_would_be_missed_without_rejection():
    p, _ = _asymmetry(flowrl.Euler(), 0.9, *LINES["line"])
    assert p < 1e-6


# Rank tests: particles that start as draws of the target are draws of it after any number of steps.


def _mixture(x):
    return jnp.logaddexp(-0.5 * jnp.sum((x - 2) ** 2), -0.5 * jnp.sum((x + 2) ** 2) + jnp.log(2.0))


def _start(target, n):
    random = np.random.default_rng(7)
    if target == "gamma":
        return random.gamma(3.0, size=(n, 2))
    normal = random.standard_normal((n, 2))
    if target == "mixture":
        return normal + np.where(random.random((n, 1)) < 1 / 3, 2.0, -2.0)
    return normal @ np.array([[1.0, 0.0], [0.9, np.sqrt(1 - 0.81)]]).T


def _cdf(target):
    if target == "gamma":
        return scipy.stats.gamma(3).cdf
    if target == "mixture":
        return lambda x: scipy.stats.norm.cdf(x - 2) / 3 + 2 * scipy.stats.norm.cdf(x + 2) / 3
    return scipy.stats.norm.cdf


PRECISION = jnp.asarray(np.linalg.inv([[1.0, 0.9], [0.9, 1.0]]), FLOAT)
TARGETS = {
    "gamma": (lambda x: jnp.sum(2 * jnp.log(x) - x), {"domain": flowrl.positive(by="bijector")}),
    "gamma in a box": (lambda x: jnp.sum(2 * jnp.log(x) - x), {"domain": flowrl.Box(0.0, np.inf)}),
    "mixture": (_mixture, {}),
    "correlated": (lambda x: -0.5 * x @ PRECISION @ x, {}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", EXACT)
def test_draws_stay_draws(method, target):
    solver, step_size = EXACT[method]
    log_prob, options = TARGETS[target]
    name = target.split()[0]
    start = jnp.asarray(_start(name, 4000), FLOAT)
    end = run(Density(log_prob), start, Budget(15, 0.8 * step_size), solver, seed=11, **options).particles
    assert float(jnp.mean(jnp.any(end != start, axis=1))) > 0.6
    for column in range(2):
        assert scipy.stats.kstest(np.asarray(end)[:, column], _cdf(name)).pvalue > 1e-3


def test_draws_do_not_stay_draws_without_rejection():
    start = jnp.asarray(_start("correlated", 4000), FLOAT)
    end = run(Density(TARGETS["correlated"][0]), start, Budget(15, 0.15), flowrl.Euler(), seed=11).particles
    assert (
        scipy.stats.kstest(np.asarray(end)[:, 0] - np.asarray(end)[:, 1], scipy.stats.norm(0, 0.2**0.5).cdf).pvalue
        < 1e-3
    )


# Adaptation


@pytest.mark.parametrize(
    ("proposal", "first"),
    [
        (flowrl.Euler(), None),
        (flowrl.Euler(), 1e-4),
        (flowrl.Euler(), 10.0),
        (Hamiltonian(4), 1e-4),
        (Hamiltonian(1, 1.0), 10.0),
        (Microcanonical(4), None),
    ],
)
def test_the_step_size_adapts_from_anywhere(proposal, first):
    unit = jnp.asarray([1.0, 0.1], FLOAT)
    target = Density(lambda x: -0.5 * jnp.sum((x / unit) ** 2))
    solution = run(target, 1 + draw(0, (200, 2)), Budget(300, first), Metropolis(proposal))
    acceptance = float(solution.extras["acceptance"])
    assert acceptance == pytest.approx(proposal.acceptance, abs=0.08)
    assert int(solution.extras["gradients"]) == 1 + 300 * proposal.gradients
    np.testing.assert_allclose(solution.particles.std(axis=0) / unit, 1, atol=0.2)
    assert float(jnp.abs(solution.particles.mean(axis=0) / unit).max()) < 0.3


def _settled(target, start, share=1.0, max_displacement=None, **options):
    budget = Budget(60, 0.5, max_displacement=max_displacement)
    return np.asarray(run(target, start, budget, Metropolis(share=share, **options)).particles)


def test_who_is_lost_in_a_tail_is_put_where_others_are():
    """At 3,000 the step of the others is refused for ever."""
    steep = Density(lambda x: -0.25 * jnp.sum(x**4))
    start = jnp.concatenate([jr.normal(jr.key(0), (48, 1), FLOAT), jnp.full((2, 1), 3000, FLOAT)])
    assert (_settled(steep, start)[48:] == 3000).all()
    assert (_settled(steep, start, patience=10, share=0.0)[48:] == 3000).all()  # draws are never touched
    assert (_settled(steep, start, patience=10, max_displacement=5.0)[48:] == 3000).all()  # the cap holds
    back = _settled(steep, start, patience=10)
    assert np.abs(back).max() < 10
    assert len(np.unique(back)) == 50


def test_who_waits_for_long_where_it_is_dense_is_not_lost():
    def narrow(x):  # a mode as heavy as the other, and ten thousand times as narrow
        return jnp.logaddexp(-0.5 * jnp.sum(x**2), -0.5 * jnp.sum(((x - 8) / 1e-4) ** 2) + jnp.log(1e4))

    start = jnp.concatenate([jr.normal(jr.key(0), (45, 1), FLOAT), jnp.full((5, 1), 8, FLOAT)])
    assert (np.abs(_settled(Density(narrow), start, patience=5)[45:] - 8) < 0.01).all()


def test_the_step_is_fixed_after_its_share():
    target, start, solver = Density(log_normal), draw(0, (50, 3)), Metropolis(share=0.4)
    stepper = flowrl.Stepper(target, Budget(20, 0.5), flowrl.Transport(Langevin(), solver))
    state, sizes = stepper.init(start, jr.key(0)), []
    for step in range(20):
        state, info = stepper.step(jr.key(step), state)
        sizes.append(float(info.extras["step_size"]))
    assert len(set(sizes[:9])) == 9
    assert len(set(sizes[8:])) == 1


@pytest.mark.thorough
def test_a_set_alone_and_in_a_batch_agree():
    target, starts = Density(log_normal), draw(2, (3, 20, 2))
    keys = jr.split(jr.key(5), 3)
    for solver, _ in EXACT.values():

        def one(start, key, solver=solver):
            return flowrl.transport(
                target, start, Budget(5, 0.5), flow=Langevin(), solver=solver, key=key, throw=False
            ).particles

        assert_close(jax.vmap(one)(starts, keys)[1], one(starts[1], keys[1]), rtol=tolerance(1e-9, 1e-4), atol=1e-5)


# What is left of unadjusted dynamics


@pytest.mark.parametrize("h", [0.5, 1.0])
def test_kinetic_langevin_has_the_variance_of_its_leapfrog(h):
    end = run(Density(log_normal), draw(0, (20_000, 1)), Budget(60, h), Hamiltonian(1, 1.0, None)).particles
    assert float(end.var()) == pytest.approx(1 / (1 - h**2 / 4), rel=0.04)


def test_kinetic_particles_turn_round_at_a_wall():
    start = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (20_000, 1)), FLOAT)
    end = run(
        Density(log_normal), start, Budget(150, 0.1), Hamiltonian(1, 1.0, None), domain=flowrl.Box(-1, 1, by="reflect")
    ).particles
    assert float(end.var()) == pytest.approx(0.2911, abs=0.008)


@pytest.mark.thorough
def test_microcanonical_dynamics_samples_a_normal():
    target = Density(lambda x: -0.5 * jnp.sum((x / 3) ** 2))
    end = run(target, draw(0, (2000, 10)), Budget(300, 0.3), Microcanonical(1)).particles
    assert float(end.var()) == pytest.approx(9, rel=0.06)
    assert float(jnp.abs(end.mean(axis=0)).max()) < 0.25


def test_a_learned_scale_is_the_spread_of_the_particles():
    unit = np.array([0.1, 1.0, 20.0])
    target = Density(lambda x: -0.5 * jnp.sum((x / jnp.asarray(unit, x.dtype)) ** 2))
    solution = run(target, draw(0, (300, 3)), Budget(200, None), Metropolis(Hamiltonian()))
    np.testing.assert_allclose(solution.extras["scale"], unit, rtol=0.2)


def test_a_learned_covariance_is_that_of_the_particles_and_the_draws_stay_exact():
    root = np.array([[3.0, 0.0, 0.0], [2.9, 0.1, 0.0], [1.0, -2.0, 5.0]])
    inverse = jnp.asarray(np.linalg.inv(root @ root.T), FLOAT)
    target = Density(lambda x: -0.5 * x @ inverse.astype(x.dtype) @ x)
    proposal = Microcanonical(4, scale=flowrl.LearnedCovariance())
    solution = run(target, draw(0, (2000, 3)), Budget(150, None), Metropolis(proposal))
    np.testing.assert_allclose(solution.extras["scale"], np.sqrt(np.diag(root @ root.T)), rtol=0.1)
    white = np.asarray(solution.particles, np.float64) @ np.linalg.inv(root).T
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=0.12)
    for coordinate in white.T:
        assert scipy.stats.kstest(coordinate, "norm").pvalue > 1e-3
    # In its unit the correlated target is round: a step as long as for one without correlation.
    assert float(solution.extras["step_size"]) > 0.3


# Caps, walls and what is not finite


@pytest.mark.thorough
def test_a_cap_truncates_the_target_exactly():
    start = jnp.zeros((20_000, 1), FLOAT)
    solution = run(Density(log_normal), start, Budget(150, 0.8, max_displacement=1.0), EXACT["MALA"][0])
    assert float(solution.stats["displacement_max"]) <= 1
    assert float(solution.particles.var()) == pytest.approx(0.2911, abs=0.008)


def test_particles_at_the_edge_of_a_support_stay_inside():
    target = Density(lambda x: jnp.sum(2 * jnp.log(x) - x))
    start = jnp.full((500, 1), 0.1, FLOAT)
    solution = run(target, start, Budget(800, None), Metropolis())
    assert int(solution.stats["nonfinite"]) == 0
    assert float(solution.particles.mean()) == pytest.approx(3, abs=0.3)


def test_a_particle_without_a_density_is_frozen_and_others_are_not_told():
    target = Density(lambda x: jnp.sum(2 * jnp.log(x) - x))
    start = jnp.asarray([[-1.0], [1.0], [2.0]], FLOAT)
    solution = run(target, start, Budget(20, 0.5), Metropolis(share=0.0))
    assert int(solution.stats["nonfinite"]) == 1
    assert same_bits(solution.particles[0], start[0])
    assert bool(jnp.isneginf(solution.log_weights[0]))
    assert float(jnp.exp(solution.log_weights).sum()) == pytest.approx(1)


# Monotone


def _steep(x):
    return -jnp.sum(x**4)


@pytest.mark.parametrize("inner", [flowrl.Euler(), flowrl.Optax()])
def test_no_value_ever_falls(inner):
    start = 3 * draw(0, (40, 2))
    method = flowrl.Transport(flowrl.Ascent(), Monotone(inner))
    target = flowrl.Boltzmann(_steep)
    solution = method(target, start, Budget(30, 1.0), save=tuple(range(31)))
    values = jax.vmap(jax.vmap(_steep))(solution.trajectory)
    assert (jnp.diff(values, axis=0) >= 0).all()
    # With Euler alone a step of 1 diverges at once.
    assert float(solution.values.min()) > -1
    assert 0 < float(solution.extras["acceptance"]) < 1


def test_a_step_that_is_refused_halves():
    """One particle on −x²/2 from 1 with ε = 4: proposals −3, −1 (no rise), then 0 with ε = 1: the top."""
    target, start = flowrl.Boltzmann(log_normal), jnp.ones((1, 1), FLOAT)
    method = flowrl.Transport(flowrl.Ascent(), Monotone())
    path = method(target, start, Budget(3, 4.0), save=(0, 1, 2, 3)).trajectory[:, 0, 0]
    np.testing.assert_allclose(path, [1, 1, 1, 0], atol=1e-6)
    fixed = flowrl.Transport(flowrl.Ascent(), Monotone(share=0.0))
    assert (fixed(target, start, Budget(9, 4.0)).particles == 1).all()


def test_steps_grow_to_the_share_of_moves_that_is_asked_for():
    target = flowrl.Boltzmann(log_normal)
    method = flowrl.Transport(flowrl.Ascent(), Monotone(acceptance=0.5))
    slow = method(target, jnp.full((4, 1), 100.0, FLOAT), Budget(25, 0.01))
    assert float(jnp.abs(slow.particles).max()) < 1  # a step of 0.01 alone would leave it at 78


@pytest.mark.parametrize("domain", [flowrl.Box(-1, 2), flowrl.Box(-1, 2, by="bijector")])
def test_monotone_moves_stay_in_the_domain_and_the_cap(domain):
    target = flowrl.Boltzmann(lambda x: jnp.sum(x))
    solution = flowrl.transport(
        target,
        jnp.zeros((5, 2), FLOAT),
        Budget(20, 1.0, max_displacement=1.5),
        flow=flowrl.Ascent(),
        solver=Monotone(),
        domain=domain,
    )
    assert float(solution.stats["displacement_max"]) <= 1.5
    assert bool(domain.contains(solution.particles).all())
    assert float(solution.values.min()) > 1.5


# Misuse


MISUSE = {
    "a score alone": (
        lambda: run(flowrl.Score(jnp.negative), draw(0, (3, 2)), Budget(2), Metropolis()),
        "Metropolis needs the value of its target, which Score does not know",
    ),
    "a minibatch": (
        lambda: run(
            flowrl.Posterior(log_normal, lambda x, y: -jnp.sum((x - y) ** 2), jnp.ones((9, 2)), batch_size=3),
            draw(0, (3, 2)),
            Budget(2),
            Metropolis(),
        ),
        "by a minibatch would sample another distribution",
    ),
    "no density of proposals": (
        lambda: flowrl.transport(Density(log_normal), draw(0, (3, 2)), Budget(2), solver=Metropolis(), key=jr.key(0)),
        r"SVGD with Metropolis: .* use flow=Langevin\(\)",
    ),
    "kinetic SVGD": (
        lambda: flowrl.transport(Density(log_normal), draw(0, (3, 2)), Budget(2), solver=Hamiltonian(), key=jr.key(0)),
        r"SVGD with Hamiltonian: .* use flow=Langevin\(\)",
    ),
    "no key": (
        lambda: flowrl.transport(Density(log_normal), draw(0, (3, 2)), Budget(2), flow=Langevin(), solver=Metropolis()),
        "pass key=",
    ),
    "no step size": (
        lambda: flowrl.transport(Density(log_normal), draw(0, (3, 2)), Budget(2, None)),
        "step_size=None, but Euler does not choose one",
    ),
    "no step size and no adaptation": (
        lambda: run(Density(log_normal), draw(0, (3, 2)), Budget(2, None), Metropolis(share=0.0)),
        "step_size=None, but Metropolis does not choose one",
    ),
    "at rest": (
        lambda: run(Density(log_normal), draw(0, (3, 2)), Budget(2, tolerance=0.1), Metropolis()),
        "never come to rest",
    ),
    "one dimension": (
        lambda: run(Density(log_normal), draw(0, (3, 1)), Budget(2), Microcanonical()),
        "two dimensions or more",
    ),
    "values of a gradient": (
        lambda: flowrl.transport(
            flowrl.ValueGradient(jnp.negative), draw(0, (3, 2)), Budget(2), flow=flowrl.Ascent(), solver=Monotone()
        ),
        "Monotone needs the value of its target",
    ),
    "temperature zero": (
        lambda: run(flowrl.Boltzmann(log_normal), draw(0, (3, 2)), Budget(2, temperature=0.0), Metropolis()),
        "Metropolis divides by the temperature",
    ),
    "acceptance of 1": (lambda: Metropolis(acceptance=1.0), r"acceptance must be in \(0, 1\)"),
    "no leaps": (lambda: Hamiltonian(0), "leaps must be a Python int >= 1"),
    "no friction": (lambda: Hamiltonian(1, 0.0), "friction must be > 0"),
    "no length": (lambda: Microcanonical(1, 0.0), "length must be > 0"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_refused_in_a_sentence(case):
    call, message = MISUSE[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_of_the_wrong_kind():
    with pytest.raises(TypeError, match="proposal"):
        Metropolis(flowrl.Optax())
    with pytest.raises(TypeError, match="inner"):
        Monotone(flowrl.Diffrax())
