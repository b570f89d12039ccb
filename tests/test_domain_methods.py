"""Domains by projection, reflection, bijector and mirror map: what holds for all of them, and each against formulas."""

import equinox as eqx
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from problems import FLOAT, X64, assert_close, distances, draw, linear, rows, same_bits, tolerance

import flowrl

INF = np.inf
WAYS = ("project", "reflect", "bijector", "mirror")
DTYPES = (np.float32, np.float64) if X64 else (np.float32,)
MIXED = (np.array([0.0, -INF, 5.0, -INF]), np.array([INF, 2.0, 5.5, INF]))
CENTRE = np.array([1000.0, -1.0, 0.0, 2.0])


def _parted(by):
    weights = flowrl.Simplex("mirror" if by == "reflect" else by)
    return flowrl.Product({"weights": weights, "rest": (flowrl.Box([0.0, 5.0], [1.0, INF], by), flowrl.Unbounded())})


KINDS = {
    "interval": lambda by: flowrl.Box(-1, 1, by),
    "positive": lambda by: flowrl.positive(by),
    "mixed": lambda by: flowrl.Box(*MIXED, by),
    "ball": lambda by: flowrl.Ball(radius=2, by=by),
    "off": lambda by: flowrl.Ball(CENTRE, 0.5, by),
    "simplex": flowrl.Simplex,
    "product": _parted,
}
CASES = [(kind, by) for kind in KINDS for by in WAYS if (kind, by) != ("simplex", "reflect")]
MAPPED = [(kind, by) for kind, by in CASES if by in ("bijector", "mirror")]


def _particles(kind, x):
    """Particles of this kind from a matrix (n, 4)."""
    if kind == "product":  # (n, 7), by repetition
        return {"weights": x.reshape(-1, 2, 2), "rest": (x[:, :2], x[:, 3])}
    return x


def _inside(kind, dtype, n=12):
    """Particles well inside, whatever the way."""
    u = np.random.default_rng(7).uniform(0.05, 0.95, (n, 4))
    weights = u / u.sum(axis=1, keepdims=True)
    pairs = u.reshape(-1, 2, 2) / u.reshape(-1, 2, 2).sum(axis=2, keepdims=True)
    x = {
        "interval": 2 * u - 1,
        "positive": 3 * u,
        "mixed": np.stack([u[:, 0], 1 - u[:, 1], 5 + u[:, 2] / 2, u[:, 3]], axis=1),
        "ball": u - 0.5,
        "off": CENTRE + 0.4 * (u - 0.5),
        "simplex": weights,
        "product": {"weights": pairs, "rest": (np.stack([u[:, 0], 5 + u[:, 1]], axis=1), u[:, 3])},
    }[kind]
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), x)


def _flat(particles):
    return jax.vmap(lambda p: jax.flatten_util.ravel_pytree(p)[0])(particles)


@eqx.filter_jit
def _contains(domain, x):
    return domain.contains(x)


@eqx.filter_jit
def _restrict(domain, x):
    return domain.restrict(x)


@eqx.filter_jit
def _there_and_back(domain, y):
    x = eqx.filter_vmap(domain.forward)(y)
    back = eqx.filter_vmap(domain.inverse)(x)
    return x, back, eqx.filter_vmap(domain.forward)(back)


NUMBERS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.floats(-4, 4, width=32, allow_subnormal=False)


@pytest.mark.parametrize(("kind", "by"), CASES)
@hypothesis.given(x=hnp.arrays(np.float32, (8, 4), elements=NUMBERS))
def test_nothing_is_ever_outside(kind, by, x):
    domain = KINDS[kind](by)
    for dtype in DTYPES:
        far = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), _particles(kind, x))  # noqa: B023
        brought = _restrict(domain, far)
        x_there, back, again = _there_and_back(domain, brought)
        assert _contains(domain, x_there).all()
        assert np.isfinite(_flat(back)).all()
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(again))
        # What is inside stays as it is, so to bring back twice is to do so once.
        jax.tree.map(np.testing.assert_array_equal, _restrict(domain, x_there), x_there)
        if domain.restricts:
            inside = np.asarray(_contains(domain, far)) if not domain.maps else np.zeros(8, bool)
            for leaf, new in zip(jax.tree.leaves(far), jax.tree.leaves(brought), strict=True):
                np.testing.assert_array_equal(new[inside], leaf[inside])
        else:
            assert same_bits(brought, far)
        if not domain.maps:
            assert same_bits(x_there, brought)
            assert _contains(domain, brought).all()
        rounding = 16 * np.finfo(dtype).eps
        # A coordinate of 1000 rounds the offset from the centre that all coordinates share.
        assert_close(again, x_there, rtol=rounding, atol=rounding * (1000 if kind == "off" else 1))


