"""SVGD beside blackjax, numpyro and msvgd: one step of each, and seconds to equal accuracy."""

import importlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from rounds import append, device_megabytes, rates, ratio, rounds, timing

import flowrl

SIZES = [(n, d) for n in (100, 1000, 5000, 20000) for d in (10, 50, 200)]
# Pairs per call, on a CPU and on an accelerator: enough that dispatch is not what is measured.
PAIRS = {"cpu": 5e6, "gpu": 5e9}
# Sides of the product and the exponentials that measure the machine.
SIDES = {"cpu": (2048, 1024), "gpu": (8192, 16384)}
# Beyond these particles and numbers a step of a peer takes minutes or more memory than there is: n² pairs, sorted.
MOST = {
    "cpu": {"blackjax": (5000, 50 * 5000**2), "numpyro": (1000, 200 * 1000**2), "msvgd": (5000, 200 * 5000**2)},
    "gpu": {"blackjax": (5000, 50 * 5000**2), "numpyro": (1000, 200 * 1000**2), "msvgd": (20000, 10 * 20000**2)},
}
RATE = 0.5


class LikePeers(flowrl.AbstractBandwidth):
    """The rule of blackjax and msvgd, over all pairs: 2σ² = median / log n."""

    def __call__(self, positions, alive):
        """Return σ²."""
        median = flowrl.MedianBandwidth(max_particles=None)(positions, alive)
        return median / (2 * jnp.log(jnp.asarray(positions.shape[0], positions.dtype)))


RULES = {
    "the peers' median": LikePeers(),
    "fixed": None,
    "default": flowrl.MedianBandwidth(),
}


def log_normal(x):
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(x**2)


