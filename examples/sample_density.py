"""Every flow of the library on every density of `plane.py`: what do its particles look like, and how far are they off?

All flows move the same particles, whose start lies to one side. How good they are is their energy distance to a large
sample that quadrature draws; the yardstick is the distance that as many independent points have.

    python examples/sample_density.py
"""

import csv
import dataclasses
import difflib
import pathlib
import time
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import plane
import tyro
from jaxtyping import Array, Float, Int, PRNGKeyArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import flowrl
from flowrl import diagnostics
from flowrl.scripts._console import end_well

# Of the normal start, which is to one side so that a flow has to find the weights of modes.
CENTRE, WIDTH = (-1.0, 1.0), 1.5
SAVED = 41  # sets in every trajectory
TRUTH, REPETITIONS = 1000, 50  # points of the sample that stands for a density; independent sets in the yardstick


# --8<-- [start:flows]
class Method(NamedTuple):
    """A flow with its solver, and the budget that it gets on every density."""

    transport: flowrl.Transport
    steps: int
    step_size: float
    kind: Literal["sampler", "maximiser", "from samples"] = "sampler"
    temperature: float | None = None


jumping = flowrl.Langevin() + flowrl.BirthDeath(flowrl.RBF(flowrl.FixedBandwidth(0.5)))
adam = flowrl.Optax(optax.adam(1.0))
Solutions: TypeAlias = dict[tuple[str, str], flowrl.Solution]
FLOWS = {
    "SVGD": Method(flowrl.Transport(flowrl.SVGD()), 3000, 0.1),
    "SVGD, preconditioned": Method(flowrl.Transport(flowrl.SVGD(flowrl.Preconditioned())), 3000, 0.1),
    "Blob": Method(flowrl.Transport(flowrl.Blob()), 1000, 0.02),
    "KSDDescent": Method(flowrl.Transport(flowrl.KSDDescent(), adam), 1000, 0.02),
    "Langevin": Method(flowrl.Transport(flowrl.Langevin()), 2000, 0.005),
    "ALDI": Method(flowrl.Transport(flowrl.ALDI()), 3000, 0.002),
    "Langevin + BirthDeath": Method(flowrl.Transport(jumping), 2000, 0.005),
    "MMDFlow": Method(flowrl.Transport(flowrl.MMDFlow()), 2000, 1.0, "from samples"),
    "SinkhornFlow": Method(flowrl.Transport(flowrl.SinkhornFlow()), 40, 0.25, "from samples"),
    "Ascent": Method(flowrl.Transport(flowrl.Ascent()), 500, 0.02, "maximiser"),
    "Consensus": Method(flowrl.Transport(flowrl.Consensus()), 300, 0.05, "maximiser", 0.02),
}


def any_density(number: Int[Array, ""], x: Float[Array, "2"]) -> Float[Array, ""]:
    """Give the log density of that number, an argument of the target: so one program serves all densities."""
    return jax.lax.switch(number, tuple(plane.DENSITIES.values()), x)


def target_of(density: str) -> flowrl.Boltzmann:
    """Give a density as a target: its log is the value, so at the temperature 1 it is the law itself."""
    return flowrl.Boltzmann(any_density, jnp.asarray(list(plane.DENSITIES).index(density)))


def move(method: Method, density: str, start: Array, samples: Array, key: PRNGKeyArray) -> flowrl.Solution:
    """Spend the budget of a method on a density, or on samples of it.

    Steps grow to their full size over the first quarter: where particles start, the score can be very steep.
    """
    growth = np.minimum(1, np.arange(1, method.steps + 1) / (method.steps / 4))
    target = flowrl.Empirical(samples) if method.kind == "from samples" else target_of(density)
    budget = flowrl.Budget(method.steps, method.step_size * growth, method.temperature)
    return method.transport(target, start, budget, key=key, save=counts(method), throw=False)