@pytest.mark.parametrize(("kind", "by"), MAPPED)
def test_values_and_gradients_are_finite_at_extreme_points(kind, by):
    domain = KINDS[kind](by)
    places = np.array([[1e4, -1e4, 1e4, -1e4], [-1e4, 1e4, -1e4, 1e4], [0, 0, 0, 0], [100, -100, 90, -90]])
    y = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float32), _particles(kind, places))

    @jax.jit
    @jax.vmap
    def all_of(y):
        x = domain.forward(y)
        volume, slope = jax.value_and_grad(domain.log_det_jacobian)(y)
        chain = (jax.jacrev(domain.forward)(y), jax.jacrev(domain.inverse)(x))
        return x, domain.inverse(x), volume, slope, chain

    found = all_of(y)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert domain.contains(found[0]).all()


def test_faces_may_be_traced_and_infinite():
    y = jnp.asarray([-3.0, 0.5, 2.0, 1.0], FLOAT)

    def total(faces, by):
        box = flowrl.Box(*faces, by)
        x = box.forward(y)
        return jnp.sum(x) + jnp.sum(box.inverse(x)) + box.log_det_jacobian(y) + jnp.sum(box.restrict(3 * y[None]))

    faces = tuple(jnp.asarray(face, FLOAT) for face in MIXED)
    for by in WAYS:
        traced, slopes = jax.jit(jax.value_and_grad(lambda faces: total(faces, by)))(faces)  # noqa: B023
        assert_close(traced, total(MIXED, by))
        assert all(np.isfinite(slope).all() for slope in slopes)


# Projection and reflection


@hypothesis.given(x=hnp.arrays(np.float64, (6, 5), elements=st.floats(-3, 3) | st.floats(-1e3, 1e3)))
def test_projection_on_the_simplex_is_the_nearest_point(x):
    got = np.asarray(_restrict(flowrl.Simplex("project"), jnp.asarray(x, FLOAT)), np.float64)
    x = np.asarray(jnp.asarray(x, FLOAT), np.float64)
    for v, p in zip(x, got, strict=True):
        level = scipy.optimize.brentq(lambda t: np.maximum(v - t, 0).sum() - 1, v.max() - 1, v.max())  # noqa: B023
        np.testing.assert_allclose(p, np.maximum(v - level, 0), atol=tolerance(1e-11, 2e-3))
        # The nearest point p of a convex set has (v − p)·(z − p) <= 0 for all its corners z.
        assert ((v - p) @ (np.eye(5) - p).T).max() <= tolerance(1e-9, 1.0)


def test_projection_on_the_ball_is_the_nearest_point():
    x, centre = 3 * draw(0, (200, 3)), np.array([0.5, -1.0, 0.2])
    got = rows(_restrict(flowrl.Ball(centre, 1.5, "project"), x))
    offset = rows(x) - centre
    far = np.linalg.norm(offset, axis=1, keepdims=True)
    want = np.where(far > 1.5, centre + 1.5 * offset / far, rows(x))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(1e-14, 1e-6))
    # Over all leaves of a particle together.
    tree = {"a": x[:, :2], "b": x[:, 2]}
    pytree = flowrl.Ball({"a": centre[:2], "b": 0.2}, 1.5, "project")
    together = rows(_flat(_restrict(pytree, tree)))
    np.testing.assert_allclose(together, got, rtol=0, atol=tolerance(1e-14, 1e-6))


def _folded(x, low, high):
    while not low <= x <= high:
        x = 2 * high - x if x > high else 2 * low - x
    return x


