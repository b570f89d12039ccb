"""examples/scale_out.py on devices made of one processor: the same result as one device, less memory in each."""

import csv
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scale_out

import flowrl

PROGRAM = pathlib.Path(scale_out.__file__)
SMALL = ("--devices", "4", "--particles", "64", "--dimension", "3", "--steps", "2")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Of the programs that are started: no accelerator, and no compiled programs from or into the user's cache."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")


def run(*words):
    command = [sys.executable, str(PROGRAM), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_small_run_over_four_devices_is_that_of_one(tmp_path):
    done = run(*SMALL, "--seeds", "4", "--updates", "2", "--out", str(tmp_path / "new" / "folder"))
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "new" / "folder" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    what = ["2 steps of 64 particles"] * 3 + ["2 updates of 4 seeds"] * 2
    assert [row["what"] for row in rows] == what
    assert [int(row["devices"]) for row in rows] == [1, 2, 4, 1, 4]
    assert max(float(row["difference"]) for row in rows) < 2e-5
    assert [float(rows[i]["difference"]) for i in (0, 3)] == [0, 0]
    held = [float(row["mb_in_and_out"]) for row in rows]
    assert held[:3] == pytest.approx([held[0], held[0] / 2, held[0] / 4])
    assert held[4] == pytest.approx(held[3] / 4, rel=0.1)
    assert "more of them are not faster" in done.stdout  # it says what its seconds are worth
    assert (tmp_path / "new" / "folder" / "scale_out.png").stat().st_size > 5000


def test_what_is_compared_is_a_set_that_has_moved():
    config = scale_out.Config(devices=1, particles=20, dimension=3, steps=2)
    moved, row = scale_out.move(config, scale_out.some(1, "particles"))
    start = 3 * np.random.default_rng(0).standard_normal((20, 3), np.float32)
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    solution = flowrl.transport(target, jnp.asarray(start), flowrl.Budget(2, 0.5))
    np.testing.assert_allclose(moved, solution.particles, atol=1e-6)
    assert float(jnp.abs(moved - start).max()) > 0.1
    assert row["mb_in_and_out"] == 2 * start.nbytes / 1e6
    assert scale_out.difference({"a": moved, "key": jax.random.key(0)}, {"a": moved, "key": jax.random.key(1)}) == 0
    assert scale_out.difference(moved.at[4, 1].add(0.5), moved) == pytest.approx(0.5)
    assert np.isnan(scale_out.difference(moved.at[4, 1].set(jnp.nan), moved))


@pytest.mark.skipif(sys.platform != "linux", reason="sockets of loopback")
def test_two_processes_move_one_set():
    config = scale_out.Config(devices=4, particles=64, dimension=3, steps=2, processes=2)
    rows = scale_out.start_processes(config)
    assert [row["what"] for row in rows] == [f"2 steps of 64 particles, process {number}" for number in (0, 1)]
    assert [row["devices"] for row in rows] == [4, 4]
    assert max(row["difference"] for row in rows) < 2e-5
    assert [row["mb_in_and_out"] for row in rows] == pytest.approx([2 * 4 * 16 * 3 / 1e6] * 2)


def test_a_process_that_fails_is_an_error_that_says_why():
    with pytest.raises(RuntimeError, match="process 0 failed: --devices must be a multiple of --processes"):
        scale_out.start_processes(scale_out.Config(devices=3, particles=3, processes=2))


def test_a_wrong_option_is_refused_in_one_line(tmp_path):
    done = run("--devices", "4", "--particles", "10", "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "--particles must be a multiple of --devices, got 10 and 4.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"devices": 0}, "--devices must be at least 1, got 0"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"seeds": 12}, "--seeds must be a multiple of --devices, got 12 and 8"),
        ({"seeds": -8}, "--seeds"),
        ({"processes": 3}, "--devices must be a multiple of --processes"),
        ({"process": 0, "processes": 2}, "--process and --address go together"),
        ({"process": 2, "processes": 2, "address": "localhost:1234"}, "one of 0 to 1, got 2"),
    ],
)
def test_bad_settings(wrong, message):
    with pytest.raises(SystemExit, match=message):
        scale_out.check(scale_out.Config(**wrong))
    scale_out.check(scale_out.Config())
