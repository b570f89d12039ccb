"""Minari's data sets, recorded here with its own DataCollector."""

import json
import sys
import threading
import time
import warnings

import jax.random as jr
import numpy as np
import pytest

from flowrl import Budget
from flowrl.rl import Agent, Lanes, Policy, ReferenceLearner, Standardizer, Uniform, data, evaluate, fit, make_replay
from flowrl.rl.envs import _gym_env, _isolation
from flowrl.rl.learning import presets

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
import gymnasium  # noqa: E402
from rl import environments  # noqa: E402

PENDULUM, GOALS = "minari:test/pendulum-random-v0", "minari:test/goals-v0"
STEPS = 30


ABOUT = {"algorithm_name": "random", "author": "a", "author_email": "a", "code_permalink": "a", "description": "a"}


def _collect(env_id, name, episodes, steps, **options):
    with warnings.catch_warnings():
        # The collector leaves a temporary folder behind when it goes on to a new one.
        warnings.simplefilter("ignore", ResourceWarning)
        with _isolation.quiet():
            env = minari.DataCollector(gymnasium.make(env_id, disable_env_checker=True))
        env.action_space.seed(0)
        for seed in range(episodes):
            env.reset(seed=seed)
            for _ in range(steps):
                *_, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    break
        env.create_dataset(name.removeprefix("minari:"), eval_env=gymnasium.spec(env_id), **ABOUT, **options)
        env.close()
        env._tmp_dir.cleanup()


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    """Minari's folder with two data sets in it."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        environments.register()
        _collect("FlowrlPendulum-v0", PENDULUM, 6, STEPS, ref_min_score=-300.0, ref_max_score=-100.0)
        _collect("FlowrlGoals-v0", GOALS, 3, 4)
        yield folder


def _episodes(name):
    return list(minari.load_dataset(name.removeprefix("minari:")).iterate_episodes())


def test_pendulum_has_the_right_shapes_masks_and_ends():
    loaded = data.load(PENDULUM, validation=0)
    train, episodes = loaded.train, _episodes(PENDULUM)
    assert loaded.validation is None
    assert train.observations.shape == train.next_observations.shape == (6 * STEPS, 3)
    assert train.actions.shape == (6 * STEPS, 1)
    for i, episode in enumerate(episodes):
        rows = slice(i * STEPS, (i + 1) * STEPS)
        np.testing.assert_array_equal(train.observations[rows], episode.observations[:-1])
        np.testing.assert_array_equal(train.next_observations[rows], episode.observations[1:])
        np.testing.assert_allclose(2 * train.actions[rows], episode.actions, atol=3e-5)  # limits are -2 and 2
        np.testing.assert_allclose(train.rewards[rows], episode.rewards, rtol=1e-6)
        assert episode.truncations[-1]
    # A time limit ends the trajectory, but not the task.
    assert np.flatnonzero(train.terminals).tolist() == list(range(STEPS - 1, 6 * STEPS, STEPS))
    assert train.masks.min() == 1


def test_pendulum_is_split_and_scored():
    loaded = data.load(PENDULUM, validation=0.3, seed=1)
    info = loaded.info
    assert (info.rows, info.val_rows, info.split) == (4 * STEPS, 2 * STEPS, "30% of the trajectories, seed 1")
    assert (info.label, info.metric, info.env_id, info.notes) == ("file", "return", "FlowrlPendulum-v0", ())
    returns = data.trajectory_returns(loaded.train)
    own = minari.get_normalized_score(minari.load_dataset("test/pendulum-random-v0"), returns)
    np.testing.assert_allclose(info.score(returns), 100 * own, rtol=1e-12)
    assert info.reference == data.reference_scores(PENDULUM)
    assert json.loads(info.to_json())["reference"]["maximum"] == -100


def test_pendulum_can_be_stepped_as_it_was_recorded():
    loaded = data.load(PENDULUM, validation=0)
    env = data.make_env(PENDULUM)
    assert isinstance(env, data.Environment)
    assert (env.action_space.low, env.action_space.high) == (-1, 1)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.float32
    for t in range(STEPS):
        np.testing.assert_allclose(observation, loaded.train.observations[t], atol=1e-3)
        observation, reward, terminated, truncated, _ = env.step(loaded.train.actions[t])
        np.testing.assert_allclose(reward, loaded.train.rewards[t], atol=1e-2)
        assert (terminated, truncated) == (False, t == STEPS - 1)
    np.testing.assert_array_equal(data.make_env(PENDULUM, seed=5).reset()[0], env.reset(seed=5)[0])


def test_dictionaries_are_flattened_in_the_order_of_gymnasium():
    loaded = data.load(GOALS, validation=0)
    (first, *_) = episodes = _episodes(GOALS)
    space = environments.Goals().observation_space
    rows = [
        gymnasium.spaces.flatten(space, {key: value[t] for key, value in first.observations.items()}) for t in range(5)
    ]
    np.testing.assert_array_equal(loaded.train.observations[:4], rows[:4])
    np.testing.assert_array_equal(loaded.train.next_observations[:4], rows[1:])
    assert loaded.train.observations.shape[1] == 1 + 1 + 3 + 2
    # Each coordinate has limits of its own.
    native = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_allclose(loaded.train.actions, native / [1, 2] - [0, 1], atol=2e-5)
    env = data.make_env(GOALS)
    np.testing.assert_array_equal(env.reset(seed=0)[0], rows[0])
    # The recording was cut off after four steps: the trajectories end, the task does not.
    assert loaded.train.masks.min() == 1
    assert np.flatnonzero(loaded.train.terminals).tolist() == [3, 7, 11]
    assert any("no reference scores" in note for note in loaded.info.notes)
    assert loaded.info.score(np.ones(2)).tolist() == [1, 1]


def test_a_true_end_masks():
    _collect("FlowrlGoals-v0", "minari:test/ends-v0", 2, 10)
    train = data.load("minari:test/ends-v0", validation=0).train
    assert np.flatnonzero(train.masks == 0).tolist() == np.flatnonzero(train.terminals).tolist() == [4, 9]


def _edit(root, name, change):
    """A copy of a data set with other metadata."""
    source, target = (root / identifier.removeprefix("minari:") / "data" for identifier in (GOALS, name))
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    metadata = json.loads((target / "metadata.json").read_text()) | {"dataset_id": name.removeprefix("minari:")}
    change(metadata)
    (target / "metadata.json").write_text(json.dumps(metadata))
    return name


def test_another_version_of_the_environment_is_refused(root):
    def widen(metadata):
        space = json.loads(metadata["action_space"])
        space["high"] = [2.0, 4.0]
        metadata["action_space"] = json.dumps(space)

    name = _edit(root, "minari:test/wide-v0", widen)
    with pytest.raises(ValueError, match=r"has the action space .*, but the data have .*install the version"):
        data.make_env(name)


def test_discrete_actions_are_refused(root):
    name = _edit(
        root,
        "minari:test/discrete-v0",
        lambda m: m.update(action_space=json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 2})),
    )
    with pytest.raises(ValueError, match="test/discrete-v0: the actions are .*discrete actions cannot be moved"):
        data.load(name)


def test_observations_that_do_not_fit_are_named(root):
    def lie(metadata):
        space = json.loads(metadata["observation_space"])
        space["subspaces"]["observation"]["shape"] = [3]
        space["subspaces"]["observation"] |= {"low": [-9.0] * 3, "high": [9.0] * 3}
        metadata["observation_space"] = json.dumps(space)

    name = _edit(root, "minari:test/lies-v0", lie)
    with pytest.raises(ValueError, match=r"observations of episode 0 have shape \(5, 7\), expected \(5, 8\)"):
        data.load(name)


def test_no_environment_is_said(root):
    def forget(metadata):
        metadata.pop("eval_env_spec"), metadata.pop("env_spec")

    name = _edit(root, "minari:test/lost-v0", forget)
    loaded = data.load(name)
    assert loaded.info.env_id == ""
    assert any("no environment" in note for note in loaded.info.notes)
    with pytest.raises(ValueError, match="names no environment.*from_arrays"):
        data.make_env(name)


def test_episodes_without_a_step_are_left_out_and_counted(root):
    name = _edit(root, "minari:test/empty-v0", lambda metadata: metadata.update(total_episodes=4))
    with h5py.File(root / "test/empty-v0/data/main_data.hdf5", "a") as file:
        file.copy("episode_0", "episode_3")
        for key in ("actions", "rewards", "terminations", "truncations"):
            file[f"episode_3/{key}"].resize(0, axis=0)
        for key in file["episode_3/observations"]:
            file[f"episode_3/observations/{key}"].resize(1, axis=0)
    loaded, whole = data.load(name, validation=0), data.load(GOALS, validation=0)
    np.testing.assert_array_equal(loaded.train.observations, whole.train.observations)
    assert "1 episodes without a step were left out" in loaded.info.notes


def test_truncated_file(root):
    name = _edit(root, "minari:test/short-v0", lambda _: None)
    path = root / "test/short-v0/data/main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="test/short-v0: Minari cannot read it"):
        data.load(name)


def test_more_than_memory_is_said_before_it_is_read(free_memory):
    free_memory(10_000)
    with pytest.raises(MemoryError, match=r"pendulum-random-v0: reading it needs about .* MiB of memory"):
        data.load(PENDULUM)


def test_downloads_are_minaris_and_are_recorded(tmp_path, monkeypatch, capsys):
    name = "minari:test/remote-v0"

    def download(identifier):
        print(f"Downloading {identifier}")
        _collect("FlowrlGoals-v0", f"minari:{identifier}", 2, 3)

    monkeypatch.setattr(minari, "download_dataset", download)
    with pytest.raises(FileNotFoundError, match='origin="published".*On this machine are .*test/goals-v0'):
        data.load(name, tmp_path)
    loaded = data.load(name, tmp_path, origin="published", validation=0)
    assert loaded.info.label == "published"
    assert data.load(name, tmp_path, validation=0).info == loaded.info
    assert data.load(name, tmp_path / "elsewhere", validation=0).info.label == "file"
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="MINARI_REMOTE instead of mirrors"):
        data.download(name, tmp_path, mirrors=["http://host"])

    def fail(_):
        raise ConnectionError("no route")

    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(OSError, match="test/none-v0: Minari could not download it: ConnectionError: no route"):
        data.download("minari:test/none-v0", tmp_path)


def test_who_wants_what_another_downloads_waits_for_it(tmp_path, monkeypatch):
    name, calls, found = "minari:test/wanted-v0", [], []
    other = threading.Thread(target=lambda: found.append(data.download(name, tmp_path)))

    def download(identifier):
        calls.append(identifier)
        if len(calls) == 1:
            other.start()
            time.sleep(0.3)
            assert found == []
            _collect("FlowrlGoals-v0", f"minari:{identifier}", 2, 3)

    monkeypatch.setattr(minari, "download_dataset", download)
    path = data.download(name, tmp_path)
    other.join(30)
    assert calls == ["test/wanted-v0"]
    assert found == [path]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.load("minari:../../etc/x-v0"), "expected minari:namespace/name-vN"),
        (lambda: data.make_env("minari:test"), "expected minari:namespace/name-vN"),
        (lambda: data.load(PENDULUM, dataset_path="x"), "set MINARI_DATASETS_PATH"),
        (lambda: data.load(PENDULUM, validation=0.99), "cannot hold out 99% of 6 trajectories"),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"minari is needed here.*flowrl-transport\[rl\]"):
        data.load(PENDULUM)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8), "hold images"),
        (gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)), "no flat form"),
        (gymnasium.spaces.Dict(a=gymnasium.spaces.Text(5)), "no flat form"),
    ],
)
def test_observations_without_a_flat_form(space, words):
    with pytest.raises(ValueError, match=f"x: .*{words}"):
        _gym_env.flat_size(space, "x")


def test_many_rows_are_flattened_as_one_is():
    spaces = gymnasium.spaces
    space = spaces.Tuple([spaces.Box(-1, 1, (2, 2)), spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])])
    space.seed(0)
    samples = [space.sample() for _ in range(4)]
    stacked = tuple(np.stack(parts) for parts in zip(*samples, strict=True))
    flat = _gym_env.flatten_rows(space, stacked, 4)
    np.testing.assert_array_equal(flat, [spaces.flatten(space, sample) for sample in samples])
    assert flat.shape[1] == _gym_env.flat_size(space, "x")


@pytest.mark.slow
def test_a_policy_is_trained_on_minari_data_and_scored():
    loaded = data.apply_protocol(data.load(PENDULUM, validation=0.3), rewards="unit_std")
    standardizer = Standardizer.fit(loaded.train.observations)
    vgf = presets.default(1, 0.3, hidden=(16,), reference=ReferenceLearner(hidden=(16,), updates=20), batch_size=32)
    replay = make_replay(loaded.train, standardizer, discount=0.9)
    state = fit(vgf, replay, updates=20, interval=20, key=jr.key(0))
    policies = Policy("behaviour", 4, Uniform()), Policy("VGF", 4, Budget(1, 0.3))
    with Lanes(loaded.info.name, 4, workers=1) as lanes:
        measured = evaluate(Agent(vgf, state, standardizer), policies, lanes, episodes=2, seed=0)
    assert (measured.lengths == STEPS).all()
    scores = loaded.info.score(measured.returns)
    assert scores.shape == (2, 2)
    np.testing.assert_allclose(scores, 100 * (measured.returns + 300) / 200)
