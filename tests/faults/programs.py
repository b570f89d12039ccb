"""The long programs at a size of seconds: how each is started, goes on, and what must be the same in the end."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ENV, DATA = "pointmaze-medium-navigate-singletask-task1-v0", "pointmaze-medium-navigate-v0"
#: Columns that hold times.
CLOCKS = ("seconds", "train_seconds", "training_seconds", "acting_seconds", "compilation")

OFFLINE = {
    "--rows": "2000",
    "--steps": "80",
    "--chunk": "1",  # experience is collected one action at a time
    "--reference-updates": "40",
    "--interval": "20",
    "--hidden": "16",
    "--batch-size": "16",
    "--eval-episodes": "1",
    "--curve-points": "1",
    "--curve-episodes": "1",
    "--test-steps": "1",
    "--chosen": "1",
    "--lanes": "10",  # one for each way to act at the end that is a program of its own
    "--workers": "1",
}
ONLINE = {
    "--steps": "160",
    "--interval": "40",
    "--lanes": "2",
    "--eval-every": "80",
    "--curve-episodes": "1",
    "--eval-episodes": "1",
    "--eval-lanes": "6",
    "--workers": "1",
    "--collect-steps": "0:2",
    "--exploration": "0.1",
}
RLHF = {
    "--data": "generated",
    "--rows": "600",
    "--width": "16",
    "--layers": "1",
    "--vocabulary": "200",
    "--sft-steps": "50",
    "--pairs": "60",
    "--reward-steps": "100",
    "--dpo-steps": "40",
    "--prompts": "6",
    "--validation-prompts": "5",
    "--reference-samples": "4",
    "--length": "6",
    "--particles": "3",
    "--best-of": "2",
    "--steps": "1",
    "--step-sizes": "1",
    "--methods": "sft bon dpo vgf",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """A program whose runs are killed.

    Attributes:
        start: the words that start it: a file, or `-m` and a module with its subcommand.
        words: its arguments, given the directory of the run and that of the data.
        begun: says whether the directory of a run holds something to go on with by --resume.
        same: file patterns under the directory of the run whose content must be the same in the end.
    """

    start: tuple[str, ...]
    words: Callable[[Path, Path], list[str]]
    begun: Callable[[Path], bool]
    same: tuple[str, ...]

    def command(self, out: Path, data: Path) -> list[str]:
        """Start, or go on."""
        words = [*self.start, *self.words(out, data)]
        return [*words, "--resume"] if self.begun(out) else words


def flat(options: dict[str, str]) -> list[str]:
    """Give options as words."""
    return [word for name, value in options.items() for word in (name, *value.split())]


def _has_config(out: Path) -> bool:
    return (out / "config.json").exists()


def _never(out: Path) -> bool:  # noqa: ARG001
    """The same command goes on by itself."""
    return False


def _offline(out: Path, data: Path) -> list[str]:
    return flat(OFFLINE | {"--env": ENV, "--out": str(out), "--data-dir": str(data)})


def _online(out: Path, data: Path) -> list[str]:
    return flat(ONLINE | {"--offline": str(data / "offline"), "--out": str(out), "--data-dir": str(data)})


def _rlhf(out: Path, data: Path) -> list[str]:
    return flat(RLHF | {"--out": str(out), "--data-dir": str(data)})


def _generate(out: Path, data: Path) -> list[str]:  # noqa: ARG001
    return [DATA, str(out), "5000", "2000", "2"]


def _experiments(out: Path, data: Path) -> list[str]:
    shared = flat(OFFLINE | {"--data-dir": str(data), "--steps": "40", "--curve-points": "0"})
    return ["run", "--out", str(out), "--envs", ENV, "--seeds", "1", "2", "--", *shared]


def _posterior(out: Path, data: Path) -> list[str]:  # noqa: ARG001
    draws = {"--nuts-warmup": "20", "--nuts-draws": "20", "--reference-draws": "20"}
    sizes = {"--particles": "20", "--steps": "40", **draws}
    return flat({"--model": "eight-schools", "--out": str(out)} | sizes)


def _command(name: str) -> tuple[str, ...]:
    return ("-m", "flowrl.scripts", name)


#: Files of a run that must be the same.
RUN = ("metrics.csv", "results.csv", "checkpoint.npz", "checkpoint.1.npz", "config.json", "data.json")
PROGRAMS = {
    "offline": Program(_command("offline"), _offline, _has_config, RUN),
    "online": Program(_command("online"), _online, _has_config, RUN),
    "rlhf": Program(_command("align"), _rlhf, _has_config, ("metrics.csv", "results.csv", "config.json", "*.npz")),
    "posterior": Program(_command("posterior"), _posterior, _never, ("results.csv", "moments.csv")),
    "generate": Program((str(HERE / "generate.py"),), _generate, _never, ("*/*/*.npz", "*/*/manifest.json")),
    "experiments": Program(
        _command("experiments"), _experiments, _never, ("rows.csv", *(f"cells/*/*/*/*/{name}" for name in RUN))
    ),
}


def environment(cache: Path) -> dict[str, str]:
    """Give the variables of a process that shares compiled programs; with a limit of size, JAX locks the cache."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**30),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }


def finish(command: list[str], cache: Path) -> None:
    """Run a command to its end."""
    done = subprocess.run(
        [sys.executable, *command], env=environment(cache), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def content(path: Path) -> object:
    """Give what must be the same: everything but times, which are columns of tables and entries of checkpoints."""
    if path.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(path.read_text())))
        kept = [i for i, name in enumerate(rows[0]) if name not in CLOCKS] if rows else []
        return [[row[i] for i in kept] for row in rows]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in archive.items() if name != "__meta__"}
            meta = json.loads(archive["__meta__"].tobytes()) if "__meta__" in archive else {}
        meta = {name: x for name, x in meta.items() if name not in CLOCKS}
        meta["rows"] = [{k: v for k, v in row.items() if k not in CLOCKS} for row in meta.get("rows", ())]
        return arrays, meta
    return path.read_bytes()


def differences(program: Program, whole: Path, cut: Path) -> list[str]:
    """Name the files of two runs that differ."""
    found: list[str] = []
    for pattern in program.same:
        names = {path.relative_to(folder) for folder in (whole, cut) for path in folder.glob(pattern)}
        assert names, f"no file {pattern} in {whole}"
        for name in sorted(names):
            both = [folder / name for folder in (whole, cut)]
            if not all(path.exists() for path in both) or content(both[0]) != content(both[1]):
                found.append(str(name))
    return found
