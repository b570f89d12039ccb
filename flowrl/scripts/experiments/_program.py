r"""Experiments as a tool: a matrix of training runs, resumable cell by cell, and tables and plots from its rows.

    python examples/experiments.py run --out runs/matrix --envs halfcheetah-medium-local-v0 --algorithms vgf iql \
        --seeds 1 2 3 --jobs 2 -- --eval-episodes 100
    python examples/experiments.py report runs/matrix/rows.csv --out runs/matrix/report

A cell is one run of `offline_rl.py`: an environment, an algorithm, a variant (named options) and a seed. `run` may be
stopped and started again: finished cells are kept, half-done ones go on from their checkpoint, `rows.csv` holds one row
for every evaluation of every finished cell, and `curves.csv` what was logged on the way. `report` needs these files
alone.
"""

import contextlib
import csv
import dataclasses
import functools
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowrl._io import atomic_write, only_one

# Private modules: locks and files that are whole or absent are the library's, and no user of it needs them.
from flowrl.runs import to_csv
from flowrl.scripts._console import end_well
from flowrl.scripts.experiments._report import LOGGED, Scale, plot_curves, write_report
from flowrl.scripts.offline._options import OF_VGF, parse

PROGRAM = Path(__file__).with_name("offline_rl.py")
#: Has the kernel kill a cell whose runner was killed (1 is PR_SET_PDEATHSIG, 9 SIGKILL), and becomes the command it is
#: given. The cell would go on unseen otherwise, and hold its run directory. Only Linux has this.
_LEASH = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""
#: Options of offline_rl.py that may change while a matrix goes on: where things are, and who works on them.
_FREE = ("out", "resume", "data_dir", "workers", "log", "lanes")
#: Options that have columns of their own in a row, or do not change what is in it.
_ELSEWHERE = ("env", "algorithm", "seed", "eval_episodes", "eval_seed", "lanes")


@dataclasses.dataclass(frozen=True)
class Run:
    """Run a matrix of environments, algorithms, variants and seeds, or go on with it."""

    envs: tuple[str, ...] = ("halfcheetah-medium-local-v0",)
    """Environments, as for offline_rl.py --env."""
    algorithms: tuple[str, ...] = ("vgf",)
    """Algorithms, as for offline_rl.py --algorithm."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Training seeds."""
    variant: tuple[str, ...] = ("base:",)
    """Named sets of options, each in quotes: "NAME: --option value ..."; every one is run."""
    vary: tuple[str, ...] = ()
    """An option with the values to run, as train-steps=0,1,3; several are combined, and with every variant."""
    out: Path = Path("runs/matrix")
    """Directory of the matrix."""
    known: tuple[Path, ...] = ()
    """Files of rows from elsewhere; cells that are in them are not run again. Give them to report as well."""
    jobs: int = 1
    """Runs at a time; with more than one each multiplies matrices on one thread and has one process of environments."""
    dry_run: bool = False
    """List the cells and how far they are, and run nothing."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Make tables and plots from rows."""

    rows: tyro.conf.Positional[tuple[Path, ...]]
    """One or more rows.csv."""
    curves: tuple[Path, ...] = ()
    """One or more curves.csv, for curves.png: losses and values of every run."""
    out: Path = Path("runs/report")
    """Where tables.md and the plots go."""
    baseline: str = "vgf/base: best-of-8 (L=0)"
    """The row, as algorithm/variant: policy, that others are compared with on the same seeds and episodes."""
    normalise: Scale = "d4rl"
    """For means over environments, success as a share and returns, d4rl: from D4RL's random policy (0) to its expert
    (1), where it has the environment; bc: as multiples of the mean of BC in that environment. none: no such means."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a matrix."""

    env: str
    algorithm: str
    variant: str
    seed: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Say which it is."""
        return f"{self.env}/{self.algorithm}/{self.variant}/seed{self.seed}"

    def path(self, out: Path) -> Path:
        """Give its run directory; the slashes of an environment's name are no folders."""
        return out / "cells" / quote(self.env, safe=":") / self.algorithm / self.variant / f"seed{self.seed}"

    def state(self, out: Path) -> Literal["done", "begun", "new"]:
        """Say how far it is."""
        if (self.path(out) / "results.csv").exists():
            return "done"
        return "begun" if (self.path(out) / "checkpoint.npz").exists() else "new"

    def changed(self, out: Path) -> bool:
        """Say whether it was last started with other options; one that this program did not start is taken as it is."""
        path = self.path(out) / "options.json"
        if not path.exists():
            return False
        before = dataclasses.replace(self, options=tuple(json.loads(path.read_text())))
        return before.determining() != self.determining()

    def determining(self) -> dict[str, Any]:
        """Give the options that determine the run, those that were not given too."""
        return _parsed("--env", self.env, "--algorithm", self.algorithm, "--seed", str(self.seed), *self.options)

    def differs(self, row: dict[str, str]) -> list[str]:
        """Name the options with which a row was made otherwise, as far as both know them and they matter to it."""
        mine, theirs = self.determining(), json.loads(row["options"])
        theirs |= {"eval_episodes": int(row["episodes"]), "eval_seed": int(row["eval_seed"])}
        unread = LOGGED if self.algorithm == "vgf" else (*LOGGED, *OF_VGF)
        return sorted(name for name in mine.keys() & theirs.keys() - set(unread) if mine[name] != theirs[name])

    def command(self, out: Path, jobs: int) -> list[str]:
        """Give the command that runs it, or goes on with it."""
        words = ["--env", self.env, "--algorithm", self.algorithm, "--seed", str(self.seed), *self.options]
        if jobs > 1:
            words += ["--workers", "1"]
        if self.state(out) == "begun":
            words.append("--resume")
        return [sys.executable, str(PROGRAM), *words, "--out", str(self.path(out))]


