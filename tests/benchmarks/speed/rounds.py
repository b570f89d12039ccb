"""Interleaved rounds in one process, and rows of CSV that say where and when they were measured."""

import csv
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import random
import re
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

OUT = pathlib.Path(__file__).resolve().parents[3] / "docs" / "results" / "performance"
"""Where rows and tables go; `--out` names another folder, such as that of another machine."""

PACKAGES = ("jax", "jaxlib", "numpy", "equinox", "optax", "blackjax", "numpyro", "msvgd", "flax", "ogbench")
RUN = datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def rounds(calls, count, budget=120.0):
    """Time every call once a round, each round in another order; the first round compiles and is kept apart.

    Args:
        calls: name -> function without arguments.
        count: rounds after the first.
        budget: seconds after which no further round begins, if three are done.

    Returns:
        name -> (seconds of the first call, seconds of the others).
    """
    first, later = {}, {name: [] for name in calls}
    for name, call in calls.items():
        begun = time.perf_counter()
        jax.block_until_ready(call())
        first[name] = time.perf_counter() - begun
        print(f"    {name}: {first[name]:.1f} s with compilation", file=sys.stderr, flush=True)
    begun, order, shuffle = time.perf_counter(), list(calls.items()), random.Random(0).shuffle
    for done in range(count):
        if done >= 3 and time.perf_counter() - begun > budget:
            break
        shuffle(order)
        for name, call in order:
            start = time.perf_counter()
            jax.block_until_ready(call())
            later[name].append(time.perf_counter() - start)
    return {name: (first[name], later[name]) for name in calls}


def timing(measured, steps=1):
    """Summarise what `rounds` gives for one call, in milliseconds per step."""
    first, later = measured
    median = statistics.median(later)
    compiled = first - median
    return {
        # Nothing where calls differ by more among themselves.
        "compile_s": round(compiled, 2) if compiled > max(later) - min(later) else "",
        "median_ms": _digits(1e3 * median / steps),
        "min_ms": _digits(1e3 * min(later) / steps),
        "rounds": len(later),
    }


def ratio(slow, fast):
    """Compute how many times faster: the median over rounds of the ratio, and its lower 90 % bound.

    The bound is an order statistic of the rounds' ratios: by the binomial distribution it lies below their median with
    probability 0.9 at least, whatever their distribution. With fewer than four rounds there is none.

    Args:
        slow: what `rounds` gave for the peer.
        fast: what it gave for us.
    """
    ratios = sorted(a / b for a, b in zip(slow[1], fast[1], strict=True))
    n, below, order = len(ratios), 0.0, 0
    while order < n and below + math.comb(n, order) / 2**n <= 0.1:
        below += math.comb(n, order) / 2**n
        order += 1
    bound = _digits(ratios[order - 1]) if order else ""
    return {"ratio": _digits(statistics.median(ratios)), "lower90": bound}


def peak_megabytes():
    """Return the largest resident memory of this process so far."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text()).group(1)) // 1024


def device_megabytes():
    """Return the largest memory of the accelerator in use so far; nothing on a CPU."""
    found = jax.devices()[0].memory_stats()
    return found["peak_bytes_in_use"] // 2**20 if found else ""


def rates(sides):
    """Return two calls that measure the machine: a square product and exponentials, with what each call does.

    Args:
        sides: of the product and of the matrix of exponentials.
    """
    a, b = (
        jax.random.normal(jax.random.key(1), (sides[0],) * 2),
        -jax.random.uniform(jax.random.key(2), (sides[1],) * 2),
    )
    product, exponential = jax.jit(lambda a: a @ a), jax.jit(jnp.exp)
    calls = {("rate", "product"): lambda: product(a), ("rate", "exp"): lambda: exponential(b)}
    return calls, {"product": 2 * sides[0] ** 3, "exp": sides[1] ** 2}


def append(name, rows):
    """Add rows to a CSV, and what machine they are from to `runs.json`.

    Args:
        name: of the CSV, without its ending.
        rows: dictionaries with the same keys.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    path = OUT / f"{name}.csv"
    common = {"load": round(os.getloadavg()[0], 1), "peak_mb": peak_megabytes(), "run": RUN}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *common])
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow(row | common)
            print(f"  {name}: " + ", ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    path = OUT / "runs.json"
    runs = json.loads(path.read_text()) if path.exists() else {}
    runs[RUN] = machine()
    path.write_text(json.dumps(runs, indent=1) + "\n")


def read(name):
    """Return the newest row of every case of a CSV: rows that differ in nothing but what was measured and when."""
    path = OUT / f"{name}.csv"
    if not path.exists():
        return []
    with path.open() as file:
        rows = list(csv.DictReader(file))
    newest = {}
    for row in rows:
        newest[tuple(v for k, v in row.items() if k in KEYS)] = row
    return list(newest.values())


KEYS = (
    "case",
    "precision",
    "updates",
    "lanes",
    "N",
    "d",
    "L",
    "method",
    "rule",
    "target",
    "peer",
    "width",
    "batch",
    "episodes",
    "what",
    "piece",
)
"""Columns that say what was measured."""


def machine():
    """Describe the machine and the versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "matmul_precision": str(
            jax.config.jax_default_matmul_precision
            or ("default (float32 on a CPU)" if jax.default_backend() == "cpu" else "default")
        ),
        "x64": bool(jax.config.jax_enable_x64),
        "versions": versions,
    }


def _digits(x):
    return float(np.format_float_positional(x, precision=4, fractional=False, trim="k"))
