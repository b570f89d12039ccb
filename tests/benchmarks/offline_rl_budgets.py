"""What test-time choices do to one set of weights: a grid of budgets, or the paper's ablations, on paired episodes.

    python tests/benchmarks/offline_rl_budgets.py runs/seed1 runs/seed2 --study grid --out grid.csv

Each run is one of `flowrl offline vgf`.
Every way to act has the same episodes and the same proposals.
With `--study grid` each row also has what `measure_budgets` reports of the budget from held-out data alone.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Literal

import jax.random as jr
import tyro

import flowrl
from flowrl import RBF, SVGD, Ascent, Budget, Euler, Optax, Transport
from flowrl.rl import (
    VGF,
    Agent,
    AuthorsSVGD,
    Lanes,
    LowerConfidence,
    Mean,
    MeasuredBudget,
    Policy,
    Standardizer,
    Uniform,
    evaluate,
    measure_budgets,
)
from flowrl.runs import load_checkpoint, to_csv
from flowrl.scripts.offline import from_flat, load_data, replays, treated


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


def _unseen(done: int, total: int) -> None:
    del done, total


def loaded(run: Path):
    """Load a run's algorithm, state, standardizer, held-out data and configuration."""
    config = from_flat(json.loads((run / "config.json").read_text()), run)
    algorithm = config.learner()
    assert isinstance(algorithm, VGF)
    dataset = treated(config.data, load_data(config.data, _unseen, config.run.workers))
    standardizer = Standardizer.fit(dataset.train.observations)
    template = algorithm.init(dataset.train.observations.shape[1], dataset.train.actions.shape[1], key=jr.key(0))
    state, _ = load_checkpoint(run / "checkpoint.npz", template)
    _, held_out = replays(config.training, dataset, standardizer)
    return config, algorithm, state, standardizer, held_out, dataset.info.metric


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
    """Compute the rows of one run."""
    config, algorithm, state, standardizer, held_out, metric = loaded(run)
    ways = []
    if options.study == "grid":
        measured = measure_budgets(
            algorithm,
            state,
            held_out,
            algorithm.train_budget,
            steps=options.steps,
            step_sizes=options.step_sizes,
            key=jr.key(0),
        )
        ways = [(algorithm, state, [_policy(m) for m in measured], [_columns(m) for m in measured])]
    else:
        for name, changed, changed_state, n, length, size in flow_variants(algorithm, state):
            if options.only and not name.startswith(options.only):
                continue
            budget = changed.train_budget.with_steps(length, size)
            policies = [
                Policy(name, n, budget),
                Policy(f"{name}; one random particle", n, (budget, Uniform())),
                Policy(f"{name}; L = 1", n, budget.with_steps(1)),
            ]
            if n != 8:
                policies.append(Policy(f"best-of-{n}", n))
            extra = [{"steps": p.steps, "step_size": size if p.steps else 0, "candidates": n} for p in policies]
            ways.append((changed, changed_state, policies, extra))
    rows = []
    with Lanes(config.data.env, options.lanes, workers=options.workers) as lanes:
        for changed, changed_state, policies, extra in ways:
            agent = Agent(changed, changed_state, standardizer, config.training.chunk)
            result = evaluate(agent, tuple(policies), lanes, episodes=options.episodes, seed=options.eval_seed)
            scores = result.scores(metric)
            for policy, more, score, displacement in zip(policies, extra, scores, result.displacements, strict=True):
                rows.append(
                    {
                        "env": config.data.env,
                        "seed": config.training.seed,
                        "policy": policy.name,
                        **more,
                        "score": float(score.mean()),
                        "moved": float(displacement.mean()),
                        "scores": " ".join(f"{x:.6g}" for x in score),
                    }
                )
                print(config.data.env, config.training.seed, policy.name, f"{score.mean():.1f}", flush=True)
    return rows


def _size(measured: MeasuredBudget) -> float:
    return float(f"{float(measured.budget.step_size):g}") if measured.budget.bound else 0.0


def _policy(measured: MeasuredBudget) -> Policy:
    budget = measured.budget if measured.budget.bound else None
    return Policy(f"L={measured.budget.bound} step {_size(measured):g}", 8, budget)


def _columns(measured: MeasuredBudget) -> dict[str, float]:
    others = [field.name for field in dataclasses.fields(measured) if field.name != "budget"]
    return {"steps": measured.budget.bound, "step_size": _size(measured)} | {n: getattr(measured, n) for n in others}


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
