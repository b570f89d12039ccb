"""Rows of finished runs: a row for every evaluation, with the options that it was made by."""

import ast
import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from flowrl._io import DamagedError, atomic_write, parse_json, read_json_object, read_table
from flowrl.runs import to_csv

#: Options that change what is logged on the way, and nothing else.
LOGGED = ("interval", "curve_points", "curve_episodes", "video")
#: Options that have columns of their own in a row, or do not change what is in it.
_ELSEWHERE = ("env", "algorithm", "seed", "eval_episodes", "eval_seed", "lanes")
#: In rows that have `set`: options of VGF, which rows of all algorithms have, and names that fields had.
_OF_VGF = ("reference_updates", "train_particles", "train_steps", "train_step_size", "band", "temperature", "budget")
#: What a table of rows must have.
_WORDS = ("env", "algorithm", "variant", "policy", "metric", "episodes", "scores", "eval_seed", "options")
_NUMBERS = ("seed", "displacement", "flow_steps", "training_seconds")
#: What rows are made of.
_OF_CONFIG = ("steps", "eval_seed")
_OF_DATA = ("metric", "sha256", "rows")
_OF_RESULTS = ("return", "success", "displacement", "steps")
_NAMES = {"amortised": "amortized", "over_particles": "particle_aggregate"}


def options_of(row: dict[str, str]) -> dict[str, Any]:
    """Return the options that a row was made by.

    Rows from before algorithms had options of their own have the other fields as NAME=VALUE in `set`.
    """
    try:
        options = parse_json(row["options"])
    except ValueError as error:
        raise DamagedError(f"the options of a row are not JSON ({error}): {row['options']:.80}.") from error
    if not isinstance(options, dict):
        raise DamagedError(f"the options of a row are no JSON object: {row['options']:.80}.")
    if "set" in options:
        if row["algorithm"] != "vgf":
            options = {name: value for name, value in options.items() if name not in _OF_VGF}
        for name, _, text in (setting.partition("=") for setting in options["set"]):
            options[_NAMES.get(name, name)] = text
            with contextlib.suppress(ValueError, SyntaxError):
                options[_NAMES.get(name, name)] = ast.literal_eval(text)
    return options


def read_rows(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Read the rows of some rows.csv; a DamagedError (a ValueError) names a file that is none."""
    rows = [row for path in paths for row in read_table(path, columns=_WORDS, numbers=_NUMBERS)]
    for row in rows:
        options_of(row)
        try:
            [float(score) for score in row["scores"].split()]
        except ValueError as error:
            raise DamagedError(f"{row['env']}, {row['policy']}, seed {row['seed']}: scores: {error}.") from error
    return rows


def gather(out: Path) -> list[dict[str, Any]]:
    """Write rows.csv, rows.jsonl and curves.csv of all finished cells, in order of their names; give the rows.

    Raises:
        DamagedError: (a ValueError) a finished cell holds a damaged file, or lacks one.
    """
    done = [path.parent for path in sorted((out / "cells").glob("*/*/*/seed*/results.csv"))]
    rows, curves = [], []
    for path in done:
        try:
            rows += _rows(path)
            curves += _curves(path)
        except (DamagedError, FileNotFoundError) as error:
            raise DamagedError(f"{error} Remove {path} to run this cell again.") from error
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "rows.csv": to_csv(rows),
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "curves.csv": to_csv(curves),
    }
    for name, text in files.items():
        with atomic_write(out / name) as file:
            file.write(text.encode())
    return rows


def _curves(path: Path) -> Iterator[dict[str, Any]]:
    """Yield what one run logged on the way: a row for every number."""
    env, algorithm, variant, seed = path.parts[-4:]
    cell = {"env": unquote(env), "algorithm": algorithm, "variant": variant, "seed": int(seed.removeprefix("seed"))}
    for row in _table(path / "metrics.csv", columns=("phase",), numbers=("step",)):
        place = cell | {"phase": row.pop("phase"), "step": int(row.pop("step"))}
        yield from (place | {"what": name, "value": f"{float(text):.5g}"} for name, text in row.items() if text)


def _table(path: Path, *, columns: tuple[str, ...], numbers: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a table of a finished run, which has a row at least."""
    rows = read_table(path, columns=columns, numbers=numbers)
    if not rows:
        raise DamagedError(f"{path} has no rows; it is damaged.")
    return rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the evaluations of one finished run, one for each way to act."""
    env, algorithm, variant, seed = path.parts[-4:]
    config, info, software = (read_json_object(path / f"{x}.json") for x in ("config", "data", "software"))
    for name, there, wanted in (("config", config, _OF_CONFIG), ("data", info, _OF_DATA)):
        if missing := [key for key in wanted if key not in there]:
            raise DamagedError(f"{path / name}.json lacks {', '.join(missing)}; it is damaged or of another version.")
    timing = _table(path / "timing.csv", columns=("phase",), numbers=("seconds",))
    acting = sum(float(row["seconds"]) for row in timing if row["phase"] == "evaluation")
    training = sum(float(row["seconds"]) for row in timing) - acting
    episodes = _table(path / "results.csv", columns=("policy",), numbers=_OF_RESULTS)
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
