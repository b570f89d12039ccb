"""Rows of finished runs: a row for every evaluation, with the options that it was made by."""

import ast
import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from flowrl._io import atomic_write
from flowrl.runs import to_csv

#: Options that change what is logged on the way, and nothing else.
LOGGED = ("interval", "curve_points", "curve_episodes", "video")
#: Options that have columns of their own in a row, or do not change what is in it.
_ELSEWHERE = ("env", "algorithm", "seed", "eval_episodes", "eval_seed", "lanes")
#: In rows that have `set`: options of VGF, which rows of all algorithms have, and names that fields had.
_OF_VGF = ("reference_updates", "train_particles", "train_steps", "train_step_size", "band", "temperature", "budget")
_NAMES = {"amortised": "amortized", "over_particles": "particle_aggregate"}


def options_of(row: dict[str, str]) -> dict[str, Any]:
    """Return the options that a row was made by.

    Rows from before algorithms had options of their own have the other fields as NAME=VALUE in `set`.
    """
    options = json.loads(row["options"])
    if "set" in options:
        if row["algorithm"] != "vgf":
            options = {name: value for name, value in options.items() if name not in _OF_VGF}
        for name, _, text in (setting.partition("=") for setting in options["set"]):
            options[_NAMES.get(name, name)] = text
            with contextlib.suppress(ValueError, SyntaxError):
                options[_NAMES.get(name, name)] = ast.literal_eval(text)
    return options


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
    """Yield what one run logged on the way: a row for every number."""
    env, algorithm, variant, seed = path.parts[-4:]
    cell = {"env": unquote(env), "algorithm": algorithm, "variant": variant, "seed": int(seed.removeprefix("seed"))}
    for row in csv.DictReader((path / "metrics.csv").read_text().splitlines()):
        place = cell | {"phase": row.pop("phase"), "step": int(row.pop("step"))}
        yield from (place | {"what": name, "value": f"{float(text):.5g}"} for name, text in row.items() if text)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the evaluations of one finished run, one for each way to act."""
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
