"""Tables and plots from the rows of `experiments.py`."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowrl.rl import statistics

#: The way to act from which normalised returns are counted.
ZERO = "vgf/base: BC (one random particle)"
#: What must be equal in rows that are compared.
_SHARED = ("metric", "data_sha256", "rows", "eval_seed", "episodes", "protocol", "step")


@dataclasses.dataclass(frozen=True)
class Results:
    """What one way to act scored in one environment.

    Attributes:
        scores: (seeds, episodes), percent for success.
        seeds: training seeds, ascending.
        displacement: mean over all.
        flow_steps: mean L over all.
        training_seconds: mean over seeds.
    """

    scores: np.ndarray
    seeds: tuple[int, ...]
    displacement: float
    flow_steps: float
    training_seconds: float


def read(paths: tuple[Path, ...]) -> dict[str, dict[str, Results]]:
    """Read rows: for each environment, the results of each way to act.

    Raises:
        ValueError: no rows, the same cell twice, or rows of one environment that cannot be compared.
    """
    rows = [row for path in paths for row in csv.DictReader(path.read_text().splitlines())]
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}.")
    grouped: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        label = f"{row['algorithm']}/{row['variant']}: {row['policy']}"
        seeds = grouped.setdefault(row["env"], {}).setdefault(label, {})
        if int(row["seed"]) in seeds:
            raise ValueError(f"{row['env']}, {label}: seed {row['seed']} comes twice.")
        seeds[int(row["seed"])] = row
    for env, labels in grouped.items():
        for field in _SHARED:
            found = {row[field] for seeds in labels.values() for row in seeds.values()}
            if len(found) > 1:
                raise ValueError(f"{env}: rows differ in {field} ({', '.join(sorted(found))}) and are no comparison.")
    return {env: {label: _results(seeds) for label, seeds in labels.items()} for env, labels in sorted(grouped.items())}


def _results(seeds: dict[int, dict[str, Any]]) -> Results:
    rows = [seeds[seed] for seed in sorted(seeds)]

    def mean(field: str) -> float:
        return float(np.mean([float(row[field]) for row in rows]))

    scores = np.array([[float(x) for x in row["scores"].split()] for row in rows])
    numbers = (mean(field) for field in ("displacement", "flow_steps", "training_seconds"))
    return Results(scores, tuple(sorted(seeds)), *numbers)


def table(results: dict[str, Results], baseline: str) -> str:
    """Give one environment's table: means with intervals, and paired differences to the baseline."""
    lines = [
        f"| algorithm: policy | mean | by seed | 95 % (seeds, episodes) | minus {baseline} | 95 % (episodes) "
        "| 95 % (seeds) | moved | L | training, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = results.get(baseline)
    for label, mine in results.items():
        mean = statistics.bootstrap_mean(mine.scores)
        by_seed = ", ".join(f"{x:.0f}" for x in mine.scores.mean(axis=1))
        difference = ["", "", ""]
        if base is not None and base.seeds == mine.seeds and label != baseline:
            found = statistics.paired_difference(mine.scores, base.scores)
            intervals = [f"[{low:+.1f}, {high:+.1f}]" for low, high in (found.episodes, found.seeds)]
            difference = [f"{found.value:+.1f}", *intervals]
        cells = [
            *(label, f"{mean.value:.1f}", by_seed, f"[{mean.low:.1f}, {mean.high:.1f}]", *difference),
            *(f"{mine.displacement:.2f}", f"{mine.flow_steps:.2g}", f"{mine.training_seconds:.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def normalised(all_results: dict[str, dict[str, Results]], metrics: dict[str, str], baseline: str) -> dict[str, Any]:
    """Give each way to act its runs' scores on a common scale, a vector for each environment that has it.

    Success is a share. Returns go from 0, the mean of the cloned behaviour, to 1, that of the baseline: a scale of our
    own, which says how much of the gain of selection by the critic a way to act has; it is no score of the benchmark.
    """
    out: dict[str, dict[str, np.ndarray]] = {}
    for env, results in all_results.items():
        zero, one = 0.0, 100.0
        if metrics[env] == "return":
            if ZERO not in results or baseline not in results:
                raise ValueError(f"{env}: to normalise returns, rows of {ZERO!r} and {baseline!r} are needed.")
            zero, one = results[ZERO].scores.mean(), results[baseline].scores.mean()
        for label, mine in results.items():
            out.setdefault(label, {})[env] = (mine.scores.mean(axis=1) - zero) / (one - zero)
    return out


def aggregate(scores: dict[str, dict[str, np.ndarray]], envs: int) -> str:
    """Give the table over environments, of the ways to act that every environment has."""
    lines = ["| algorithm: policy | mean | 95 % | interquartile mean | 95 % |", "|---|---|---|---|---|"]
    for label, by_env in scores.items():
        if len(by_env) == envs:
            runs = list(by_env.values())
            mean = statistics.stratified_bootstrap(runs, lambda x: float(np.mean(x)))
            middle = statistics.stratified_bootstrap(runs)
            cells = (f"{e.value:.2f} | [{e.low:.2f}, {e.high:.2f}]" for e in (mean, middle))
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_report(paths: tuple[Path, ...], out: Path, baseline: str, *, normalise: bool = True) -> str:
    """Write tables.md, scores.png (one panel an environment) and, over several environments, profiles.png."""
    results = read(paths)
    metrics = {row["env"]: row["metric"] for path in paths for row in csv.DictReader(path.read_text().splitlines())}
    if not any(baseline in labels for labels in results.values()):
        known = sorted({label for labels in results.values() for label in labels})
        raise ValueError(f"no rows of --baseline {baseline!r}; there are {known}.")
    parts = []
    for env, labels in results.items():
        unit = "success, %" if metrics[env] == "success" else "return"
        first = next(iter(labels.values())).scores
        parts += [f"## {env} ({unit}; {first.shape[1]} episodes a seed)", table(labels, baseline)]
    out.mkdir(parents=True, exist_ok=True)
    _plot_scores(results, metrics, out / "scores.png")
    if len(results) > 1 and normalise:
        scores = normalised(results, metrics, baseline)
        parts += [f"## Over {len(results)} environments, normalised", aggregate(scores, len(results))]
        _plot_profiles({k: v for k, v in scores.items() if len(v) == len(results)}, out / "profiles.png")
    text = "\n".join(parts)
    (out / "tables.md").write_text(text)
    return text


def _plot_scores(results: dict[str, dict[str, Results]], metrics: dict[str, str], path: Path) -> None:
    """Draw every way to act with its interval over seeds and episodes, and its seeds as dots."""
    longest = max(len(labels) for labels in results.values())
    figure = Figure(figsize=(6.5 * len(results), 1.2 + 0.28 * longest), layout="constrained")
    for axes, (env, labels) in zip(np.atleast_1d(figure.subplots(1, len(results))), results.items(), strict=True):
        for place, mine in enumerate(labels.values()):
            mean = statistics.bootstrap_mean(mine.scores)
            axes.plot([mean.low, mean.high], [place, place], color="C0", lw=3, alpha=0.5)
            axes.plot(mine.scores.mean(axis=1), [place] * len(mine.seeds), ".", color="0.4")
            axes.plot(mean.value, place, "o", color="C0")
        axes.set_yticks(range(len(labels)), list(labels), fontsize="x-small")
        axes.invert_yaxis()
        axes.set(title=env, xlabel="success, %" if metrics[env] == "success" else "return")
    figure.savefig(path, dpi=110)


def _plot_profiles(scores: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the share of runs above each normalised score, with its interval."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    every = np.concatenate([x for by_env in scores.values() for x in by_env.values()])
    thresholds = np.linspace(every.min() - 0.05, every.max() + 0.05, 200)
    for label, by_env in scores.items():
        share, low, high = statistics.performance_profile(list(by_env.values()), thresholds)
        (line,) = axes.plot(thresholds, share, label=label)
        axes.fill_between(thresholds, low, high, color=line.get_color(), alpha=0.1)
    axes.set(xlabel="normalised score τ", ylabel="share of runs above τ")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)
