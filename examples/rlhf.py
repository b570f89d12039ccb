"""A language model aligned at test time: its samples are particles that flow toward higher reward.

Trains a small reference on film reviews that people rated (kept for the next run), draws preferences from it, labels
them by a gold score that learners know by its noisy labels alone, fits reward models to the preferences, and compares
the reference itself, best-of-N, DPO, PPO and VGF on held-out prompts: gold, proxy reward, likelihood and variety of the
texts, side by side. VGF's budget is chosen on validation prompts without the gold score; all budgets are reported.

    python examples/rlhf.py --help
"""

import contextlib
import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from console import bar, progress
from rich.console import Console
from rich.table import Table
from rlhf_config import NEEDED, Config, check
from rlhf_learning import preferences, reward_models
from rlhf_methods import Answers
from rlhf_report import plot_curve
from rlhf_task import Task, make_task, real_reward

from flowrl.runs import RunDirectory, to_csv


def main(config: Config) -> None:
    """Run everything that is not done yet."""
    check(config)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        # Some are first used after minutes.
        raise SystemExit(f'{", ".join(missing)} cannot be imported: pip install "flowrl-transport[rlhf]"')
    console = Console()
    begun = time.perf_counter()
    identity = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(config), default=str)).items()}
    identity = {k: v for k, v in identity.items() if k not in ("out", "resume", "data_dir", "samples")}
    with RunDirectory(config.out, identity, resume=config.resume) as run, progress(console) as bars:
        show = _bars(bars)
        rows = _rows_so_far(run)
        task = make_task(config, _cache(config), show)
        if config.model is None:
            pairs = preferences(config, task, run)
            reward, accuracy = reward_models(config, task, pairs, run, show)
            task.facts["reward models' accuracy on held-out preferences"] = round(accuracy, 3)
        else:
            reward, pairs = real_reward(config), None
        answers = Answers(config, task, reward, run, show, rows)
        for method in config.methods:
            answers.add(method, pairs)
    _conclude(config, task, answers, run, console, time.perf_counter() - begun)


def _bars(bars: Any) -> Callable[[str, int, int], None]:
    shown: dict[str, Callable[[int, int], None]] = {}

    def show(name: str, done: int, total: int) -> None:
        shown.setdefault(name, bar(bars, name))(done, total)

    return show


def _cache(config: Config) -> Path:
    from flowrl.runs._files import resolve_dir

    return resolve_dir(config.data_dir) / "rlhf"


def _rows_so_far(run: RunDirectory) -> list[dict[str, Any]]:
    run.load({"methods": jnp.zeros((), jnp.int32)})
    return run.rows


def _conclude(
    config: Config, task: Task, answers: Answers, run: RunDirectory, console: Console, seconds: float
) -> None:
    rows, columns = answers.rows, ("method", "gold wins, %", "gold", "rating", "proxy, sd", "NLL under μ", "judge NLL")
    table = Table(title=f"{config.prompts} held-out prompts; gold wins against {config.reference_samples} samples of μ")
    for heading in (*columns, "distinct-2", "changed", "forwards", "s"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    lines = ["| " + " | ".join((*columns, "distinct-2", "changed", "forwards", "s")) + " |", "|---" * 11 + "|"]
    for cells in (describe_row(row) for row in rows):
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    run.write("results.csv", to_csv([{k: v for k, v in row.items() if k not in ("texts",)} for row in rows]))
    run.write("results.md", "\n".join(lines) + "\n")
    with contextlib.suppress(ImportError):
        plot_curve(rows, run.path / "curve.png")
    console.print(table)
    for name, value in task.facts.items():
        console.print(f"{name}: {value}")
    for note in answers.notes:
        console.print(note, markup=False, style="bold yellow" if note.startswith("warning") else None)
    for row in rows:
        if row["method"] != "vgf" or row["chosen"]:
            console.print(f"\n{row['name']}", style="bold")
            for prompt, text in list(zip(task.test.texts, json.loads(row["texts"]), strict=False))[: config.samples]:
                console.print(f"  {prompt} … {text}", markup=False, highlight=False)
    console.print(f"\n{seconds:.0f} s in all on {jax.default_backend()}; everything is in {run.path}")


def describe_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Lay out one row of the table; what was not measured is a dash."""

    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None or value == "" else format(value, form)

    wins = (
        "-"
        if row["win"] is None
        else f"{100 * row['win']:.1f} [{100 * row['win_low']:.0f}, {100 * row['win_high']:.0f}]"
    )
    name = row["name"] + (" (chosen)" if row["chosen"] else "")
    seconds = f"{row['seconds']:.0f}" + (f" + {row['train_seconds']:.0f}" if row["train_seconds"] else "")
    middle = tuple(
        number(key, form)
        for key, form in (
            ("gold", ".2f"),
            ("rating", ".2f"),
            ("proxy", ".2f"),
            ("nll", ".2f"),
            ("judge_nll", ".2f"),
            ("distinct_2", ".2f"),
            ("changed", ".2f"),
            ("forwards", ".0f"),
        )
    )
    return (name, wins, *middle, seconds)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except KeyboardInterrupt:
        sys.exit("stopped; go on with --resume")
