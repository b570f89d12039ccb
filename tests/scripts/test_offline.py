"""`flowrl offline` as a user runs it, at a size of seconds: plumbing, resume after SIGKILL, own algorithms."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import PROGRAM, kill_at_first_checkpoint

import flowrl
from flowrl.rl import Gaussian, Histogram, Maximum, Mean, ScalarCritic
from flowrl.scripts import offline

ROOT = Path(__file__).resolve().parents[2]
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
    "--lanes": "12",
    "--workers": "2",
}


def arguments(algorithm: str = "vgf", **changes: str) -> list[str]:
    """Words of a tiny run, without what the algorithm does not have."""
    known = offline.parse([algorithm]).flat()
    options = {name: value for name, value in TINY.items() if name[2:].replace("-", "_") in known}
    options |= {"--env": ENV} | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [algorithm, *(word for name, value in options.items() for word in (name, *value.split(" ")))]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("data"))


def run(*words: str, **more) -> subprocess.CompletedProcess:
    command = [*PROGRAM, "offline", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)


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
        *("checkpoint.npz", "checkpoint.1.npz", "learning_curve.png", "budget_curve.png", "agent.json"),
    }
    assert '"label": "local"' in (whole / "data.json").read_text()
    rows = list(csv.DictReader((whole / "results.csv").read_text().splitlines()))
    assert len(rows) == 10
    # The control goes as far as the flow; what does not flow does not move.
    moved = {row["policy"]: float(row["displacement"]) for row in rows}
    assert moved["BC (one random particle)"] == moved["best-of-8 (L=0)"] == moved["best-of-32"] == 0
    assert moved["VGF L=1"] > 0.1

    kill_at_first_checkpoint(["offline", *arguments(data_dir=data_dir, out=str(cut))], cut)
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


@pytest.mark.thorough
def test_a_finished_run_is_loaded_as_an_agent(tmp_path, data_dir):
    run = tmp_path / "run"
    offline.main(offline.parse(arguments(data_dir=data_dir, out=str(run), eval_episodes="0")))
    agent = offline.load_agent(run)
    observation = np.zeros(agent.standardizer.mean.shape)
    action = agent(observation, key=jax.random.key(0))
    assert action.shape == (5, 2)  # a chunk of five actions
    assert np.abs(action).max() <= 1
    np.testing.assert_array_equal(offline.load_agent(run)(observation, key=jax.random.key(0)), action)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"critic": "os:abort"}))
    with pytest.raises(ValueError, match="names code, critic 'os:abort'"):
        offline.load_agent(run)
    (run / "config.json").write_text(json.dumps(config | {"steps": 60}))
    with pytest.raises(ValueError, match="has made 40 of 60 updates; finish it first"):
        offline.load_agent(run)
    (run / "agent.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"agent.json missing. `flowrl offline ... --resume` writes"):
        offline.load_agent(run)
    with pytest.raises(FileNotFoundError, match="config.json, checkpoint.npz, agent.json missing"):
        offline.load_agent(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm", ["bc", "td3_bc", "rebrac", "iql", "idql", "diffusion_ql", "flow_ql", "fql", "qc", "dsrl", "qam"]
)
def test_every_rival_runs_to_the_end(tmp_path, data_dir, algorithm):
    options = {"curve_points": "1", "curve_episodes": "1", "n_step": "1"}
    done = run(*arguments(algorithm, data_dir=data_dir, out=str(tmp_path / "run"), **options))
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert "held_out/" in header
    assert "score/" in header
    assert (tmp_path / "run" / "learning_curve.png").exists()


@pytest.mark.slow
def test_rebrac_runs_with_chunks(tmp_path, data_dir):
    done = run(*arguments("rebrac", data_dir=data_dir, out=str(tmp_path / "run"), n_step="1", chunk="3"))
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
    options |= {"bandit_episodes": "24", "test_steps": "1 2"}
    done = run(*arguments(**options))
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "run" / "training_budget.json").read_text())
    text = (tmp_path / "run" / "results.md").read_text()
    assert f"training budget: {chosen['reason']}" in text
    assert "test budget: L = " in text
    # Six ways in three rounds: 6, 3 and 2 of them, with 1, 2 and 4 episodes each.
    assert "by acting, 20 other episodes: " in text
    assert "| VGF, chosen L=" in text
    first = (tmp_path / "run" / "results.csv").read_bytes()
    again = run(*arguments(**options), "--resume")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "results.csv").read_bytes() == first
    assert (tmp_path / "run" / "results.md").read_text() == text  # the pilot's choice is kept, not made again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": "3", "n_step": "5"}, "leave --n-step out"),
        ({"budget": "auto", "train_steps": "2"}, "--budget auto has no use for --train-steps"),
        ({"budget": "auto", "interval": "40"}, "two intervals or more"),
        ({"bandit_episodes": "1"}, "--bandit-episodes must be 0, or 8 for 4 ways to act, got 1"),
        ({"eval_episodes": "-1"}, "--eval-episodes"),
        ({"eval_episodes": "0", "video": "1"}, "--video needs an environment"),
        ({"steps": "0"}, "--steps must be at least 1"),
        ({"steps": "30"}, "multiple of --interval"),
        ({"chosen": "2"}, "--chosen 2 must be one of"),
        ({"test_steps": "-1", "chosen": "-1"}, "--test-steps must be different numbers >= 1"),
        ({"test_step_size": "-0.1"}, "step_size must be >= 0"),
        ({"lanes": "2"}, "10 lanes or more"),
        ({"discount": "2"}, "--discount must be in"),
        ({"eval_seed": "-1"}, "--eval-seed"),
        ({"test_step_size": "nan"}, "step_size must be"),
        ({"train_steps": "-1"}, "steps must be >= 0"),
        ({"train_step_size": "-0.5"}, "step_size must be >= 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_made(tmp_path, changes, message):
    config = offline.parse(arguments(data_dir=str(tmp_path / "data"), out=str(tmp_path / "out"), **changes))
    with pytest.raises(ValueError, match=message):
        offline.main(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "vgf --alpha 3",
        "iql --train-steps 1",
        "iql --particles 3",
        "bc --polyak 0.3",
        "bc --test-steps 1",
        "td3_bc --band 1",
        "--paper cube-double --steps 5000",
        "--paper cube-double --rewards none",
        "--paper cube-double --test-step-size 1",
    ],
)
def test_an_option_that_nothing_would_read_cannot_be_written(words, capsys):
    with pytest.raises(SystemExit) as ended:
        offline.parse(words.split())
    assert ended.value.code != 0
    assert words.split()[-2] in capsys.readouterr().err


def test_the_algorithm_is_a_subcommand_or_an_option():
    assert offline.parse(["iql", "--seed", "3"]) == offline.parse(["--seed", "3", "--algorithm", "iql"])
    assert offline.parse(["--steps", "100", "--interval", "50"]).algorithm == "vgf"
    assert offline.parse(["iql", "--algorithm=iql"]).algorithm == "iql"
    with pytest.raises(ValueError, match="both iql and --algorithm fql are given"):
        offline.parse(["iql", "--algorithm", "fql"])
    with pytest.raises(ValueError, match="did you mean iql"):
        offline.parse(["iqll"])


@pytest.mark.parametrize("words", [["vgf", "--hidden", "8"], ["bc"], ["flow_ql", "--normalise"], ["--paper", "scene"]])
def test_options_are_read_back_from_the_configuration_of_a_run(words):
    config = offline.parse(words)
    flat = config.flat()
    assert flat["algorithm"] == config.algorithm
    assert offline.from_flat(json.loads(json.dumps(flat)), Path("config.json")) == config


def test_a_task_of_the_paper_fixes_the_options_and_says_where_it_cannot_act():
    with pytest.raises(ValueError, match="no environment here to act in. Give --eval-episodes 0"):
        offline.main(offline.parse(["--paper", "antmaze-medium-play"]))
    with pytest.raises(ValueError, match="did you mean cube-double"):
        offline.parse(["--paper", "cube-doubel"])
    offline.check(offline.parse(["--paper", "antmaze-medium-play", "--eval-episodes", "0"]))
    config = offline.parse(["--paper", "cube-double", "--seed", "2"]).flat()
    assert (config["steps"], config["eval_episodes"], config["origin"]) == (1_000_000, 50, "published")
    assert config["seed"] == 2


def test_fields_of_the_algorithm_can_be_set():
    learner = offline.parse(["fql", "--aggregate", "mean", "--alpha", "3", "--normalise"]).learner()
    assert (learner.alpha, learner.normalise) == (3.0, True)
    assert isinstance(learner.selection, Mean)
    words = "--temperature 0.5 --particle-aggregate max --reference gaussian --one-step --reference-average 0.9"
    learner = offline.parse(words.split()).learner()
    assert isinstance(learner.transport.flow, flowrl.SVGD)
    assert learner.train_budget.temperature == 0.5
    assert isinstance(learner.particle_aggregate, Maximum)
    assert isinstance(learner.reference.model, Gaussian)
    assert (learner.reference.one_step, learner.reference.average) == (True, 0.9)
    assert offline.parse(["bc", "--reference-steps", "7"]).learner().model.steps == 7
    assert isinstance(offline.parse(["bc", "--reference", "gaussian"]).learner().model, Gaussian)


def test_what_training_has_acting_has():
    config = offline.parse(["--temperature", "0.5"])
    policy = next(p for p in config.policies(config.learner()) if p.name == "VGF L=1")
    assert policy.stages[0].budget.temperature == 0.5


OWN = '''
"""A user's own algorithms."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from flowrl.rl import AbstractAlgorithm, AbstractCriticModel, AbstractState, ScalarCritic