@hypothesis.given(x=hnp.arrays(np.float64, (4, 3), elements=st.floats(-20, 20, allow_subnormal=False)))
def test_reflection_folds_at_the_faces(x):
    low, high = np.array([-1.0, 0.5, -INF]), np.array([1.0, INF, 2.0])
    got = _restrict(flowrl.Box(low, high, "reflect"), jnp.asarray(x, FLOAT))
    want = [[_folded(*c) for c in zip(row, low, high, strict=True)] for row in x]
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(1e-13, 1e-5))


def test_reflection_keeps_the_uniform_law_and_projection_does_not(key):
    noise = 0.3 * jr.normal(key, (40, 4000, 2), FLOAT)

    def end(by):
        box = flowrl.Box(0.0, jnp.asarray([1.0, 2.0], FLOAT), by)
        start = jnp.full((4000, 2), 0.1, FLOAT)
        return np.asarray(jax.jit(lambda x: jax.lax.scan(lambda x, e: (box.restrict(x + e), None), x, noise)[0])(start))

    def misfit(x):
        return max(scipy.stats.kstest(x[:, i] / (1, 2)[i], "uniform").statistic for i in range(2))

    # The 0.1 per cent point of Kolmogorov's distribution, for both coordinates.
    assert misfit(end("reflect")) < 2.1 / np.sqrt(4000)
    assert misfit(end("project")) > 0.1


def test_reflection_at_the_sphere_is_radial():
    ball = flowrl.Ball(np.array([1.0, 2.0]), 2.0, "reflect")
    x = jnp.asarray([[3.1, 2.0], [1.0, -0.5], [6.0, 2.0], [2.0, 2.5]], FLOAT)
    # Overshoots of 0.1 and 0.5; one of 3, past the centre; and none.
    want = np.array([[2.9, 2.0], [1.0, 0.5], [0.0, 2.0], [2.0, 2.5]])
    np.testing.assert_allclose(ball.restrict(x), want, rtol=0, atol=tolerance(1e-14, 2e-6))


# Maps


@pytest.mark.thorough
def test_maps_are_the_closed_forms():
    y, single = draw(1, (50,)) * 3, tolerance(1e-13, 1e-6)
    u, forms = np.asarray(y, np.float64), {}
    softplus = np.logaddexp(0, u)
    forms[(-1, 3, "bijector")] = -1 + 4 * scipy.special.expit(u)
    forms[(-1, 3, "mirror")] = forms[(-1, 3, "bijector")]
    forms[(2, INF, "bijector")] = 2 + softplus
    forms[(2, INF, "mirror")] = 2 + np.exp(u)
    forms[(-INF, 2, "bijector")] = 2 - np.logaddexp(0, -u)
    forms[(-INF, 2, "mirror")] = 2 - np.exp(-u)
    forms[(-INF, INF, "bijector")] = forms[(-INF, INF, "mirror")] = u
    for (low, high, by), want in forms.items():
        np.testing.assert_allclose(flowrl.Box(low, high, by).forward(y), want, rtol=2 * single, atol=2 * single)
    np.testing.assert_allclose(flowrl.Simplex().forward(y), scipy.special.softmax(u), rtol=4 * single)
    assert abs(float(jnp.sum(flowrl.Simplex().inverse(jax.nn.softmax(y))))) < 50 * 30 * single
    # In float64 also by the mirror map's other side: y = ∇ψ(x) + const.
    grad = jax.grad(lambda x: -jnp.sqrt(9 - jnp.sum((x - 1) ** 2)) * 3)
    x = jnp.asarray([0.3, 1.7, -0.6], FLOAT)
    np.testing.assert_allclose(flowrl.Ball(1.0, 3, "mirror").inverse(x), grad(x), rtol=20 * single)
    entropy = jax.grad(lambda x: jnp.sum(x * jnp.log(x) - x))(x[:2])
    np.testing.assert_allclose(flowrl.positive("mirror").inverse(x[:2]), entropy, rtol=4 * single, atol=single)


