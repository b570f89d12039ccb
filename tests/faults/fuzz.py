"""Ten thousand calls of the core with values that nobody would choose: nothing may crash, hang, or say NaN unasked.

    python tests/faults/fuzz.py [CALLS] [SEED]

A fixed pool of structures is compiled once (at most 60); traced values vary: particles that coincide, are enormous or
tiny, step sizes and temperatures over sixty orders of magnitude, targets whose parameters overflowed. Between these
come calls that are wrong, which must be refused on the host, in words, by a ValueError or TypeError of flowrl's own.
"""

import collections
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)  # noqa: FBT003

import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import numpy as np  # noqa: E402

import flowrl  # noqa: E402
from flowrl import bounds, diagnostics  # noqa: E402

N, D, BOUND = 5, 3, 3
#: Seconds after which a call counts as hung, on a machine that has other things to do; the first one compiles.
PATIENCE, COMPILING = 60, 600
IMQ = flowrl.IMQ(flowrl.FixedBandwidth(0.8))


class Structure(NamedTuple):
    """One compiled program: `call(rng)` draws values, calls it, and gives what is wrong with the answer."""

    name: str
    call: Callable[[np.random.Generator], list[str]]


def value(w, c, x):
    return -w * jnp.sum((x - c) ** 2)


def score(w, c, x):
    return -2 * w * (x - c)


def likelihood(x, datum):
    return -0.1 * (jnp.sum(x) - datum) ** 2


FLOWS = {
    "SVGD": flowrl.SVGD(),
    "SVGD, IMQ + linear": flowrl.SVGD(IMQ + 0.1 * flowrl.Linear()),
    "SVGD, preconditioned": flowrl.SVGD(flowrl.Preconditioned()),
    "Ascent": flowrl.Ascent(),
    "Langevin": flowrl.Langevin(),
    "ALDI": flowrl.ALDI(),
    "Blob": flowrl.Blob(),
    "MMDFlow": flowrl.MMDFlow(),
    "KSDDescent": flowrl.KSDDescent(IMQ),
    "SinkhornFlow": flowrl.SinkhornFlow(iterations=3),
    "Consensus": flowrl.Consensus(),
    "Langevin + BirthDeath": flowrl.Langevin() + flowrl.BirthDeath(),
}
SOLVERS = {"Euler": flowrl.Euler(), "Optax": flowrl.Optax(), "JKO": flowrl.JKO()}
DOMAINS = {
    "Unbounded": flowrl.Unbounded(),
    "Box, project": flowrl.Box(-0.1, 1.1),
    "Box, reflect": flowrl.Box(-0.1, 1.1, by="reflect"),
    "Box, bijector": flowrl.Box(-0.1, np.inf, by="bijector"),
    "positive, mirror": flowrl.positive(by="mirror"),
    "Ball, project": flowrl.Ball(0.3, 2.0),
    "Ball, bijector": flowrl.Ball(0.3, 2.0, by="bijector"),
    "Simplex, project": flowrl.Simplex(by="project"),
    "Simplex, mirror": flowrl.Simplex(),
}
TARGETS = ("Boltzmann", "Density", "Score", "Tilted", "Posterior", "Empirical")


def magnitude(rng, low=-30, high=30):
    """Draw a positive number whose logarithm is uniform, or now and then one at the edge."""
    return float(rng.choice([10.0 ** rng.uniform(low, high), 10.0 ** rng.uniform(-2, 1), 1.0], p=[0.4, 0.5, 0.1]))


def particles(rng, domain, dtype):
    """Draw a set, inside the domain."""
    rows = rng.dirichlet([3] * D, size=N)
    kind = rng.integers(8)
    if kind == 0:
        rows[:] = rows[0]  # all coincide
    if kind == 1:
        rows[1] = rows[0]
    if kind == 2:
        rows = np.full((N, D), 1 / D) + 1e-9 * (rows - 1 / D)
    if domain == "Unbounded" and kind >= 4:
        rows = rows * [1e3, 1e15, 1e-30, 1e30][kind - 4]
    if domain == "Unbounded" and kind == 3:
        rows = rows + 1000
    return jnp.asarray(rows, dtype)


