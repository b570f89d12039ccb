"""Join runs of `flowrl offline` that differ in their training seed alone into one table.

    python tests/benchmarks/offline_rl_seeds.py runs/seed1 runs/seed2 runs/seed3

Two intervals are given. "95 % (episodes)" is for these very critics: the mean over seeds, with the variance over
episodes within each seed. "90 % (seeds)" takes the means of the seeds as the sample (Student) and
says how much another training run may differ.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import tyro
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Options:
    """Join runs over training seeds."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, at least two."""
    baseline: str = "best-of-8 (L=0)"
    """Policy that the others are compared with, on the same episodes."""


def main(options: Options) -> None:
    """Print the table."""
    scores: dict[str, list[np.ndarray]] = {}
    moved: dict[str, list[float]] = {}
    configurations = []
    for run in options.runs:
        configurations.append(json.loads((run / "config.json").read_text()))
        metric = json.loads((run / "data.json").read_text())["metric"]
        rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
        for policy in dict.fromkeys(row["policy"] for row in rows):
            mine = [row for row in rows if row["policy"] == policy]
            column = [100 * float(row["success"]) if metric == "success" else float(row["return"]) for row in mine]
            scores.setdefault(policy, []).append(np.array(column))
            moved.setdefault(policy, []).append(float(np.mean([float(row["displacement"]) for row in mine])))
    if len(configurations) < 2:
        raise SystemExit("give two run directories or more.")
    different = {k for a in configurations for k in a if a[k] != configurations[0].get(k)}
    if different - {"seed"}:
        raise SystemExit(f"these runs differ in more than their seed: {sorted(different)}.")
    print("| policy | mean | by seed | minus baseline: 95 % (episodes) | 90 % (seeds) | moved |")
    print("|---|---|---|---|---|---|")
    base = np.stack(scores[options.baseline])
    for policy, x in scores.items():
        difference = np.stack(x) - base
        within = 1.96 * np.sqrt(difference.var(axis=1, ddof=1).mean() / difference.size)
        by_seed = difference.mean(axis=1)
        between = stats.t.ppf(0.95, len(x) - 1) * by_seed.std(ddof=1) / np.sqrt(len(x))
        print(
            f"| {policy} | {np.mean(x):.1f} | {', '.join(f'{y.mean():.0f}' for y in x)} | {difference.mean():+.1f} ± "
            f"{within:.1f} | [{by_seed.mean() - between:+.1f}, {by_seed.mean() + between:+.1f}] | "
            f"{np.mean(moved[policy]):.2f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
