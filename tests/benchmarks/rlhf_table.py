"""The table and the plot of docs/tutorials/rlhf.md, from finished runs of `flowrl align` that differ in their seeds.

    python tests/benchmarks/rlhf_table.py runs/rlhf/seed0 runs/rlhf/seed1 runs/rlhf/seed2 --out docs/results/rlhf

or of runs that differ in other options, side by side (`--apart`).

Win rates have crossed bootstrap intervals: seeds and prompts are both resampled, since all seeds have the same prompts.
"""

import csv
import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro

from flowrl.rlhf.evaluation import mean_interval
from flowrl.runs import to_csv

NUMBERS = (
    *("win_people", "gold", "rating", "fluency", "vader", "proxy", "nll", "judge_nll", "smollm2_nll", "distinct_2"),
    *("changed", "forwards", "train_seconds", "seconds"),
)

#: Methods that are set against what was chosen.
BASELINES = ("sft", "bon", "dpo", "ppo")
#: Rows that SmolLM2 judges, besides what was chosen and what costs as much.
FLUENT = ("SFT", "best-of-8", "best-of-128", "DPO, best-of-8", "PPO, best-of-8")


@dataclasses.dataclass(frozen=True)
class Options:
    """Merge runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    out: Path = Path("runs/rlhf_table")
    """Where the CSV, the table as Markdown (.txt) and the plot go."""
    name: str = "rows"
    """Name of the files."""
    apart: bool = False
    """Set runs of different options side by side instead of merging seeds: what each chose, and what went furthest."""
    beside: tuple[Path, ...] = ()
    """Runs of another flow with the same seeds, in the same order: what they chose is one of the baselines."""
    smollm2: bool = False
    """Judge the fluency of the main rows by SmolLM2-135M too (93 MB from PyPI, minutes)."""


def merged(runs: tuple[Path, ...], fluent: bool) -> list[dict]:
    """One row a method and budget: means over seeds, the interval of the win rate."""
    tables = [list(csv.DictReader((run / "results.csv").open())) for run in runs]
    if fluent:
        add_fluency(tables, json.loads((runs[0] / "prompts.json").read_text()))
    rows = []
    for first in tables[0]:
        if first["method"] != "matched":
            same = [next((row for row in table if row["name"] == first["name"]), None) for table in tables]
            rows += [one_row(first["name"], same)] if None not in same else []
    # What each run chose by itself, and best-of-N at the cost of that.
    chosen = [next((row for row in table if row["chosen"] == "True"), None) for table in tables]
    matched = [next((row for row in table if row["method"] == "matched"), None) for table in tables]
    if None not in chosen:
        rows.append(one_row("VGF, chosen on validation prompts", chosen) | {"steps": "", "step_size": ""})
    if None not in matched:
        counts = ", ".join(row["count"] for row in matched)
        rows.append(one_row(f"best-of-N at the same cost (N = {counts})", matched))
    return rows


def one_row(name: str, same: list[dict]) -> dict:
    """The rows of all seeds as one."""
    wins = np.asarray([json.loads(row["wins"]) for row in same])
    estimate = mean_interval(wins)
    row = {key: same[0][key] for key in ("method", "steps", "count", "step_size")} | {"name": name}
    row |= {"seeds": len(same), "prompts": wins.shape[1], "chosen_in": sum(r["chosen"] == "True" for r in same)}
    row |= {"win": estimate.value, "win_low": estimate.low, "win_high": estimate.high}
    row |= {"wins_by_seed": json.dumps([round(float(w), 4) for w in wins.mean(axis=1)])}
    row |= {"distinct_2_by_seed": json.dumps([round(float(r["distinct_2"]), 3) for r in same])}
    people = np.asarray([json.loads(r["wins_people"]) for r in same])
    if people.size:
        row["win_people_low"], row["win_people_high"] = mean_interval(people)[1:3]
    for key in NUMBERS:
        values = [float(r[key]) for r in same if r.get(key, "") != ""]
        row[key] = float(np.mean(values)) if values else ""
    return row


def apart(runs: tuple[Path, ...]) -> list[dict]:
    """All rows of every run, named by its directory."""
    rows = []
    for run in runs:
        for row in csv.DictReader((run / "results.csv").open()):
            rows.append(one_row(f"{run.name}: {row['name']}", [row]) | {"run": run.name, "chosen": row["chosen"]})
    return rows


def extremes(rows: list[dict]) -> list[dict]:
    """Of each run what was chosen, the highest gold, the highest proxy."""
    kept = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run and row["method"] == "vgf"]
        chosen = next(row for row in own if row["chosen"] == "True")
        picked = {chosen["name"]: "chosen"}
        for key in ("gold", "proxy"):
            picked.setdefault(max(own, key=lambda row, key=key: row[key])["name"], f"highest {key}")
        kept += [row | {"name": f"{row['name']} ({picked[row['name']]})"} for row in own if row["name"] in picked]
    return kept


def add_fluency(tables: list[list[dict]], prompts: list[str]) -> None:
    """Add the negative log-likelihood a word under SmolLM2 to the rows that matter most."""
    from flowrl.rlhf import log_probs, pack_texts, smollm2

    model, tokenizer = smollm2()

    @eqx.filter_jit
    def total(rows):
        one = lambda row: jnp.sum(log_probs(model, row.prompt, row.tokens, row.mask))
        return jax.lax.map(one, rows, batch_size=20)

    for row in (row for table in tables for row in table):
        if row["chosen"] == "True" or row["name"] in FLUENT or row["method"] == "matched":
            texts = json.loads(row["texts"])
            packed = pack_texts(tokenizer, prompts, [f" {text}" for text in texts], 12, 32)
            words = np.asarray([max(len(text.split()), 1) for text in texts])
            row["smollm2_nll"] = float(np.mean(-np.asarray(total(packed)) / words))


def differences(runs: tuple[Path, ...], beside: tuple[Path, ...]) -> str:
    """What was chosen minus each baseline in gold wins, prompt by prompt, as Markdown."""
    read = lambda paths: [list(csv.DictReader((path / "results.csv").open())) for path in paths]
    tables, others = read(runs), read(beside)
    picked = lambda tables, pick: [next(r for r in t if pick(r)) for t in tables]
    chosen = lambda r: r["chosen"] == "True"
    own = picked(tables, chosen)
    named = [r["name"] for r in tables[0] if r["method"] in BASELINES]
    baselines = {name: picked(tables, lambda r, name=name: r["name"] == name) for name in named}
    baselines["best-of-N at the same cost"] = picked(tables, lambda r: r["method"] == "matched")
    if others:
        baselines["the other flow, as it chose"] = picked(others, chosen)
    mean = lambda rows, key: np.mean([float(r[key]) for r in rows])
    lines = ["| VGF, chosen, minus | gold wins, points (95 %) | distinct-2 of the two | forwards of the two |"]
    lines.append("|---|---|---|---|")
    for name, rows in baselines.items():
        wins = [np.asarray([json.loads(r["wins"]) for r in side]) for side in (own, rows)]
        estimate = mean_interval(wins[0] - wins[1])
        low, high = (100 * x for x in estimate[1:3])
        pair = lambda key, form, rows=rows: " / ".join(format(mean(side, key), form) for side in (own, rows))
        lines.append(
            f"| {name} | {100 * estimate.value:+.1f} [{low:+.1f}, {high:+.1f}] | {pair('distinct_2', '.3f')} | "
            f"{pair('forwards', '.0f')} |"
        )
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    columns = ("method", "gold wins, %", "by seed", "against people", "gold", "VADER", "proxy, sd", "judge NLL")
    more = ("SmolLM2 NLL", "distinct-2", "changed", "forwards", "s to begin", "s")
    body = [[*columns, *more]]
    for r in rows:
        show = lambda key, form, r=r: "-" if r[key] == "" else format(r[key], form)
        seeds = ", ".join(f"{100 * w:.0f}" for w in json.loads(r["wins_by_seed"]))
        cells = [r["name"], f"{100 * r['win']:.1f} [{100 * r['win_low']:.0f}, {100 * r['win_high']:.0f}]", seeds]
        people = [100 * r[key] for key in ("win_people", "win_people_low", "win_people_high") if r[key] != ""]
        cells += ["{:.0f} [{:.0f}, {:.0f}]".format(*people) if people else "-"]
        cells += [
            show(k, ".2f") for k in ("gold", "vader", "proxy", "judge_nll", "smollm2_nll", "distinct_2", "changed")
        ]
        cells += [show("forwards", ".0f"), show("train_seconds", ".0f"), show("seconds", ".1f")]
        body.append(cells)
    # A column that no run has filled is left out.
    kept = [i for i in range(len(body[0])) if any(cells[i] != "-" for cells in body[1:])]
    lines = ["| " + " | ".join(cells[i] for i in kept) + " |" for cells in body]
    return "\n".join([lines[0], "|---" * len(kept) + "|", *lines[1:]]) + "\n"


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
    best = sorted((r for r in rows if r["method"] in ("sft", "bon", "matched")), key=lambda r: int(r["count"]))
    axis.plot([r["proxy"] for r in best], [r["gold"] for r in best], "s--", color="gray", label="best-of-N")
    for r in best:
        axis.annotate(
            f"N={r['count']}", (r["proxy"], r["gold"]), textcoords="offset points", xytext=(-22, -3), fontsize=8
        )
    for marker, r in zip("*P^v", [r for r in rows if r["method"] in ("dpo", "ppo")], strict=False):
        axis.plot(r["proxy"], r["gold"], marker, markersize=10, label=r["name"])
    axis.set(xlabel="proxy reward, standard deviations of μ's samples", ylabel="gold score")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def frontier(rows: list[dict], path: Path) -> None:
    """Gold wins against what an answer costs, and against variety; best-of-N is interpolated between the N drawn."""
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 5.0), layout="constrained", sharey=True)
    flow = [r for r in rows if r["method"] == "vgf" and r["steps"] != "" and int(r["steps"])]
    best = sorted((r for r in rows if r["method"] == "bon"), key=lambda r: int(r["count"]))
    chosen = next((r for r in rows if r["name"].startswith("VGF, chosen")), None)
    for axis, key in zip(axes, ("forwards", "distinct_2"), strict=True):
        axis.plot([r[key] for r in best], [100 * r["win"] for r in best], "s--", color="gray", label="best-of-N")
        for r in best:
            axis.annotate(
                r["count"], (r[key], 100 * r["win"]), textcoords="offset points", xytext=(-22, -3), fontsize=8
            )
        for steps, colour in zip(sorted({int(r["steps"]) for r in flow}), ("C0", "C1", "C2", "C3"), strict=False):
            line = sorted((r for r in flow if int(r["steps"]) == steps), key=lambda r: float(r["step_size"]))
            axis.plot([r[key] for r in line], [100 * r["win"] for r in line], "o-", color=colour, label=f"L = {steps}")
            if key == "distinct_2" and steps == 1:  # the same step sizes on every line, in the same order
                for r in line:
                    axis.annotate(
                        f"ε = {float(r['step_size']):g}", (r[key], 100 * r["win"]), textcoords="offset points",
                        xytext=(2, -14), fontsize=8,
                    )  # fmt: skip
        for marker, r in zip("*P^v", [r for r in rows if r["method"] in ("dpo", "ppo")], strict=False):
            axis.plot(r[key], 100 * r["win"], marker, markersize=9, color="C4", label=r["name"])
        if chosen is not None:
            low, high = 100 * (chosen["win"] - chosen["win_low"]), 100 * (chosen["win_high"] - chosen["win"])
            axis.errorbar(
                chosen[key], 100 * chosen["win"], [[low], [high]], fmt="kD", label="VGF, chosen without gold"
            )  # fmt: skip
    eight = next((r for r in best if int(r["count"]) == 8), None)
    if eight is not None:
        axes[1].axvline(0.9 * eight["distinct_2"], color="gray", linewidth=0.8, linestyle=":")
    axes[0].set(xscale="log", xlabel="forwards of one answer", ylabel="gold wins against μ, %")
    axes[1].set(xlabel="distinct-2 (dotted: 0.9 of best-of-8's)")
    axes[1].invert_xaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(options: Options) -> None:
    """Write the table, the differences and the plots."""
    rows = apart(options.runs) if options.apart else merged(options.runs, options.smollm2)
    shown = extremes(rows) if options.apart else rows
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.name}.csv").write_text(to_csv(rows))
    (options.out / f"{options.name}.txt").write_text(table(shown))
    print(table(shown))
    if not options.apart:
        (options.out / f"{options.name}_differences.txt").write_text(differences(options.runs, options.beside))
        plot(rows, options.out / f"{options.name}.png")
        frontier(rows, options.out / f"{options.name}_frontier.png")


if __name__ == "__main__":
    main(tyro.cli(Options))