def target_of(name, rng, dtype, x):
    """Draw a target; one in ten has a parameter that overflowed or is NaN, as a network's that diverged."""
    w = jnp.asarray(magnitude(rng) * rng.choice([1, 1, 1, -1]), dtype)
    c = jnp.asarray(rng.normal(size=D) * magnitude(rng, -3, 6), dtype)
    if rng.random() < 0.1:
        w = jnp.asarray(rng.choice([np.nan, np.inf, 0.0]), dtype)
    data = jnp.asarray(rng.normal(size=4) * magnitude(rng, -3, 6), dtype)
    made = {
        "Boltzmann": lambda: flowrl.Boltzmann(value, w, c),
        "Density": lambda: flowrl.Density(value, w, c),
        "Score": lambda: flowrl.Score(score, w, c),
        "Tilted": lambda: flowrl.Tilted(flowrl.Density(value, w, c), flowrl.Boltzmann(value, w, c)),
        "Posterior": lambda: flowrl.Posterior(log_normal, likelihood, data, batch_size=2),
        "Empirical": lambda: flowrl.Empirical(x[::-1][:4]),
    }
    return made[name]()


def log_normal(x):
    return -0.5 * jnp.sum(x**2)


def transports(rng) -> list[Structure]:
    """Choose supported combinations so that every part occurs, and every flow in several of them."""
    chosen: list[tuple[str, str, str, str]] = []
    flows = list(FLOWS) * 3
    for index, flow in enumerate(flows):
        for _ in range(200):
            solver = str(rng.choice(list(SOLVERS), p=[0.6, 0.25, 0.15]))
            domain = str(rng.choice(list(DOMAINS)))
            target = str(rng.choice(TARGETS))
            if index % 3 == 0:
                domain = "Unbounded"
            x = jnp.asarray(np.full((N, D), 1 / D))
            known = target_of(target, np.random.default_rng(0), jnp.float64, x)
            combination = (flow, solver, domain, target)
            if flowrl.supports(FLOWS[flow], SOLVERS[solver], DOMAINS[domain], known) and combination not in chosen:
                chosen.append(combination)
                break
    found = [_transport(*parts, dtype=(jnp.float32, jnp.float64)[i % 2]) for i, parts in enumerate(chosen)]
    assert len(found) >= 30
    return found


def _transport(flow, solver, domain, target, *, dtype) -> Structure:
    method = flowrl.Transport(FLOWS[flow], SOLVERS[solver], DOMAINS[domain])
    traits = method.flow.traits
    capped = not traits.jumps and solver != "JKO"
    static = solver == "JKO"

    def call(rng):
        x = particles(rng, domain, dtype)
        law = target_of(target, rng, dtype, x)
        cold = not (law.needs_positive_temperature or traits.temperature == "positive") and rng.random() < 0.1
        temperature = None if traits.temperature == "none" else 0.0 if cold else magnitude(rng)
        cap = magnitude(rng, -6, 6) if capped else None
        steps = 2 if static else jnp.asarray(rng.integers(BOUND + 1))
        options: dict[str, Any] = {"scale": magnitude(rng, -4, 4)}
        step_size = 0.0 if rng.random() < 0.05 else magnitude(rng)
        if not static:
            options["max_steps"] = BOUND
        with np.errstate(all="ignore"):
            budget = flowrl.Budget(steps, np.asarray(step_size), temperature, max_displacement=cap, **options)
        key = jr.key(int(rng.integers(2**31)))
        try:
            solution = method(law, x, budget, key=key, throw=bool(rng.random() < 0.2))
        except RuntimeError as error:
            known = ("non-finite at every particle", "A traced budget was invalid", "maximum number")
            return [] if any(words in str(error) for words in known) else [f"RuntimeError: {str(error)[:200]}"]
        return judge(method, x, solution, int(steps))

    return Structure(f"transport: {flow} | {solver} | {domain} | {target} | {jnp.dtype(dtype).name}", call)


def judge(method, x, solution, steps) -> list[str]:
    before, after = np.asarray(x), np.asarray(solution.particles)
    wrong = []
    if after.dtype != before.dtype or after.shape != before.shape:
        wrong.append("another dtype or shape")
    if not np.isfinite(after).all():
        wrong.append("particles that are not finite")
    elif not np.asarray(method.domain.contains(solution.particles)).all():
        wrong.append("particles outside the domain")
    if steps == 0 and before.tobytes() != after.tobytes():
        wrong.append("zero steps that move")
    frozen = int(solution.stats["nonfinite"])
    if solution.values is not None and int((~np.isfinite(np.asarray(solution.values))).sum()) > frozen:
        wrong.append("values that are NaN and not counted")
    for name, number in solution.stats.items():
        if np.isnan(np.asarray(number, float)).any():
            wrong.append(f"{name} is NaN")
    if str(solution) == "":
        wrong.append("no verdict")
    return wrong


