"""The experiments tool: its matrix, what it does with cells that fail or were begun, its rows and its report."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from flowrl.scripts import experiments
from flowrl.scripts.experiments import Matrix, _matrix, _report as experiment_report, cells, options_of, run_matrix
from flowrl.scripts.experiments._rows import gather

#: Stands in for `flowrl offline`: writes what a run writes, and fails where it is told to.
FAKE = """
import json, os, pathlib, signal, sys, time
words = sys.argv[1:]
option = {name: words[words.index(name) + 1] for name in words if name.startswith("--") and name != "--resume"}
out = pathlib.Path(option["--out"])
out.mkdir(parents=True, exist_ok=True)
with (out / "calls.txt").open("a") as file:
    file.write(" ".join(words) + chr(10))
if option["--env"] == "gym:endless":
    (out / "pid").write_text(str(os.getpid()))
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if option.get("--discount") == "0.5" and not (out / "checkpoint.npz").exists():
    (out / "checkpoint.npz").write_text("begun")
    sys.exit("ValueError: the machine went away, see [/b] and flowrl-transport[rl]")
seed, vgf = int(option["--seed"]), option["--algorithm"] == "vgf"
dense = option["--env"] == "gym:dense"
(out / "config.json").write_text(json.dumps({
    "steps": int(option.get("--steps", 10000)), "eval_seed": 1, "discount": float(option.get("--discount", 0.99)),
}))
metric = "return" if dense else "success"
(out / "data.json").write_text(json.dumps({"sha256": "ab" * 32, "metric": metric, "rows": 5}))
(out / "software.json").write_text(json.dumps({"protocol": "fake-1", "jax": ["0", "1"], "device": "cpu"}))
(out / "timing.csv").write_text("phase,step,seconds,updates_per_second\\nmain,10,2.5,4\\nevaluation,10,1.5,0\\n")
numbers = [f"reference,5,0.5,,", *(f"main,{step},,{seed / step},{step}" for step in (5, 10))]
(out / "metrics.csv").write_text("\\n".join(["phase,step,loss,td_loss,value", *numbers]) + "\\n")
lines = ["policy,episode,return,success,length,displacement,steps"]
names = ["BC (one random particle)", "best-of-8 (L=0)", "VGF L=1"] if vgf else ["iql"]
for p, name in enumerate(names):
    for e in range(4):
        lines.append(f"{name},{e},{100 * p + 10 * seed + e},{int(e <= p)},7,{0.5 * p},{max(p - 1, 0)}")
(out / "results.csv").write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    program = tmp_path / "fake.py"
    program.write_text(FAKE)
    monkeypatch.setattr(_matrix, "PROGRAM", (sys.executable, str(program)))
    return tmp_path / "matrix"


def matrix(out: Path, **changes) -> Matrix:
    options = {
        "envs": ("gym:sparse", "gym:dense"),
        "algorithms": ("vgf", "iql"),
        "seeds": (1, 2),
        "out": out,
        "jobs": 2,
    }
    return Matrix(**options | changes)


def read(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "rows.csv").read_text().splitlines()))


def test_one_seed_of_everything_comes_first_and_axes_multiply():
    found = cells(
        Matrix(variant=("base:", 'svgd: --temperature 0.1 --dataset-path "a b"'), vary=("train-steps=0,3",)),
        ("--rows", "9"),
    )
    assert [cell.seed for cell in found] == [1] * 4 + [2] * 4 + [3] * 4
    names = [cell.variant for cell in found[:4]]
    assert names == ["train-steps=0", "train-steps=3", "svgd,train-steps=0", "svgd,train-steps=3"]
    assert found[3].options == ("--rows", "9", "--temperature", "0.1", "--dataset-path", "a b", "--train-steps", "3")
    assert found[0].name == "halfcheetah-medium-local-v0/vgf/train-steps=0/seed1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": ("steps",)}, "OPTION=VALUE"),
        ({"vary": ("steps=1,,2",)}, "OPTION=VALUE"),
        ({"variant": ("a --steps 1",)}, "NAME: OPTIONS"),
        ({"variant": ("a: --steps 1", "a: --steps 2")}, "names that differ"),
        ({"variant": ("a/b: --steps 1",)}, "no slash"),
        ({"vary": ("dataset-path=a/b",)}, "for a value with a slash name a --variant"),
        ({"variant": ("a: --eval-episodes 0",)}, "trains without acting, so a cell would have no rows"),
        ({"seeds": ()}, "needs environments, algorithms, variants and seeds"),
        ({"variant": ()}, "needs environments, algorithms, variants and seeds"),
        ({"jobs": 0}, "--jobs 1 or more"),
    ],
)
def test_a_matrix_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cells(matrix(Path("x"), **changes), ())


