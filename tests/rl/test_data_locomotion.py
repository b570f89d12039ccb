"""Local locomotion data: the same whatever the workers, honest about ends, from weights whose origin is known."""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from flowrl.rl import data as data_room
from flowrl.rl.data.files import versions
from flowrl.rl.data.generators import _behaviour
from flowrl.rl.data.sources import Locomotion
from flowrl.rl.envs import _pool

REPLAY = "walker2d-medium-replay-local-v0"  # nine policies, the early ones of which fall over
SIZES = {"rows": 200, "val_rows": 9, "seed": 3}


class Interrupted(Exception):
    pass


def policy(env_id, which):
    return _behaviour.load_policy(_behaviour.FOLDER / _behaviour.provenance()[env_id]["snapshots"][which]["file"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.fixture(scope="module")
def data(folder):
    return data_room.load(REPLAY, folder, workers=1, **SIZES)


@pytest.mark.usefixtures("data")
@pytest.mark.thorough
def test_bytes_depend_neither_on_workers_nor_on_an_interruption(folder, tmp_path):
    seen = []

    def interrupt(done, total):
        seen.append((done, total))
        if done == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        data_room.generate(REPLAY, tmp_path, workers=2, progress=interrupt, **SIZES)
    assert not list(tmp_path.glob("*/*/manifest.json"))
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*/.shards-*/*.npz")}
    assert len(shards) >= 4
    assert [done for done, _ in seen] == [0, 1, 2, 3, 4]
    seen.clear()
    path = data_room.generate(REPLAY, tmp_path, workers=2, progress=lambda *a: seen.append(a), **SIZES)
    assert seen[0][0] == len(shards)  # went on from there
    assert seen[-1][0] == seen[-1][1]
    for file in sorted(path.parent.glob("*.*")):
        if file.is_file() and file.name != ".lock":
            other = folder / file.relative_to(tmp_path)
            assert file.read_bytes() == other.read_bytes(), file.name
    assert not list(path.parent.glob(".shards-*"))


def test_shapes_and_ends(data):
    train = data.train
    assert train.observations.shape == train.next_observations.shape == (200, 17)
    assert train.actions.shape == (200, 6)
    assert len(data.validation) == 9
    ends = train.terminals == 1
    # Within a trajectory the next observation is the next row's; the last row of each policy's share is an end.
    np.testing.assert_array_equal(train.next_observations[:-1][~ends[:-1]], train.observations[1:][~ends[:-1]])
    shares = np.cumsum([23, 23] + 7 * [22]) - 1
    assert np.all(ends[shares])
    # A true end is an end, but where the share was cut the task goes on.
    assert np.all(ends[train.masks == 0])
    assert np.any(ends & (train.masks == 1))


def test_splits_and_seeds_differ(data):
    first = data.train.observations[0]
    assert not np.array_equal(first, data.validation.observations[0])


def test_info(data, folder):
    info = data.info
    assert (info.label, info.metric, info.env_id, info.seed, info.rows) == ("local", "return", "Walker2d-v5", 3, 200)
    path = folder / REPLAY / "local-rows200-val9-seed3" / f"{REPLAY}.npz"
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    again = data_room.load(REPLAY, folder, dataset_path=path)
    assert again.info == info  # a path to one of ours is recognised
    for suffix in ("", "-val"):
        (folder / f"mine{suffix}.npz").write_bytes(path.with_name(f"{REPLAY}{suffix}.npz").read_bytes())
    mine = data_room.load(REPLAY, folder, dataset_path=folder / "mine.npz")
    assert mine.info == dataclasses.replace(info, label="file", seed=None, versions=versions())


def test_a_fall_masks_and_a_time_limit_does_not():
    seed = np.random.SeedSequence(0)
    fall = _behaviour.rollout(_behaviour.make_mujoco("Walker2d-v5"), policy("Walker2d-v5", 0), seed)
    assert len(fall.rewards) < 1000
    assert fall.masks[-1] == 0
    limit = _behaviour.rollout(_behaviour.make_mujoco("HalfCheetah-v5"), policy("HalfCheetah-v5", 0), seed)
    assert len(limit.rewards) == 1000
    assert limit.masks[-1] == 1
    for episode in (fall, limit):
        assert episode.terminals.sum() == episode.terminals[-1] == 1
        assert np.all(episode.masks[:-1] == 1)
        assert all(array.dtype == np.float32 for array in episode)


def test_the_shipped_policy_is_far_better_than_a_random_one():
    env = _behaviour.make_mujoco("HalfCheetah-v5")
    trained, untrained = (
        _behaviour.rollout(env, policy("HalfCheetah-v5", which), np.random.SeedSequence(1)).rewards.sum()
        for which in (-1, 0)
    )
    assert untrained < 100
    assert trained > 3500


def test_provenance_lists_every_file_with_its_checksum():
    known = _behaviour.provenance()
    files = {entry["file"]: entry["sha256"] for run in known.values() for entry in run["snapshots"]}
    assert set(files) == {path.name for path in _behaviour.FOLDER.glob("*.npz")}
    for file, sha256 in files.items():
        assert hashlib.sha256((_behaviour.FOLDER / file).read_bytes()).hexdigest() == sha256
    for env_id, run in known.items():
        steps = [entry["steps"] for entry in run["snapshots"]]
        # The library takes the last one for "medium", and the others, evenly spaced, for "medium-replay".
        assert len(set(np.diff(steps))) == 1
        assert steps[0] == 0
        assert run["command"].startswith(f"python examples/train_behaviour.py --env {env_id} ")


def test_weights_that_are_not_those_of_the_provenance_are_refused(tmp_path, monkeypatch):
    for path in _behaviour.FOLDER.glob("halfcheetah*.npz"):
        _behaviour.save_policy(tmp_path / path.name, policy("HalfCheetah-v5", 0))
    monkeypatch.setattr(_behaviour, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"halfcheetah.*npz: SHA-256"):
        data_room.generate("halfcheetah-medium-local-v0", tmp_path, rows=1, val_rows=1, workers=1)


def test_policies_are_saved_exactly_once_rounded_and_checked(tmp_path):
    small = _behaviour.TanhGaussian(
        (np.full((3, 4), 0.5, np.float32), np.ones((4, 4), np.float32)), (np.zeros(4, np.float32),) * 2
    )
    _behaviour.save_policy(tmp_path / "a.npz", small)
    loaded = _behaviour.load_policy(tmp_path / "a.npz")
    observation = np.arange(3.0)
    np.testing.assert_array_equal(loaded(observation), small(observation))
    assert loaded(observation).shape == (2,)
    wrong = dataclasses.replace(small, kernels=(small.kernels[0], np.ones((5, 4), np.float32)))
    _behaviour.save_policy(tmp_path / "b.npz", wrong)
    with pytest.raises(ValueError, match=r"b.npz: kernel_1 has shape \(5, 4\)"):
        _behaviour.load_policy(tmp_path / "b.npz")


def test_environment_is_float32_and_seeded():
    name = "halfcheetah-medium-local-v0"
    env = data_room.make_env(name, seed=5)
    first = env.reset()[0]
    assert first.dtype == env.observation_space.dtype == np.float32
    np.testing.assert_array_equal(first, data_room.make_env(name).reset(seed=5)[0])
    assert not np.array_equal(first, env.reset()[0])
    assert env.step(env.action_space.sample())[0].dtype == np.float32


def test_the_registry_entry():
    source = Locomotion()
    assert source.env_names == source.dataset_names
    assert {name.split("-")[0] for name in source.env_names} == {"halfcheetah", "walker2d"}
    assert source.metric == "return"


@pytest.mark.thorough
def test_a_failing_worker_is_reported():
    with pytest.raises(RuntimeError, match="not callable"):
        _pool.run("os:getpid", {}, [{"index": 0}, {"index": 1}, {"index": 2}], 2, lambda: None)
    with pytest.raises(RuntimeError, match="died .exit status 3."):
        _pool.run("os:_exit", {"status": 3}, [{"index": 0}, {"index": 1}, {"index": 2}], 2, lambda: None)


@pytest.mark.parametrize("name", ["halfcheetah-medium-local-v0", "puzzle-3x3-play-singletask-task1-v0"])
@pytest.mark.thorough
def test_environments_print_nothing_and_leave_nothing(name, tmp_path):
    """MuJoCo remarks on gymnasium's models, in a file in the working directory too; glfw on a missing display."""
    code = f"from flowrl.rl import data; e = data.make_env({name!r}, seed=0); e.reset(seed=0); e.close()"
    given = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "MUJOCO_GL", "WAYLAND_DISPLAY")}
    environment = {**given, "PYTHONPATH": str(pathlib.Path(data_room.__file__).parents[3]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
    assert list(tmp_path.iterdir()) == []