@pytest.mark.parametrize(("kind", "by"), MAPPED)
def test_unconstrained_coordinates_come_back(kind, by):
    domain = KINDS[kind](by)
    y = jax.tree.map(lambda leaf: 2 * leaf, _particles(kind, draw(2, (10, 4))))
    if kind == "simplex":
        y = y - jnp.mean(y, axis=1, keepdims=True)
    if kind == "product":
        y["weights"] = y["weights"] - jnp.mean(y["weights"], axis=2, keepdims=True)
    _, back, _ = _there_and_back(domain, y)
    # A coordinate of 1000 leaves an offset of 1e-4 twelve digits of its sixteen, and float32 three of its seven.
    assert_close(back, y, rtol=0, atol=tolerance(1e-9, 0.1 if kind == "off" else 2e-4))


@pytest.mark.parametrize(("kind", "by"), [case for case in MAPPED if case[0] != "simplex"])
def test_log_determinants_are_those_of_the_jacobian(kind, by):
    domain = KINDS[kind](by)
    if kind == "product":
        domain = flowrl.Product(domain.domains["rest"])
    y = draw(3, (6, 4))
    y = (y[:, :2], y[:, 2]) if kind == "product" else y

    def jacobian(y):
        flat, unravel = jax.flatten_util.ravel_pytree(y)
        matrix = jax.jacfwd(lambda flat: jax.flatten_util.ravel_pytree(domain.forward(unravel(flat)))[0])(flat)
        return jnp.linalg.slogdet(matrix)[1]

    got = jax.vmap(domain.log_det_jacobian)(y)
    np.testing.assert_allclose(got, jax.vmap(jacobian)(y), rtol=tolerance(1e-10, 1e-4), atol=tolerance(1e-10, 1e-5))


@pytest.mark.thorough
def test_the_volume_of_the_simplex_is_that_of_its_first_entries_and_a_normal_shift():
    y, simplex = draw(4, (6, 4)), flowrl.Simplex()

    def volume(y):
        matrix = jax.jacfwd(lambda y: jnp.append(simplex.forward(y)[:-1], jnp.mean(y)))(y)
        return jnp.linalg.slogdet(matrix)[1] - 0.5 * 4 * jnp.mean(y) ** 2

    difference = np.asarray(jax.vmap(simplex.log_det_jacobian)(y) - jax.vmap(volume)(y))
    np.testing.assert_allclose(difference, difference[0], rtol=0, atol=tolerance(1e-12, 1e-5))
    # Several vectors in several leaves: the sum of theirs.
    both = {"a": y[:2], "b": y[2]}
    assert_close(simplex.log_det_jacobian(both), sum(simplex.log_det_jacobian(row) for row in y[:3]))


# Ascent


SLOPE = jnp.asarray([0.5, -1.0, 2.0], FLOAT)


def _climbed(domain, x, steps=1, slope=SLOPE):
    budget = flowrl.Budget(steps, 0.3)
    return flowrl.transport(flowrl.Boltzmann(linear, slope), x, budget, flow=flowrl.Ascent(), domain=domain).particles


@pytest.mark.thorough
def test_mirror_ascent_has_its_multiplicative_form():
    x, gain = jax.nn.softmax(draw(5, (6, 3)), axis=1), np.exp(0.3 * np.asarray(SLOPE))
    up = np.asarray(x) * gain
    assert_close(_climbed(flowrl.Simplex(), x), up / up.sum(axis=1, keepdims=True))
    assert_close(_climbed(flowrl.positive("mirror"), x), up)
    odds = np.asarray(x) / (1 - np.asarray(x)) * gain
    assert_close(_climbed(flowrl.Box(0, 1, "mirror"), x), odds / (1 + odds))
    dual = np.asarray(x) / np.sqrt(1 - np.sum(np.asarray(x) ** 2, axis=1, keepdims=True) / 4) + 0.3 * np.asarray(SLOPE)
    want = dual / np.sqrt(1 + np.sum(dual**2, axis=1, keepdims=True) / 4)
    assert_close(_climbed(flowrl.Ball(0.0, 2.0, "mirror"), x), want)


def test_ascent_by_a_bijector_follows_the_chain_rule():
    x = jax.nn.softmax(draw(6, (6, 3)), axis=1)
    p, slope = np.asarray(x), np.asarray(SLOPE)
    y = np.log(p) + 0.3 * p * (slope - (p @ slope)[:, None])
    assert_close(_climbed(flowrl.Simplex("bijector"), x), scipy.special.softmax(y, axis=1))
    y = scipy.special.logit(p) + 0.3 * p * (1 - p) * slope
    assert_close(_climbed(flowrl.Box(0, 1, "bijector"), x), scipy.special.expit(y))


