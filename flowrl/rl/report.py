"""What an evaluation showed: intervals, paired differences, rows of a table, plots."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.random as jr
import numpy as np

from flowrl._distribution import require
from flowrl._renamed import old_names as _old_names
from flowrl.rl.acting import Best, Evaluation, Improve, Policy
from flowrl.rl.data import Metric, ReferenceScores
from flowrl.rl.data.replay import Replay
from flowrl.rl.learning import AbstractAlgorithm, AbstractPretrained, held_out
from flowrl.runs.statistics import student


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy's line.

    Attributes:
        name: the policy.
        score: mean score: percent of episodes solved, or mean return.
        low: lower end of the 95 % interval.
        high: upper end.
        difference: mean paired difference to the baseline.
        difference_low: lower end of its 95 % interval.
        difference_high: upper end.
        displacement: mean root-mean-square displacement of the actions, in the budget's unit of length.
        steps: steps L of its flows.
        episodes: how many episodes count.
    """

    name: str
    score: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    displacement: float
    steps: int
    episodes: int


def summarise(
    policies: tuple[Policy, ...],
    evaluation: Evaluation,
    metric: Metric,
    baseline: str,
    reference: ReferenceScores | None = None,
) -> list[Row]:
    """Compute every policy's mean with its interval, and its paired difference to a baseline.

    Intervals are Wilson's for success, Student's for returns and for paired differences: over episodes, since one
    training run says nothing about the spread over seeds.

    Args:
        policies: as evaluated.
        evaluation: what was measured.
        metric: how this environment is scored.
        baseline: name of the policy to compare with.
        reference: as for `scores`.

    Returns:
        One row per policy, in order.
    """
    score = evaluation.scores(metric, reference)
    base = score[[p.name for p in policies].index(baseline)]
    rows = []
    for policy, x, moved in zip(policies, score, evaluation.displacements, strict=True):
        low, high = wilson(x / 100) if metric == "success" else student(x)
        difference_low, difference_high = student(x - base)
        rows.append(
            Row(
                name=policy.name,
                score=float(x.mean()),
                low=low,
                high=high,
                difference=float((x - base).mean()),
                difference_low=difference_low,
                difference_high=difference_high,
                displacement=float(moved.mean()),
                steps=policy.steps,
                episodes=x.size,
            )
        )
    return rows


def wilson(successes: np.ndarray) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a rate, in percent.

    Args:
        successes: 0 or 1 per episode.
    """
    from scipy.stats import binomtest  # here, since importing it takes a second

    interval = binomtest(int(successes.sum()), successes.size).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def markdown(rows: list[Row], unit: str, length: str = "spreads") -> str:
    """Return the rows as a Markdown table.

    Args:
        rows: from `summarise`.
        unit: heading of the score.
        length: the budget's unit of length.
    """
    lines = [
        f"| policy | {unit} | 95 % interval | minus baseline (paired) | moved (RMS, {length}) | L | episodes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.score:.1f} | [{row.low:.1f}, {row.high:.1f}] | {row.difference:+.1f} "
            f"[{row.difference_low:+.1f}, {row.difference_high:+.1f}] | {row.displacement:.3f} | {row.steps} | "
            f"{row.episodes} |"
        )
    return "\n".join(lines) + "\n"


def table(rows: list[Row], unit: str, baseline: str, length: str = "spreads") -> str:
    """Return the rows as plain text, for a terminal.

    Args:
        rows: from `summarise`.
        unit: heading of the score.
        baseline: name of the policy that is compared with.
        length: the budget's unit of length.
    """
    lines = [("policy", unit, "95 % interval", f"minus {baseline}, paired", f"moved (RMS, {length})", "L")]
    for row in rows:
        difference = f"{row.difference:+.1f} [{row.difference_low:+.1f}, {row.difference_high:+.1f}]"
        interval = f"[{row.low:.1f}, {row.high:.1f}]"
        lines.append((row.name, f"{row.score:.1f}", interval, difference, f"{row.displacement:.3f}", f"{row.steps}"))
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    widths = [f"<{first}", *(f">{width}" for width in others)]
    laid_out = ["  ".join(format(x, width) for x, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([laid_out[0], "-" * len(laid_out[0]), *laid_out[1:]])


def episode_rows(policies: tuple[Policy, ...], evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return a row per policy and episode, as for `flowrl.runs.to_csv`.

    Args:
        policies: as evaluated.
        evaluation: what was measured.
    """
    return [
        {
            "policy": policy.name,
            "episode": e,
            "return": float(evaluation.returns[p, e]),
            "success": int(evaluation.successes[p, e]),
            "length": int(evaluation.lengths[p, e]),
            "displacement": float(evaluation.displacements[p, e]),
            "steps": policy.steps,
        }
        for p, policy in enumerate(policies)
        for e in range(evaluation.returns.shape[1])
    ]


