"""`flowrl online` as a user runs it, at a size of seconds: plumbing, resume after SIGKILL, and its messages."""

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import PROGRAM, kill_at_first_checkpoint

from flowrl.rl import VGF
from flowrl.scripts.offline import defaults
from flowrl.scripts.online import _options as online, make_config

ENV = "pointmaze-medium-navigate-singletask-task1-v0"
TINY = {
    "--steps": "120",
    "--interval": "40",
    "--lanes": "2",
    "--eval-every": "80",
    "--curve-episodes": "1",
    "--eval-episodes": "1",
    "--eval-lanes": "6",
    "--workers": "1",
}
OFFLINE = {
    "--rows": "2000",
    "--steps": "40",
    "--reference-updates": "40",
    "--interval": "20",
    "--hidden": "16",
    "--batch-size": "16",
    "--eval-episodes": "0",
    "--curve-points": "0",
    "--workers": "1",
}


def words(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (name, *value.split(" "))]


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([*PROGRAM, *options], capture_output=True, text=True, check=False)


def offline(folder: Path, algorithm: str = "vgf", **changes: str) -> Path:
    known = defaults(algorithm).flat()
    options = {name: value for name, value in OFFLINE.items() if name[2:].replace("-", "_") in known}
    options |= {"--env": ENV, "--out": str(folder / "offline"), "--data-dir": str(folder / "data")}
    options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    done = run("offline", algorithm, *words(options))
    assert done.returncode == 0, done.stderr
    return folder / "offline"


def arguments(folder: Path, out: str, **changes: str) -> list[str]:
    options = TINY | {"--offline": str(folder / "offline"), "--out": str(folder / out)}
    options |= {"--data-dir": str(folder / "data")}
    return words(options | {f"--{name.replace('_', '-')}": value for name, value in changes.items()})


