"""Generation on this machine: reproducible, parallel, resumable; and loading with OGBench's own rewards and masks."""

import collections
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from flowrl._io import read_npz, sha256_file
from flowrl.rl import data
from flowrl.rl.data.generators import RECIPES, _local, _ogbench
from flowrl.rl.data.generators._ogbench import generate_recipe
from flowrl.rl.data.generators._ogbench_episode import Collector
from flowrl.rl.data.schema import Request
from flowrl.rl.data.sources import OGBench
from flowrl.rl.data.sources._ogbench_names import split_name

pytest.importorskip("ogbench")

MAZE = "pointmaze-medium-navigate-v0"
MAZE_TASK = "pointmaze-medium-navigate-singletask-task1-v0"
PUZZLE = "puzzle-3x3-play-v0"
PUZZLE_TASK = "puzzle-3x3-play-singletask-task1-v0"

SMALL = {"rows": 40, "val_rows": 20, "seed": 0, "workers": 1}


def _short(name, steps):
    return dataclasses.replace(RECIPES[name], steps=steps)


def _make(name, recipe, folder, **changes):
    return generate_recipe(name, recipe, Request(folder, **(SMALL | changes)))


def _same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.fixture(scope="module")
def puzzle(tmp_path_factory):
    """A tiny puzzle data set: episodes of 20 and 5 transitions, made in one process."""
    return _make(PUZZLE, _short(PUZZLE, 20), tmp_path_factory.mktemp("puzzle"), rows=25)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [MAZE, "pointmaze-teleport-stitch-v0", "scene-noisy-v0", "cube-double-play-v0"])
