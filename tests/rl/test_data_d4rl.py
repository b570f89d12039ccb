"""D4RL's HDF5 layout, written here, against a loop that follows `qlearning_dataset` row by row."""

import dataclasses
import hashlib
import importlib.util
import sys

import numpy as np
import pytest

from flowrl._io import _memory
from flowrl.rl import data
from flowrl.rl.data.files import _published
from flowrl.rl.data.sources import REFERENCES, _d4rl
from flowrl.rl.data.sources._d4rl_names import TASKS

h5py = pytest.importorskip("h5py")

HOPPER, MAZE, PEN = "d4rl:hopper-medium-v2", "d4rl:antmaze-umaze-v2", "d4rl:pen-human-v1"


def _arrays(name, lengths=(7, 5, 9), true_ends=(1,), *, following=False, seed=0):
    """Episodes as D4RL stores them: flags on the last row of each, which is a true end or a time limit."""
    rng = np.random.default_rng(seed)
    rows, (obs, act) = sum(lengths), TASKS[name].widths
    states = [rng.normal(size=(length + 1, obs)).astype(np.float32) for length in lengths]
    last = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(rows, bool), np.zeros(rows, bool)
    for i, row in enumerate(last):
        (terminals if i in true_ends else timeouts)[row] = True
    arrays = {
        "observations": np.concatenate([episode[:-1] for episode in states]),
        "actions": rng.uniform(-1, 1, (rows, act)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }
    return arrays | ({"next_observations": np.concatenate([episode[1:] for episode in states])} if following else {})


def _write(path, arrays, **more):
    with h5py.File(path, "w") as file:
        for key, value in (arrays | more).items():
            if value is not None:
                file.create_dataset(key, data=value)
        # What D4RL's files hold besides, and what is not read.
        file.create_dataset("infos/qpos", data=np.zeros((2, 3)))
        file.create_dataset("metadata/algorithm", data="SAC")
    return path


def _expected(arrays):
    """Row by row, as D4RL does it: indices of the rows that are kept."""
    return [i for i in range(len(arrays["rewards"]) - 1) if not arrays["timeouts"][i]]


@pytest.mark.parametrize("following", [False, True])
def test_rows_masks_and_ends(tmp_path, following):
    arrays = _arrays(HOPPER, following=following)
    loaded = data.load(HOPPER, dataset_path=_write(tmp_path / "x.hdf5", arrays), validation=0)
    train, kept = loaded.train, _expected(arrays)
    assert len(train) == 21 - 2 == len(kept)
    np.testing.assert_array_equal(train.observations, arrays["observations"][kept])
    np.testing.assert_array_equal(train.rewards, arrays["rewards"][kept])
    np.testing.assert_allclose(train.actions, arrays["actions"][kept], atol=1e-5)
    shifted = np.roll(arrays["observations"], -1, axis=0)
    np.testing.assert_array_equal(train.next_observations, arrays.get("next_observations", shifted)[kept])
    np.testing.assert_array_equal(train.masks, 1 - arrays["terminals"][kept])
    # Before the row of the time limit (6), at the true end (11), before the last row (20).
    assert [kept[i] for i in np.flatnonzero(train.terminals)] == [5, 11, 19]


def test_in_antmaze_the_goal_is_no_end(tmp_path):
    arrays = _arrays(MAZE, lengths=(6, 6), true_ends=())
    # The ant stays at its goal from the third step of the first episode on.
    arrays["terminals"][[2, 3, 4]] = True
    arrays["rewards"] = arrays["terminals"].astype(np.float32)
    loaded = data.load(MAZE, dataset_path=_write(tmp_path / "x.hdf5", arrays), validation=0)
    assert loaded.train.masks.tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert np.flatnonzero(loaded.train.terminals).tolist() == [4, 9]
    changed = data.apply_protocol(loaded, rewards="antmaze")
    assert changed.train.rewards.tolist() == [-1, -1, 0, 0, 0, -1, -1, -1, -1, -1]
    assert changed.info.reward_transform(1.0) == 0


def test_a_break_that_no_flag_shows_is_found(tmp_path):
    arrays = _arrays(HOPPER, following=True)
    arrays["timeouts"][:] = False  # as where the files of "medium-expert" were put together
    loaded = data.load(HOPPER, dataset_path=_write(tmp_path / "x.hdf5", arrays), validation=0)
    assert np.flatnonzero(loaded.train.terminals).tolist() == [6, 11, 19]
    assert loaded.train.masks.tolist() == [1.0] * 11 + [0.0] + [1.0] * 8


def test_without_timeouts_steps_are_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, HOPPER, dataclasses.replace(TASKS[HOPPER], max_steps=4))
    arrays = _arrays(HOPPER, lengths=(4, 3, 4, 2), true_ends=(1, 3))
    loaded = data.load(HOPPER, dataset_path=_write(tmp_path / "x.hdf5", arrays, timeouts=None), validation=0)
    # Time limits at rows 3 and 10; the last row, a true end, has no next one.
    assert len(loaded.train) == 13 - 3
    assert np.flatnonzero(loaded.train.terminals).tolist() == [2, 5, 8, 9]
    assert any("an episode was taken to last 4 steps" in note for note in loaded.info.notes)