@pytest.mark.slow
def test_sigkill_and_resume_equal_the_uninterrupted_run(tmp_path, monkeypatch):
    """Killed between two checkpoints of the online phase, with episodes open and the ring partly filled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    offline(tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    growing = {"collect_steps": "0:2", "exploration": "0.1", "protocol": "rlpd", "max_displacement": "0.05:0.1"}
    done = run("online", *arguments(tmp_path, "whole", **growing))
    assert done.returncode == 0, done.stderr
    assert "environment steps/s" in done.stderr
    names = {path.name for path in whole.iterdir()} - {".lock"}
    assert names == {
        *("config.json", "data.json", "offline.json", "software.json", "metrics.csv", "timing.csv", "checkpoint.npz"),
        *("checkpoint.1.npz", "results.csv", "results.md", "curve.png"),
    }
    rows = list(csv.DictReader((whole / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "40", "80", "120"]
    assert [bool(row["score/VGF L=1"]) for row in rows] == [True, False, True, True]
    assert float(rows[1]["collected/steps"]) < float(rows[3]["collected/steps"]) <= 2
    results = csv.DictReader((whole / "results.csv").read_text().splitlines())
    moved = {row["policy"]: float(row["displacement"]) for row in results}
    # The cap is on the distance over both coordinates, the displacement a root mean square over them.
    assert moved["online: VGF L=1"] <= 0.1 / 2**0.5 * 1.001 < moved["offline: VGF L=1"]
    assert json.loads((whole / "software.json").read_text())["protocol"].startswith("online-1/rlpd/last-checkpoint")

    kill_at_first_checkpoint(["online", *arguments(tmp_path, "cut", **growing)], cut)
    done = run("online", *arguments(tmp_path, "cut", **growing), "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "results.csv", "checkpoint.npz", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name

    again = run("online", *arguments(tmp_path, "whole", **growing))
    assert "holds a run already" in again.stderr
    changed = run("online", *arguments(tmp_path, "whole", **(growing | {"exploration": "0.2"})), "--resume")
    assert "exploration: 0.1 there, 0.2 here" in changed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("fql", {"protocol": "wsrl", "startup": "40"}),
        ("iql", {"exploration": "0.1", "host_buffer": ""}),
        ("vgf", {"reference": "live", "collect_select": "softmax", "selection_temperature": "1", "train_steps": "0:1"}),
    ],
)
def test_rivals_and_live_references_run_to_the_end(tmp_path, algorithm, options):
    offline(tmp_path, algorithm)
    done = run("online", *[word for word in arguments(tmp_path, "run", **options) if word])
    assert done.returncode == 0, done.stderr
    last = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))[-1]
    assert np.isfinite(float(last["td_loss"]))
    assert any(name.startswith("score/") for name in last)


def planned(config, algorithm: str = "vgf"):
    first = defaults(algorithm).changed(hidden=(8,))
    return online.planned(config, first, first.learner())


def test_budgets_grow_over_the_run():
    config = make_config(steps=1000, collect_steps="0:3", train_steps="0:2", max_displacement="0.5:1")
    plan = planned(config)
    found = []
    for step in (0, 499, 1000):
        now = plan(step)
        assert isinstance(now.algorithm, VGF)
        budget = now.algorithm.train_budget
        found.append((now.policy.steps, budget.steps, float(budget.max_displacement)))
    assert found[0] == (0, 0, 0.5)
    assert found[1] == (1, 1, pytest.approx(0.7495))
    assert found[2] == (3, 2, 1.0)
    # Nothing is changed unless it is asked for, so nothing is compiled again.
    plain = planned(make_config())
    assert plain(0) == plain(500)
    assert plain(0).policy.steps == 1


def read(folder: Path):
    """Read an offline run as a program does before it begins."""
    there = online.read_offline(folder, make_config())
    return there, online.offline_learner(there, folder)


def test_an_offline_run_is_read_back_as_it_was(tmp_path):
    first = defaults().changed(hidden=(8, 8), samples=16, test_steps=(1, 2), steps=30)
    skipped = ("out", "resume", "data_dir", "workers", "log")
    options = {k: v for k, v in first.flat().items() if k not in skipped}
    (tmp_path / "config.json").write_text(json.dumps(options))
    with pytest.raises(FileNotFoundError, match="is not a run of `flowrl offline`"):
        read(tmp_path)
    (tmp_path / "checkpoint.npz").touch()
    there = online.read_offline(tmp_path, make_config(workers=first.run.workers))
    assert there == first
    names = [policy.name for policy in online.shown(there, there.learner())]
    assert names == ["best-of-8 (L=0)", "VGF L=1", "VGF L=2"]
    for change, message in (
        ({"chunk": 5}, "acts in chunks of 5"),
        ({"disagreement": 1.0}, "another version: unknown disagreement"),
        (defaults("bc").flat(), "bc has no critic"),
    ):
        (tmp_path / "config.json").write_text(json.dumps((options if "algorithm" not in change else {}) | change))
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 1500}, "--steps and --eval-every multiples of --interval"),
        ({"lanes": 3}, "--interval must be a multiple of --lanes"),
        ({"updates_per_step": 0.1}, "--updates-per-step times --lanes must be a whole number"),
        ({"exploration": -1.0}, "--exploration must be >= 0"),
        ({"eval_lanes": 0}, "--eval-lanes must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        online.check(make_config(**changes))


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"collect_steps": "one"}, "vgf", "--collect-steps one: give a number, or FIRST:LAST"),
        ({"collect_steps": "0:1.5"}, "vgf", "steps are whole numbers"),
        ({"max_displacement": "-1"}, "vgf", "numbers must be >= 0"),
        ({"collect_select": "softmax"}, "vgf", "selection-temperature must be > 0"),
        ({"train_steps": "1"}, "fql", "fql has no options train_steps"),
        ({"reference": "live"}, "iql", "iql has no options reference"),
        ({"collect_candidates": 4}, "iql", "iql has no options collect_candidates"),
    ],
)
def test_plans_that_make_no_sense_are_refused(changes, name, message):
    with pytest.raises(ValueError, match=message):
        planned(make_config(name, **changes), name)


def test_options_are_those_of_the_algorithm_of_the_offline_run(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(defaults("iql").flat()))
    (tmp_path / "checkpoint.npz").touch()
    config = online.parse(["--offline", str(tmp_path), "--exploration", "0.1"])
    assert (config.algorithm, config.collecting.exploration) == ("iql", 0.1)
    assert online.parse(["--algorithm", "fql"]).collecting.collect_candidates == 1
    assert online.parse([]) == make_config()
    for words in (["--collect-candidates", "4"], ["--reference", "live"], ["--env", "x"]):
        with pytest.raises(SystemExit):
            online.parse(["--offline", str(tmp_path), *words])
        assert words[0] in capsys.readouterr().err
    with pytest.raises(ValueError, match="leave --algorithm out"):
        online.parse(["--offline", str(tmp_path), "--algorithm", "fql"])


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("env", "factory:os:abort"),
        ("env", "gym:antigravity:Mine-v0"),
        ("algorithm", "antigravity:Mine"),
        ("algorithm", "minari:Mine"),
    ],
)
def test_a_name_in_a_file_runs_no_code_unasked(tmp_path, monkeypatch, option, name):
    (tmp_path / "config.json").write_text(json.dumps(defaults("iql").flat() | {option: name}))
    (tmp_path / "checkpoint.npz").touch()
    asked = []
    monkeypatch.setattr("importlib.import_module", lambda module, *_: asked.append(module))
    with pytest.raises(ValueError, match=f"names code, {option} '{name}', .* --trust-code"):
        online.parse(["--offline", str(tmp_path)])
    with pytest.raises(ValueError, match="--trust-code"):
        online.read_offline(tmp_path, make_config("iql", offline=tmp_path))
    assert not asked


def test_a_name_in_a_file_is_taken_at_the_users_word(tmp_path):
    for env in ("gym:mine:Mine-v0", "factory:mine:make"):
        (tmp_path / "config.json").write_text(json.dumps(defaults("iql").flat() | {"env": env}))
        (tmp_path / "checkpoint.npz").touch()
        config = online.parse(["--offline", str(tmp_path), "--trust-code"])
        assert online.read_offline(tmp_path, config).data.env == env
    (tmp_path / "config.json").write_text(json.dumps(defaults("iql").flat() | {"env": "gym:Pendulum-v1"}))
    assert online.read_offline(tmp_path, online.parse(["--offline", str(tmp_path)])).data.env == "gym:Pendulum-v1"


def test_a_cap_is_that_of_every_budget():
    config = make_config(steps=1000, max_displacement="0.5")
    now = planned(config)(0)
    assert now.policy.stages[0].budget.max_displacement == 0.5
    first = defaults().changed(hidden=(8,))
    assert [p.stages[0].budget.max_displacement for p in online.shown(first, now.algorithm) if p.steps] == [0.5, 0.5]
