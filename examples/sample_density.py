"""Every flow on five plane densities: energy distances to quadrature's sample, beside those of independent points."""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowrl
from flowrl.runs import to_csv

try:
    from matplotlib.figure import Figure
except ImportError as missing:
    raise SystemExit(f'{missing.name} is missing: pip install -e ".[examples]"') from missing

# --8<-- [start:densities]
MODES = np.array([(2.0, 2.0), (-2.0, 2.0), (2.0, -2.0), (-2.0, -2.0)])
rosenbrock = lambda x: jnp.log((1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2 + 1e-6)
DENSITIES = {  # their logs, up to a constant: four Gaussians, one bent along a parabola, a ring of radius 2, ...
    "mixture": lambda x: jax.nn.logsumexp(-0.5 * jnp.sum((x[None] - MODES.astype(x.dtype)) ** 2, axis=1) / 0.36),
    "banana": lambda x: -0.5 * (x[0] / 1.5) ** 2 - 0.5 * ((x[1] + 0.5 * x[0] ** 2 - 1) / 0.7) ** 2,
    "ring": lambda x: -0.5 * ((jnp.sqrt(jnp.sum(x**2) + 1e-12) - 2) / 0.4) ** 2,
    # ... one noisy observation of the log of Rosenbrock's function under a Gaussian prior, Neal's funnel lying down.
    "double banana": lambda x: -0.5 * jnp.sum(x**2) - 0.5 * ((jnp.log(30.0) - rosenbrock(x)) / 0.5) ** 2,
    "funnel": lambda x: -0.5 * x[0] ** 2 - 0.5 * x[0] - 0.5 * x[1] ** 2 * jnp.exp(-x[0]),
}
# --8<-- [end:densities]
# --8<-- [start:flows]
ADAM = flowrl.Optax(optax.adam(1.0))  # made once: another one would be another program
JUMPS = flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(0.5)))
FLOWS = {  # the flow, its steps, and their size
    "SVGD": (flowrl.SVGD(), 3000, 0.1),
    "SVGD, preconditioned": (flowrl.SVGD(flowrl.Preconditioned()), 3000, 0.1),
    "Blob": (flowrl.Blob(), 1000, 0.02),
    "KSDDescent": (flowrl.KSDDescent(), 1000, 0.02),
    "Langevin": (flowrl.Langevin(), 2000, 0.005),
    "ALDI": (flowrl.ALDI(), 3000, 0.002),
    "Langevin + BirthDeath": (flowrl.Langevin() + JUMPS, 2000, 0.005),
    "MMDFlow": (flowrl.MMDFlow(), 2000, 1.0),
    "SinkhornFlow": (flowrl.SinkhornFlow(), 40, 0.25),
    "Ascent": (flowrl.Ascent(), 500, 0.02),
    "Consensus": (flowrl.Consensus(), 300, 0.05),
}
KINDS = {"MMDFlow": "from samples", "SinkhornFlow": "from samples", "Ascent": "maximiser", "Consensus": "maximiser"}
TRUTH, REPETITIONS = 1000, 50  # points that stand for a density; sets of the yardstick
any_density = lambda number, x: jax.lax.switch(number, tuple(DENSITIES.values()), x)  # one program for all of them


def move(name, target, start, key, save=None):
    """Spend the budget of a flow."""
    flow, steps, size = FLOWS[name]
    # Steps grow to their full size over the first quarter: where particles start, the score can be very steep.
    sizes = flowrl.ramp(size, steps, share=0.25)
    budget = flowrl.Budget(steps, sizes, 0.02 if name == "Consensus" else None)
    solver = ADAM if name == "KSDDescent" else flowrl.Euler()
    return flowrl.transport(target, start, budget, flow=flow, solver=solver, key=key, save=save, throw=False)