@functools.cache
def _parsed(*words: str) -> dict[str, Any]:
    options = json.loads(json.dumps(dataclasses.asdict(parse(list(words))), default=str))
    return {name: value for name, value in options.items() if name not in _FREE}


def cells(matrix: Run, passed_on: tuple[str, ...]) -> list[Cell]:
    """List the cells; the first seed of everything comes first."""
    if not (matrix.envs and matrix.algorithms and matrix.seeds and matrix.variant) or matrix.jobs < 1:
        raise ValueError("a matrix needs environments, algorithms, variants and seeds, and --jobs 1 or more.")
    axes = []
    for axis in matrix.vary:
        name, equals, values = axis.partition("=")
        if not equals or not all(values.split(",")) or "/" in values:
            raise ValueError(
                f"--vary {axis}: give OPTION=VALUE,VALUE,... such as train-steps=0,1,3; for a value with a slash name "
                "a --variant."
            )
        axes.append([(f"{name}={value}", f"--{name}", *value.split()) for value in values.split(",")])
    variants = {}
    for variant, *choice in itertools.product(matrix.variant, *axes):
        name, colon, options = variant.partition(":")
        label = ",".join(([name] if name != "base" or not axes else []) + [label for label, *_ in choice])
        if not colon or not name or "/" in label or label in variants:
            raise ValueError(f"--variant {variant!r}: give NAME: OPTIONS, with names that differ and have no slash.")
        variants[label] = (*shlex.split(options), *itertools.chain(*(words for _, *words in choice)))
    found = [
        Cell(env, algorithm, name, seed, (*passed_on, *options))
        for seed in matrix.seeds
        for env in matrix.envs
        for algorithm in matrix.algorithms
        for name, options in variants.items()
    ]
    if any(cell.determining()["eval_episodes"] < 1 for cell in found):
        raise ValueError("--eval-episodes 0 trains without acting, so a cell would have no rows; give 1 or more.")
    return found


def run(matrix: Run, passed_on: tuple[str, ...]) -> int:
    """Run what is not done yet; return the number of cells that failed."""
    console = Console(stderr=True)
    todo = cells(matrix, passed_on)
    known = {
        f"{row['env']}/{row['algorithm']}/{row['variant']}/seed{row['seed']}": row
        for path in matrix.known
        for row in csv.DictReader(path.read_text().splitlines())
    }
    states = {cell: "known" if cell.name in known else cell.state(matrix.out) for cell in todo}
    if matrix.dry_run:
        for cell, state in states.items():
            print(f"{state:>6}  {cell.name}  {shlex.join(cell.options)}")
    differing = {cell.name: cell.differs(known[cell.name]) for cell in todo if cell.name in known}
    other = [f"{name} ({', '.join(options)})" for name, options in differing.items() if options]
    other += [cell.name for cell, state in states.items() if state == "done" and cell.changed(matrix.out)]
    if other:
        raise ValueError(f"finished with other options: {', '.join(other)}; name a --variant, or give another --out.")
    if matrix.dry_run:
        return 0
    waiting = [cell for cell, state in states.items() if state not in ("known", "done")]
    matrix.out.mkdir(parents=True, exist_ok=True)
    with only_one(matrix.out / ".lock"):
        failed = _work_off(waiting, matrix, len(todo), console)
    console.print(f"{len(todo) - len(failed)} of {len(todo)} cells are done; rows are in {matrix.out / 'rows.csv'}")
    return len(failed)


def _work_off(waiting: list[Cell], matrix: Run, total: int, console: Console) -> list[Cell]:
    """Run cells, as many at a time as was asked for; give those that failed."""
    failed: list[Cell] = []
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    gather(matrix.out)
    # Cells take many minutes: a speed measured over rich's usual 30 s would never be there.
    show = Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=1e7)
    with show as bars, _ended(running):
        bar = bars.add_task("cells", total=total, completed=total - len(waiting))
        while waiting or running:
            while waiting and len(running) < matrix.jobs:
                cell = waiting.pop(0)
                running[cell] = _start(cell, matrix)
            time.sleep(0.2)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                if running.pop(cell).returncode:
                    failed.append(cell)
                    log = cell.path(matrix.out) / "log.txt"
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
                    text = escape(f"{cell.name}; the end of {log}:\n{tail}")
                    console.print(f"[red]failed[/red] {text}", highlight=False)
                gather(matrix.out)
                bars.advance(bar)
    return failed