@pytest.mark.thorough
def test_a_failed_cell_is_reported_and_continued_and_finished_ones_are_kept(fake, capsys):
    assert run_matrix(matrix(fake), ("--discount", "0.5")) == 8
    text = capsys.readouterr().err
    assert "the machine went away, see [/b] and flowrl-transport[rl]" in text
    assert "0 of 8 cells are done" in text
    assert read(fake) == []
    assert run_matrix(matrix(fake), ("--discount", "0.5")) == 0
    assert run_matrix(matrix(fake), ("--discount", "0.5")) == 0
    calls = (fake / "cells/gym:dense/iql/base/seed2/calls.txt").read_text().splitlines()
    assert ["--resume" in line for line in calls] == [False, True]
    assert "--workers 1" in calls[0]


def test_finished_cells_are_not_taken_for_ones_with_other_options(fake):
    small = {"envs": ("gym:sparse",), "algorithms": ("iql",), "seeds": (1,)}
    run_matrix(matrix(fake, **small), ("--steps", "10", "--interval=10"))
    with pytest.raises(ValueError, match="finished with other options: gym:sparse/iql/base/seed1"):
        run_matrix(matrix(fake, **small), ("--steps", "20", "--interval=10"))
    # Where things are may change, and how a number is written.
    assert (
        run_matrix(matrix(fake, **small), ("--data-dir", "elsewhere", "--steps=10", "--interval=10", "--workers=3"))
        == 0
    )
    calls = (fake / "cells/gym:sparse/iql/base/seed1/calls.txt").read_text().splitlines()
    assert len(calls) == 1