def others() -> list[Structure]:
    """Give the functions beside the verb."""

    def selecting(name, function):
        def call(rng):
            x = jnp.asarray(rng.normal(size=(N, D)) * magnitude(rng))
            values = rng.normal(size=N) * magnitude(rng)
            values[rng.random(N) < 0.3] = rng.choice([np.nan, np.inf, -np.inf])
            chosen = function(x, jnp.asarray(values), jr.key(int(rng.integers(99))), magnitude(rng))
            index = int(chosen.index)
            if np.isfinite(values).any() and not np.isfinite(values[index]):
                return ["a value that is not finite was selected"]
            same = np.asarray(chosen.particle).tobytes() == np.asarray(x)[index].tobytes()
            return [] if same else ["what was selected is not a particle"]

        return Structure(f"selection: {name}", call)

    def plain(name, function, draw, *, low=-6, high=6):
        compiled = jax.jit(function)

        def call(rng):
            out = compiled(*draw(rng, low, high))
            return [f"{name} is NaN"] if any(np.isnan(np.asarray(y)).any() for y in jax.tree.leaves(out)) else []

        return Structure(name, call)

    def two_sets(rng, low, high):
        x, y = (particles(rng, "Simplex", jnp.float32) * magnitude(rng, low, high) for _ in range(2))
        return x, y

    def set_and_scores(rng, low, high):
        x, _ = two_sets(rng, low, high)
        return x, jnp.asarray(rng.normal(size=x.shape) * magnitude(rng, low, high), jnp.float32)

    def one(rng, low, high):
        return (two_sets(rng, low, high)[0],)

    def bound_numbers(rng, low, high):
        return tuple(jnp.asarray(magnitude(rng, low, high), jnp.float32) for _ in range(3))

    weights = lambda rng, low, high: (jnp.asarray(rng.normal(size=N) * magnitude(rng, low, high), jnp.float32),)
    inside = lambda domain: lambda rng, *_: (particles(rng, domain, jnp.float64)[0],)
    anywhere = lambda rng, *_: (jnp.asarray(rng.normal(size=D) * magnitude(rng, -6, 2.5)),)
    found = [
        selecting("best_of_n", lambda x, v, _, __: flowrl.best_of_n(x, v)),
        selecting("softmax_select", lambda x, v, key, t: flowrl.softmax_select(x, v, t, key=key)),
        selecting("uniform_select", lambda x, v, key, _: flowrl.uniform_select(x, v, key=key)),
        plain("mmd", diagnostics.mmd, two_sets),
        plain("energy_distance", diagnostics.energy_distance, two_sets),
        plain("ksd", diagnostics.ksd, set_and_scores),
        plain("ksd, IMQ", lambda x, s: diagnostics.ksd(x, s, IMQ), set_and_scores),
        plain("sliced_wasserstein", lambda x, y: diagnostics.sliced_wasserstein(x, y, key=jr.key(0)), two_sets),
        plain("sinkhorn_divergence", diagnostics.sinkhorn_divergence, two_sets),
        plain("effective_sample_size", diagnostics.effective_sample_size, weights, low=-6, high=30),
        plain("spread", flowrl.spread, one, low=-30, high=15),
        plain("bounds.best_of_n_kl", bounds.best_of_n_kl, lambda rng, *_: (jnp.asarray(rng.integers(1, 10**6)),)),
        plain("bounds.mmd_squared", lambda e, c, s: bounds.mmd_squared(flowrl.Budget(3, e), c, s), bound_numbers),
        plain("RBF.gram", lambda x, y: flowrl.RBF(flowrl.FixedBandwidth(1.0)).gram(x, y), two_sets),
        plain("Matern.gram", lambda x, y: flowrl.Matern(flowrl.FixedBandwidth(1.0)).gram(x, y), two_sets),
        plain("IMQ.stein_gram", lambda x, s: IMQ.stein_gram(x, s, x, s), set_and_scores),
    ]
    for domain in ("Box, bijector", "positive, mirror", "Ball, bijector", "Simplex, mirror"):
        there = DOMAINS[domain]
        found.append(plain(f"{domain}: inverse", lambda p, there=there: there.inverse(p), inside(domain)))
        found.append(
            plain(
                f"{domain}: forward, log_det",
                lambda p, there=there: (there.forward(p), there.log_det_jacobian(p)),
                anywhere,
            )
        )
    return found


