"""Tables and plots from rows."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import color_sequences
from matplotlib.figure import Figure

from flowrl._io import read_table
from flowrl.rl.data import ReferenceScores

# A private module: D4RL's numbers are the library's, and no user of it needs them by name.
from flowrl.rl.data.sources import REFERENCES
from flowrl.runs import statistics
from flowrl.scripts.experiments._rows import LOGGED, options_of, read_rows

Scale = Literal["d4rl", "bc", "none"]
#: The way to act whose mean return is the unit of the scale "bc".
UNIT = "vgf/base: BC (one random particle)"
#: What is drawn of a run: a heading, and the first of these columns that it logged.
_CURVES = {
    "TD loss, sum over critics (IQL: of its value)": ("td_loss", "value_loss"),
    "the same on held-out data": ("held_out/td_loss", "held_out/value_loss"),
    "value of the targets": ("value",),
}
#: What must be equal in rows that are compared.
_SHARED = ("metric", "data_sha256", "rows", "eval_seed", "episodes", "protocol", "step")
#: Options that add rows and change none.
_MORE_ROWS = ("bandit_episodes", "test_steps", "chosen", "band", "consensus", "push")


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """How well a way to act does over environments.

    Attributes:
        mean: of the normalised scores of all runs.
        middle: their interquartile mean.
        better: probability that a run of it beats one of the baseline in the same environment; None for want of one.
    """

    mean: statistics.Estimate
    middle: statistics.Estimate
    better: statistics.Estimate | None


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
    rows = read_rows(paths)
    if not rows:
        raise ValueError(f"no rows in {', '.join(map(str, paths))}.")
    grouped: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        label = f"{row['algorithm']}/{row['variant']}: {row['policy']}"
        seeds = grouped.setdefault(row["env"], {}).setdefault(label, {})
        if int(row["seed"]) in seeds:
            raise ValueError(f"{row['env']}, {label}: seed {row['seed']} comes twice.")
        if not all(math.isfinite(float(x)) for x in row["scores"].split()):
            raise ValueError(f"{row['env']}, {label}: seed {row['seed']} has scores that are not finite.")
        seeds[int(row["seed"])] = row
    for env, labels in grouped.items():
        for field in _SHARED:
            found = {row[field] for seeds in labels.values() for row in seeds.values()}
            if len(found) > 1:
                raise ValueError(f"{env}: rows differ in {field} ({', '.join(sorted(found))}) and are no comparison.")
        for label, seeds in labels.items():
            _check_options(f"{env}, {label}", list(seeds.values()))
    return {env: {label: _results(seeds) for label, seeds in labels.items()} for env, labels in sorted(grouped.items())}


def _check_options(where: str, rows: list[dict[str, Any]]) -> None:
    """Refuse seeds of one way to act that were run with other options, as far as both rows know them."""
    unread = (*LOGGED, *_MORE_ROWS)
    first, *others = (options_of(row) for row in rows)
    for other in others:
        known = first.keys() & other.keys() - set(unread)
        changed = [k for k in known if first[k] != other[k]]
        if changed:
            values = "; ".join(f"{name}: {first[name]} and {other[name]}" for name in sorted(changed))
            raise ValueError(
                f"{where}: seeds were run with other options ({values}); give them a --variant of its own."
            )


def _results(seeds: dict[int, dict[str, Any]]) -> Results:
    rows = [seeds[seed] for seed in sorted(seeds)]

    def mean(field: str) -> float:
        return float(np.mean([float(row[field]) for row in rows]))

    scores = np.array([[float(x) for x in row["scores"].split()] for row in rows])
    numbers = (mean(field) for field in ("displacement", "flow_steps", "training_seconds"))
    return Results(scores, tuple(sorted(seeds)), *numbers)


def table(results: dict[str, Results], baseline: str) -> str:
    """Return one environment's table: means with intervals, and paired differences to the baseline."""
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
        # While a matrix runs, some have more seeds than others: what both have is compared.
        shared = sorted(set(base.seeds) & set(mine.seeds)) if base is not None and label != baseline else []
        if base is not None and shared:
            x, y = (r.scores[[r.seeds.index(seed) for seed in shared]] for r in (mine, base))
            found = statistics.paired_difference(x, y)
            intervals = [f"[{low:+.1f}, {high:+.1f}]" for low, high in (found.episodes, found.seeds)]
            part = "" if base.seeds == mine.seeds else f" (seeds {', '.join(map(str, shared))})"
            difference = [f"{found.value:+.1f}{part}", *intervals]
        cells = [
            *(label, f"{mean.value:.1f}", by_seed, f"[{mean.low:.1f}, {mean.high:.1f}]", *difference),
            *(f"{mine.displacement:.2f}", f"{mine.flow_steps:.2g}", f"{mine.training_seconds:.0f}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def normalised(
    all_results: dict[str, dict[str, Results]], metrics: dict[str, str], scale: Scale = "d4rl"
) -> dict[str, dict[str, np.ndarray]]:
    """Return for each way to act its runs' scores on a common scale, a vector for each environment that has it.

    Success is a share. A return is 0 for D4RL's random policy and 1 for its expert, or a multiple of the mean return of
    the cloned behaviour. A scale from BC to best-of-N would turn round, and show the worst as the best, wherever
    selection by the critic does harm.

    Raises:
        ValueError: an environment with returns is none of D4RL's, or has no rows of the cloned behaviour, or its mean
            is not positive.
    """
    out: dict[str, dict[str, np.ndarray]] = {}
    for env, results in all_results.items():
        unit: float | ReferenceScores = 100.0
        if metrics[env] == "return" and scale == "d4rl":
            kinds = [word for word in re.split("[^a-z0-9]+", env.lower()) if word in REFERENCES]
            if not kinds:
                raise ValueError(f"{env} is none of D4RL's, which give the scale; use --normalise bc, or none.")
            unit = REFERENCES[kinds[0]]
        elif metrics[env] == "return":
            if UNIT not in results or results[UNIT].scores.mean() <= 0:
                raise ValueError(
                    f"{env}: to normalise returns, rows of {UNIT!r} with a positive mean are needed; "
                    "--normalise none does without."
                )
            unit = float(results[UNIT].scores.mean())
        for label, mine in results.items():
            runs = mine.scores.mean(axis=1)
            out.setdefault(label, {})[env] = (
                unit.score(runs) / 100 if isinstance(unit, ReferenceScores) else runs / unit
            )
    return out


def aggregates(scores: dict[str, dict[str, np.ndarray]], baseline: str) -> dict[str, Aggregate]:
    """Summarise scores over environments; every way to act has the same ones."""
    base = scores.get(baseline)
    out = {}
    for label, by_env in scores.items():
        runs = list(by_env.values())
        better = None
        if base is not None and label != baseline:
            better = statistics.probability_of_improvement(runs, [base[env] for env in by_env])
        mean = statistics.stratified_bootstrap(runs, statistics.mean)
        out[label] = Aggregate(mean, statistics.stratified_bootstrap(runs), better)
    return out


def aggregate_table(rows: dict[str, Aggregate], baseline: str) -> str:
    """Return the table over environments."""
    lines = [
        f"| algorithm: policy | mean | 95 % | interquartile mean | 95 % | P(better than {baseline}) | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        found = (row.mean, row.middle, row.better)
        cells = (" | " if e is None else f"{e.value:.2f} | [{e.low:.2f}, {e.high:.2f}]" for e in found)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_report(paths: tuple[Path, ...], out: Path, baseline: str, *, scale: Scale = "d4rl") -> str:
    """Write tables.md, scores.png (a panel an environment); over several environments aggregate.png, profiles.png."""
    results = read(paths)
    rows = read_rows(paths)
    facts = {row["env"]: row for row in rows}
    metrics = {env: row["metric"] for env, row in facts.items()}
    if not any(baseline in labels for labels in results.values()):
        known = sorted({label for labels in results.values() for label in labels})
        raise ValueError(f"no rows of --baseline {baseline!r}; there are {known}.")
    parts = []
    for env, labels in results.items():
        unit = "success, %" if metrics[env] == "success" else "return"
        first = next(iter(labels.values())).scores
        source = "{rows} rows of data {data_sha256}, {step} updates, evaluation seed {eval_seed}, {protocol}"
        heading = f"## {env} ({unit}; {first.shape[1]} episodes a seed)"
        made = sorted({"jax {jax} on {device}".format(**row) for row in rows if row["env"] == env and row.get("jax")})
        parts += [heading, f"{source.format(**facts[env])}; {', '.join(made) or 'software unknown'}\n"]
        parts.append(table(labels, baseline))
    out.mkdir(parents=True, exist_ok=True)
    _plot_scores(results, metrics, out / "scores.png")
    if len(results) > 1 and scale != "none":
        everywhere = {k: v for k, v in normalised(results, metrics, scale).items() if len(v) == len(results)}
        unit = "from D4RL's random policy to its expert" if scale == "d4rl" else f"over the mean of {UNIT}"
        heading = f"## Over {len(results)} environments: returns {unit}, success as a share"
        if everywhere:
            found = aggregates(everywhere, baseline)
            parts += [heading, aggregate_table(found, baseline)]
            _plot_aggregates(found, out / "aggregate.png")
            _plot_profiles(everywhere, out / "profiles.png")
        else:
            parts += [heading, "No way to act has rows in every environment.\n"]
    parts.append(
        "Intervals over seeds and episodes, and those over environments, resample runs: with three runs they hold the "
        "mean of training in about 73 % of cases, with ten in 91 %, not in 95 %.\n"
    )
    text = "\n".join(parts)
    (out / "tables.md").write_text(text)
    return text


def plot_curves(paths: tuple[Path, ...], path: Path) -> None:
    """Draw losses and values of every run over its updates, a row of panels an environment, a colour an algorithm.

    Args:
        paths: files of curves.
        path: of the image.

    Raises:
        ValueError: there are no curves.
    """
    runs: dict[str, dict[tuple[str, str, str], dict[str, list[tuple[int, float]]]]] = {}
    columns, numbers = ("env", "algorithm", "variant", "seed", "phase", "what"), ("step", "value")
    for row in (row for source in paths for row in read_table(source, columns=columns, numbers=numbers)):
        if row["phase"] == "main":
            run = runs.setdefault(row["env"], {}).setdefault((row["algorithm"], row["variant"], row["seed"]), {})
            run.setdefault(row["what"], []).append((int(row["step"]), float(row["value"])))
    if not runs:
        raise ValueError(f"no curves in {', '.join(map(str, paths))}.")
    figure = Figure(figsize=(12, 2.8 * len(runs)), layout="constrained")
    grid = figure.subplots(len(runs), len(_CURVES), squeeze=False)
    labels = sorted({f"{algorithm}/{variant}" for cells in runs.values() for algorithm, variant, _ in cells})
    palette = color_sequences["tab10" if len(labels) <= 10 else "tab20"]
    for panels, (env, cells) in zip(grid, runs.items(), strict=True):
        for axes, (heading, names) in zip(panels, _CURVES.items(), strict=True):
            for (algorithm, variant, _), run in cells.items():
                label = f"{algorithm}/{variant}"
                points = next((run[name] for name in names if name in run), [])
                steps, values = [x for x, _ in points], [y for _, y in points]
                mark = "." if len(points) == 1 else None
                axes.plot(steps, values, color=palette[labels.index(label) % 20], lw=1, marker=mark, label=label)
            axes.set_title(heading, fontsize="small")
            axes.set_yscale("log" if "loss" in names[0] else "linear")
        panels[0].set_ylabel(env, fontsize="small")
    for axes in grid[-1]:
        axes.set_xlabel("updates")
    every = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(every.values(), every.keys(), loc="outside right upper", fontsize="x-small")
    figure.savefig(path, dpi=80)


def _plot_scores(results: dict[str, dict[str, Results]], metrics: dict[str, str], path: Path) -> None:
    """Draw every way to act with its interval over seeds and episodes, and its seeds as dots."""
    longest = max(len(labels) for labels in results.values())
    columns = min(2, len(results))
    lines = math.ceil(len(results) / columns)
    figure = Figure(figsize=(6.5 * columns, lines * (1.2 + 0.2 * longest)), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(results) :]:
        axes.set_visible(False)
    for axes, (env, labels) in zip(panels, results.items(), strict=False):
        for place, mine in enumerate(labels.values()):
            mean = statistics.bootstrap_mean(mine.scores)
            axes.plot([mean.low, mean.high], [place, place], color="C0", lw=3, alpha=0.5)
            axes.plot(mine.scores.mean(axis=1), [place] * len(mine.seeds), ".", color="0.4")
            axes.plot(mean.value, place, "o", color="C0")
        axes.set_yticks(range(len(labels)), list(labels), fontsize="x-small")
        axes.invert_yaxis()
        axes.set(title=env, xlabel="success, %" if metrics[env] == "success" else "return")
    figure.savefig(path, dpi=60)


def _plot_aggregates(rows: dict[str, Aggregate], path: Path) -> None:
    """Draw the mean and the interquartile mean of every way to act with their intervals."""
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(rows)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("mean", "middle"), strict=True):
        for place, row in enumerate(rows.values()):
            found = getattr(row, name)
            axes.plot([found.low, found.high], [place, place], color="C0", lw=3, alpha=0.5)
            axes.plot(found.value, place, "o", color="C0")
        axes.set_yticks(range(len(rows)), list(rows), fontsize="x-small")
        axes.set(xlabel="normalised score", title="mean" if name == "mean" else "interquartile mean")
    figure.axes[0].invert_yaxis()
    figure.savefig(path, dpi=80)


def _plot_profiles(scores: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Draw the share of runs above each normalised score, with its interval."""
    figure = Figure(figsize=(11, 1.5 + 0.25 * max(len(scores), 12)), layout="constrained")
    axes = figure.subplots()
    every = np.concatenate([x for by_env in scores.values() for x in by_env.values()])
    thresholds = np.linspace(every.min() - 0.05, every.max() + 0.05, 200)
    for place, (label, by_env) in enumerate(scores.items()):
        runs = list(by_env.values())
        share, low, high = statistics.performance_profile(runs, thresholds)
        (line,) = axes.plot(thresholds, share, ("-", "--", ":")[place // 10 % 3], color=f"C{place % 10}", label=label)
        if min(x.size for x in runs) > 1:  # of one run a task the interval is the whole panel
            axes.fill_between(thresholds, low, high, color=line.get_color(), alpha=0.1)
    axes.set(xlabel="normalised score τ", ylabel="share of runs above τ")
    figure.legend(loc="outside right upper", fontsize="x-small")
    figure.savefig(path, dpi=80)