# --8<-- [end:flows]
@dataclasses.dataclass(frozen=True)
class Config:
    """Move particles by every flow toward every density, and measure how far they end from it."""

    flows: tuple[str, ...] = tuple(FLOWS)
    """Flows to compare, by name; those with spaces in quotes."""
    densities: tuple[str, ...] = tuple(plane.DENSITIES)
    """Densities to move toward, by name; those with spaces in quotes."""
    particles: int = 150
    """Particles in each set, and samples for the flows that ask for samples. At least 2."""
    seed: int = 0
    """Seed of the start, of the samples, and of the flows' noise."""
    out: pathlib.Path = pathlib.Path("runs/sample_density")
    """Folder for results.csv and sample_density.png; made if missing."""
    paths: bool = False
    """Draw the paths of the particles too, and write value.png: the value gained against the displacement spent."""
    animate: bool = False
    """Write for each density an animation of the chosen flows side by side."""


def counts(method: Method) -> tuple[int, ...]:
    """Give the step counts at which particles are saved: every step at first, then ever more rarely."""
    count = np.arange(SAVED)
    return tuple((count + (method.steps - SAVED + 1) * (count / (SAVED - 1)) ** 2).astype(int).tolist())


# --8<-- [start:judge]
class Judge(NamedTuple):
    """What quadrature knows of a density."""

    truth: Float[Array, "m 2"]
    samples: Float[Array, "n 2"]  # for the flows that ask for samples; independent of `truth`
    independent: Float[np.ndarray, " repetitions"]  # distances of independent sets of n points to `truth`

    def distance(self, particles: Float[Array, "n 2"]) -> float:
        """Give the energy distance of a set to the density; infinite if a particle was lost to NaN."""
        distance = float(diagnostics.energy_distance(particles, self.truth))
        return distance if np.isfinite(distance) else float("inf")


def judge(density: str, n: int, rng: np.random.Generator) -> Judge:
    """Draw from a density what its particles are compared with."""
    sets = plane.sample(plane.DENSITIES[density], TRUTH + n * (REPETITIONS + 1), rng)
    truth, samples, others = np.split(sets.astype(np.float32), [TRUTH, TRUTH + n])
    others = others.reshape(REPETITIONS, n, 2)
    distances = jax.vmap(diagnostics.energy_distance, (0, None))(jnp.asarray(others), jnp.asarray(truth))
    return Judge(jnp.asarray(truth), jnp.asarray(samples), np.asarray(distances))


# --8<-- [end:judge]
def tabulate(judges: dict[str, Judge], solutions: Solutions) -> list[dict[str, Any]]:
    """Give a row for each flow on each density."""
    rows = []
    for (flow, density), solution in solutions.items():
        method, level = FLOWS[flow], judges[density].independent
        distance = judges[density].distance(solution.particles)
        rows.append(
            {
                "flow": flow,
                "kind": method.kind,
                "solver": type(method.transport.solver).__name__,
                "steps": method.steps,
                "step_size": method.step_size,
                "density": density,
                "energy_distance": distance,
                "independent_median": float(np.median(level)),
                "independent_95": float(np.quantile(level, 0.95)),
                "ratio": distance / float(np.median(level)),
                "displacement_rms": float(solution.stats["displacement_rms"]),
                "nonfinite": int(solution.stats["nonfinite"]),
            }
        )
    return rows


def view(judge: Judge) -> tuple[tuple[float, float], tuple[float, float]]:
    """Give limits that show all but a thousandth of a density on each side."""
    low, high = np.quantile(np.asarray(judge.truth), (0.001, 0.999), axis=0)
    margin = 0.1 * (high - low)
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return (left, right), (bottom, top)


