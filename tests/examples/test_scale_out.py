"""examples/scale_out.py on devices made of one CPU: the same result as one device, less memory in each."""

import csv
import os
import pathlib
import runpy
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowrl

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "examples" / "scale_out.py"
SMALL = ("--devices", "4", "--particles", "64")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Of the programs that are started: no accelerator, and no compiled programs from or into the user's cache."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # which a program that is run here changes


@pytest.fixture
def program(monkeypatch, tmp_path):
    """What the program defines, run in this process on one device."""
    words = ("--devices", "1", "--particles", "20", "--out", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *words])
    return runpy.run_path(str(PROGRAM))


def run(*words):
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def read(out):
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.thorough
def test_a_small_run_over_four_devices_is_that_of_one(tmp_path):
    out = tmp_path / "new" / "folder"
    done = run(*SMALL, "--seeds", "4", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = read(out)
    what = ["3 steps of 64 particles"] * 3 + ["100 updates of 4 seeds"] * 2
    assert [row["what"] for row in rows] == what
    assert [int(row["devices"]) for row in rows] == [1, 2, 4, 1, 4]
    assert max(float(row["difference"]) for row in rows) < 2e-5
    assert [float(rows[i]["difference"]) for i in (0, 3)] == [0, 0]
    held = [float(row["mb_in_and_out"]) for row in rows]
    assert held[:3] == pytest.approx([held[0], held[0] / 2, held[0] / 4])
    assert held[4] == pytest.approx(held[3] / 4, rel=0.1)
    assert "more of them are not faster" in done.stdout  # it says what its seconds are worth


@pytest.mark.thorough
def test_what_is_compared_is_a_set_that_has_moved(program):
    moved, row = program["move"](program["some"](1, "particles"))
    start = 3 * np.random.default_rng(0).standard_normal((20, 256), np.float32)
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    solution = flowrl.transport(target, jnp.asarray(start), flowrl.Budget(3, 0.5))
    np.testing.assert_allclose(moved, solution.particles, atol=1e-5)
    assert float(jnp.abs(moved - start).max()) > 0.1
    assert row["mb_in_and_out"] == 2 * start.nbytes / 1e6
    difference = program["difference"]
    assert difference({"a": moved, "key": jax.random.key(0)}, {"a": moved, "key": jax.random.key(1)}) == 0
    assert difference(moved.at[4, 1].add(0.5), moved) == pytest.approx(0.5)
    assert np.isnan(difference(moved.at[4, 1].set(jnp.nan), moved))


@pytest.mark.skipif(sys.platform != "linux", reason="sockets of loopback")
@pytest.mark.thorough
def test_two_processes_move_one_set(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        words = (*SMALL, "--processes", "2", "--address", f"127.0.0.1:{free.getsockname()[1]}")
    start = lambda number: run(*words, "--process", number, "--out", str(tmp_path / number))
    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(start, "01"):
            assert done.returncode == 0, done.stderr
    for number in "01":
        alone, shared = read(tmp_path / number)
        assert [row["what"] for row in (alone, shared)] == ["3 steps of 64 particles"] * 2
        assert [int(row["devices"]) for row in (alone, shared)] == [1, 4]
        assert float(shared["difference"]) < 2e-5
        assert float(shared["mb_in_and_out"]) == pytest.approx(2 * 4 * 16 * 256 / 1e6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--devices", "4", "--particles", "10"), "--particles must be a multiple of --devices, got 10 and 4."),
        (("--devices", "0"), "--particles must be a multiple of --devices, got 8192 and 0."),
        (("--particles", "0"), "--particles must be a multiple of --devices, got 0 and 8."),
        (("--seeds", "12"), "--seeds must be a multiple of --devices, got 12 and 8."),
        (("--seeds", "-8"), "--seeds must be a multiple of --devices, got -8 and 8."),
        (("--processes", "3"), "--devices must be a multiple of --processes, got 8 and 3."),
        (("--process", "0", "--processes", "2"), "--processes and --address go together"),
        (("--address", "localhost:1234"), "--processes and --address go together"),
        (("--process", "2", "--processes", "2", "--address", "localhost:1234"), "one of 0 to 1, got 2."),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(wrong, message, tmp_path):
    done = run(*wrong, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
