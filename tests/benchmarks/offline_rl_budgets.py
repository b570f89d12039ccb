"""What test-time choices do to one set of weights: a grid of budgets, or the paper's ablations, on paired episodes.

    python tests/benchmarks/offline_rl_budgets.py runs/seed1 runs/seed2 --study grid --out grid.csv

Each run is one of `examples/offline_rl.py --algorithm vgf`.
Every way to act has the same episodes and the same proposals.
With `--study grid` each row also has what `measure_budgets` says of the budget from held-out data alone.
"""

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import jax.random as jr
import tyro

import flowrl
from flowrl import RBF, SVGD, Ascent, Budget, Euler, Optax, Transport
from flowrl.rl import (
    Agent,
    AuthorsSVGD,
    Lanes,
    LowerConfidence,
    Mean,
    Policy,
    Standardizer,
    data,
    evaluate,
    make_replay,
    measure_budgets,
)
from flowrl.runs import load_checkpoint, to_csv
from flowrl.scripts.offline import _options as offline_config


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate trained weights in other ways."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Finished run directories."""
    study: Literal["grid", "flow"] = "grid"
    """grid: L and step sizes; flow: kernels, temperatures, bandwidths, solvers, units, N."""
    out: Path = Path("budgets.csv")
    """Where the rows go; rows of runs that are there already are kept, and their runs are skipped."""
    episodes: int = 50
    """Episodes of each way to act."""
    eval_seed: int = 2
    """Seed of the episodes; not the one of the run's own evaluation."""
    lanes: int = 48
    """Environments."""
    workers: int = 2
    """Processes."""
    only: tuple[str, ...] = ()
    """Of the study of the flow, only what begins so; empty for all."""
    steps: tuple[int, ...] = (1, 3, 5, 10)
    """All L of the grid."""
    step_sizes: tuple[float, ...] = (0.1, 0.3, 0.6)
    """All ε of the grid, in spreads."""


