"""SVGD with many particles by random batches, and in many dimensions by slices: errors on N(0, I), and time per step.

    python tests/benchmarks/scalable.py [--out docs/results/scalable.csv]

All sets start at 2 + N(0, I). `mean_error` is the largest error of a coordinate's mean, `variance` the mean of the
coordinates' unbiased variances, after the steps given; `ms` the least time of a step in three runs, compiled before.
"""

import argparse
import csv
import importlib.metadata
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowrl

SVGD, SLICED = flowrl.SVGD(), flowrl.SlicedSVGD()
BATCHES = {"SVGD": SVGD} | {f"RandomBatch(SVGD, {m})": flowrl.RandomBatch(SVGD, m) for m in (20, 50, 100, 200)}
# Flows, dimensions, particles, steps, step size.
CASES = [
    (BATCHES, 10, 2000, 300, 0.2),
    (BATCHES, 50, 2000, 300, 0.2),
    (BATCHES, 10, 10_000, 100, 0.2),
    *(({"SVGD": SVGD, "SlicedSVGD": SLICED}, d, 100, 300, 0.3) for d in (2, 10, 50, 100)),
    ({"SVGD": SVGD, "SlicedSVGD": SLICED, "RandomBatch(SlicedSVGD, 100)": flowrl.RandomBatch(SLICED, 100)},)
    + (50, 500, 100, 0.3),
]


def log_normal(x):
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(x**2)


def measured(flow, d, n, steps, size):
    """Return the largest error of a mean, the mean variance, and the least time of a step in milliseconds."""
    start, seconds = 2 + jr.normal(jr.key(0), (n, d)), []
    for _ in range(4):
        began = time.perf_counter()
        solution = flowrl.transport(
            flowrl.Density(log_normal), start, flowrl.Budget(steps, size), flow=flow, key=jr.key(1)
        )
        x = np.asarray(jax.block_until_ready(solution.particles), np.float64)
        seconds.append(time.perf_counter() - began)
    return np.abs(x.mean(axis=0)).max(), x.var(axis=0, ddof=1).mean(), 1e3 * min(seconds[1:]) / steps


def main():
    """Measure everything and write it as CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/scalable.csv"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["flow", "d", "n", "steps", "step_size", "mean_error", "variance", "ms", "device", "load", "cores", "jax"]
        )
        for flows, d, n, steps, size in CASES:
            for name, flow in flows.items():
                error, variance, ms = measured(flow, d, n, steps, size)
                where = [jax.devices()[0].device_kind, f"{os.getloadavg()[0]:.1f}", os.cpu_count()]
                numbers = [f"{number:.4g}" for number in (error, variance, ms)]
                rows.writerow([name, d, n, steps, size, *numbers, *where, importlib.metadata.version("jax")])
                file.flush()
                print(f"{name:30} d={d:<4} n={n:<6} mean {error:.3f} variance {variance:.3f} {ms:8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