_X = np.full((4, 2), 0.5)
#: What is put in the place of an argument.
JUNK = [
    None, "x", b"x", -1, -1.5, 2.5, float("nan"), float("inf"), True, 1j, [], {}, (), object(), [1, "a"],
    np.ones(0), np.ones((0, 3)), np.ones((2, 2, 2, 2)), np.array("x"), np.ones((4, 2), int), np.ones((4, 2), complex),
    np.full((4, 2), np.nan), np.array([{}], dtype=object), lambda: 0, flowrl, flowrl.SVGD, flowrl.Budget(1),
    flowrl.Density(log_normal), flowrl.SVGD(), flowrl.Box(0, 1), jr.key(0), {"a": np.ones(3), "b": np.ones(2)},
    np.datetime64("2020-01-01"), 10**400, -(10**400), np.float16(1), range(3), {1, 2}, Exception("x"),
]  # fmt: skip
GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Budget": (flowrl.Budget, {"steps": 2, "step_size": 0.1, "temperature": 1.0, "max_displacement": 1.0, "scale": 1.0,
                               "tolerance": 0.1, "max_mmd": 0.1, "mmd_sigma": 1.0, "check_every": 1}),
    "transport": (flowrl.transport, {"target": flowrl.Density(log_normal), "particles": _X, "budget": flowrl.Budget(1),
                                     "flow": flowrl.SVGD(), "solver": flowrl.Euler(), "domain": flowrl.Unbounded(),
                                     "key": jr.key(0), "save": (0, 1)}),
    "Transport": (flowrl.Transport, {"flow": flowrl.SVGD(), "solver": flowrl.Euler(), "domain": flowrl.Unbounded()}),
    "Stepper": (flowrl.Stepper, {"target": flowrl.Density(log_normal), "budget": flowrl.Budget(1),
                                 "method": flowrl.Transport()}),
    "best_of_n": (flowrl.best_of_n, {"particles": _X, "values": np.ones(4)}),
    "softmax_select": (flowrl.softmax_select, {"particles": _X, "values": np.ones(4), "selection_temperature": 1.0,
                                               "key": jr.key(0)}),
    "uniform_select": (flowrl.uniform_select, {"particles": _X, "values": np.ones(4), "key": jr.key(0)}),
    "Box": (flowrl.Box, {"low": -1.0, "high": 1.0, "by": "project"}),
    "Ball": (flowrl.Ball, {"centre": 0.0, "radius": 1.0, "by": "project"}),
    "Simplex": (flowrl.Simplex, {"by": "mirror"}),
    "positive": (flowrl.positive, {"by": "mirror"}),
    "Product": (flowrl.Product, {"domains": {"a": flowrl.Box(0, 1)}}),
    "Density": (flowrl.Density, {"log_prob": log_normal}),
    "Boltzmann": (flowrl.Boltzmann, {"value": log_normal}),
    "Score": (flowrl.Score, {"score": jnp.negative}),
    "ValueGradient": (flowrl.ValueGradient, {"value_gradient": jnp.negative}),
    "Tilted": (flowrl.Tilted, {"log_reference": log_normal, "value": log_normal}),
    "Posterior": (flowrl.Posterior, {"log_prior": log_normal, "log_likelihood": likelihood, "data": np.ones(4),
                                     "batch_size": 2}),
    "Empirical": (flowrl.Empirical, {"samples": _X}),
    "FixedBandwidth": (flowrl.FixedBandwidth, {"sigma": 1.0}),
    "RBF": (flowrl.RBF, {"bandwidth": flowrl.MedianBandwidth()}),
    "SVGD": (flowrl.SVGD, {"kernel": flowrl.RBF()}),
    "Blob": (flowrl.Blob, {"kernel": flowrl.RBF()}),
    "SinkhornFlow": (flowrl.SinkhornFlow, {"regularisation": 0.1, "iterations": 3}),
    "supports": (flowrl.supports, {"flow": flowrl.SVGD(), "solver": flowrl.Euler(), "domain": flowrl.Unbounded()}),
    "spread": (flowrl.spread, {"samples": _X, "floor": 0.1}),
    "mmd": (diagnostics.mmd, {"x": _X, "y": _X}),
    "energy_distance": (diagnostics.energy_distance, {"x": _X, "y": _X}),
    "wasserstein": (diagnostics.wasserstein, {"x": _X, "y": _X, "p": 2}),
    "ksd": (diagnostics.ksd, {"particles": _X, "scores": _X}),
    "variance_ratio": (diagnostics.variance_ratio, {"particles": _X, "variance": np.ones(2)}),
    "effective_sample_size": (diagnostics.effective_sample_size, {"log_weights": np.ones(4)}),
    "bounds.best_of_n_kl": (bounds.best_of_n_kl, {"n": 4}),
    "bounds.mmd_squared_from_displacement": (
        bounds.mmd_squared_from_displacement, {"max_displacement": 1.0, "sigma": 1.0}),
    "bounds.displacement": (bounds.displacement, {"budget": flowrl.Budget(1), "gradient_bound": 1.0, "sigma": 1.0}),
}  # fmt: skip


