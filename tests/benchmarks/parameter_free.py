"""Solvers that are said to need no step size, on SVGD as they are, beside solvers with one.

    python tests/benchmarks/parameter_free.py [--steps 400] [--out docs/results/parameter_free.csv]

100 particles start at 2 + N(0, I). Every optimiser of optax.contrib has its own defaults and, as they are written for
it, a budget's step of 1. `mean_error` is the largest error of a coordinate's mean in standard deviations of the target;
`least_variance` and `largest_variance` are the extremes of a coordinate's variance over the target's. The last method,
ten times the steps, is a yardstick for what the kernel itself leaves.
"""

import argparse
import csv
import importlib.metadata
import pathlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optax.contrib

import flowrl

WIDTHS = np.geomspace(0.1, 10, 5)


def normal(x):
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(x**2)


def wide(x):
    """Log density of a normal with widths from 0.1 to 10."""
    return -0.5 * jnp.sum((x / jnp.asarray(WIDTHS, x.dtype)) ** 2)


def banana(x):
    """Log density of a normal bent along a parabola."""
    return -0.5 * (x[0] / 1.5) ** 2 - 0.5 * ((x[1] + 0.5 * x[0] ** 2 - 1) / 0.7) ** 2


# The log density, means and standard deviations.
TARGETS = {
    "normal, d = 10": (normal, np.zeros(10), np.ones(10)),
    "widths 0.1 to 10": (wide, np.zeros(5), WIDTHS),
    "banana": (banana, np.array([0, 1 - 0.5 * 1.5**2]), np.array([1.5, np.sqrt(0.7**2 + 0.5 * 1.5**4)])),
}
# The solver, its step size, and how many times the steps.
METHODS = {
    "Coin": (flowrl.Coin(), None, 1),
    "prodigy": (flowrl.Optax(optax.contrib.prodigy()), 1.0, 1),
    "dadapt_adamw": (flowrl.Optax(optax.contrib.dadapt_adamw()), 1.0, 1),
    "dog": (flowrl.Optax(optax.contrib.dog()), 1.0, 1),
    "dowg": (flowrl.Optax(optax.contrib.dowg()), 1.0, 1),
    "cocob": (flowrl.Optax(optax.contrib.cocob()), 1.0, 1),
    "schedule_free_adamw": (flowrl.Optax(optax.contrib.schedule_free_adamw()), 1.0, 1),
    "momo": (flowrl.Optax(optax.contrib.momo()), 1.0, 1),
    "Nesterov, 0.5": (flowrl.Nesterov(), 0.5, 1),
    "Euler, 0.5": (flowrl.Euler(), 0.5, 1),
    "Adam, 0.05": (flowrl.Optax(optax.adam(1.0)), 0.05, 1),
    "prodigy, tenfold": (flowrl.Optax(optax.contrib.prodigy()), 1.0, 10),
}


def final(log_prob, d, method, steps, seeds):
    """Return the particles of all seeds at the end (seeds, n, d)."""
    solver, size, times = METHODS[method]
    budget = flowrl.Budget(times * steps, size)

    @jax.jit
    @jax.vmap
    def run(key):
        start = 2 + jr.normal(key, (100, d))
        return flowrl.transport(flowrl.Density(log_prob), start, budget, solver=solver, throw=False).particles

    return np.asarray(run(jr.split(jr.key(0), seeds)), np.float64)


def main():
    """Run all methods on all targets and write them as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/parameter_free.csv"))
    arguments = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        rows = csv.writer(file)
        numbers = ["mean_error", "least_variance", "largest_variance"]
        rows.writerow(["method", "target", "seed", *numbers, "steps", "failure", *versions])
        for method in METHODS:
            for name, (log_prob, mean, sd) in TARGETS.items():
                steps, failure = METHODS[method][2] * arguments.steps, ""
                try:
                    sets = final(log_prob, len(mean), method, arguments.steps, arguments.seeds)
                except Exception as error:  # an optimiser may ask for more than a gradient
                    failure, sets = f"{type(error).__name__}: {error}".splitlines()[0][:120], [None]
                for seed, x in enumerate(sets):
                    found = ["", "", ""]
                    if x is not None:
                        ratio = x.var(axis=0, ddof=1) / sd**2
                        error = np.abs((x.mean(axis=0) - mean) / sd).max()
                        found = [f"{number:.4g}" for number in (error, ratio.min(), ratio.max())]
                    rows.writerow([method, name, seed, *found, steps, failure, *versions.values()])
                    print(f"{method:24} {name:18} {seed} {' '.join(found)} {failure}", flush=True)
                file.flush()


if __name__ == "__main__":
    main()
