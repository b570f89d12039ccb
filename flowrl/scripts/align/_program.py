"""A language model aligned at test time: its samples are particles that flow toward higher reward.

Trains a small reference on film reviews that people rated (kept for the next run), draws preferences from it, labels
them by a gold score that learners know by its noisy labels alone, fits reward models to the preferences, and compares
the reference itself, best-of-N, DPO, PPO and VGF on held-out prompts: gold, proxy reward, likelihood and variety of the
texts, side by side. VGF's budget is chosen on validation prompts without the gold score; all budgets are reported.

    flowrl align --help
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from flowrl._distribution import require
from flowrl._io import resolve_dir
from flowrl.rlhf import load_reward_model
from flowrl.runs import RunDirectory, to_csv
from flowrl.scripts._console import bar, progress, wide_console
from flowrl.scripts.align._learning import preferences, reward_models
from flowrl.scripts.align._methods import Answers
from flowrl.scripts.align._options import NEEDED, Config, check
from flowrl.scripts.align._report import COLUMNS, describe_row, plot_curve
from flowrl.scripts.align._task import Task, make_task


def main(config: Config) -> None:
    """Run what is not done yet."""
    check(config)
    require(*NEEDED, extra="rlhf")  # here, since some are first used after minutes
    console = wide_console()
    begun = time.perf_counter()
    with RunDirectory(config.out, config.identity(), resume=config.resume) as run, progress(console) as bars:
        run.write_software()
        show = _bars(bars)
        rows = _rows_so_far(run)
        task = make_task(config, resolve_dir(config.data_dir) / "rlhf", show)
        if config.inputs.reward_model is None:
            pairs = preferences(config, task, run)
            reward, accuracy, seconds = reward_models(config, task, pairs, run, show)
            task.facts["reward models' accuracy on held-out preferences"] = round(accuracy, 3)
        else:
            reward, pairs, seconds = load_reward_model(config.inputs.reward_model), None, 0.0
        answers = Answers(config, task, reward, seconds, pairs, run, show, rows)
        for method in config.evaluation.methods:
            answers.add(method)
    _report(config, task, answers, run, console, time.perf_counter() - begun)


def _bars(bars: Any) -> Callable[[str, int, int], None]:
    shown: dict[str, Callable[[int, int], None]] = {}

    def show(name: str, done: int, total: int) -> None:
        shown.setdefault(name, bar(bars, name))(done, total)

    return show


def _rows_so_far(run: RunDirectory) -> list[dict[str, Any]]:
    run.load({"methods": jnp.zeros((), jnp.int32)})
    return run.rows


def _report(config: Config, task: Task, answers: Answers, run: RunDirectory, console: Console, seconds: float) -> None:
    rows = answers.rows
    prompts, samples = config.inputs.prompts, config.evaluation.reference_samples
    table = Table(title=f"{prompts} held-out prompts; gold wins against {samples} samples of μ")
    for heading in COLUMNS:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for cells in (describe_row(row) for row in rows):
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    run.write("prompts.json", json.dumps(task.test.texts, ensure_ascii=False))
    run.write("results.csv", to_csv(rows))
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
            answered = zip(task.test.texts, json.loads(row["texts"]), strict=False)
            for prompt, text in itertools.islice(answered, config.evaluation.samples):
                console.print(f"  {prompt} … {text}", markup=False, highlight=False)
    console.print(f"\n{seconds:.0f} s in all on {jax.default_backend()}; everything is in {run.path}")
