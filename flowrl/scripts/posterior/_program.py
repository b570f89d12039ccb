"""The run: particles, NUTS, the long chains, and then the files, the figure and the table."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

import flowrl
from flowrl.runs import to_csv
from flowrl.scripts.posterior._measures import Judge, moments, standard
from flowrl.scripts.posterior._methods import DEFAULT_STEP, nuts, starts, step_sizes, transport_of
from flowrl.scripts.posterior._models import load
from flowrl.scripts.posterior._options import Config

CAVEATS = """Errors are root mean squares over the coordinates compared, which are unconstrained (logarithms of what is
positive); for the network they are its predictions at held-out inputs, since its weights can be permuted.
The standard of comparison is itself a sample, so errors of about 0.02 cannot be told from none."""


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Run twice; return the result, the seconds of the second run, and how many more the first took: compilation."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    between = time.perf_counter()
    result = jax.block_until_ready(run())
    seconds = time.perf_counter() - between
    return result, seconds, max(between - started - seconds, 0.0)


def at(sets: PyTree, index: Any) -> PyTree:
    """Index the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[index], sets)


def checkpoints(start: int, stop: int) -> list[int]:
    """Return at most 20 increasing counts in geometric progression."""
    return sorted({int(x) for x in np.geomspace(start, stop, 20).round()})


def draw(config: Config, judge: Judge, sets: dict[str, np.ndarray], curves: dict[str, list[Any]]) -> None:
    """Draw two coordinates of the first two sets, the moments of all, and the errors against the gradients spent."""
    import matplotlib.pyplot as plt  # here, so that --help is quick

    figure, (pair, spread, lines) = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    x, y = (judge.problem.names.index(name) for name in judge.problem.pair)
    (cloud, shown), (flow, compared), _ = sets.items()
    pair.scatter(shown[::3, x], shown[::3, y], s=2, color="silver", label=cloud, rasterized=True)
    pair.scatter(compared[:, x], compared[:, y], s=14, label=flow)
    low, high = np.quantile(shown[:, (x, y)], (0.001, 0.999), axis=0)
    limits = np.stack([low - 0.3 * (high - low), high + 0.3 * (high - low)])  # a lost particle must not hide the others
    pair.set(xlabel=judge.problem.pair[0], ylabel=judge.problem.pair[1], xlim=limits[:, 0], ylim=limits[:, 1])
    for name, coordinates in list(sets.items())[1:]:
        mean, sd = moments(coordinates)
        spread.scatter((mean - judge.mean) / judge.sd, sd / judge.sd, s=14, label=name)
    spread.axhline(1, color="silver", zorder=0)
    spread.axvline(0, color="silver", zorder=0)
    spread.set(xlabel="error of the mean / sd", ylabel="sd / sd of NUTS", title="one point per coordinate")
    for number, (name, curve) in enumerate(curves.items()):
        spent, mean, sd = zip(*curve, strict=True)
        lines.loglog(spent, mean, "-", color=f"C{number}", label=f"{name}: mean")
        lines.loglog(spent, sd, "--", color=f"C{number}", label=f"{name}: log sd")
    lines.set(xlabel="gradient evaluations, warm-up included", ylabel="error")
    for axis in (pair, spread, lines):
        axis.legend(fontsize=8)
    figure.savefig(config.out / "posterior.png", dpi=90)
    plt.close(figure)


