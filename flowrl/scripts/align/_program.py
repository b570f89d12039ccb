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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from flowrl._distribution import install
from flowrl.runs import RunDirectory, to_csv
from flowrl.scripts._console import bar, end_well, progress
from flowrl.scripts.align._learning import preferences, reward_models
from flowrl.scripts.align._methods import Answers
from flowrl.scripts.align._options import NEEDED, Config, check
from flowrl.scripts.align._report import COLUMNS, describe_row, plot_curve
from flowrl.scripts.align._task import Task, make_task, real_reward


def main(config: Config) -> None:
    """Run everything that is not done yet."""
    check(config)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        # Some are first used after minutes.
        raise SystemExit(f"{', '.join(missing)} cannot be imported: {install('rlhf')}")
    console = Console()
    begun = time.perf_counter()
    identity = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(config), default=str)).items()}
    identity = {k: v for k, v in identity.items() if k not in ("out", "resume", "data_dir", "samples")}
    with RunDirectory(config.out, identity, resume=config.resume) as run, progress(console) as bars:
        run.write_software()
        show = _bars(bars)
        rows = _rows_so_far(run)
        task = make_task(config, _cache(config), show)
        if config.model is None:
            pairs = preferences(config, task, run)
            reward, accuracy, seconds = reward_models(config, task, pairs, run, show)
            task.facts["reward models' accuracy on held-out preferences"] = round(accuracy, 3)
        else:
            reward, pairs, seconds = real_reward(config), None, 0.0
        answers = Answers(config, task, reward, seconds, run, show, rows)
        for method in config.methods:
            answers.add(method, pairs)
    _conclude(config, task, answers, run, console, time.perf_counter() - begun)


def _bars(bars: Any) -> Callable[[str, int, int], None]:
    shown: dict[str, Callable[[int, int], None]] = {}

    def show(name: str, done: int, total: int) -> None:
        shown.setdefault(name, bar(bars, name))(done, total)

    return show


def _cache(config: Config) -> Path:
    from flowrl._io import resolve_dir

    return resolve_dir(config.data_dir) / "rlhf"


def _rows_so_far(run: RunDirectory) -> list[dict[str, Any]]:
    run.load({"methods": jnp.zeros((), jnp.int32)})
    return run.rows


def _conclude(
    config: Config, task: Task, answers: Answers, run: RunDirectory, console: Console, seconds: float
) -> None:
    rows = answers.rows
    table = Table(title=f"{config.prompts} held-out prompts; gold wins against {config.reference_samples} samples of μ")
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
            for prompt, text in list(zip(task.test.texts, json.loads(row["texts"]), strict=False))[: config.samples]:
                console.print(f"  {prompt} … {text}", markup=False, highlight=False)
    console.print(f"\n{seconds:.0f} s in all on {jax.default_backend()}; everything is in {run.path}")


if __name__ == "__main__":
    options = tyro.cli(Config, description=__doc__)
    end_well(lambda: main(options), options.out)