def spoilt(rng, calls) -> tuple[str, str]:
    """Make one of some calls with junk in one place; give what it was, and what is wrong with how it was met."""
    name = str(rng.choice(list(calls)))
    function, good = calls[name]
    place = str(rng.choice(list(good)))
    junk = JUNK[int(rng.integers(len(JUNK)))]
    shown = f"{name}({place}={str(junk)[:40]!r} {type(junk).__name__})"
    try:
        function(**(good | {place: junk}))
    except (ValueError, TypeError, OverflowError) as error:  # the last is Python's for a number that no array holds
        # Words of JAX about a value ("not a valid JAX array type") will do; those about traces would not.
        return shown, f"{type(error).__name__}: {error}"[:200] if isinstance(error, jax.errors.JAXTypeError) else ""
    except Exception as error:
        return shown, f"{type(error).__name__}: {str(error)[:120]}"
    return shown, ""


class Hung(Exception):
    """A call took longer than anyone waits."""


def main(calls: int, seed: int, pool: list[Structure] | None = None, good: Any = GOOD) -> dict[str, Any]:
    """Make calls of a pool, and of good calls that are spoilt; give counts and everything that was wrong."""

    def hang(*_):
        raise Hung

    signal.signal(signal.SIGALRM, hang)
    rng = np.random.default_rng(seed)
    pool = transports(np.random.default_rng(1)) + others() if pool is None else pool
    assert len(pool) <= 60, len(pool)
    wrong: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    begun, slowest = time.monotonic(), ("", 0.0)
    for index in range(calls):
        invalid = index >= len(pool) and rng.random() < 0.3
        structure = pool[index] if index < len(pool) else pool[int(rng.integers(len(pool)))]
        state = rng.bit_generator.state
        name, since = structure.name, time.monotonic()
        signal.alarm(COMPILING if index < len(pool) else PATIENCE)
        try:
            if invalid:
                name, fault = spoilt(rng, good)
                faults = [fault] if fault else []
            else:
                faults = structure.call(rng)
        except Hung:
            faults = ["hung"]
        except Exception as error:
            faults = [f"{type(error).__name__}: {str(error)[:1200]}"]
        signal.alarm(0)
        if index >= len(pool):
            slowest = max(slowest, (name, time.monotonic() - since), key=lambda x: x[1])
        counts["invalid" if invalid else "valid"] += 1
        for fault in faults:
            if f"{name}: {fault}" not in wrong:
                print(f"{name}: {fault}  (call {index}, state {state['state']['state']})", flush=True)
            wrong[f"{name}: {fault}"] += 1
    return {
        "calls": calls,
        "valid": counts["valid"],
        "invalid": counts["invalid"],
        "structures": len(pool),
        "seconds": round(time.monotonic() - begun, 1),
        "slowest": [slowest[0], round(slowest[1], 2)],
        "wrong": dict(wrong),
    }


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    found = main(*(numbers + [10_000, 0][len(numbers) :]))
    print(json.dumps(found))
    sys.exit(bool(found["wrong"]))
