"""A user's own arrays and environment: common layouts, repairs that are counted, and what is refused."""

import importlib.machinery
import json
import os
import sys
import types

import numpy as np
import pytest
from rl import environments
from rl.toys import transitions

from flowrl.rl import Standardizer, data, make_replay
from flowrl.rl.envs import _pool

gymnasium = pytest.importorskip("gymnasium")

environments.register()
PENDULUM = "gym:FlowrlPendulum-v0"
ENDS = [4, 9, 11, 19]  # of trajectories of 5, 5, 2 and 8 rows; the second one truly ends


def _arrays(seed=0, obs=3, act=1):
    """Four trajectories in this library's layout."""
    rng = np.random.default_rng(seed)
    lengths = np.diff([-1, *ENDS])
    states = [rng.normal(size=(length + 1, obs)).astype(np.float32) for length in lengths]
    terminals = np.isin(np.arange(20), ENDS)
    return {
        "observations": np.concatenate([episode[:-1] for episode in states]),
        "actions": rng.uniform(-1, 1, (20, act)).astype(np.float32),
        "rewards": rng.normal(size=20).astype(np.float32),
        "next_observations": np.concatenate([episode[1:] for episode in states]),
        "masks": (np.arange(20) != 9).astype(np.float32),
        "terminals": terminals.astype(np.float32),
    }


def _flags(**flags):
    arrays = _arrays()
    del arrays["masks"], arrays["terminals"]
    return arrays | flags


def _load(arrays, **options):
    return data.from_arrays(arrays, validation=0, **options)


def test_our_own_layout_passes_unchanged():
    arrays = _arrays()
    loaded = _load(arrays)
    for key, value in arrays.items():
        np.testing.assert_allclose(getattr(loaded.train, key), value, atol=1e-5, err_msg=key)
    info = loaded.info
    assert (info.label, info.rows, info.val_rows, info.split, info.env_id) == ("file", 20, 0, "none", "")
    assert info.notes == ("no environment: policies cannot be evaluated",)
    assert _load(dict(reversed(arrays.items()))).info.sha256 == info.sha256
    assert _load(_arrays(1)).info.sha256 != info.sha256


TRUE_END, LIMITS = np.arange(20) == 9, np.isin(np.arange(20), [4, 11, 19])


@pytest.mark.parametrize(
    "flags",
    [
        {"terminals": TRUE_END, "timeouts": LIMITS},
        {"terminals": TRUE_END.astype(np.int64)[:, None], "timeouts": LIMITS.astype(np.float64)},
        {"terminations": TRUE_END, "truncations": LIMITS},
        {"dones": TRUE_END | LIMITS, "timeouts": LIMITS},
        {"terminals": TRUE_END},  # the other ends are seen: the next observation is not the next row's
        {"terminations": TRUE_END},
    ],
)
def test_layouts(flags):
    train = _load(_flags(**flags)).train
    assert np.flatnonzero(train.masks == 0).tolist() == [9]
    assert np.flatnonzero(train.terminals).tolist() == ENDS


def test_dones_alone_are_true_ends_and_that_is_said():
    loaded = _load(_flags(dones=TRUE_END | LIMITS))
    assert np.flatnonzero(loaded.train.masks == 0).tolist() == ENDS
    assert "dones: all 4 were taken for true ends, none for a time limit" in loaded.info.notes


def test_next_observations_are_those_of_the_next_row():
    arrays = _arrays()
    following = arrays.pop("next_observations")
    loaded = _load(arrays)
    kept = [row for row in range(20) if row not in (4, 11, 19)]  # what follows a time limit is not known
    np.testing.assert_array_equal(loaded.train.observations, arrays["observations"][kept])
    inside = [i for i, row in enumerate(kept) if row != 9]
    np.testing.assert_array_equal(loaded.train.next_observations[inside], following[[kept[i] for i in inside]])
    assert [kept[i] for i in np.flatnonzero(loaded.train.terminals)] == [3, 9, 10, 18]
    assert [kept[i] for i in np.flatnonzero(loaded.train.masks == 0)] == [9]
    assert "next_observations: taken from the next row; 3 last rows without one were dropped" in loaded.info.notes


def test_what_is_unfinished_or_unmarked_is_repaired_and_counted():
    arrays = _arrays()
    arrays["terminals"][[4, 19]] = 0
    loaded = _load(arrays)
    assert np.flatnonzero(loaded.train.terminals).tolist() == ENDS
    assert "the last trajectory was unfinished: 1 end added" in loaded.info.notes
    assert "terminals: 1 ends added where the next row does not go on" in loaded.info.notes
    # Rows in no order are trajectories of one row each: returns of several steps are never summed across them.
    order = np.random.default_rng(0).permutation(20)
    assert _load({key: value[order] for key, value in _arrays().items()}).train.terminals.sum() >= 18