def mean_scores(
    policies: tuple[Policy, ...],
    evaluation: Evaluation,
    metric: Metric,
    reference: ReferenceScores | None = None,
) -> dict[str, float]:
    """Return the mean score of every policy as metrics named "score/<policy>", which `plot_learning` draws.

    Args:
        policies: as evaluated.
        evaluation: what was measured.
        metric: how this environment is scored.
        reference: as for `Evaluation.scores`.
    """
    means = evaluation.scores(metric, reference).mean(axis=1)
    return {f"score/{policy.name}": float(x) for policy, x in zip(policies, means, strict=True)}


def held_out_losses(
    algorithm: AbstractAlgorithm, state: Any, validation: Sequence[Replay], step: int
) -> dict[str, float]:
    """Return the losses on data that are not trained on, as metrics named "held_out/<loss>".

    Args:
        algorithm: what is trained; a reference that is trained first is measured too.
        state: its networks.
        validation: the held-out data: one replay, or none.
        step: updates so far; randomness comes from it alone.
    """
    row: dict[str, float] = {}
    for replay in validation:
        (reference_key, cache_key, key), losses = jr.split(jr.key(step), 3), {}
        if isinstance(algorithm, AbstractPretrained) and algorithm.pretraining:
            losses = held_out(algorithm, state, replay, reference_key, phase="reference")
            _, replay = algorithm.prepare(state, replay, key=cache_key)  # the unit of length stays that of training
        losses |= held_out(algorithm, state, replay, key)
        row |= {f"held_out/{name}": float(x) for name, x in losses.items() if name.endswith("loss")}
    return row


def plot_budget(rows: list[Row], policies: tuple[Policy, ...], unit: str, title: str, path: Path) -> None:
    """Draw score against L_test for the flow with selection, with the controls beside it.

    Args:
        rows: from `summarise`.
        policies: the same policies.
        unit: label of the score.
        title: of the figure.
        path: the PNG.
    """
    figure = _figure((6, 4))
    axes = figure.subplots()
    # The flow with selection alone is a curve over L; every other way to act is a point of its own.
    plain = [p for p in policies if all(isinstance(stage, Improve | Best) for stage in p.stages)]
    widest = max((p.candidates for p in plain if p.steps), default=policies[0].candidates)
    series: dict[str, list[tuple[int, Row]]] = {}
    for policy, row in zip(policies, rows, strict=True):
        in_curve = policy in plain and policy.candidates == widest
        series.setdefault("best transported particle" if in_curve else policy.name, []).append((policy.steps, row))
    for name, points in series.items():
        points.sort(key=lambda point: point[0])
        x = np.array([steps for steps, _ in points], float)
        y = np.array([row.score for _, row in points])
        error = np.abs(np.array([[row.score - row.low, row.high - row.score] for _, row in points]).T)
        axes.errorbar(x, y, yerr=np.where(np.isfinite(error), error, 0), marker="o", capsize=3, label=name)
    axes.set(xlabel="test budget: steps L_test", ylabel=unit, title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_learning(
    rows: list[dict[str, Any]], unit: str, title: str, path: Path, *, phase: str = "main", time: str = "updates"
) -> None:
    """Draw what was learned: the loss of the critic (without one, of the reference), and the score where evaluated.

    Args:
        rows: `RunDirectory.rows`; evaluations stand in columns "score/<policy>".
        unit: label of the score.
        title: of the figure.
        path: the PNG.
        phase: rows of which phase.
        time: what their steps count, for the axis.
    """
    rows = [row for row in rows if row["phase"] == phase]
    names = list(dict.fromkeys(key for row in rows for key in row if key.startswith("score/")))
    figure = _figure((9, 3.6))
    axes = figure.subplots(1, 2)
    loss, label = ("td_loss", "TD loss") if "td_loss" in rows[-1] else ("bc_loss", "loss of the reference")
    learned = [row for row in rows if loss in row]
    axes[0].plot([row["step"] for row in learned], [row[loss] for row in learned])
    axes[0].set(xlabel=time, ylabel=label, yscale="log")
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes[1].plot(*zip(*points, strict=True), marker="o", label=name.removeprefix("score/"))
    axes[1].set(xlabel=time, ylabel=unit)
    if names:
        axes[1].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _figure(size: tuple[float, float]) -> Any:
    require("matplotlib", extra="plot")
    from matplotlib.figure import Figure  # not pyplot: the user's backend and figures stay as they are

    return Figure(figsize=size, layout="constrained")


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rl.report")