def run(config: Config) -> list[dict[str, Any]]:
    """Run everything; return the rows of results.csv."""
    started, problem = time.perf_counter(), load(config.model, config.seed)
    start_key, flow_key, chain_key, standard_key = jr.split(jr.key(config.seed), 4)
    posterior = flowrl.from_numpyro(problem.model, key=jr.key(config.seed), **problem.data)
    start = starts(config.start, posterior, config.particles, start_key)
    dimension = ravel_pytree(start)[0].size // config.particles
    if config.flow == "aldi" and config.particles <= dimension + 1:
        raise SystemExit(f"--flow aldi needs more than d + 1 = {dimension + 1} particles, got {config.particles}.")
    size = config.step_size or DEFAULT_STEP[config.flow]
    budget = flowrl.Budget(config.steps, step_sizes(config.flow, config.steps, size))
    transport, saved = transport_of(config.flow), checkpoints(1, config.steps)
    sample = lambda: transport(posterior.target, start, budget, key=flow_key, save=saved, throw=False)
    solution, seconds, compilation = timed(sample)
    if lost := int(solution.stats["nonfinite"]):
        raise SystemExit(
            f"{lost} of {config.particles} particles went where the density has no finite score, with --step-size "
            f"{size:g}; take a smaller one."
        )
    chain = nuts(problem, config.nuts_warmup, config.nuts_draws)
    chains, nuts_seconds, nuts_compilation = timed(lambda: chain(chain_key[None]))
    draws, r_hat, effective = standard(problem, config.nuts_warmup, config.reference_draws, standard_key)
    judge, kept, spent = Judge(problem, posterior, draws), chains.draws(config.nuts_warmup), np.cumsum(chains.leapfrogs)
    evenly = np.linspace(0, config.nuts_draws - 1, config.particles).round().astype(int)
    thinned = at(kept, evenly)

    flow, thin = f"{config.flow}, n = {config.particles}", f"NUTS thinned to {config.particles}"
    costs = {"gradients": config.steps * config.particles, "seconds": seconds, "compilation": compilation}
    nuts_costs = {"gradients": int(spent[-1]), "seconds": nuts_seconds, "compilation": nuts_compilation}
    rows = [
        {"method": flow} | judge.row(solution.particles) | costs,
        {"method": f"NUTS, {config.nuts_draws} draws"} | judge.row(kept) | nuts_costs,
        {"method": thin} | judge.row(thinned) | nuts_costs,
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "results.csv").write_text(to_csv(rows))
    ends, chosen, every = (judge.coordinates(particles) for particles in (solution.particles, thinned, kept))
    table = zip(problem.names, judge.mean, judge.sd, *moments(ends), strict=True)
    head = ("coordinate", "nuts_mean", "nuts_sd", "mean", "sd")
    (config.out / "moments.csv").write_text(to_csv([dict(zip(head, row, strict=True)) for row in table]))
    on_the_way = (judge.coordinates(at(solution.trajectory, i)) for i in range(len(saved)))
    after = spent[config.nuts_warmup :]
    curves = {
        flow: [(k * config.particles, *judge.errors(set)) for k, set in zip(saved, on_the_way, strict=True)],
        "NUTS": [(after[k - 1], *judge.errors(every[:k])) for k in checkpoints(5, config.nuts_draws)],
    }
    draw(config, judge, {"NUTS, the standard": judge.coordinates(draws), flow: ends, thin: chosen}, curves)
    tabulate(config, rows, f"standard: 4 chains of NUTS, R-hat {r_hat:.3f}, effective sample size {effective:.0f}")
    Console(width=120).print(CAVEATS, f"{time.perf_counter() - started:.0f} s; files in {config.out}", sep="\n")
    return rows


def tabulate(config: Config, rows: list[dict[str, Any]], caption: str) -> None:
    """Print the rows."""
    head = ("method", "mean / sd", "log sd", "KSD", "test log-lik.", "gradients", "seconds", "+ compilation")
    table = Table(*head, title=f"{config.model}: errors and costs", caption=caption)
    for row in rows:
        numbers = (f"{row[name]:.3f}" for name in ("mean_error", "log_sd_error", "ksd"))
        test = row["test_log_likelihood"]
        costs = (f"{row['gradients']:,}", f"{row['seconds']:.2f}", f"{row['compilation']:.1f}")
        table.add_row(row["method"], *numbers, f"{test:.4f}" if isinstance(test, float) else "–", *costs)
    Console(width=120).print(table)