# --8<-- [start:draw]
def draw(config: Config, judges: dict[str, Judge], solutions: Solutions, rows: list[dict[str, Any]]) -> None:
    """Draw every set over its density: a row for each flow, a column for each density."""
    import matplotlib
    from matplotlib.figure import Figure  # here, so that --help is quick

    height, width = len(config.flows), len(config.densities)
    side = min(4.0, 9.5 / width)
    figure = Figure(figsize=(0.5 + side * width, 0.5 + 0.92 * side * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False)
    with matplotlib.rc_context({"lines.markersize": min(6, 2.4 * side)}):
        for row, ax in zip(rows, panels.ravel(), strict=True):
            solution, limits = solutions[row["flow"], row["density"]], view(judges[row["density"]])
            flowrl.plot.particles(solution, target_of(row["density"]), limits=limits, paths=config.paths, ax=ax)
            ax.set(xticks=[], yticks=[], xlabel=f"{row['ratio']:.1f}", ylabel="")
    for ax, density in zip(panels[0], config.densities, strict=True):
        ax.set_title(density)
    for ax, flow in zip(panels[:, 0], config.flows, strict=True):
        kind = FLOWS[flow].kind
        label = flow.replace(", ", ",\n").replace(" + ", "\n+ ")
        ax.set_ylabel(label if kind == "sampler" else f"{label}\n({kind})")
    figure.supxlabel("below: energy distance / that of independent points", fontsize="small")
    figure.savefig(config.out / "sample_density.png", dpi=100)


def draw_values(config: Config, solutions: Solutions) -> None:
    """Draw the value gained against the displacement spent: a panel for each density, a line for each flow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(config.densities), 4), layout="constrained")
    for density, ax in zip(config.densities, figure.subplots(1, len(config.densities), squeeze=False)[0], strict=True):
        flowrl.plot.value({flow: solutions[flow, density] for flow in config.flows}, target_of(density), ax=ax)
        ax.set_title(density)
    figure.savefig(config.out / "value.png", dpi=100)


# --8<-- [end:draw]
def check(config: Config) -> None:
    """Refuse names that do not exist, with near ones, and too few particles."""
    for option, chosen, known in (("flows", config.flows, FLOWS), ("densities", config.densities, plane.DENSITIES)):
        for name in chosen:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
                raise SystemExit(f"--{option}: there is no {name!r}; did you mean {' or '.join(map(repr, near))}?")
        if not chosen or len(set(chosen)) < len(chosen):
            raise SystemExit(f"--{option} takes one name or more, each once; got {chosen}.")
    if config.particles < 2:
        raise SystemExit(f"--particles must be at least 2, got {config.particles}.")


def main(config: Config) -> list[dict[str, Any]]:
    """Run everything; returns the rows of results.csv."""
    check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    start_key, noise_key = jr.split(jr.key(config.seed))
    start = jnp.asarray([CENTRE], jnp.float32) + WIDTH * jr.normal(start_key, (config.particles, 2), jnp.float32)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("quadrature", total=len(config.flows) * len(config.densities))
        judges = {
            density: judge(density, config.particles, np.random.default_rng((config.seed, number)))
            for number, density in enumerate(plane.DENSITIES)
            if density in config.densities
        }
        solutions: Solutions = {}
        for flow in config.flows:
            for density in config.densities:
                progress.update(task, description=f"{flow}: {density}")
                solution = move(FLOWS[flow], density, start, judges[density].samples, noise_key)
                solutions[flow, density] = jax.block_until_ready(solution)
                progress.advance(task)
        rows = tabulate(judges, solutions)
        with open(config.out / "results.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        progress.update(task, description="drawing")
        draw(config, judges, solutions, rows)
        if config.paths:
            draw_values(config, solutions)
        for density in config.densities if config.animate else ():
            progress.update(task, description=f"animating {density}")
            shown = {flow: solutions[flow, density] for flow in config.flows}
            path = config.out / f"{density.replace(' ', '_')}.gif"
            flowrl.plot.animate(shown, path, target_of(density), limits=view(judges[density]))
    report(config, rows, time.perf_counter() - started)
    return rows


def report(config: Config, rows: list[dict[str, Any]], seconds: float) -> None:
    """Print the table of distances, with the level of independent points in the last row."""
    title = f"Energy distance of {config.particles} particles to the density (and in units of the level)"
    table = Table("flow", "solver", "steps × size", *config.densities, title=title)
    width = len(config.densities)
    for first in range(0, len(rows), width):
        row, cells = rows[first], (f"{row['energy_distance']:.3f} ({row['ratio']:.1f})" for row in rows[first:][:width])
        table.add_row(row["flow"], row["solver"], f"{row['steps']} × {row['step_size']:g}", *cells)
    levels = (f"{row['independent_median']:.3f}, 95 %: {row['independent_95']:.3f}" for row in rows[:width])
    table.add_row("independent points", "", "", *levels)
    Console(width=160).print(table, f"{seconds:.0f} s; files in {config.out}", sep="\n")


if __name__ == "__main__":
    config = tyro.cli(Config)
    end_well(lambda: main(config), verb="start again")