# --8<-- [end:flows]
# --8<-- [start:judge]
def judge(density, n, rng):
    """Draw what stands for a density, n samples for the flows that ask for them, and distances of such samples."""
    axis, size = np.linspace(-20, 20, 801), TRUTH + n * (REPETITIONS + 1)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = np.asarray(jax.vmap(DENSITIES[density])(jnp.asarray(nodes, jnp.result_type(float))), np.float64)
    mass = np.exp(logs - logs.max())  # draw a node by its mass, and a place in the cell around it
    points = nodes[rng.choice(mass.size, size, p=mass / mass.sum())] + 0.05 * rng.uniform(-0.5, 0.5, (size, 2))
    truth, samples, others = map(jnp.asarray, np.split(points.astype(np.float32), [TRUTH, TRUTH + n]))
    level = jax.vmap(flowrl.diagnostics.energy_distance, (0, None))(others.reshape(REPETITIONS, n, 2), truth)
    return truth, samples, np.asarray(level)


# --8<-- [end:judge]
def main(words=None):
    """Move particles by every flow toward every density: a table, results.csv and a figure; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", nargs="+", default=list(FLOWS), choices=list(FLOWS), metavar="NAME")
    parser.add_argument("--densities", nargs="+", default=list(DENSITIES), choices=list(DENSITIES), metavar="NAME")
    parser.add_argument("--particles", type=int, default=150, help="in each set")
    parser.add_argument("--seed", type=int, default=0, help="of the start, of the samples, and of the flows' noise")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sample_density"), help="folder of files")
    options = parser.parse_args(words)
    flows, densities, n = options.flows, options.densities, options.particles
    if n < 2:
        raise SystemExit(f"--particles must be at least 2, got {n}.")
    options.out.mkdir(parents=True, exist_ok=True)
    start_key, noise_key = jr.split(jr.key(options.seed))
    start = jnp.asarray([(-1.0, 1.0)], jnp.float32) + 1.5 * jr.normal(start_key, (n, 2), jnp.float32)
    figure = Figure((0.5 + 1.9 * len(densities), 0.5 + 1.75 * len(flows)), layout="constrained")
    rows, panels = [], figure.subplots(len(flows), len(densities), squeeze=False)
    for density, column in zip(densities, panels.T, strict=True):
        number = list(DENSITIES).index(density)
        target = flowrl.Boltzmann(any_density, jnp.asarray(number))
        truth, samples, level = judge(density, n, np.random.default_rng((options.seed, number)))
        edges = np.quantile(truth, (0.001, 0.999), axis=0)  # the view: all but a thousandth on each side, and a margin
        across, upward = (edges + 0.1 * np.diff(edges, axis=0) * [[-1], [1]]).T.tolist()
        for flow, ax in zip(flows, column, strict=True):
            kind = KINDS.get(flow, "sampler")
            toward = flowrl.Empirical(samples) if kind == "from samples" else target
            solution = move(flow, toward, start, noise_key)
            distance = float(flowrl.diagnostics.energy_distance(solution.particles, truth))  # NaN if a particle is lost
            row = {"flow": flow, "kind": kind, "density": density, "energy_distance": distance}
            row |= {"independent_median": float(np.median(level)), "independent_95": float(np.quantile(level, 0.95))}
            ratio = distance / row["independent_median"]
            rows.append(row | {"ratio": ratio, "nonfinite": int(solution.stats["nonfinite"])})
            print(f"{density:14}{flow:22}{distance:7.3f} = {ratio:4.1f} times that of independent points")
            flowrl.plot.particles(solution, target, limits=(tuple(across), tuple(upward)), ax=ax)
            ax.set(xticks=[], yticks=[], xlabel=f"ratio {ratio:.1f}", ylabel=flow if density == densities[0] else "")
        column[0].set_title(density)
    figure.savefig(options.out / "sample_density.png", dpi=100)
    (options.out / "results.csv").write_text(to_csv(rows))
    return rows


if __name__ == "__main__":
    main()