def test_actions_that_look_like_codes_are_noted():
    rng = np.random.default_rng(0)
    codes, one_hot = rng.integers(-1, 2, (20, 1)).astype(float), np.eye(3)[rng.integers(0, 3, 20)]
    for actions, form in ((codes, "3 whole numbers alone"), (one_hot, "rows with a single 1")):
        notes = _load(_arrays() | {"actions": actions}, env=None, actions="unit").info.notes
        assert any(form in note and "codes of discrete actions" in note for note in notes)
    assert not any("codes" in note for note in _load(_arrays()).info.notes)
    still = _load(_arrays() | {"actions": np.zeros((20, 1))}, env=None, actions="unit").info.notes
    assert not any("codes" in note for note in still)


def test_rewards_of_whole_numbers_and_in_a_column():
    arrays = _arrays() | {"rewards": np.arange(20)[:, None]}
    loaded = _load(arrays)
    np.testing.assert_array_equal(loaded.train.rewards, np.arange(20, dtype=np.float32))
    assert "rewards: shape (n, 1) became (n,)" in loaded.info.notes


def test_actions_on_the_boundary_can_be_inverted():
    arrays = _arrays() | {"actions": np.where(np.arange(20)[:, None] % 2, 1.0, -1.0).astype(np.float32)}
    assert np.isfinite(np.arctanh(_load(arrays).train.actions)).all()
    native = _load(arrays | {"actions": 2 * arrays["actions"]}, env=PENDULUM).train.actions
    np.testing.assert_allclose(np.abs(native), 1 - 1e-5, rtol=1e-6)


def test_validation_is_given_or_split_by_whole_trajectories():
    given = data.from_arrays(_arrays(), validation=_arrays(1))
    assert (len(given.train), len(given.validation), given.info.split) == (20, 20, "given")
    split = data.from_arrays(_arrays(), validation=0.5, seed=0)
    lengths = [np.diff(np.flatnonzero(part.terminals), prepend=-1) for part in (split.train, split.validation)]
    assert sorted(np.concatenate(lengths).tolist()) == [2, 5, 5, 8]
    assert len(lengths[0]) == len(lengths[1]) == 2
    rows = {tuple(row) for part in (split.train, split.validation) for row in part.observations}
    assert len(rows) == 20
    held_out = [data.from_arrays(_arrays(), validation=0.5, seed=seed).validation.observations for seed in range(8)]
    assert len({array.tobytes() for array in held_out}) > 1
    np.testing.assert_array_equal(held_out[0], split.validation.observations)
    assert len(np.flatnonzero(data.from_arrays(_arrays()).validation.terminals)) == 1


def test_an_environment_maps_actions_and_gives_the_name_that_lanes_take():
    arrays = _arrays() | {"actions": np.linspace(-2, 2, 20, dtype=np.float32)[:, None]}
    loaded = _load(arrays, env=PENDULUM)
    np.testing.assert_allclose(loaded.train.actions[1:-1], arrays["actions"][1:-1] / 2, atol=1e-6)
    assert (loaded.info.name, loaded.info.env_id) == (PENDULUM, "FlowrlPendulum-v0")
    assert data.metric(loaded.info.name) == "return"
    assert data.reference_scores(loaded.info.name) is None
    env, raw = data.make_env(loaded.info.name, seed=1), gymnasium.make("FlowrlPendulum-v0")
    np.testing.assert_array_equal(env.reset()[0], raw.reset(seed=1)[0])
    np.testing.assert_allclose(env.step(np.array([0.5]))[0], raw.step(np.array([1.0]))[0], atol=1e-6)
    in_unit = _load(_arrays(), env=PENDULUM, actions="unit")
    np.testing.assert_allclose(in_unit.train.actions, _arrays()["actions"], atol=1e-5)


def test_a_function_makes_the_environment():
    arrays = _arrays(obs=7, act=2)
    loaded = _load(arrays, env=environments.goals, actions="unit")
    assert loaded.info.name == "factory:rl.environments:goals"
    for env in (data.make_env(environments.goals, seed=0), data.make_env(loaded.info.name, seed=0)):
        observation, _ = env.reset()
        assert observation.shape == (7,)
        # The second coordinate has the limits 0 and 4, and is the reward.
        assert env.step(np.array([0.0, 0.5]))[1] == pytest.approx(3)


