"""A matrix of runs: its options, its cells, and how far each cell is."""

import dataclasses
import functools
import itertools
import shlex
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from flowrl._io import DamagedError, parse_json
from flowrl.scripts.experiments._rows import LOGGED, options_of
from flowrl.scripts.offline import check, parse

PROGRAM = (sys.executable, "-m", "flowrl.scripts", "offline")
#: Options that may change while a matrix goes on: where things are, and who works on them.
_FREE = ("out", "resume", "data_dir", "workers", "log", "lanes")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Run a matrix of environments, algorithms, variants and seeds, or go on with it."""

    envs: tuple[str, ...] = ("halfcheetah-medium-local-v0",)
    """Environments, as for `flowrl offline --env`."""
    algorithms: tuple[str, ...] = ("vgf",)
    """Algorithms, as for `flowrl offline --algorithm`."""
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
class Cell:
    """One training run of a matrix."""

    env: str
    algorithm: str
    variant: str
    seed: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return its name."""
        return f"{self.env}/{self.algorithm}/{self.variant}/seed{self.seed}"

    def path(self, out: Path) -> Path:
        """Return its run directory; the slashes of an environment's name are no folders."""
        return out / "cells" / quote(self.env, safe=":") / self.algorithm / self.variant / f"seed{self.seed}"

    def state(self, out: Path) -> Literal["done", "begun", "new"]:
        """Return how far it is."""
        if (self.path(out) / "results.csv").exists():
            return "done"
        return "begun" if (self.path(out) / "checkpoint.npz").exists() else "new"

    def changed(self, out: Path) -> bool:
        """Return whether its last start had other options; one that this program did not start is taken as it is."""
        path = self.path(out) / "options.json"
        if not path.exists():
            return False
        try:
            options = parse_json(path.read_text())
        except ValueError as error:
            raise DamagedError(f"{path} is not JSON ({error}); remove {path.parent} to run this cell again.") from error
        before = dataclasses.replace(self, options=tuple(map(str, options)))
        return before.determining() != self.determining()

    def determining(self) -> dict[str, Any]:
        """Return the options that determine the run, those that were not given too."""
        return _parsed(*self.words())

    def words(self) -> tuple[str, ...]:
        """Return the options of the run."""
        return ("--env", self.env, "--algorithm", self.algorithm, "--seed", str(self.seed), *self.options)

    def differs(self, row: dict[str, str]) -> list[str]:
        """Name the options with which a row was made otherwise, as far as both know them and they matter to it."""
        mine, theirs = self.determining(), options_of(row)
        theirs |= {"eval_episodes": int(row["episodes"]), "eval_seed": int(row["eval_seed"])}
        return sorted(name for name in mine.keys() & theirs.keys() - set(LOGGED) if mine[name] != theirs[name])

    def command(self, out: Path, jobs: int) -> list[str]:
        """Return the command that runs it, or goes on with it."""
        words = list(self.words())
        if jobs > 1:
            words += ["--workers", "1"]
        if self.state(out) == "begun":
            words.append("--resume")
        return [*PROGRAM, *words, "--out", str(self.path(out))]


@functools.cache
def _parsed(*words: str) -> dict[str, Any]:
    return {name: value for name, value in parse(words).flat().items() if name not in _FREE}


@functools.cache
def _checked(*words: str) -> None:
    check(parse(words))


def cells(matrix: Matrix, passed_on: tuple[str, ...]) -> list[Cell]:
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
    for cell in found:
        _checked(*cell.words())
    if any(cell.determining()["eval_episodes"] < 1 for cell in found):
        raise ValueError("--eval-episodes 0 trains without acting, so a cell would have no rows; give 1 or more.")
    return found