def test_a_runner_that_is_told_to_end_ends_its_children(fake):
    with pytest.raises(KeyboardInterrupt):
        run_matrix(matrix(fake, envs=("gym:endless",), algorithms=("vgf",), seeds=(1,)), ())
    child = int((fake / "cells/gym:endless/vgf/base/seed1/pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_dry_run_runs_nothing(fake, capsys):
    assert run_matrix(matrix(fake, dry_run=True), ()) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert not fake.exists()


def test_an_environment_may_have_slashes(fake):
    assert run_matrix(matrix(fake, envs=("minari:a/b-v0",), algorithms=("iql",)), ()) == 0
    assert [row["env"] for row in read(fake)] == ["minari:a/b-v0"] * 2
    assert "minari:a/b-v0" in (fake / "curves.csv").read_text()


def test_an_option_that_does_not_exist_is_told_before_anything_runs(fake, capsys):
    with pytest.raises(SystemExit):
        run_matrix(matrix(fake), ("--discuont", "0.9"))
    assert "--discount" in capsys.readouterr().err
    assert not fake.exists()


@pytest.mark.thorough
def test_cells_that_others_have_run_are_not_run_again(fake, tmp_path, capsys):
    run_matrix(matrix(fake, envs=("gym:sparse",)), ("--eval-episodes", "4"))
    known = (fake / "rows.csv").rename(tmp_path / "known.csv")
    there = matrix(tmp_path / "there", known=(known,))
    with pytest.raises(ValueError, match=r"with other options: gym:sparse/vgf/base/seed1 \(discount\)"):
        run_matrix(there, ("--eval-episodes", "4", "--discount", "0.9"))
    assert run_matrix(dataclasses.replace(there, dry_run=True), ("--eval-episodes", "4")) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["known", "known", "new", "new"] * 2
    run_matrix(there, ("--eval-episodes", "4"))
    assert {row["env"] for row in read(tmp_path / "there")} == {"gym:dense"}
    both = experiment_report.read((known, tmp_path / "there" / "rows.csv"))
    assert list(both) == ["gym:dense", "gym:sparse"]


def test_every_evaluation_is_a_row_and_both_files_say_the_same(fake):
    run_matrix(matrix(fake), ())
    rows = read(fake)
    assert len(rows) == 2 * 2 * (3 + 1)
    row = next(r for r in rows if (r["env"], r["seed"], r["policy"]) == ("gym:sparse", "2", "VGF L=1"))
    assert (row["score"], row["scores"], row["episodes"]) == ("75.0", "100 100 100 0", "4")
    assert (row["training_seconds"], row["acting_seconds"], row["flow_steps"]) == ("2.5", "1.5", "1.0")
    assert (row["data_sha256"], row["protocol"], row["rows"]) == ("ab" * 6, "fake-1", "5")
    assert json.loads(row["options"]) == {"discount": 0.99, "steps": 10000}
    lines = [json.loads(line) for line in (fake / "rows.jsonl").read_text().splitlines()]
    assert [{k: str(v) for k, v in line.items()} for line in lines] == rows


@pytest.mark.thorough
def test_the_report_needs_the_rows_alone(fake, tmp_path):
    run_matrix(matrix(fake), ())
    out = tmp_path / "report"
    words = ["report", str(fake / "rows.csv"), "--out", str(out), "--normalise", "bc"]
    assert experiments.main(experiments.parse(words)) == 0
    text = (out / "tables.md").read_text()
    assert "| vgf/base: VGF L=1 | 75.0 | 75, 75 | " in text
    # Paired, +1 of 4 episodes solved in every seed; the seeds agree, so their interval has no width.
    line = next(line for line in text.splitlines() if line.startswith("| vgf/base: VGF L=1 | 75.0"))
    assert "| +25.0 |" in line
    assert "[+25.0, +25.0]" in line
    # Over environments: sparse .75; dense: returns 216.5 of L = 1 over 16.5 of BC.
    assert f"| vgf/base: VGF L=1 | {(0.75 + 216.5 / 16.5) / 2:.2f} |" in text
    assert "| vgf/base: BC (one random particle) | 0.62 |" in text
    assert text.splitlines()[1].startswith(
        "5 rows of data abababababab, 10000 updates, evaluation seed 1, fake-1; jax 0 then 1 on cpu"
    )
    # Both seeds of both environments are better than both of the baseline.
    line = [line for line in text.splitlines() if line.startswith("| vgf/base: VGF L=1 | ")][-1]
    assert line.endswith("| 1.00 | [1.00, 1.00] |")
    for name in ("scores.png", "aggregate.png", "profiles.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_what_was_logged_on_the_way_is_gathered_and_drawn(fake, tmp_path):
    run_matrix(matrix(fake, envs=("gym:sparse",)), ())
    rows = list(csv.DictReader((fake / "curves.csv").read_text().splitlines()))
    assert len(rows) == 4 * 5  # cells; one number of the reference, two twice of the rest
    mine = [row for row in rows if (row["algorithm"], row["seed"], row["what"]) == ("iql", "2", "td_loss")]
    assert [(row["phase"], row["step"], row["value"]) for row in mine] == [("main", "5", "0.4"), ("main", "10", "0.2")]
    words = ["report", str(fake / "rows.csv"), "--curves", str(fake / "curves.csv"), "--out", str(tmp_path)]
    assert experiments.main(experiments.parse(words)) == 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    empty = tmp_path / "empty.csv"
    empty.write_text("env,algorithm,variant,seed,phase,step,what,value\n")
    with pytest.raises(ValueError, match=r"no curves in .*empty\.csv"):
        experiment_report.plot_curves((empty,), tmp_path / "none.png")


def test_rows_that_are_no_comparison_are_refused(fake, tmp_path):
    run_matrix(matrix(fake), ())
    rows = (fake / "rows.csv").read_text()
    other = tmp_path / "other.csv"
    with pytest.raises(ValueError, match="seed 1 comes twice"):
        experiment_report.read((fake / "rows.csv", fake / "rows.csv"))
    head, *lines = rows.splitlines()
    other.write_text(head + "\n")
    with pytest.raises(ValueError, match="no rows"):
        experiment_report.read((other,))
    other.write_text("\n".join([head, *(line.replace("fake-1", "fake-2", i) for i, line in enumerate(lines[:2]))]))
    with pytest.raises(ValueError, match=r"rows differ in protocol \(fake-1, fake-2\)"):
        experiment_report.read((other,))
    with pytest.raises(ValueError, match="no rows of --baseline 'nothing'"):
        experiment_report.write_report((fake / "rows.csv",), tmp_path, "nothing")
    mixed = [line.replace('""discount"": 0.99', '""discount"": 0.9') if ",2," in line else line for line in lines]
    other.write_text("\n".join([head, *mixed]))
    with pytest.raises(ValueError, match=r"seeds were run with other options \(discount: 0.99 and 0.9\); give them a"):
        experiment_report.read((other,))
    other.write_text(rows.replace(",100 100 100 0,", ",100 100 nan 0,", 1))
    with pytest.raises(ValueError, match="gym:sparse, vgf/base: VGF L=1: seed 1 has scores that are not finite"):
        experiment_report.read((other,))


def test_options_that_change_no_score_may_differ():
    def rows(algorithm, **options):
        both = ({name: 1 for name in options}, options)
        return [{"algorithm": algorithm, "options": json.dumps(o | {"set": []})} for o in both]

    cell = _matrix.Cell("gym:sparse", "iql", "base", 1, ("--curve-points", "3"))
    row = rows("iql", curve_points=2, train_steps=3, discount=0.99)[1]
    assert cell.differs(row | {"episodes": "16", "eval_seed": "1"}) == []
    assert cell.differs(row | {"episodes": "17", "eval_seed": "1"}) == ["eval_episodes"]
    for fine in (rows("iql", curve_points=2, test_steps=2, train_steps=2), rows("vgf", curve_points=2, test_steps=2)):
        experiment_report._check_options("here", fine)
    with pytest.raises(ValueError, match=r"here: seeds were run with other options \(train_steps: 1 and 2\)"):
        experiment_report._check_options("here", rows("vgf", train_steps=2))


def test_rows_from_before_algorithms_had_their_own_options_are_read_as_if_they_had():
    there = {"discount": 0.99, "temperature": None, "train_steps": 1, "set": ["alpha=100", "amortised=particles"]}
    found = {name: options_of({"algorithm": name, "options": json.dumps(there)}) for name in ("fql", "vgf")}
    assert {k: v for k, v in found["fql"].items() if k != "set"} == {
        "discount": 0.99,
        "alpha": 100,
        "amortized": "particles",
    }
    assert found["vgf"]["train_steps"] == 1
    today = {"algorithm": "iql", "options": json.dumps({"temperature": 0.5})}
    assert options_of(today) == {"temperature": 0.5}


def results(scores, seeds=(1, 2)) -> experiment_report.Results:
    return experiment_report.Results(np.asarray(scores, float), seeds, 0.0, 0.0, 1.0)


def test_the_common_scale_keeps_the_order_where_selection_does_harm():
    cloned, harmed = results([[200, 220], [180, 200]]), results([[100, 120], [90, 90]])
    dense = {experiment_report.UNIT: cloned, "vgf/base: best-of-8 (L=0)": harmed, "worse": results([[0, 0], [0, 2]])}
    scores = experiment_report.normalised({"dense": dense}, {"dense": "return"}, "bc")
    found = [scores[label]["dense"] for label in dense]
    np.testing.assert_allclose(found, [[1.05, 0.95], [0.55, 0.45], [0, 0.005]])
    for broken in ({"worse": dense["worse"]}, {experiment_report.UNIT: results([[-5, -5], [-5, -5]])}):
        with pytest.raises(ValueError, match="with a positive mean are needed; --normalise none does without"):
            experiment_report.normalised({"dense": broken}, {"dense": "return"}, "bc")


def test_the_usual_scale_is_that_of_d4rl_and_success_is_a_share():
    two = results([[-280.178953, 12135.0], [12135.0, 12135.0]])
    both = {"minari:mujoco/halfcheetah/medium-v0": {"a": two}, "puzzle": {"a": results([[0, 100], [100, 100]])}}
    metrics = dict(zip(both, ("return", "success"), strict=True))
    for found in experiment_report.normalised(both, metrics)["a"].values():
        np.testing.assert_allclose(found, [0.5, 1])
    with pytest.raises(ValueError, match="pens is none of D4RL's, which give the scale"):
        experiment_report.normalised({"pens": {"a": two}}, {"pens": "return"})


def test_seeds_that_both_have_are_compared_while_a_matrix_runs():
    base, mine = results([[10, 10], [20, 20], [50, 50]], (1, 2, 3)), results([[24, 24], [11, 11]], (2, 1))
    mine = dataclasses.replace(mine, scores=mine.scores[::-1], seeds=(1, 2))
    line = experiment_report.table({"base": base, "mine": mine}, "base").splitlines()[-1]
    assert "| +2.5 (seeds 1, 2) | [+2.5, +2.5] |" in line
    assert "+" not in experiment_report.table({"base": base, "mine": results([[1, 1]], (9,))}, "base")


def test_intervals_over_seeds_are_wider_than_over_episodes():
    rng = np.random.default_rng(0)
    base = experiment_report.Results(np.zeros((3, 50)), (1, 2, 3), 0.0, 0.0, 1.0)
    scores = np.array([[-20.0], [0.0], [30.0]]) + rng.normal(size=(3, 50))
    mine = experiment_report.Results(scores, (1, 2, 3), 0.0, 0.0, 1.0)
    line = experiment_report.table({"base": base, "mine": mine}, "base").splitlines()[-1]
    ends = [float(x) for cell in line.split("|")[6:8] for x in cell.strip(" []").split(",")]
    assert ends[1] - ends[0] < 1
    assert ends[3] - ends[2] > 50


@pytest.mark.slow
def test_a_real_cell_runs_to_its_row(tmp_path):
    words = "--rows 2000 --steps 40 --reference-updates 40 --interval 20 --hidden 16 --batch-size 16 --eval-episodes 1"
    words += f" --curve-points 0 --lanes 12 --data-dir {tmp_path / 'data'}"
    env = "pointmaze-medium-navigate-singletask-task1-v0"
    out = str(tmp_path / "matrix")
    given = ["run", "--out", out, "--envs", env, "--seeds", "1", "--variant", "one: --test-steps 1 --chosen 1"]
    assert experiments.main(experiments.parse([*given, "--", *words.split()])) == 0
    rows = read(tmp_path / "matrix")
    assert {row["flow_steps"] for row in rows} == {"0.0", "1.0"}
    assert json.loads(rows[0]["options"])["test_steps"] == [1]


def cut(text):
    return text[: len(text) // 2]


#: How a file is damaged, which may be any file of a finished cell or a table of rows.
DAMAGE = {
    "empty": lambda text: "",  # noqa: ARG005
    "cut": cut,
    "deep": lambda text: "[" * 100_000,  # noqa: ARG005
    "binary": lambda text: "\udcff\udcfe",  # noqa: ARG005
    "another kind": lambda text: "[1, 2]",  # noqa: ARG005
    "words for numbers": lambda text: text.replace("1", "one"),
}


def damage(path, how):
    path.write_bytes(DAMAGE[how](path.read_text()).encode(errors="surrogateescape"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "fake.py").write_text(FAKE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_matrix, "PROGRAM", (sys.executable, str(folder / "fake.py")))
        run_matrix(matrix(folder / "matrix", envs=("gym:sparse",), algorithms=("vgf",), seeds=(1,)), ())
    return folder / "matrix"


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "name", ["config.json", "data.json", "software.json", "metrics.csv", "timing.csv", "results.csv"]
)
def test_a_damaged_file_of_a_finished_cell_is_named_with_the_way_out(finished, tmp_path, name, how):
    if how == "words for numbers" and name.endswith("json"):
        pytest.skip("no number of these is read")
    shutil.copytree(finished, tmp_path / "matrix")
    cell = tmp_path / "matrix/cells/gym:sparse/vgf/base/seed1"
    damage(cell / name, how)
    with pytest.raises(ValueError, match=f"{name}.*Remove .*seed1 to run this cell again"):
        gather(tmp_path / "matrix")


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["rows.csv", "curves.csv"])
def test_a_damaged_table_of_rows_is_named(finished, tmp_path, name, how):
    shutil.copytree(finished, tmp_path / "matrix")
    damage(tmp_path / "matrix" / name, how)
    report = ["report", str(tmp_path / "matrix/rows.csv"), "--curves", str(tmp_path / "matrix/curves.csv")]
    with pytest.raises(ValueError, match=f"{name}|options of a row|scores"):
        experiments.main(experiments.parse([*report, "--out", str(tmp_path / "report")]))


def test_damaged_options_of_a_cell_are_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "matrix")
    damage(tmp_path / "matrix/cells/gym:sparse/vgf/base/seed1/options.json", "cut")
    with pytest.raises(ValueError, match=r"options.json is not JSON .*; remove .*seed1 to run this cell again"):
        run_matrix(matrix(tmp_path / "matrix", envs=("gym:sparse",), algorithms=("vgf",), seeds=(1,)), ("--rows", "9"))