def test_scores_and_what_is_said_of_the_data(tmp_path):
    path = _write(tmp_path / "x.hdf5", _arrays(HOPPER))
    info = data.load(HOPPER, dataset_path=path, validation=0.4, seed=3).info
    assert (info.label, info.metric, info.env_id, info.split) == (
        "file",
        "return",
        "Hopper-v5",
        "40% of the trajectories, seed 3",
    )
    assert info.rows + info.val_rows == 19
    np.testing.assert_allclose(info.score(np.array([-20.272305, 3234.3, 1607.0138475])), [0, 100, 50])
    assert info.notes[0] == "left out, as in qlearning_dataset: the last row, and 1 more at time limits"
    assert "today's MuJoCo" in info.notes[-1]
    assert data.metric(HOPPER) == "return"
    assert data.reference_scores(HOPPER) == REFERENCES["hopper"] == info.reference


def test_the_table_is_that_of_d4rl():
    """Numbers of d4rl/infos.py, written down a second time."""
    found = {name: (task.reference.minimum, task.reference.maximum) for name, task in TASKS.items()}
    assert found["d4rl:halfcheetah-medium-expert-v2"] == (-280.178953, 12135.0)
    assert found["d4rl:hopper-medium-replay-v2"] == (-20.272305, 3234.3)
    assert found["d4rl:walker2d-medium-v2"] == (1.629008, 4592.3)
    assert found["d4rl:antmaze-large-diverse-v2"] == (0, 1)
    assert found["d4rl:pen-cloned-v1"] == (96.262799, 3076.8331017826877)
    assert len(TASKS) == 3 * 6 + 6 + 3
    official = "https://rail.eecs.berkeley.edu/datasets/offline_rl"
    assert {TASKS[name].urls(())[0].removeprefix(official) for name in (HOPPER, MAZE, PEN)} == {
        "/gym_mujoco_v2/hopper_medium-v2.hdf5",
        "/ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
        "/hand_dapg_v1/pen-human-v1.hdf5",
    }
    file = "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"
    assert TASKS["d4rl:antmaze-large-play-v2"].urls(("http://here/",)) == (f"http://here/{file}",)


def test_published_files_are_downloaded_when_asked_for(tmp_path, monkeypatch):
    calls = []

    def obtain(folder, files, progress):
        calls.append((folder.relative_to(tmp_path).as_posix(), [file.name for file in files], progress))
        folder.mkdir(parents=True)
        _write(folder / files[0].name, _arrays(PEN, true_ends=()))

    monkeypatch.setattr(_d4rl, "obtain", obtain)
    with pytest.raises(ValueError, match='origin="published" to download pen-human-v1.hdf5, or its path'):
        data.load(PEN, tmp_path)
    loaded = data.load(PEN, tmp_path, origin="published", validation=0)
    assert calls == [("d4rl/pen-human-v1", ["pen-human-v1.hdf5"], None)]
    assert len(loaded.train) == 21 - 3
    assert loaded.train.masks.min() == 1


def test_a_file_with_a_known_checksum_is_recognised(tmp_path, monkeypatch):
    path = _write(tmp_path / "hopper_medium-v2.hdf5", _arrays(HOPPER))
    assert data.load(HOPPER, dataset_path=path).info.label == "file"
    content = path.read_bytes()
    monkeypatch.setitem(_published.KNOWN, path.name, (len(content), hashlib.sha256(content).hexdigest()))
    assert data.load(HOPPER, dataset_path=path).info.label == "published"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terminals": None}, "missing terminals; found actions"),
        ({"observations": np.zeros((21, 17), np.float32)}, r"observations has shape \(21, 17\), expected \(21, 11\)"),
        ({"actions": np.zeros((20, 3), np.float32)}, r"actions has shape \(20, 3\), expected \(21, 3\)"),
        ({"actions": np.zeros((21, 3), np.int64)}, "actions has dtype int64, expected a floating"),
        ({"rewards": np.full(21, np.nan, np.float32)}, "rewards is wrong on .* first row 0"),
        ({"terminals": np.full(21, 2)}, "terminals must hold values that are 0 or 1"),
        ({"timeouts": np.ones(21, bool)}, "every row is at a time limit"),
        ({"observations": np.zeros((1, 11), np.float32)}, "observations has 1 rows, expected at least 2"),
        ({"rewards": np.array(["a"] * 21, dtype="S1")}, r"rewards has dtype \|S1, expected numbers"),
        ({"rewards": h5py.SoftLink("/observations")}, "rewards is a link to elsewhere"),
        ({"rewards": h5py.ExternalLink("other.hdf5", "/rewards")}, "rewards is a link to elsewhere"),
    ],
)
def test_bad_files_are_named(tmp_path, changes, words):
    path = tmp_path / "mine.hdf5"
    links = {key: value for key, value in changes.items() if isinstance(value, h5py.SoftLink | h5py.ExternalLink)}
    _write(path, _arrays(HOPPER), **{key: None if key in links else value for key, value in changes.items()})
    with h5py.File(path, "a") as file, h5py.File(tmp_path / "other.hdf5", "w") as other:
        other.create_dataset("rewards", data=np.zeros(21))
        for key, value in links.items():
            file[key] = value
    with pytest.raises(ValueError, match=rf"mine\.hdf5: .*{words}"):
        data.load(HOPPER, dataset_path=path)


