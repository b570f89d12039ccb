"""Join runs of `flowrl online` into rows, tables and curves.

    python tests/benchmarks/online_curves.py runs/online docs/results/online

Reads runs/online/<environment>/<variant>/seed<k>. Rows of earlier calls stay, so that work can go on in parts. There
are two kinds: `curve.csv`, the score of every policy along the way, and `final.csv`, every episode's score of the
offline and of the online policy, on the same episodes. Intervals are Student's over the means of the seeds.
"""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import tyro

from flowrl.rl import report
from flowrl.runs import to_csv

mpl.use("agg")
from matplotlib import pyplot as plt


@dataclasses.dataclass(frozen=True)
class Options:
    """Join runs over training seeds."""

    runs: tyro.conf.Positional[Path]
    """Directory of the runs; one that is missing adds nothing."""
    out: tyro.conf.Positional[Path]
    """Where curve.csv, final.csv and curves.png are; the table is printed."""


def main(options: Options) -> None:
    """Add what is new to the rows, and make tables and plots of all."""
    options.out.mkdir(parents=True, exist_ok=True)
    curve, final = (_read(options.out / f"{name}.csv") for name in ("curve", "final"))
    for path in sorted(options.runs.glob("*/*/seed*/results.csv")):
        env, variant, seed = path.parts[-4:-1]
        where = {"env": env, "variant": variant, "seed": seed.removeprefix("seed")}
        curve = [row for row in curve if not where.items() <= row.items()] + list(_curve(path.parent, where))
        final = [row for row in final if not where.items() <= row.items()] + list(_final(path.parent, where))
    if not final:
        raise SystemExit(f"no finished runs in {options.runs}, no rows in {options.out}.")
    order = lambda row: (row["env"], row["variant"], row["seed"])  # noqa: E731
    curve, final = sorted(curve, key=order), sorted(final, key=order)
    for name, rows in (("curve", curve), ("final", final)):
        (options.out / f"{name}.csv").write_text(to_csv(rows))
    print("\n".join(_table(final, curve)))
    _plot(curve, options.out / "curves.png")


def _read(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def _curve(run: Path, where: dict[str, str]) -> Any:
    for row in _read(run / "metrics.csv"):
        for name, value in row.items():
            if name.startswith("score/") and value:
                yield {**where, "step": row["step"], "policy": name.removeprefix("score/"), "score": value}


def _final(run: Path, where: dict[str, str]) -> Any:
    config, offline, data, software = (
        json.loads((run / f"{name}.json").read_text()) for name in ("config", "offline", "data", "software")
    )
    timing, episodes = _read(run / "timing.csv"), _read(run / "results.csv")
    for name in dict.fromkeys(row["policy"] for row in episodes):
        mine = [row for row in episodes if row["policy"] == name]
        scores = [100 * float(row["success"]) if data["metric"] == "success" else float(row["return"]) for row in mine]
        when, _, policy = name.partition(": ")
        yield {
            **where,
            "when": when,
            "policy": policy,
            "score": f"{np.mean(scores):.6g}",
            "scores": " ".join(f"{x:.6g}" for x in scores),
            "seconds": f"{sum(float(row['seconds']) for row in timing):.0f}",
            "steps": str(config["steps"]),
            "algorithm": offline["algorithm"],
            "data_sha256": data["sha256"][:12],
            **software,
            "options": json.dumps(config, sort_keys=True),
            "offline_options": json.dumps(offline, sort_keys=True),
        }


def _table(final: list[dict[str, Any]], curve: list[dict[str, Any]]) -> Any:
    """Write one line per policy of each variant: offline, what the switch did, online, and what was gained."""
    yield "| environment | variant | policy | offline | at the switch, 95 % | at the end | gained, by seed | 95 % |"
    yield "|---|---|---|---|---|---|---|---|"
    for env, variant, policy in dict.fromkeys((row["env"], row["variant"], row["policy"]) for row in final):
        where = {"env": env, "variant": variant, "policy": policy}
        score = {(r["seed"], r["when"]): float(r["score"]) for r in final if where.items() <= r.items()}
        seeds = sorted({seed for seed, _ in score})
        gained = np.array([score[seed, "online"] - score[seed, "offline"] for seed in seeds])
        # The points of the curve have episodes of their own, the same ones before and after.
        points = {(r["seed"], int(r["step"])): float(r["score"]) for r in curve if where.items() <= r.items()}
        first = min(step for _, step in points if step > 0)
        changed = np.array([points[seed, first] - points[seed, 0] for seed in seeds])
        before, after = (np.mean([score[seed, when] for seed in seeds]) for when in ("offline", "online"))
        yield (
            f"| {env.removesuffix('-local-v0')} | {variant} | {policy} | {before:.0f} | {changed.mean():+.0f} "
            f"{_interval(changed)} | {after:.0f} | {', '.join(f'{x:+.0f}' for x in gained)} | {_interval(gained)} |"
        )


def _interval(seeds: np.ndarray) -> str:
    low, high = report.student(seeds)
    return f"[{low:+.0f}, {high:+.0f}]" if seeds.size > 1 else "one seed"


def _plot(curve: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel per environment: VGF L = 1, or a baseline's own proposals, of each variant; mean and every seed."""
    envs = list(dict.fromkeys(row["env"] for row in curve))
    figure, panels = plt.subplots(1, len(envs), figsize=(6 * len(envs), 4), squeeze=False, layout="constrained")
    for axes, env in zip(panels[0], envs, strict=True):
        variants = list(dict.fromkeys(row["variant"] for row in curve if row["env"] == env))
        for number, variant in enumerate(variants):
            rows = [row for row in curve if row["env"] == env and row["variant"] == variant]
            names = list(dict.fromkeys(row["policy"] for row in rows))
            name = "VGF L=1" if "VGF L=1" in names else names[0]
            by_seed: dict[str, dict[int, float]] = {}
            for row in rows:
                if row["policy"] == name:
                    by_seed.setdefault(row["seed"], {})[int(row["step"])] = float(row["score"])
            steps = sorted(set.intersection(*(set(x) for x in by_seed.values())))
            for seed in by_seed.values():
                axes.plot(steps, [seed[x] for x in steps], color=f"C{number}", alpha=0.25, linewidth=1)
            mean = [np.mean([seed[x] for seed in by_seed.values()]) for x in steps]
            axes.plot(steps, mean, color=f"C{number}", marker="o", label=f"{variant}: {name} ({len(by_seed)} seeds)")
        axes.set(title=env, xlabel="environment steps after the switch", ylabel="score")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
