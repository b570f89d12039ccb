"""Where SVGD comes to rest on N(0, I_d): its variance against dimension, particles, bandwidth rule and library.

    python tests/benchmarks/stationary_variance.py [--steps 2000] [--out docs/results/stationary_variance.csv]

Every library starts from the same normal particles and is stepped by Adagrad, each with its own bandwidth rule; flowrl
with several. A fixed point does not depend on the optimiser. `change` is the difference of the variance to that at half
the steps: near zero means at rest. Needs the extra `bayes` and blackjax.
"""

import argparse
import csv
import importlib.metadata
import itertools
import pathlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowrl

RULES = {
    "median": flowrl.MedianBandwidth(),
    "log-n": flowrl.LogNBandwidth(),
    "Scott": flowrl.ScottBandwidth(),
}


def log_normal(x):
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(x**2)


def variance(particles):
    """Unbiased variance, averaged over coordinates."""
    return float(np.var(np.asarray(particles), axis=0, ddof=1).mean())


def ours(rule, start, steps):
    """Return the particles of flowrl at half the steps and at the end."""
    solution = flowrl.transport(
        flowrl.Density(log_normal),
        start,
        flowrl.Budget(steps, 0.1),
        flow=flowrl.SVGD(flowrl.RBF(rule)),
        solver=flowrl.Optax(optax.adagrad(1.0)),
        save=(steps // 2, steps),
    )
    return solution.trajectory


def blackjax(start, steps):
    """Return those of blackjax, its median heuristic updated at every step as its own documentation does."""
    import blackjax as library
    from blackjax.vi.svgd import rbf_kernel, update_median_heuristic

    svgd = library.svgd(jax.grad(log_normal), optax.adagrad(0.1), rbf_kernel, update_median_heuristic)

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, steps // 2, lambda _, s: svgd.step(s), state)

    state = svgd.init(start, {"length_scale": jnp.ones(())})
    half = run(update_median_heuristic(state))
    return [half.particles, run(half).particles]


def numpyro(start, steps):
    """Return those of numpyro, RBFKernel's own rule."""
    import numpyro as library
    from numpyro.contrib.einstein import SVGD, RBFKernel

    n, d = start.shape

    def model():
        library.sample("x", library.distributions.Normal(jnp.zeros(d), 1).to_event(1))

    svgd = SVGD(model, library.optim.Adagrad(0.1), RBFKernel(), num_stein_particles=n)
    state = svgd.init(jr.key(0))
    name = next(iter(svgd.get_params(state)))
    # The particles of all libraries start at the same places.
    state = state._replace(optim_state=svgd.optim.init({name: start}))

    @jax.jit
    def run(state):
        return jax.lax.fori_loop(0, steps // 2, lambda _, s: svgd.update(s)[0], state)

    half = run(state)
    return [svgd.get_params(half)[name], svgd.get_params(run(half))[name]]


def main():
    """Run all combinations and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/stationary_variance.csv"))
    arguments = parser.parse_args()
    methods = {f"flowrl {name}": lambda x, s, rule=rule: ours(rule, x, s) for name, rule in RULES.items()}
    methods |= {"blackjax": blackjax, "numpyro": numpyro}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "blackjax", "numpyro")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["method", "d", "n", "variance", "change", "steps", *versions])
        for d, n in itertools.product((1, 2, 10, 50), (20, 50, 100)):
            start = jr.normal(jr.key(d), (n, d))
            for name, method in methods.items():
                half, end = (variance(x) for x in method(start, arguments.steps))
                change = round(end - half, 4)
                rows.writerow([name, d, n, round(end, 4), change, arguments.steps, *versions.values()])
                file.flush()
                print(f"{name:16} d={d:<3} n={n:<4} variance {end:.3f} (change {change:+.4f})", flush=True)


if __name__ == "__main__":
    main()