@pytest.mark.thorough
def test_a_product_is_its_parts():
    domains = {
        "mirrored": flowrl.Simplex(),
        "mapped": flowrl.positive(),
        "brought": flowrl.Box(0, 1, "reflect"),
        "free": flowrl.Unbounded(),
        "inner": flowrl.Product([flowrl.Box(0, 1, "mirror"), flowrl.Ball(radius=3)]),
    }
    x = jax.nn.softmax(draw(7, (6, 3)), axis=1)
    particles = {name: x for name in domains} | {"inner": [x, {"a": x, "b": x}]}
    slopes = jax.tree.map(lambda _: SLOPE, particles)

    def value(slopes, particle):
        return sum(jax.tree.leaves(jax.tree.map(linear, slopes, particle)))

    product, budget = flowrl.Product(domains), flowrl.Budget(3, 0.3)
    end = flowrl.transport(
        flowrl.Boltzmann(value, slopes), particles, budget, flow=flowrl.Ascent(), domain=product
    ).particles
    for name in ("mirrored", "mapped", "brought", "free"):
        assert_close(end[name], _climbed(domains[name], x, 3))
    assert_close(end["inner"][0], _climbed(flowrl.Box(0, 1, "mirror"), x, 3))
    assert product.restricts
    assert product.maps
    one = jax.tree.map(lambda leaf: leaf[0], particles)
    parts = [domains[name].log_det_jacobian(one[name]) for name in ("mirrored", "mapped", "inner")]
    assert_close(product.log_det_jacobian(one), sum(parts))
    outside = particles | {"mapped": x.at[2, 0].set(0), "brought": x.at[4, 1].set(1.5)}
    assert np.asarray(product.contains(outside)).tolist() == [True, True, False, True, False, True]
    assert not flowrl.Product((flowrl.Unbounded(),)).maps


# Budgets


def _push(weights, x):
    return 50 * jnp.sum(weights * jax.flatten_util.ravel_pytree(x)[0])


CAPPED = [(kind, by, np.float32) for kind, by in CASES]
DOUBLE = [("mixed", "bijector"), ("product", "project"), ("off", "mirror")]
CAPPED += [(kind, by, np.float64) for kind, by in DOUBLE if X64]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "by", "dtype"), CAPPED)
def test_zero_steps_the_cap_and_a_second_start(kind, by, dtype):
    domain, start = KINDS[kind](by), _inside(kind, dtype)
    size = jax.flatten_util.ravel_pytree(jax.tree.map(lambda leaf: leaf[0], start))[0].size
    target = flowrl.Boltzmann(_push, jnp.asarray(np.linspace(-1, 1, size), dtype))

    def moved(x, steps, cap):
        # One program for all: the steps are traced.
        budget = flowrl.Budget(jnp.asarray(steps), 0.5, max_displacement=jnp.asarray(cap, dtype), max_steps=9)
        return flowrl.transport(target, x, budget, flow=flowrl.Ascent(), domain=domain)

    assert same_bits(moved(start, 0, 0.1).particles, start)
    for cap in (0.0, 1e-4, 0.05, 1e3):
        solution = moved(start, 5, cap)
        end = solution.particles
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(end))
        assert _contains(domain, end).all()
        gone = distances(_flat(start), _flat(end))
        assert gone.max() <= cap
        if 0 < cap < 1 and kind != "off":  # a coordinate of 1000 has no finer steps
            assert gone.max() > 0.98 * cap
            assert float(solution.stats["fraction_at_cap"]) > 0.5
        assert float(solution.stats["displacement_max"]) <= cap
        again = moved(end, 1, 0.05).particles
        assert _contains(domain, again).all()


# Laws

TRUNCATED = scipy.stats.truncnorm(0.5, INF)


def _log_beta(x):
    return jnp.sum(jnp.log(x) + 2 * jnp.log1p(-x))


def _log_truncated(x):
    return -0.5 * jnp.sum(x**2)


def _log_dirichlet(x):
    return jnp.sum(jnp.asarray([1.0, 2.0, 3.0], x.dtype) * jnp.log(x))