def needed(*packages):
    """End with a message if a peer is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f'{package} is not installed; pip install -e ".[dev]" brings it.')


def ours(rule, log_prob, steps):
    """Return a function of particles: so many Adagrad steps of flowrl."""
    method = flowrl.Transport(flowrl.SVGD(flowrl.RBF(rule)), flowrl.Optax(optax.adagrad(1.0)))
    target, budget = flowrl.Density(log_prob), flowrl.Budget(steps, RATE)
    return lambda x: method(target, x, budget, throw=False).particles


def path(log_prob, points):
    """Return a function of particles: those of flowrl by its default rule after so many steps each."""
    method = flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    target, budget = flowrl.Density(log_prob), flowrl.Budget(points[-1], RATE)
    return lambda x: method(target, x, budget, save=points, throw=False).trajectory


def blackjax(fixed, log_prob, steps):
    """Return the same of blackjax, with its own median rule or a fixed length scale."""
    import blackjax as library
    from blackjax.vi.svgd import rbf_kernel, update_median_heuristic

    def keep(state):
        return state

    # Before each step and not after: as many medians as steps.
    rule = keep if fixed else update_median_heuristic
    svgd = library.svgd(jax.grad(log_prob), optax.adagrad(RATE), rbf_kernel, keep)

    @jax.jit
    def run(x, steps):
        state = svgd.init(x, {"length_scale": jnp.asarray(fixed or 1.0, x.dtype)})
        return jax.lax.fori_loop(0, steps, lambda _, s: svgd.step(rule(s)), state).particles

    return lambda x, steps=steps: run(x, steps)


def numpyro(log_prob, steps, start):
    """Return the same of numpyro, whose model is a density of one site."""
    import numpyro as library
    from numpyro.contrib.einstein import SVGD, RBFKernel

    n, d = start.shape

    def model():
        # A proper distribution to draw the first particles from, which the factor takes away again.
        proposal = library.distributions.Normal(jnp.zeros(d), 3.0).to_event(1)
        x = library.sample("x", proposal)
        library.factor("density", log_prob(x) - proposal.log_prob(x))

    svgd = SVGD(model, library.optim.Adagrad(RATE), RBFKernel(), num_stein_particles=n)
    state = svgd.init(jr.key(0))
    name = next(iter(svgd.get_params(state)))

    @jax.jit
    def run(x, steps):
        begun = state._replace(optim_state=svgd.optim.init({name: x}))
        end = jax.lax.fori_loop(0, steps, lambda _, s: svgd.update(s)[0], begun)
        return svgd.get_params(end)[name]

    return lambda x, steps=steps: run(x, steps)


def msvgd(log_prob, steps):
    """Return the same of msvgd: its own gradient and kernel, in a loop that never stops early."""
    from msvgd import MSVGD

    library, optimiser = MSVGD(log_prob), optax.adagrad(RATE)

    @jax.jit
    def run(x, steps):
        def step(_, carry):
            x, state = carry
            kernel, repulsion = library._svgd_kernel(x)
            slope = -(kernel @ library.gradient(x, None) + repulsion) / x.shape[0]
            update, state = optimiser.update(slope, state, x)
            return x + update, state

        return jax.lax.fori_loop(0, steps, step, (x, optimiser.init(x)))[0]

    return lambda x, steps=steps: run(x, steps)


def steps_a_call(n):
    """Return the number of steps per call."""
    return max(1, min(50, int(PAIRS[jax.default_backend()] / n**2)))


def grid(count, sizes):
    """Measure one step at every size."""
    needed("blackjax", "numpyro", "msvgd")
    most = MOST[jax.default_backend()]
    # The fastest of many, once: a machine that sags under a step must not excuse it.
    standards, done = rates(SIDES[jax.default_backend()])
    measured = rounds(standards, 5 * count)
    flops, exps = (done[what] / min(measured["rate", what][1]) for what in ("product", "exp"))
    for n, d in sizes:
        x, steps = jr.normal(jr.key(0), (n, d)), steps_a_call(n)
        sigma = float(jnp.sqrt(RULES["default"](x, jnp.ones(n, bool))))
        rules = RULES | {"fixed": flowrl.FixedBandwidth(sigma)}
        functions = {("flowrl", rule): ours(rules[rule], log_normal, steps) for rule in rules}
        peers = {
            ("blackjax", "the peers' median"): lambda s=steps: blackjax(None, log_normal, s),
            ("blackjax", "fixed"): lambda s=steps, h=2 * sigma**2: blackjax(h, log_normal, s),
            ("msvgd", "the peers' median"): lambda s=steps: msvgd(log_normal, s),
            ("numpyro", "the peers' median"): lambda s=steps, x=x: numpyro(log_normal, s, x),
        }
        peers = {name: make for name, make in peers.items() if n <= most[name[0]][0] and n * n * d <= most[name[0]][1]}
        functions |= {name: make() for name, make in peers.items()}
        calls = {name: lambda f=f, x=x: f(x) for name, f in functions.items()}
        measured = rounds(calls, count)
        model = (2 * n * n * d + 2 * n * n * (d + 1)) / flops + n * n / exps
        rows = []
        for name in functions:
            mine = {"the peers' median": ["the peers' median", "default"], "fixed": ["fixed"]}
            for against in mine[name[1]] if name in peers else [None]:
                bars = ratio(measured[name], measured[("flowrl", against)]) if against else {"ratio": "", "lower90": ""}
                row = {"N": n, "d": d, "method": name[0], "rule": name[1], "peer": against or ""}
                row |= timing(measured[name], steps) | bars
                row |= {"model_ms": round(1e3 * model, 3), "gflops": round(flops / 1e9), "gexp": round(exps / 1e9, 2)}
                rows.append(row)
        append("svgd", rows)


def large(count, sizes, precisions):
    """Measure one step of large sets by every precision of products, and the memory of the accelerator."""
    for n, d in sizes:
        x = jr.normal(jr.key(0), (n, d))
        for precision in precisions:
            with jax.default_matmul_precision(precision):
                step = ours(RULES["default"], log_normal, 1)
                standards, done = rates(SIDES[jax.default_backend()])
                measured = rounds({"step": lambda f=step, x=x: f(x)} | standards, count)
            row = {"N": n, "d": d, "precision": precision} | timing(measured["step"])
            products = 2 * n * n * d + 2 * n * n * (d + 1)
            row["product_gflops"], row["gexp"] = (
                round(done[what] / min(measured["rate", what][1]) / 1e9, 1) for what in ("product", "exp")
            )
            row["model_ms"] = round(1e-6 * (products / row["product_gflops"] + n * n / row["gexp"]), 3)
            append("large", [row | {"device_mb": device_megabytes()}])


# Seconds to equal accuracy.


def banana(x):
    """Log density of a standard normal bent along a parabola: x₂ = z₂ + (z₁² − 1) / 2."""
    bent = x[1] - 0.5 * (x[0] ** 2 - 1)
    return -0.5 * (jnp.sum(x**2) - x[1] ** 2 + bent**2)


_SCALES = np.linspace(0.5, 2.0, 10)


def widths(x):
    """Log density of a normal distribution with standard deviations from 0.5 to 2, and mean 1."""
    return -0.5 * jnp.sum(((x - 1) / jnp.asarray(_SCALES, x.dtype)) ** 2)


TARGETS = {
    "normal of ten widths": (widths, np.ones(10), _SCALES),
    "banana in ten dimensions": (banana, np.zeros(10), np.where(np.arange(10) == 1, np.sqrt(1.5), 1.0)),
}


def error(particles, mean, deviation):
    """Return the root mean square error of means (in standard deviations) and standard deviations (relative)."""
    x = np.asarray(particles, float)
    wrong = np.concatenate([(x.mean(0) - mean) / deviation, x.std(0, ddof=1) / deviation - 1])
    return float(np.sqrt(np.mean(wrong**2)))


def accuracy(count, n=200, points=(25, 50, 100, 200, 400)):
    """Measure the error along the way and the seconds per step, and when ours is as good as theirs ever is."""
    needed("blackjax", "numpyro", "msvgd")
    for target, (log_prob, mean, deviation) in TARGETS.items():
        x = 2 * jr.normal(jr.key(3), (n, 10))
        short = points[0]
        runs = {
            "flowrl": ours(RULES["default"], log_prob, short),
            "blackjax": blackjax(None, log_prob, short),
            "msvgd": msvgd(log_prob, short),
            "numpyro": numpyro(log_prob, short, x),
        }
        errors = {}
        for name, run in runs.items():
            # A run of its own from the start to every point: Adagrad's sums must not begin again.
            ends = path(log_prob, points)(x) if name == "flowrl" else [run(x, s) for s in points]
            errors |= {(name, s): error(end, mean, deviation) for s, end in zip(points, ends, strict=True)}
        measured = rounds({name: lambda f=f, x=x: f(x) for name, f in runs.items()}, count, 60)
        rows = []
        for name in runs:
            level, best = min((errors[name, s], s) for s in points)
            mine = next((s for s in points if errors["flowrl", s] <= level), None)
            step = {who: float(np.median(measured[who][1])) / short for who in (name, "flowrl")}
            theirs, own = best * step[name], None if mine is None else mine * step["flowrl"]
            rows.append(
                {"target": target, "N": n, "method": name, "least_error": round(level, 4), "at_step": best}
                | {"seconds": round(theirs, 4), "flowrl_steps": mine or "", "flowrl_seconds": own and round(own, 4)}
                | {"ratio": own and round(theirs / own, 1)}
            )
        append("accuracy", rows)
