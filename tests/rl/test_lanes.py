"""Lanes: the same episodes whatever lane or process plays them, and errors that say what happened."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import flowrl
from flowrl.rl import Lanes, LanesError, StepResult, data

pytest.importorskip("ogbench")

MAZE = "pointmaze-teleport-navigate-singletask-task1-v0"
RIGHT = np.array([1.0, 0.0], np.float32)


def _pids(lanes):
    return [worker._process.pid for worker in lanes._workers]


def _ended(pid):
    """Gone, or waiting for whoever inherited it to notice."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.thorough
def test_episodes_depend_on_the_seed_alone():
    seeds = [3, 4, 3]
    with Lanes(MAZE, 3, workers=2) as lanes:
        pids = _pids(lanes)
        first = lanes.reset(dict(enumerate(seeds)))
        # Lane 1 is left alone; lanes 0 and 2 belong to the same process.
        steps = [lanes.step({0: RIGHT, 2: RIGHT}) for _ in range(5)]
        steps += [lanes.step({1: RIGHT}) for _ in range(5)]
        # The same seed in another process.
        again = lanes.reset({1: 3})
        steps += [lanes.step({1: RIGHT}) for _ in range(5)]
    assert all(map(_ended, pids))
    assert {lane: (o.shape, o.dtype.name) for lane, o in first.items()} == dict.fromkeys(range(3), ((2,), "float32"))
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(first[0], again[1])
    assert not np.array_equal(first[0], first[1])
    env = data.make_env(MAZE, seed=99)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first[0])
    for i in range(5):
        observation, reward, *_ = env.step(RIGHT)
        assert steps[i].keys() == {0, 2}
        for stepped in (steps[i][0], steps[i][2], steps[10 + i][1]):
            assert isinstance(stepped, StepResult)
            np.testing.assert_array_equal(stepped.observation, observation)
            assert (stepped.reward, stepped.done, stepped.success) == (reward, False, False)
    assert not np.array_equal(steps[5][1].observation, steps[0][0].observation)


@pytest.mark.thorough
def test_an_end_is_told_from_a_time_limit():
    """The task of the toy ends after five steps; pendulum never ends, and is cut off after two hundred."""
    with Lanes("factory:rl.environments:goals", 1, workers=1) as lanes:
        lanes.reset({0: 0})
        ends = [lanes.step({0: np.zeros(2, np.float32)})[0] for _ in range(5)]
    assert [(e.terminated, e.truncated, e.done) for e in ends] == [(False,) * 3] * 4 + [(True, False, True)]
    with Lanes("gym:Pendulum-v1", 1, workers=1) as lanes:
        lanes.reset({0: 0})
        ends = [lanes.step({0: np.zeros(1, np.float32)})[0] for _ in range(200)]
    assert not any(e.done for e in ends[:-1])
    assert (ends[-1].terminated, ends[-1].truncated, ends[-1].done) == (False, True, True)


@pytest.mark.thorough
def test_killed_worker():
    with Lanes(MAZE, 2, workers=2) as lanes:
        lanes.reset({0: 0, 1: 1})
        pids = _pids(lanes)
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(
            RuntimeError, match=r"exit status -9. at .*step of lanes 1 \(seeds 1\)\. If memory ran out, use few"
        ):
            lanes.step({0: RIGHT, 1: RIGHT})
        assert all(map(_ended, pids))
        with pytest.raises(RuntimeError, match="cannot be used any more: RuntimeError during step"):
            lanes.reset({0: 0})
        lanes.restart()
        lanes.reset({0: 0, 1: 1})
        assert lanes.step({1: RIGHT})[1].reward == -1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pointmaze-nowhere-v0", "unknown environment"),
        ("gym:Nope-v1", "gymnasium cannot make 'Nope-v1'"),
        ("gym:nowhere:Nope-v1", "No module named 'nowhere'"),
        ("factory:nowhere:make", "there is no such function"),
        ("factory:rl.environments:nothing", "there is no such function"),
    ],
)
def test_an_unknown_environment_is_refused_before_a_process_is_started(name, words):
    with pytest.raises(ValueError, match=words):
        Lanes(name, 1)


@pytest.mark.thorough
def test_an_environment_that_cannot_be_made_is_reported_at_first_use():
    words = "could not be made: RuntimeError: no licence"
    with Lanes("factory:rl.environments:unmakeable", 1) as lanes, pytest.raises(RuntimeError, match=words):
        lanes.reset({0: 0})


@pytest.mark.thorough
def test_raising_environment_names_lane_and_seed():
    with Lanes(MAZE, 3, workers=2) as lanes:
        lanes.reset({0: 5, 1: 6, 2: 7})
        words = rf"{MAZE}, step of lanes 0, 2 .*: lane 2, seed 7: ValueError: operands"
        with pytest.raises(LanesError, match=words) as caught:
            lanes.step({0: RIGHT, 1: RIGHT, 2: np.zeros(3, np.float32)})
        assert caught.value.lanes == (2,)


@pytest.mark.thorough
def test_stuck_worker():
    with Lanes(MAZE, 1, timeout=0.2) as lanes:
        lanes.reset({0: 0})  # has start_timeout, or it would never be in time
        (pid,) = _pids(lanes)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(
            RuntimeError, match=r"step of lanes 0 \(seeds 0\): no answer .* within 0\.2 s.*longer timeout"
        ):
            lanes.step({0: RIGHT})
        assert _ended(pid)


def test_slow_start():
    with Lanes(MAZE, 1, start_timeout=0.01) as lanes, pytest.raises(RuntimeError, match=r"within 0\.01 s"):
        lanes.reset({0: 0})


def test_closing():
    lanes = Lanes(MAZE, 2)
    pids = _pids(lanes)
    lanes.close()
    lanes.close()
    assert all(map(_ended, pids))
    with pytest.raises(RuntimeError, match="they were closed"):
        lanes.reset({0: 0})
    forgotten = Lanes(MAZE, 1)
    (pid,) = _pids(forgotten)
    del forgotten
    assert _ended(pid)


@pytest.mark.parametrize(
    ("name", "value"), [("size", 0), ("workers", 0), ("timeout", 0.0), ("start_timeout", float("nan"))]
)
def test_wrong_numbers(name, value):
    with pytest.raises(ValueError, match=rf"{name}.* must be .*>.* {value}"):
        Lanes(MAZE, **{"size": 1, name: value})


# No `if __name__ == "__main__"`: a worker that ran the script again would start workers without end.
_SCRIPT = """
print("once", flush=True)
from flowrl.rl.acting._lanes import Lanes
lanes = Lanes("pointmaze-medium-navigate-singletask-task1-v0", 2)
lanes.reset({0: 0, 1: 1})
print(*[worker._process.pid for worker in lanes._workers], flush=True)
input()
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.thorough
def test_workers_neither_run_the_script_again_nor_outlive_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    root = str(pathlib.Path(flowrl.__file__).parents[1])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen([sys.executable, "-W", "error", script], **pipes, env=environment, cwd=tmp_path) as parent:
        assert parent.stdout.readline() == "once\n"
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
        # No worker holds a copy of this pipe: it ends with the script.
        assert parent.stdout.read() == parent.stderr.read() == ""
    deadline = time.monotonic() + 20
    while not all(map(_ended, pids)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.02)
    assert os.listdir(tmp_path) == ["script.py"]