def _sampled(log_prob, start, domain, step_size=0.3, steps=400):
    solution = flowrl.transport(flowrl.Density(log_prob), start, flowrl.Budget(steps, step_size), domain=domain)
    return np.asarray(solution.particles)


@pytest.mark.parametrize("by", ["bijector", "mirror"])
def test_svgd_samples_a_beta_distribution(by):
    start = jnp.asarray(np.random.default_rng(0).uniform(0.05, 0.95, (60, 1)), FLOAT)
    sample = _sampled(_log_beta, start, flowrl.Box(0, 1, by))
    exact = scipy.stats.beta(2, 3)
    assert sample.mean() == pytest.approx(exact.mean(), abs=0.01)
    assert sample.std(ddof=1) == pytest.approx(exact.std(), rel=0.1)


@pytest.mark.thorough
def test_svgd_samples_a_truncated_normal_by_its_map_and_not_by_reflection():
    start = jnp.asarray(np.random.default_rng(1).uniform(0.6, 2.5, (80, 1)), FLOAT)
    mapped, reflected = (
        _sampled(_log_truncated, start, flowrl.Box(0.5, INF, by), step_size=0.1) for by in ("bijector", "reflect")
    )
    assert mapped.min() > 0.5
    assert mapped.mean() == pytest.approx(TRUNCATED.mean(), abs=0.02)
    # The kernel does not vanish at the face, so Stein's identity does not hold there: the docs say so.
    assert reflected.min() >= 0.5
    assert reflected.mean() < TRUNCATED.mean() - 0.1


@pytest.mark.parametrize(("by", "error"), [("reflect", 0.0), ("bijector", 0.02)])
def test_langevin_samples_a_truncated_normal(by, error, key):
    chains, box = 4000, flowrl.Box(0.5, INF, by)
    start = jnp.asarray(np.random.default_rng(1).uniform(0.6, 2.5, (chains, 1)), FLOAT)
    target, budget = flowrl.Density(_log_truncated), flowrl.Budget(200, 0.02)
    sample = np.asarray(flowrl.transport(target, start, budget, flow=flowrl.Langevin(), domain=box, key=key).particles)
    assert sample.min() >= 0.5
    assert sample.mean() == pytest.approx(TRUNCATED.mean(), abs=4 * TRUNCATED.std() / np.sqrt(chains) + error)
    assert sample.std() == pytest.approx(TRUNCATED.std(), rel=0.1)


@pytest.mark.parametrize("by", ["bijector", "mirror"])
def test_svgd_samples_a_dirichlet_distribution(by):
    start = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(3), 80), FLOAT)
    sample = _sampled(_log_dirichlet, start, flowrl.Simplex(by))
    exact = scipy.stats.dirichlet([2, 3, 4])
    np.testing.assert_allclose(sample.mean(axis=0), exact.mean(), rtol=0, atol=0.01)
    np.testing.assert_allclose(sample.var(axis=0, ddof=1), exact.var(), rtol=0.2)


# Misuse that needs arrays


@pytest.mark.thorough
def test_wrong_places_are_named():
    x = jnp.ones((4, 3), FLOAT)
    product = flowrl.Product({"a": flowrl.positive(), "b": flowrl.Unbounded()})
    words = r"structure PyTreeDef\(\{'a': \*, 'b': \*\}\).*PyTreeDef\(\{'a': \*, 'c': \*\}\)"
    with pytest.raises(ValueError, match=words):
        product.contains({"a": x, "c": x})
    with pytest.raises(ValueError, match=r"K >= 2 entries.*shape \(1,\)"):
        flowrl.Simplex().contains(x[:, :1])
    with pytest.raises(ValueError, match=r"K >= 2 entries.*shape \(\)"):
        flowrl.Simplex().contains(x[:, 0])
    with pytest.raises(ValueError, match=r"centre of Ball, of shape \(2,\).*shape \(3,\)"):
        flowrl.Ball(jnp.zeros(2)).contains(x)
    with pytest.raises(ValueError, match="1 of 4 particles start outside Box"):
        flowrl.transport(flowrl.Density(_log_truncated), x.at[1, 1].set(0), flowrl.Budget(1), domain=flowrl.positive())