@pytest.mark.thorough
def test_another_process_finds_a_users_module(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text("import os\ndef make():\n    return lambda: os.getpid()\n")
    monkeypatch.syspath_prepend(tmp_path)
    worker = _pool.Worker("users_own:make", {}, log=tmp_path / "log", advice="")
    worker.send({})
    assert worker.receive("the job") != os.getpid()
    worker.close()


def test_the_name_of_a_function(monkeypatch):
    assert data.name_of(PENDULUM) == PENDULUM
    assert data.name_of(environments.Goals) == "factory:rl.environments:Goals"

    script = types.ModuleType("__main__")
    exec("def make(): ...", vars(script))
    monkeypatch.setitem(sys.modules, "__main__", script)
    script.__file__ = "/somewhere/my_script.py"  # python my_script.py
    assert data.name_of(script.make) == "factory:my_script:make"
    script.__spec__ = importlib.machinery.ModuleSpec("package.my_module", None)  # python -m package.my_module
    assert data.name_of(script.make) == "factory:package.my_module:make"
    del script.__file__
    script.__spec__ = None  # an interactive session
    for function in (script.make, lambda: None, environments.Goals().reset):
        with pytest.raises(ValueError, match="cannot be made by another process.*top level"):
            data.name_of(function)


def test_files(tmp_path):
    np.savez(tmp_path / "mine.npz", **_arrays())
    from_npz = data.load_arrays(tmp_path / "mine.npz", validation=0)
    np.testing.assert_array_equal(from_npz.train.rewards, _arrays()["rewards"])
    assert from_npz.info.sha256 != _load(_arrays()).info.sha256  # that of the file
    np.savez(tmp_path / "mine-val.npz", **_arrays(1))
    assert data.load_arrays(tmp_path / "mine.npz").info.split == "given"
    assert data.load_arrays(tmp_path / "mine.npz", validation=0.25).info.split == "25% of the trajectories, seed 0"
    arrays = _arrays() | {"actions": 2 * _arrays()["actions"]}
    np.savez(tmp_path / "native.npz", **arrays)
    named = data.load(PENDULUM, dataset_path=tmp_path / "native.npz", validation=0)
    np.testing.assert_allclose(named.train.actions, _arrays()["actions"], atol=1e-5)
    assert json.loads(named.info.to_json())["name"] == PENDULUM
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "mine.hdf5", "w") as file:
        for key, value in _arrays().items():
            file[key] = value
        file.create_group("about")
    from_hdf5 = data.load_arrays(tmp_path / "mine.hdf5", validation=0)
    np.testing.assert_array_equal(from_hdf5.train.observations, from_npz.train.observations)


def test_bad_files(tmp_path, free_memory):
    path = tmp_path / "mine.npz"
    np.savez(path, **_arrays() | {"rewards": np.array([{}] * 20, dtype=object)})
    with pytest.raises(ValueError, match=r"mine\.npz: rewards cannot be read"):
        data.load_arrays(path)
    np.savez(path, **_arrays())
    free_memory(100)
    with pytest.raises(MemoryError, match=r"mine\.npz: reading it needs"):
        data.load_arrays(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"mine\.npz: .*truncated"):
        data.load_arrays(path)
    with pytest.raises(ValueError, match=r"ends in \.npz, \.hdf5 or \.h5"):
        data.load_arrays(tmp_path / "mine.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        data.load_arrays(tmp_path / "none.npz")


def _put(key, rows, value):
    def put(arrays):
        arrays[key][rows] = value

    return put


def _shift_ends(arrays):
    arrays["terminals"] = np.roll(arrays["terminals"], 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: a.pop("actions"), "missing actions; found masks"),
        (lambda a: (a.pop("masks"), a.pop("terminals")), r"missing flags \(terminals or dones\)"),
        (lambda a: a.pop("terminals"), "the flags masks are not a known layout"),
        (lambda a: a.update(dones=np.ones(20)), "flags dones, masks, terminals are not a known layout"),
        (lambda a: a.update(qpos=np.ones(20)), "unknown keys qpos"),
        (lambda a: a.update({key: value[:0] for key, value in a.items()}), "observations has no rows"),
        (lambda a: a.update(observations=np.float32(1.0)), "observations has no rows"),
        (lambda a: a.update(rewards=np.ones(19)), r"rewards has shape \(19,\), but observations has 20 rows"),
        (lambda a: a.update(actions=np.arange(20)), "dtype int64: discrete actions cannot be moved"),
        (lambda a: a.update(actions=a["actions"].astype(str)), "actions has dtype <U.*expected numbers"),
        (lambda a: a.update(observations=a["observations"].astype(int)), "observations has dtype int64, expected a fl"),
        (lambda a: a.update(next_observations=np.ones((20, 2))), r"next_observations has shape \(20, 2\)"),
        (lambda a: a.update(terminals=np.ones((20, 2))), r"terminals must be 20 values .*\(20, 2\)"),
        (_put("masks", 3, 0.5), "masks must be 20 values that are 0 or 1"),
        (_put("masks", 3, 255), "masks must be 20 values that are 0 or 1; 1 are not, first row 3: 255"),
        (_put("masks", 3, np.nan), "masks must be 20 values that are 0 or 1"),
        (_put("observations", 7, np.nan), "observations is wrong on 1 of 20 rows, first row 7"),
        (_put("rewards", 7, np.inf), "rewards is wrong on 1 of 20 rows, first row 7"),
        (_put("actions", 7, 1.5), "actions is wrong on 1 of 20 rows, first row 7.*rescale"),
        (_shift_ends, "break off 3 times one row before their end is flagged, first at row 4"),
    ],
)
def test_bad_arrays_are_named(spoil, words):
    arrays = _arrays()
    spoil(arrays)
    with pytest.raises(ValueError, match=f"^mine: .*{words}"):
        _load(arrays, source="mine")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (2.5, r"\[-2\] to \[2\], in 1 of 20 rows, first in row 7, \[2.5\]; clip them"),
        (float("nan"), "actions is wrong on 1 of 20 rows, first row 7"),
    ],
)
def test_actions_outside_the_limits_are_named_in_the_units_of_the_environment(action, words):
    arrays = _arrays()
    arrays["actions"][7] = action
    with pytest.raises(ValueError, match=words):
        data.from_arrays(arrays, env=PENDULUM)