def gather(out: Path) -> list[dict[str, Any]]:
    """Write rows.csv, rows.jsonl and curves.csv of all finished cells, in order of their names; give the rows."""
    done = [path.parent for path in sorted((out / "cells").glob("*/*/*/seed*/results.csv"))]
    rows = [row for path in done for row in _rows(path)]
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "rows.csv": to_csv(rows),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "curves.csv": to_csv([row for path in done for row in _curves(path)]),
    }
    for name, text in files.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return rows


def _curves(path: Path) -> Iterator[dict[str, Any]]:
    """Give what one run logged on the way: a row for every number."""
    env, algorithm, variant, seed = path.parts[-4:]
    cell = {"env": unquote(env), "algorithm": algorithm, "variant": variant, "seed": int(seed.removeprefix("seed"))}
    for row in csv.DictReader((path / "metrics.csv").read_text().splitlines()):
        place = cell | {"phase": row.pop("phase"), "step": int(row.pop("step"))}
        yield from (place | {"what": name, "value": f"{float(text):.5g}"} for name, text in row.items() if text)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Give the evaluations of one finished run, one for each way to act."""
    env, algorithm, variant, seed = path.parts[-4:]
    config, info, software = (json.loads((path / f"{x}.json").read_text()) for x in ("config", "data", "software"))
    timing = list(csv.DictReader((path / "timing.csv").read_text().splitlines()))
    acting = sum(float(row["seconds"]) for row in timing if row["phase"] == "evaluation")
    training = sum(float(row["seconds"]) for row in timing) - acting
    episodes = list(csv.DictReader((path / "results.csv").read_text().splitlines()))
    options = {k: v for k, v in config.items() if k not in _ELSEWHERE}
    # A run that went on with other software has a list of each.
    software = {k: " then ".join(v) if isinstance(v, list) else v for k, v in software.items()}
    for policy in dict.fromkeys(row["policy"] for row in episodes):
        mine = [row for row in episodes if row["policy"] == policy]
        scores = [100 * float(row["success"]) if info["metric"] == "success" else float(row["return"]) for row in mine]
        yield {
            "env": unquote(env),
            "algorithm": algorithm,
            "variant": variant,
            "seed": int(seed.removeprefix("seed")),
            "policy": policy,
            "step": config["steps"],
            "metric": info["metric"],
            "episodes": len(mine),
            "score": float(np.mean(scores)),
            "scores": " ".join(f"{x:.6g}" for x in scores),
            "displacement": float(np.mean([float(row["displacement"]) for row in mine])),
            "flow_steps": float(np.mean([float(row["steps"]) for row in mine])),
            "eval_seed": config["eval_seed"],
            "training_seconds": round(training, 1),
            "acting_seconds": round(acting, 1),
            "data_sha256": info["sha256"][:12],
            "rows": info["rows"],
            **software,
            "options": json.dumps(options, sort_keys=True),
        }


def _start(cell: Cell, matrix: Run) -> subprocess.Popen[bytes]:
    path = cell.path(matrix.out)
    path.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    # Seeds run the same programs: compile them once.
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str((matrix.out / "cache").resolve()))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if matrix.jobs > 1:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with atomic_write(path / "options.json") as file:
        file.write((json.dumps(cell.options) + "\n").encode())
    with (path / "log.txt").open("ab") as log:
        # A session of its own: Ctrl-C reaches this program alone, which then ends its children.
        return subprocess.Popen(
            [sys.executable, "-c", _LEASH, *cell.command(matrix.out, matrix.jobs)],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


@contextlib.contextmanager
def _ended(running: dict[Cell, subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the children when this program ends, unless by SIGKILL; their checkpoints stay."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # What nohup ignores stays ignored.
    signals = [x for x in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(x) == signal.SIG_DFL]
    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for process in running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


def main(arguments: list[str]) -> int:
    """Read the command line and do what it says."""
    own, passed_on = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, passed_on = arguments[:at], arguments[at + 1 :]
    commands = (
        Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Report, tyro.conf.subcommand("report", default=None)]
    )
    command = tyro.cli(commands, args=own, description=__doc__)
    if isinstance(command, Run):
        return run(command, tuple(passed_on))
    if passed_on:
        raise ValueError("options after -- are for run.")
    write_report(command.rows, command.out, command.baseline, scale=command.normalise)
    if command.curves:
        plot_curves(command.curves, command.out / "curves.png")
    return 0


if __name__ == "__main__":
    end_well(lambda: main(sys.argv[1:]))