class State(AbstractState):
    mean: Any
    step: Any
    key: Any


class Constant(AbstractAlgorithm[State]):
    """Acts by the mean action of the data.

    Attributes:
        rate: how fast the mean is followed.
    """

    batch_size: int = eqx.field(static=True, default=8)
    rate: float = eqx.field(static=True, default=0.1)
    steps: int = eqx.field(static=True, default=5)

    def init(self, observation_size, action_size, *, key):
        return State(jnp.zeros(action_size), jnp.zeros((), jnp.int32), key)

    def update(self, state, replay, rows, key):
        error = replay.actions[rows].mean(axis=0) - state.mean
        state = State(state.mean + self.rate * error, state.step + 1, state.key)
        return state, {"mean_loss": jnp.mean(error**2)}

    def propose(self, state, observation, key):
        return state.mean


class Lacking(AbstractAlgorithm[State]):
    batch_size: int = 8

    def init(self, observation_size, action_size, *, key):
        return None


class Other:
    pass


class Flat(AbstractCriticModel):
    def init(self, observation_size, action_size, hidden, members, *, key):
        return ScalarCritic().init(observation_size, action_size, (4,), members, key=key)


class NeedyCritic(Flat):
    width: int = eqx.field(kw_only=True)


class Needy(Constant):
    table: dict = eqx.field(kw_only=True)


