"""The main example as a user runs it, at a size of seconds: plumbing, resume after SIGKILL, and its messages."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import kill_at_first_checkpoint

import flowrl
from flowrl.rl import Mean
from flowrl.scripts.offline import _program as offline_rl

EXAMPLE = Path(offline_rl.__file__)
ENV = "pointmaze-medium-navigate-singletask-task1-v0"
TINY = {
    "--rows": "2000",
    "--steps": "40",
    "--reference-updates": "40",
    "--interval": "20",
    "--hidden": "16",
    "--batch-size": "16",
    "--eval-episodes": "1",
    "--curve-points": "0",
    "--test-steps": "1",
    "--chosen": "1",
    "--lanes": "6",
    "--workers": "2",
}


def arguments(**changes: str) -> list[str]:
    options = TINY | {"--env": ENV} | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [word for name, value in options.items() for word in (name, *value.split(" "))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(EXAMPLE), *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_sigkill_and_resume_equal_the_uninterrupted_run(tmp_path, data_dir, monkeypatch):
    # Three runs of the same programs, one after the other: compile them once.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(*arguments(data_dir=data_dir, out=str(whole)))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in whole.iterdir()} - {".lock"}
    assert names == {
        *("config.json", "data.json", "software.json", "metrics.csv", "timing.csv", "results.csv", "results.md"),
        *("checkpoint.npz", "checkpoint.1.npz", "learning_curve.png", "budget_curve.png"),
    }
    assert '"label": "local"' in (whole / "data.json").read_text()
    rows = list(csv.DictReader((whole / "results.csv").read_text().splitlines()))
    assert len(rows) == 6
    # The control goes as far as the flow; what does not flow does not move.
    moved = {row["policy"]: float(row["displacement"]) for row in rows}
    assert moved["BC (one random particle)"] == moved["best-of-8 (L=0)"] == moved["best-of-32"] == 0
    assert moved["VGF L=1"] > 0.1

    kill_at_first_checkpoint(EXAMPLE, arguments(data_dir=data_dir, out=str(cut)), cut)
    done = run(*arguments(data_dir=data_dir, out=str(cut)), "--resume")
    assert done.returncode == 0, done.stderr
    for name in ("metrics.csv", "results.csv", "checkpoint.npz", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name

    again = run(*arguments(data_dir=data_dir, out=str(whole)))
    assert again.returncode != 0
    assert "holds a run already" in again.stderr
    longer = run(*arguments(data_dir=data_dir, out=str(whole), eval_seed="2"), "--resume")
    assert longer.returncode == 0, longer.stderr
    (whole / "data.json").write_text((whole / "data.json").read_text().replace('"sha256": "', '"sha256": "0'))
    other = run(*arguments(data_dir=data_dir, out=str(whole)), "--resume")
    assert "on other data" in other.stderr
    changed = run(*arguments(data_dir=data_dir, out=str(whole), seed="5"), "--resume")
    assert changed.returncode != 0
    assert "seed: 0 there, 5 here" in changed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["bc", "td3_bc", "rebrac", "iql", "idql", "diffusion_ql", "flow_ql", "fql"])
def test_every_rival_runs_to_the_end(tmp_path, data_dir, algorithm):
    options = {"algorithm": algorithm, "curve_points": "1", "curve_episodes": "1", "n_step": "1"}
    options |= {"reference_updates": "8000"} | ({"test_steps": "1 3 5", "chosen": "5"} if algorithm == "bc" else {})
    done = run(*arguments(data_dir=data_dir, out=str(tmp_path / "run"), **options))
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "held_out/" in header
    assert "score/" in header
    assert (tmp_path / "run" / "learning_curve.png").exists()


@pytest.mark.slow
def test_rebrac_runs_with_chunks(tmp_path, data_dir):
    options = {"algorithm": "rebrac", "reference_updates": "8000", "n_step": "1", "chunk": "3"}
    done = run(*arguments(data_dir=data_dir, out=str(tmp_path / "run"), **options))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_vgf_runs_with_chunks_and_holds_out_both_losses(tmp_path, data_dir):
    options = {"curve_points": "1", "curve_episodes": "1", "n_step": "1", "chunk": "3"}
    done = run(*arguments(data_dir=data_dir, out=str(tmp_path / "run"), **options))
    assert done.returncode == 0, done.stderr
    header = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    assert {"held_out/reference_loss", "held_out/td_loss"} <= set(header.split(","))


@pytest.mark.slow
def test_a_run_without_acting_has_losses_on_held_out_data(tmp_path, data_dir):
    done = run(*arguments(data_dir=data_dir, out=str(tmp_path / "run"), eval_episodes="0", log="tensorboard"))
    assert done.returncode == 0, done.stderr
    assert "trained without acting" in done.stderr
    assert not (tmp_path / "run" / "results.csv").exists()
    last = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))[-1]
    assert float(last["held_out/td_loss"]) > 0
    assert list((tmp_path / "run").glob("events.out.tfevents*"))


@pytest.mark.slow
def test_a_budget_that_chooses_itself_says_why_and_resumes(tmp_path, data_dir):
    options = {"data_dir": data_dir, "out": str(tmp_path / "run"), "budget": "auto"}
    options |= {"bandit_episodes": "16", "test_steps": "1 2"}
    done = run(*arguments(**options))
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "run" / "training_budget.json").read_text())
    text = (tmp_path / "run" / "results.md").read_text()
    assert f"training budget: {chosen['reason']}" in text
    assert "test budget: L = " in text
    # Five budgets in three rounds: 5, 3 and 2 of them, with 1, 1 and 2 episodes each.
    assert "by acting, 12 other episodes: " in text
    assert "| VGF, chosen L=" in text
    first = (tmp_path / "run" / "results.csv").read_bytes()
    again = run(*arguments(**options), "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "results.csv").read_bytes() == first
    assert (tmp_path / "run" / "results.md").read_text() == text  # the pilot's choice is kept, not made again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": "3", "n_step": "5"}, "give --n-step 1"),
        ({"budget": "auto", "train_steps": "2"}, "--budget auto has no use for --train-steps"),
        ({"budget": "auto", "interval": "40"}, "two intervals or more"),
        ({"bandit_episodes": "1"}, "--bandit-episodes must be 0, or 2 for 2 budgets, got 1"),
        ({"eval_episodes": "-1"}, "--eval-episodes"),
        ({"eval_episodes": "0", "video": "1"}, "--video needs an environment"),
        ({"set": "alpha=3"}, "a field of VGF"),
        ({"set": "members=3"}, "give --members itself"),
        ({"algorithm": "iql", "reference_updates": "8000", "set": "expectile=x"}, "IQL refuses these values"),
        ({"algorithm": "iql", "temperature": "0.1"}, "iql has no use for .*--temperature"),
        ({"algorithm": "iql", "reference_updates": "8000", "particles": "3"}, "iql has no use for --particles"),
        ({"algorithm": "bc", "reference_updates": "8000", "polyak": "0.3"}, "bc has no use for .*--polyak"),
        ({"steps": "0"}, "--steps must be at least 1"),
        ({"steps": "30"}, "multiple of --interval"),
        ({"chosen": "2"}, "--chosen 2 must be one of"),
        ({"test_steps": "-1", "chosen": "-1"}, "--test-steps must be different numbers >= 1"),
        ({"test_step_size": "-0.1"}, "finite step_size >= 0"),
        ({"lanes": "2"}, "3 lanes or more"),
        ({"discount": "2"}, "--discount must be in"),
        ({"eval_seed": "-1"}, "--eval-seed"),
        ({"test_step_size": "nan"}, "finite step_size"),
        ({"train_steps": "-1"}, "steps must be >= 0"),
        ({"train_step_size": "-0.5"}, "step_size must be >= 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_made(tmp_path, changes, message):
    config = offline_rl.parse(arguments(data_dir=str(tmp_path / "data"), out=str(tmp_path / "out"), **changes))
    with pytest.raises(ValueError, match=message):
        offline_rl.main(config)
    assert not list(tmp_path.iterdir())


def test_a_task_of_the_paper_fixes_the_options_and_says_where_it_cannot_act():
    with pytest.raises(ValueError, match="cube-double has no use for --hidden, --steps"):
        offline_rl.main(offline_rl.parse(["--paper", "cube-double", "--steps", "5000", "--hidden", "3"]))
    with pytest.raises(ValueError, match="no environment here to act in. Give --eval-episodes 0"):
        offline_rl.main(offline_rl.parse(["--paper", "antmaze-medium-play"]))
    offline_rl.check(offline_rl.parse(["--paper", "antmaze-medium-play", "--eval-episodes", "0"]))
    config = offline_rl.at_full_size(offline_rl.parse(["--paper", "cube-double"]))
    assert (config.steps, config.eval_episodes, config.origin) == (1_000_000, 50, "published")


def test_fields_of_the_algorithm_can_be_set():
    given = ["--algorithm", "fql", "--aggregate", "mean", "--set", "alpha=3.0", "normalise=True"]
    learner = offline_rl.algorithm(offline_rl.parse(given))
    assert (learner.alpha, learner.normalise) == (3.0, True)
    assert isinstance(learner.selection, Mean)
    learner = offline_rl.algorithm(offline_rl.parse(["--temperature", "0.5", "--set", "over_particles=max"]))
    assert isinstance(learner.transport.flow, flowrl.SVGD)
    assert learner.train_budget.temperature == 0.5
    assert learner.over_particles == "max"


def test_unknown_environment_suggests_near_names():
    done = run("--env", "puzle-3x3-play-singletask-task1-v0")
    assert done.returncode != 0
    assert "did you mean puzzle-3x3-play-singletask" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_misspelt_beginning_of_a_name_suggests_whole_names():
    with pytest.raises(ValueError, match="did you mean puzzle-3x3"):
        offline_rl.parse(["--env", "puzle-3x3"])


def test_a_typo_in_an_option_is_explained():
    done = run("--evl-episodes", "3")
    assert done.returncode != 0
    assert "--eval-episodes" in done.stdout + done.stderr


def test_every_option_is_explained():
    text = run("--help").stdout
    for field in dataclasses.fields(offline_rl.Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert offline_rl.parse([]) == offline_rl.Config()
    sparse = offline_rl.parse(["--env=puzzle-3x3-play-singletask-task1-v0"])
    assert (sparse.batch_size, sparse.chosen) == (128, 5)
    assert offline_rl.parse(["--env", "puzzle-3x3-play-singletask-task1-v0", "--n-step", "2"]).n_step == 2


def test_a_damaged_data_file_is_named(tmp_path):
    file = tmp_path / "mine.npz"
    file.write_bytes(b"not an npz")
    (tmp_path / "mine-val.npz").write_bytes(b"not an npz")
    done = run(*arguments(dataset_path=str(file), out=str(tmp_path / "out")))
    assert done.returncode != 0
    assert "mine.npz: not an npz file" in done.stderr


def test_the_output_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(*arguments(out=str(tmp_path / "file" / "run")))
    assert done.returncode != 0
    assert "choose another --out" in done.stderr