def test_actions_outside_narrow_limits_that_look_scaled_are_said_to():
    arrays = _arrays() | {"actions": np.linspace(-1, 1, 20, dtype=np.float32)[:, None]}
    with pytest.raises(ValueError, match=r'\[-0.5\] to \[0.5\], in 10 of 20 rows, .*give actions="unit"'):
        data.from_arrays(arrays, env="factory:rl.environments:narrow")
    assert len(data.from_arrays(arrays, env="factory:rl.environments:narrow", actions="unit").train) > 0


def test_trajectories_of_one_row_without_what_follows():
    arrays = _arrays() | {"terminals": np.ones(20, np.float32), "masks": np.ones(20, np.float32)}
    del arrays["next_observations"]
    with pytest.raises(ValueError, match="every trajectory has one row"):
        _load(arrays)


@pytest.mark.parametrize(
    ("arrays", "env", "words"),
    [
        (_arrays(obs=4), PENDULUM, r"observations has shape \(20, 4\), but the environment .* has 3 columns"),
        (_arrays(act=2), PENDULUM, r"actions has shape \(20, 2\), but the environment .* has 1 columns"),
        (_arrays(), "gym:CartPole-v1", "the actions are Discrete.*discrete actions cannot be moved"),
        (_arrays(), environments.Unlimited, "expected finite limits"),
        (_arrays(), "gym:NoSuch-v0", "gymnasium cannot make 'NoSuch-v0'"),
        (_arrays(), "gym:no_such_module:X-v0", "gymnasium cannot make"),
        (_arrays(), "factory:rl.environments:none", "there is no such function"),
        (_arrays(), "factory:rl.environments:np", "np is not a function"),
        (_arrays(), "factory:nothing", "there is no such function"),
        (_arrays(), "Pendulum-v1", 'unknown environment .*"gym:ID"'),
    ],
)
def test_environments_that_do_not_fit(arrays, env, words):
    with pytest.raises(ValueError, match=words):
        _load(arrays, env=env)


def test_what_is_no_environment():
    with pytest.raises(TypeError, match="dict: expected a gymnasium.Env, got dict"):
        data.make_env(dict)
    with pytest.raises(ValueError, match="no one has published data for it"):
        data.load(PENDULUM)


def test_trajectories_shorter_than_n_steps_are_summed_to_their_end():
    """As documented in `make_replay`: m = min(n, steps left), and the bootstrap state is the trajectory's last."""
    arrays = _arrays()
    replay = make_replay(_load(arrays).train, Standardizer.fit(arrays["observations"]), discount=0.5, n_step=10)
    rewards = arrays["rewards"].astype(np.float64)
    np.testing.assert_allclose(replay.returns[10], rewards[10] + 0.5 * rewards[11], rtol=1e-5)
    assert (int(replay.bootstrap[10]), float(replay.discounts[10])) == (11, 0.25)
    assert (int(replay.bootstrap[5]), float(replay.discounts[5])) == (9, 0)
    one = transitions(np.zeros((1, 2)), np.zeros((1, 1)), [1.0], np.zeros((1, 2)), [1.0], [1.0])
    assert float(make_replay(one, Standardizer.fit(one.observations), discount=0.5, n_step=3).returns[0]) == 1
