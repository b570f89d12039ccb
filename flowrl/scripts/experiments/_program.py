r"""Experiments as a tool: a matrix of training runs, resumable cell by cell, and tables and plots from its rows.

    flowrl experiments run --out runs/matrix --envs halfcheetah-medium-local-v0 --algorithms vgf iql \
        --seeds 1 2 3 --jobs 2 -- --eval-episodes 100
    flowrl experiments report runs/matrix/rows.csv --out runs/matrix/report

A cell is one run of `flowrl offline`: an environment, an algorithm, a variant (named options) and a seed. `run` may be
stopped and started again: finished cells are kept, half-done ones go on from their checkpoint, `rows.csv` holds one row
for every evaluation of every finished cell, and `curves.csv` what was logged on the way. `report` needs these files
alone. Options after -- are those of `flowrl offline`, for every cell.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flowrl.scripts.experiments._matrix import Matrix
from flowrl.scripts.experiments._report import Scale, plot_curves, write_report
from flowrl.scripts.experiments._run import run_matrix


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
class Config:
    """What to do, and the options of every cell."""

    command: Matrix | Report
    passed_on: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """Directory of the matrix or the report."""
        return self.command.out


def parse(words: Sequence[str]) -> Config:
    """Read the command line: a command with its options, and after -- those of the cells."""
    own, passed_on = list(words), []
    if "--" in own:
        at = own.index("--")
        own, passed_on = own[:at], own[at + 1 :]
    commands = (
        Annotated[Matrix, tyro.conf.subcommand("run")] | Annotated[Report, tyro.conf.subcommand("report", default=None)]
    )
    command = tyro.cli(commands, args=own, prog="flowrl experiments", description=__doc__)  # pyright: ignore
    if passed_on and not isinstance(command, Matrix):
        raise ValueError("options after -- are for run.")
    return Config(command, tuple(passed_on))


def main(config: Config) -> int:
    """Run the matrix, or report on rows; return the number of cells that failed."""
    if isinstance(config.command, Matrix):
        return run_matrix(config.command, config.passed_on)
    report = config.command
    write_report(report.rows, report.out, report.baseline, scale=report.normalise)
    if report.curves:
        plot_curves(report.curves, report.out / "curves.png")
    return 0