def test_episode_is_a_function_of_its_index_alone(name):
    collector, steps = Collector(name, RECIPES[name]), 12
    first = collector.episode(0, "train", 0, steps)
    collector.episode(0, "train", 1, steps)
    third = collector.episode(0, "train", 2, steps)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    other = Collector(name, RECIPES[name])
    _same(other.episode(0, "train", 2, steps), third)
    _same(other.episode(0, "train", 0, steps), first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    for seed, split, index in ((1, "train", 0), (0, "val", 0), (0, "train", 2)):
        assert not np.array_equal(other.episode(seed, split, index, steps)["actions"], first["actions"])
    shorter = other.episode(0, "train", 0, 5)
    np.testing.assert_array_equal(shorter["observations"], first["observations"][:6])
    assert first["terminals"].tolist() == [False] * steps + [True]


@pytest.mark.thorough
def test_official_layout(puzzle):
    arrays = read_npz(puzzle)
    rows = 25 + 2  # each trajectory ends with a row that is only a next observation
    assert {key: (value.shape, value.dtype.name) for key, value in arrays.items()} == {
        "observations": ((rows, 55), "float32"),
        "actions": ((rows, 5), "float32"),
        "terminals": ((rows,), "bool"),
        "qpos": ((rows, 23), "float32"),
        "qvel": ((rows, 23), "float32"),
        "button_states": ((rows, 9), "int64"),
    }
    assert np.flatnonzero(arrays["terminals"]).tolist() == [20, 26]
    assert sorted(os.listdir(puzzle.parent)) == [".lock", "manifest.json", f"{PUZZLE}-val.npz", f"{PUZZLE}.npz"]


@pytest.mark.thorough
def test_workers_do_not_change_a_byte(puzzle, tmp_path):
    calls = []
    again = _make(
        PUZZLE,
        _short(PUZZLE, 20),
        tmp_path,
        rows=25,
        workers=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert again.read_bytes() == puzzle.read_bytes()
    assert (again.parent / "manifest.json").read_bytes() == (puzzle.parent / "manifest.json").read_bytes()
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


@pytest.mark.thorough
def test_load_gives_ogbench_rewards_and_says_where_data_came_from(puzzle):
    loaded = data.load(PUZZLE_TASK, dataset_path=puzzle)
    train, info = loaded.train, loaded.info
    assert (len(train), len(loaded.validation)) == (25, 20)
    raw = read_npz(puzzle)
    keep = ~raw["terminals"]
    np.testing.assert_array_equal(train.observations, raw["observations"][keep])
    np.testing.assert_array_equal(train.next_observations[:19], train.observations[1:20])
    # Task 1 asks for one pattern of the buttons; the reward is minus the number of buttons that are wrong.
    import ogbench

    env = ogbench.make_env_and_datasets(PUZZLE_TASK, env_only=True)
    env.reset()
    wrong = (raw["button_states"][keep] != env.unwrapped._target_button_states).sum(axis=1)
    np.testing.assert_array_equal(train.rewards, -wrong.astype(np.float32))
    np.testing.assert_array_equal(train.masks, (wrong > 0).astype(np.float32))
    assert np.flatnonzero(train.terminals).tolist() == [19, 24]
    # The checksum tells that the given path is our own work.
    assert (info.label, info.seed, info.rows, info.metric) == ("local", 0, 25, "success")
    assert info.sha256 == sha256_file(puzzle)
    assert info.env_id == "puzzle-3x3-singletask-task1-v0"
    assert info.success_timing == "pre"
    assert {"ogbench", "mujoco", "numpy"} <= info.versions.keys()


def test_load_generates_once(tmp_path, monkeypatch):
    first = data.load(MAZE_TASK, tmp_path, rows=30, val_rows=10, workers=1)
    assert first.info.label == "local"
    assert len(first.train) == 30
    monkeypatch.setattr(_ogbench, "Collector", None)  # a second generation would fail
    monkeypatch.setattr(_local, "make_dir", None)  # and complete data need no writable directory
    second = data.load(MAZE_TASK, tmp_path, rows=30, val_rows=10)
    np.testing.assert_array_equal(first.train.observations, second.train.observations)
    assert second.info == first.info


def test_seed_and_size_have_folders_of_their_own(tmp_path):
    recipe = _short(MAZE, 10)
    paths = [_make(MAZE, recipe, tmp_path, **change) for change in ({}, {"seed": 1}, {"rows": 30}, {"val_rows": 10})]
    assert len({path.parent for path in paths}) == 4
    assert paths[0].read_bytes() != paths[1].read_bytes()
    long, short = read_npz(paths[0]), read_npz(paths[2])
    np.testing.assert_array_equal(long["actions"][:33], short["actions"])


_GENERATE = """
import dataclasses, pathlib, sys
from flowrl.rl.data.generators._ogbench import generate_recipe
from flowrl.rl.data.generators import RECIPES
from flowrl.rl.data.schema import Request
name = sys.argv[1]
recipe = dataclasses.replace(RECIPES[name], steps=50)
generate_recipe(name, recipe, Request(pathlib.Path(sys.argv[2]), rows=40 * 50, val_rows=50, seed=0, workers=2))
"""


def _children(pid):
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="finds worker processes through /proc")
@pytest.mark.thorough
def test_killed_generation_goes_on_and_gives_the_same_bytes(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    root = pathlib.Path(data.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    parent = subprocess.Popen([sys.executable, "-c", _GENERATE, MAZE, str(killed)], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not list(killed.glob("*/*/.shards-*/train-*.npz")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        workers = _children(parent.pid)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    folder = killed / MAZE / "local-rows2000-val50-seed0"
    assert not (folder / "manifest.json").exists()
    deadline = time.monotonic() + 20
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)

    sizes = {"rows": 2000, "val_rows": 50}
    calls = []
    recipe = _short(MAZE, 50)
    resumed = _make(MAZE, recipe, killed, **sizes, progress=lambda *call: calls.append(call))
    assert calls[0][0] > 0  # it did go on, rather than begin again
    assert calls[-1] == (41, 41)
    straight = _make(MAZE, recipe, whole, **sizes)
    for name in (f"{MAZE}.npz", f"{MAZE}-val.npz", "manifest.json"):
        assert (resumed.parent / name).read_bytes() == (straight.parent / name).read_bytes()
    assert not list(folder.glob(".shards-*"))


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="finds worker processes through /proc")
@pytest.mark.thorough
def test_dead_worker_is_an_error_and_its_siblings_end(tmp_path):
    workers = []

    def kill_one(done, _):
        if not workers and done:
            workers.extend(_children(os.getpid()))
            os.kill(workers[-1], signal.SIGKILL)

    with pytest.raises(RuntimeError, match=r"worker process died .exit status -9. at split train, index .* kept"):
        _make(MAZE, _short(MAZE, 50), tmp_path, rows=5000, workers=2, progress=kill_one)
    assert not any(_alive(worker) for worker in workers)


@pytest.mark.thorough
def test_failing_worker_says_why(tmp_path):
    recipe = dataclasses.replace(RECIPES[MAZE], env_id="no-such-maze-v0")
    with pytest.raises(RuntimeError, match="no-such-maze"):
        _make(MAZE, recipe, tmp_path, workers=2)


def test_damaged_data_are_named(tmp_path):
    path = _make(MAZE, _short(MAZE, 20), tmp_path)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pointmaze-medium-navigate-v0\.npz: SHA-256"):
        _make(MAZE, _short(MAZE, 20), tmp_path)


def test_data_of_another_recipe_are_not_passed_off(tmp_path):
    _make(MAZE, _short(MAZE, 20), tmp_path)
    with pytest.raises(ValueError, match="parameters is .* another recipe"):
        _make(MAZE, _short(MAZE, 10), tmp_path)


def test_no_space(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(OSError, match="not enough disk space"):
        data.generate(MAZE, tmp_path, rows=100, val_rows=100)


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the data directory"):
        data.generate(MAZE, tmp_path / "file")


@pytest.mark.parametrize("call", [lambda path: data.generate(MAZE, path), lambda _: data.make_env(MAZE_TASK)])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(ImportError, match=r'pip install "flowrl-transport\[rl\]"'):
        call(tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.load("puzzle-3x3-singletask-task1-v0"), "did you mean puzzle-3x3-play-singletask-task1-v0"),
        (lambda: data.load("puzzle-3x3-play-v0"), "is a data set, expected an environment.*-singletask-task1-v0"),
        (lambda: data.make_env("xyzzy"), "no known name is near"),
        (lambda: data.metric("pointmaze-mediun-navigate-singletask-v0"), "pointmaze-medium-navigate-singletask"),
        (lambda: data.generate("puzzle-3x3-pley-v0"), "unknown data set.*puzzle-3x3-play-v0"),
        (lambda: data.generate("antmaze-large-navigate-v0"), "unknown data set"),
        (lambda: data.load("antmaze-large-navigate-singletask-v0"), "cannot be made on this machine.*dataset_path"),
        (lambda: data.generate(MAZE, rows=0), "rows is 0, expected at least 1"),
        (lambda: data.load(MAZE_TASK, seed=-1), "seed is -1"),
        (lambda: data.load(MAZE_TASK, workers=0), "workers is 0"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_names_are_those_of_ogbench():
    import gymnasium
    import ogbench  # noqa: F401

    assert {split_name(name)[1] for name in OGBench.env_names} <= set(gymnasium.registry)
    assert all(recipe.env_id in gymnasium.registry for recipe in RECIPES.values())
    assert split_name(PUZZLE_TASK) == (PUZZLE, "puzzle-3x3-singletask-task1-v0")
    assert data.metric(MAZE_TASK) == "success"
    assert PUZZLE in data.available()
    assert PUZZLE_TASK in data.environments()


def _foreign(path, **changes):
    """A file as another program might have made it, with its validation split."""
    arrays = {
        "observations": np.zeros((4, 2), np.float32),
        "actions": np.zeros((4, 2), np.float32),
        "terminals": np.array([0, 1, 0, 1], bool),
        "qpos": np.zeros((4, 2), np.float32),
    }
    np.savez(path.with_name(path.stem + "-val.npz"), **arrays)
    arrays.update(changes)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_load_foreign_file(tmp_path):
    loaded = data.load(MAZE_TASK, dataset_path=_foreign(tmp_path / "mine.npz"))
    assert len(loaded.train) == 2
    assert (loaded.info.label, loaded.info.seed) == ("file", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qpos": None}, r"mine\.npz: missing qpos"),
        (
            {"observations": np.zeros((4, 29), np.float32)},
            r"mine\.npz: observations has shape \(4, 29\), expected \(4, 2\)",
        ),
        ({"actions": np.zeros((3, 2), np.float32)}, r"mine\.npz: actions has shape \(3, 2\), expected \(4, 2\)"),
        ({"actions": np.zeros((4, 2), np.int64)}, r"mine\.npz: actions has dtype int64"),
        ({"terminals": np.array([0, 1, 0, 0], bool)}, r"mine\.npz: .*terminals to be 1 on the last one"),
        ({"terminals": np.array([1, 0, 0, 1], bool)}, r"mine\.npz: the trajectory at row 0 has one row"),
        ({"terminals": np.array([0, 2, 0, 1])}, r"mine\.npz: terminals must hold"),
        ({"observations": np.full((4, 2), np.nan, np.float32)}, r"mine\.npz: observations .* first row 0"),
        ({"actions": np.full((4, 2), 3.0, np.float32)}, r"mine\.npz: actions .* \[-1, 1\]"),
    ],
)
def test_bad_foreign_file(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        data.load(MAZE_TASK, dataset_path=_foreign(tmp_path / "mine.npz", **changes))


def test_missing_or_misnamed_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        data.load(MAZE_TASK, dataset_path=tmp_path / "none.npz")
    _foreign(tmp_path / "mine.npz")
    (tmp_path / "mine-val.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine-val\.npz"):
        data.load(MAZE_TASK, dataset_path=tmp_path / "mine.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        data.load(MAZE_TASK, dataset_path=tmp_path / "mine.hdf5")


def _rollout(env, seed=None):
    observation, info = env.reset(seed=seed)
    # The goal too: OGBench reaches it by actions from a space that it does not seed.
    rows, rng = [info["goal"], observation], np.random.default_rng(0)
    for _ in range(10):
        observation, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
        rows.append(observation)
    return np.array(rows)


@pytest.mark.parametrize("name", ["pointmaze-teleport-navigate-singletask-task1-v0", PUZZLE_TASK])
@pytest.mark.thorough
def test_evaluation_is_a_function_of_the_seed(name):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = data.make_env(name, seed=3), data.make_env(name, seed=3)
    assert isinstance(one, data.Environment)
    first, second = _rollout(one), _rollout(one)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.random.uniform()  # noqa: NPY002
    np.testing.assert_array_equal(_rollout(two), first)
    _rollout(data.make_env(name))
    np.testing.assert_array_equal(_rollout(two), second)
    assert not np.array_equal(first, second)
    # A seed given to reset gives the same episode whatever came before.
    np.testing.assert_array_equal(_rollout(one, seed=3), first)
    assert one.reset()[0].dtype == np.float32
    assert one.observation_space.dtype == np.float32
    assert one.observation_space.shape == first[0].shape
    one.close()