class Asking(Constant):
    width: int = eqx.field(static=True, kw_only=True)
'''


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "hungry.py").write_text("import a_package_that_nobody_has")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", "broken", "hungry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    offline.entry.cache_clear()
    return tmp_path


@pytest.mark.usefixtures("own")
def test_an_own_algorithm_has_its_fields_as_options(capsys):
    config = offline.parse(["--algorithm", "mine:Constant", "--rate", "0.5", "--train-steps", "2"])
    learner = config.learner()
    assert (type(learner).__name__, learner.rate, learner.steps) == ("Constant", 0.5, 2)
    assert [p.name for p in config.policies(learner)] == ["Constant (one sample)"]
    flat = config.flat()
    assert (flat["algorithm"], flat["rate"]) == ("mine:Constant", 0.5)
    with pytest.raises(SystemExit):
        offline.parse(["mine:Constant", "--help"])
    assert "How fast the mean is followed" in capsys.readouterr().out
    assert offline.parse(["mine:Asking", "--width", "4"]).learner().width == 4
    with pytest.raises(SystemExit):
        offline.parse(["mine:Asking"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mien:Constant", "there is no module mien, neither installed nor in "),
        ("mine:Constnat", "mine has no Constnat; did you mean Constant"),
        ("mine:", "mine has no empty name; name a class"),
        ("mine:Other", "Other is not a class derived from flowrl.rl.AbstractAlgorithm"),
        ("mine:Lacking", "Lacking lacks propose, update of AbstractAlgorithm; define them"),
        ("mine:Needy", "the field table cannot be given here; it needs a default"),
        ("broken:Constant", "broken fails: ZeroDivisionError"),
        ("hungry:Constant", "hungry needs a_package_that_nobody_has, which is not installed"),
    ],
)
@pytest.mark.usefixtures("own")
def test_an_import_path_that_is_no_algorithm_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        offline.parse(["--algorithm", path])


@pytest.mark.parametrize("algorithm", ["vgf", "iql"])
@pytest.mark.usefixtures("own")
def test_critics_are_chosen_by_name_range_or_path(algorithm):
    def critic(text):
        return offline.parse([algorithm, "--critic", text]).learner().critic

    assert critic("scalar") == ScalarCritic()
    assert critic("histogram:-100:0") == Histogram(-100.0, 0.0)
    assert type(critic("mine:Flat")).__name__ == "Flat"
    for text, message in (
        ("histogram", "--critic histogram: scalar, histogram:LOW:HIGH with the range"),
        ("histogram:0:-1", "scalar, histogram:LOW:HIGH"),
        ("mine:Flta", "mine has no Flta; did you mean Flat"),
        ("mine:Other", "Other is not a class derived from flowrl.rl.AbstractCriticModel"),
        ("mine:NeedyCritic", "created without arguments: give its fields defaults"),
    ):
        with pytest.raises(ValueError, match=message):
            critic(text)


@pytest.mark.slow
def test_an_own_algorithm_is_trained_resumed_and_reported_like_the_others(own, data_dir):
    words = ["--algorithm", "mine:Constant", *arguments("bc", data_dir=data_dir, out="run", curve_points="1")[1:]]
    words = [word for i, word in enumerate(words) if "--hidden" not in words[max(i - 1, 0) : i + 1]]
    more = {"cwd": own, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = run(*words, "--rate", "0.3", **more)
    assert done.returncode == 0, done.stderr
    assert "Constant (one sample)" in (own / "run" / "results.md").read_text()
    first = (own / "run" / "results.csv").read_bytes()
    again = run(*words, "--rate", "0.3", "--resume", **more)
    assert again.returncode == 0, again.stderr
    assert (own / "run" / "results.csv").read_bytes() == first
    assert "rate: 0.3 there, 0.4 here" in run(*words, "--rate", "0.4", "--resume", **more).stderr


@pytest.mark.thorough
def test_unknown_environment_suggests_near_names():
    done = run("--env", "puzle-3x3-play-singletask-task1-v0")
    assert done.returncode != 0
    assert "did you mean puzzle-3x3-play-singletask" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_misspelt_beginning_of_a_name_suggests_whole_names():
    with pytest.raises(ValueError, match="did you mean puzzle-3x3"):
        offline.parse(["--env", "puzle-3x3"])


@pytest.mark.thorough
def test_a_typo_in_an_option_is_explained():
    done = run("--evl-episodes", "3")
    assert done.returncode != 0
    assert "--eval-episodes" in done.stdout + done.stderr


@pytest.mark.thorough
def test_every_option_is_explained():
    for words in (["vgf"], ["fql"], ["bc"]):
        text = run(*words, "--help").stdout
        for name in offline.parse(words).flat().keys() - {"algorithm"}:
            assert f"--{name.replace('_', '-')}" in text
    assert offline.parse([]) == offline.defaults()
    sparse = offline.parse(["--env=puzzle-3x3-play-singletask-task1-v0"]).flat()
    assert (sparse["batch_size"], sparse["chosen"]) == (128, 5)
    words = ["--env", "puzzle-3x3-play-singletask-task1-v0", "--n-step", "2"]
    assert offline.parse(words).flat()["n_step"] == 2


@pytest.mark.thorough
def test_a_damaged_data_file_is_named(tmp_path):
    file = tmp_path / "mine.npz"
    file.write_bytes(b"not an npz")
    (tmp_path / "mine-val.npz").write_bytes(b"not an npz")
    done = run(*arguments(dataset_path=str(file), out=str(tmp_path / "out")))
    assert done.returncode != 0
    assert "mine.npz: not an npz file" in done.stderr


@pytest.mark.thorough
def test_the_output_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run(*arguments(out=str(tmp_path / "file" / "run")))
    assert done.returncode != 0
    assert "choose another --out" in done.stderr