def test_values_kept_in_another_file_are_refused(tmp_path):
    path = _write(tmp_path / "mine.hdf5", _arrays(HOPPER), rewards=None)
    (tmp_path / "secret").write_bytes(bytes(21 * 4))
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (21,), "f4", external=[(str(tmp_path / "secret"), 0, 84)])
    with pytest.raises(ValueError, match="rewards keeps its values in other files"):
        data.load(HOPPER, dataset_path=path)


def test_truncated_or_missing_file(tmp_path):
    path = _write(tmp_path / "mine.hdf5", _arrays(HOPPER))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mine\.hdf5: not an HDF5 file, or a truncated one"):
        data.load(HOPPER, dataset_path=path)
    with pytest.raises(FileNotFoundError, match=r"none\.hdf5"):
        data.load(HOPPER, dataset_path=tmp_path / "none.hdf5")


def test_more_than_memory(tmp_path, free_memory):
    path = _write(tmp_path / "mine.hdf5", _arrays(HOPPER))
    free_memory(100)
    with pytest.raises(MemoryError, match=r"mine\.hdf5: reading it needs about .* MiB of memory, 0 MiB are free"):
        data.load(HOPPER, dataset_path=path)


def test_what_is_known_of_the_memory():
    free = _memory.available_memory()
    assert free is None or 2**20 < free < 2**50
    _memory.check_memory(1, "x")


@pytest.mark.parametrize(("kind", "widths"), [("halfcheetah", (17, 6)), ("hopper", (11, 3)), ("walker2d", (17, 6))])
def test_locomotion_environments_have_the_widths_of_the_data(kind, widths):
    pytest.importorskip("mujoco")
    env = data.make_env(f"d4rl:{kind}-medium-v2", seed=0)
    observation, _ = env.reset()
    assert (observation.shape[0], env.action_space.shape[0]) == widths
    assert observation.dtype == np.float32
    if kind == "walker2d":  # the feet of the model that the data were collected with differ
        model = env.unwrapped.model
        assert model.geom("foot_geom").friction[0] == 0.9
        assert model.geom("foot_left_geom").friction[0] == 1.9
    env.close()


@pytest.mark.skipif(importlib.util.find_spec("gymnasium_robotics") is None, reason="needs gymnasium-robotics")
def test_pen_environment_ends_as_in_d4rl(capfd):
    env = data.make_env(PEN, seed=0)
    observation, _ = env.reset()
    assert (observation.shape[0], env.action_space.shape[0]) == TASKS[PEN].widths
    rng, ended = np.random.default_rng(0), False
    for step in range(1, 101):
        observation, _, ended, truncated, _ = env.step(rng.uniform(-1, 1, 24))
        # What the height is read from is the pen itself.
        assert observation[26] == pytest.approx(env.unwrapped.data.xpos[env.unwrapped.obj_body_id][2], abs=1e-6)
        assert bool(ended) == (observation[26] < 0.075)
        assert truncated == (step == 100)
        if ended or truncated:
            break
    assert ended or truncated
    env.close()
    assert capfd.readouterr().err == ""  # the package prints a notice when it is imported


def test_there_is_no_environment_for_antmaze():
    with pytest.raises(ValueError, match="umaze-v2: no environment here: D4RL's ant has other torques.*Minari"):
        data.make_env(MAZE)


def test_names():
    with pytest.raises(ValueError, match="did you mean .*d4rl:hopper-medium-v2"):
        data.load("d4rl:hopper-medium-v1")
    with pytest.raises(ValueError, match="unknown environment"):
        data.make_env("d4rl:kitchen-complete-v0")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    path = _write(tmp_path / "x.hdf5", _arrays(HOPPER))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"h5py is needed here.*flowrl-transport\[rl\]"):
        data.load(HOPPER, dataset_path=path)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(ImportError, match="gymnasium_robotics is needed here"):
        data.make_env(PEN)