def loaded(run: Path):
    """Load a run's algorithm, state, standardizer, held-out data and configuration."""
    options = json.loads((run / "config.json").read_text())
    fields = {field.name: field for field in dataclasses.fields(offline_config.Config)}
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k in fields}
    config = offline_config.Config(**known)
    algorithm = offline_config.algorithm(config)
    dataset = data.load(config.env, rows=config.rows, val_rows=max(config.rows // 10, 1))
    metric = data.metric(config.env)
    rewards = ("unit_std" if metric == "return" else "none") if config.rewards == "auto" else config.rewards
    dataset = data.apply_protocol(dataset, rewards=rewards, observations="standard")
    standardizer = Standardizer.fit(dataset.train.observations)
    template = algorithm.init(dataset.train.observations.shape[1], dataset.train.actions.shape[1], key=jr.key(0))
    state, _ = load_checkpoint(run / "checkpoint.npz", template)
    held_out = make_replay(dataset.validation, standardizer, discount=config.discount, n_step=config.n_step)
    return config, algorithm, state, standardizer, held_out, metric


def flow_variants(algorithm, state):
    """Name the paper's ablations of the test-time flow, each an algorithm with a state, N, L and a step size."""
    box, budget = algorithm.transport.domain, algorithm.train_budget

    def moved(flow, solver, temperature=None):
        changed = Budget(int(budget.bound), budget.step_size, temperature)
        return dataclasses.replace(algorithm, transport=Transport(flow, solver, box), train_budget=changed)

    def svgd(rule=None):
        return SVGD() if rule is None else SVGD(RBF(rule))

    absolute = dataclasses.replace(state, scale=state.scale * 0 + 1)
    adam = Optax()
    base = (state, 8, 3, 0.3)
    yield "no kernel, Adam, N = 8, L = 3, 0.3 spreads", algorithm, *base
    for temperature in (0.0, 0.1, 1.0, 10.0):
        yield f"SVGD, α = {temperature:g}", moved(svgd(), adam, temperature), *base
    yield "SVGD, α = 1, bandwidth median / 2 log(n + 1)", moved(svgd(flowrl.LogNBandwidth()), adam, 1.0), *base
    yield "SVGD, α = 1, bandwidth of Scott", moved(svgd(flowrl.ScottBandwidth()), adam, 1.0), *base
    yield "SVGD, α = 1, bandwidth of Silverman", moved(svgd(flowrl.SilvermanBandwidth()), adam, 1.0), *base
    yield "SVGD, α = 1, authors' bandwidth, constant", moved(AuthorsSVGD(False), adam, 1.0), *base
    yield "SVGD, α = 1, authors' bandwidth, differentiated", moved(AuthorsSVGD(True), adam, 1.0), *base
    yield "Euler, no kernel", moved(Ascent(), Euler()), state, 8, 3, 0.3
    yield "Euler, no kernel, step 3", moved(Ascent(), Euler()), state, 8, 3, 3.0
    yield "N = 5", algorithm, state, 5, 3, 0.3
    yield "N = 10", algorithm, state, 10, 3, 0.3
    yield "N = 32", algorithm, state, 32, 3, 0.3
    yield "absolute step 0.05", algorithm, absolute, 8, 3, 0.05
    yield "absolute step 0.1", algorithm, absolute, 8, 3, 0.1
    yield "improvement by the mean", dataclasses.replace(algorithm, improvement=Mean()), *base
    yield "improvement by mean − std", dataclasses.replace(algorithm, improvement=LowerConfidence(1.0)), *base


def measure(run: Path, options: Options) -> list[dict]:
    """Give the rows of one run."""
    config, algorithm, state, standardizer, held_out, metric = loaded(run)
    ways = []
    if options.study == "grid":
        measured = measure_budgets(
            algorithm, state, held_out, steps=options.steps, step_sizes=options.step_sizes, key=jr.key(0)
        )
        policies = [Policy(f"L={m.steps} step {m.step_size:g}", 8, m.steps, m.step_size) for m in measured]
        ways = [(algorithm, state, policies, [dataclasses.asdict(m) for m in measured])]
    else:
        for name, changed, changed_state, n, length, size in flow_variants(algorithm, state):
            if options.only and not name.startswith(options.only):
                continue
            policies = [
                Policy(name, n, length, size),
                Policy(f"{name}; one random particle", n, length, size, select="uniform"),
                Policy(f"{name}; L = 1", n, 1, size),
            ]
            if n != 8:
                policies.append(Policy(f"best-of-{n}", n))
            extra = [{"steps": p.steps, "step_size": p.step_size, "candidates": n} for p in policies]
            ways.append((changed, changed_state, policies, extra))
    rows = []
    with Lanes(config.env, options.lanes, workers=options.workers) as lanes:
        for changed, changed_state, policies, extra in ways:
            agent = Agent(changed, changed_state, standardizer, config.chunk)
            result = evaluate(agent, tuple(policies), lanes, episodes=options.episodes, seed=options.eval_seed)
            scores = result.scores(metric)
            for policy, more, score, displacement in zip(policies, extra, scores, result.displacements, strict=True):
                rows.append(
                    {
                        "env": config.env,
                        "seed": config.seed,
                        "policy": policy.name,
                        **more,
                        "score": float(score.mean()),
                        "moved": float(displacement.mean()),
                        "scores": " ".join(f"{x:.6g}" for x in score),
                    }
                )
                print(config.env, config.seed, policy.name, f"{score.mean():.1f}", flush=True)
    return rows


def main(options: Options) -> None:
    """Evaluate every run and write the rows."""
    rows = list(csv.DictReader(options.out.read_text().splitlines())) if options.out.exists() else []
    done = {(row["env"], row["seed"]) for row in rows}
    for run in options.runs:
        config = json.loads((run / "config.json").read_text())
        if (config["env"], str(config["seed"])) in done:
            continue
        rows += measure(run, options)
        options.out.write_text(to_csv(rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
