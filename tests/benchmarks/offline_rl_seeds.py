"""Join runs of `examples/offline_rl.py` that differ in their training seed alone into one table.

    python tests/benchmarks/offline_rl_seeds.py runs/seed1 runs/seed2 runs/seed3

Two intervals are given. "95 % (episodes)" pools the episodes of all seeds and says how well these very critics are
measured; "90 % (seeds)" takes the means of the seeds as the sample (Student, seeds − 1 degrees of freedom) and says how
much another training run may differ.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Join runs over training seeds."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, at least two."""
    baseline: str = "best-of-8 (L=0)"
    """Policy that the others are compared with, on the same episodes."""


# 95 % quantiles of Student's t: two-sided 90 % intervals of a few seeds.
_T90 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895}


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
    different = {k for a in configurations for k in a if a[k] != configurations[0].get(k)}
    if different - {"seed"}:
        raise SystemExit(f"these runs differ in more than their seed: {sorted(different)}.")
    print("| policy | mean | by seed | minus baseline: 95 % (episodes) | 90 % (seeds) | moved |")
    print("|---|---|---|---|---|---|")
    base = np.stack(scores[options.baseline])
    for policy, x in scores.items():
        difference = np.stack(x) - base
        pooled = 1.96 * difference.std(ddof=1) / np.sqrt(difference.size)
        by_seed = difference.mean(axis=1)
        between = _T90[len(x) - 1] * by_seed.std(ddof=1) / np.sqrt(len(x))
        print(
            f"| {policy} | {np.mean(x):.1f} | {', '.join(f'{y.mean():.0f}' for y in x)} | {difference.mean():+.1f} ± "
            f"{pooled:.1f} | [{by_seed.mean() - between:+.1f}, {by_seed.mean() + between:+.1f}] | "
            f"{np.mean(moved[policy]):.2f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Options))
