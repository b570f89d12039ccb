"""The table and the plot of docs/tutorials/rlhf.md, from finished runs of examples/rlhf.py that differ in their seeds.

    python tests/benchmarks/rlhf_table.py runs/rlhf/seed0 runs/rlhf/seed1 runs/rlhf/seed2 --out docs/results/rlhf

Win rates have crossed bootstrap intervals: seeds and prompts are both resampled, since all seeds have the same prompts.
"""

import csv
import dataclasses
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

from flowrl.rlhf.evaluation import mean_interval
from flowrl.runs import to_csv

NUMBERS = ("gold", "rating", "fluency", "vader", "proxy", "nll", "judge_nll", "distinct_2", "changed", "forwards")


@dataclasses.dataclass(frozen=True)
class Options:
    """Merge runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    out: Path = Path("runs/rlhf_table")
    """Where rows.csv, table.md and curve.png go."""
    name: str = "rows"
    """Name of the files."""


def merged(runs: tuple[Path, ...]) -> list[dict]:
    """One row a method and budget: means over seeds, the interval of the win rate."""
    tables = [list(csv.DictReader((run / "results.csv").open())) for run in runs]
    names = [row["name"] for row in tables[0]]
    rows = []
    for name in names:
        same = [next(row for row in table if row["name"] == name) for table in tables]
        wins = np.asarray([json.loads(row["wins"]) for row in same])
        estimate = mean_interval(wins)
        row = {key: same[0][key] for key in ("method", "name", "steps", "count", "step_size")}
        row |= {"seeds": len(same), "prompts": wins.shape[1], "chosen_in": sum(r["chosen"] == "True" for r in same)}
        row |= {"win": estimate.value, "win_low": estimate.low, "win_high": estimate.high}
        row |= {"wins_by_seed": json.dumps([round(float(w), 4) for w in wins.mean(axis=1)])}
        for key in NUMBERS:
            values = [float(r[key]) for r in same if r[key] != ""]
            row[key] = float(np.mean(values)) if values else ""
        rows.append(row)
    chosen = [row for table in tables for row in table if row["chosen"] == "True"]
    if len(chosen) == len(tables) and len(tables) > 1:
        wins = np.asarray([json.loads(row["wins"]) for row in chosen])
        estimate = mean_interval(wins)
        row = {"method": "vgf", "name": "VGF, chosen on validation prompts", "steps": "", "count": chosen[0]["count"]}
        row |= {"step_size": "", "seeds": len(chosen), "prompts": wins.shape[1], "chosen_in": len(chosen)}
        row |= {"win": estimate.value, "win_low": estimate.low, "win_high": estimate.high}
        row |= {"wins_by_seed": json.dumps([round(float(w), 4) for w in wins.mean(axis=1)])}
        rows.append(row | {key: float(np.mean([float(r[key]) for r in chosen])) for key in NUMBERS})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    columns = ("method", "gold wins, %", "by seed", "gold", "VADER", "proxy, sd", "NLL under μ", "judge NLL")
    head = "| " + " | ".join((*columns, "distinct-2", "changed", "forwards")) + " |"
    lines = [head, "|---" * 11 + "|"]
    for r in rows:
        seeds = ", ".join(f"{100 * w:.0f}" for w in json.loads(r["wins_by_seed"]))
        cells = [r["name"], f"{100 * r['win']:.1f} [{100 * r['win_low']:.0f}, {100 * r['win_high']:.0f}]", seeds]
        cells += [f"{r[k]:.2f}" for k in ("gold", "vader", "proxy", "nll", "judge_nll", "distinct_2")]
        cells += ["-" if r["changed"] == "" else f"{r['changed']:.2f}", f"{r['forwards']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], path: Path) -> None:
    """Gold against proxy: the over-optimisation curve."""
    figure, axis = plt.subplots(figsize=(6.6, 4.4), layout="constrained")
    flow = [r for r in rows if r["method"] == "vgf" and r["steps"] != ""]
    zero = [r for r in flow if int(r["steps"]) == 0]
    for size in sorted({float(r["step_size"]) for r in flow if int(r["steps"])}):
        line = zero + [r for r in flow if float(r["step_size"]) == size and int(r["steps"])]
        axis.plot([r["proxy"] for r in line], [r["gold"] for r in line], "o-", label=f"VGF, ε = {size:g}")
        for r in line[1:]:
            axis.annotate(r["steps"], (r["proxy"], r["gold"]), textcoords="offset points", xytext=(3, 4), fontsize=8)
    best = [r for r in rows if r["method"] in ("sft", "bon")]
    axis.plot([r["proxy"] for r in best], [r["gold"] for r in best], "s--", color="gray", label="best-of-N")
    for r in best:
        axis.annotate(
            f"N={r['count']}", (r["proxy"], r["gold"]), textcoords="offset points", xytext=(3, -11), fontsize=8
        )
    for marker, r in zip("*P^v", [r for r in rows if r["method"] in ("dpo", "ppo")], strict=False):
        axis.plot(r["proxy"], r["gold"], marker, markersize=10, label=r["name"])
    axis.set(xlabel="proxy reward, standard deviations of μ's samples", ylabel="gold score")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(options: Options) -> None:
    """Write the three files."""
    rows = merged(options.runs)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.csv").write_text(to_csv(rows))
    print(table(rows))
    plot(rows, options.out / f"{options.name}.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
