"""Checkpoints are data: nothing in them is run, a damaged one is named and the one before is taken, old ones load."""

import ast
import contextlib
import errno
import json
import os
import subprocess
import warnings
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowrl.runs import DamagedError, RunDirectory, load_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]
#: Written by version 0.1.0, before two checkpoints were kept; it must load for as long as its schema is read.
COMMITTED = Path(__file__).with_name("checkpoint_schema1.npz")
STEPS = 6


def start():
    return {
        "x": jnp.arange(3, dtype=jnp.float32),
        "step": jnp.asarray(0, jnp.int32),
        "key": jr.key(3),
        "kind": "static",
    }


def go(run: RunDirectory, until: int = STEPS):
    """Train: five lines that draw, move and save."""
    state = run.load(start()) or start()
    while int(state["step"]) < until:
        key, noise = jr.split(state["key"])
        x = state["x"] + jr.normal(noise, (3,), jnp.float32)
        state = state | {"x": x, "step": state["step"] + jnp.asarray(1, jnp.int32), "key": key}
        run.rows.append({"step": int(state["step"]), "x": float(x[0])})
        run.save(state, {"ring": np.arange(int(state["step"]))})
    return state


def equal(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("checkpoint.npz", "metrics.csv"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    with RunDirectory(path, {"seed": 1}) as run:
        go(run)
    return path


def _cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[200] ^= 1  # in the numbers of the first array
    path.write_bytes(content)


def _other_array(path):
    np.savez(path, a=np.zeros(3))


def _not_a_run(path):
    save_checkpoint(path, start(), {})


DAMAGES = {
    "cut": (_cut, "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "flipped": (_flip, "damaged"),
    "text": (lambda path: path.write_text("hello"), "not an npz"),
    "foreign": (_other_array, "missing __meta__"),
    "of no run": (_not_a_run, "no rows or no configuration"),
    "objects": (lambda path: np.savez(path, __meta__=np.array([{}], dtype=object)), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(tmp_path, whole, name):
    damage, words = DAMAGES[name]
    with RunDirectory(tmp_path, {"seed": 1}) as run:
        go(run, 4)
    damage(tmp_path / "checkpoint.npz")
    damaged = (tmp_path / "checkpoint.npz").read_bytes()
    said = rf"checkpoint\.npz: .*{words}.* Going on from the checkpoint before it"
    with RunDirectory(tmp_path, {"seed": 1}, resume=True) as run:
        with pytest.warns(UserWarning, match=said):
            state = run.load(start())
        assert int(state["step"]) == 3
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3
        assert run.arrays["ring"].tolist() == [0, 1, 2]
    assert (tmp_path / "checkpoint.npz.damaged").read_bytes() == damaged
    with RunDirectory(tmp_path, {"seed": 1}, resume=True) as run:
        go(run)
    assert equal(tmp_path, whole)


def test_where_no_checkpoint_can_be_read_each_is_named(tmp_path):
    with RunDirectory(tmp_path, {}) as run:
        go(run, 2)
    for name in ("checkpoint.npz", "checkpoint.1.npz"):
        _cut(tmp_path / name)
    with (
        RunDirectory(tmp_path, {}, resume=True) as run,
        pytest.raises(DamagedError, match=r"no checkpoint .* can be read: .*checkpoint\.npz.*checkpoint\.1\.npz"),
    ):
        run.load(start())


def test_another_configuration_is_no_damage(tmp_path):
    with RunDirectory(tmp_path, {}) as run:
        go(run, 2)
    wider = start() | {"x": jnp.zeros(4, jnp.float32)}
    with (
        RunDirectory(tmp_path, {}, resume=True) as run,
        pytest.raises(ValueError, match=r"'x'.*\[3\], expected.*\[4\]"),
    ):
        run.load(wider)
    assert not list(tmp_path.glob("*.damaged"))


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_checkpoints_are_kept(tmp_path, keep):
    with RunDirectory(tmp_path, {}, keep=keep) as run:
        go(run, 3)
    kept = sorted(tmp_path.glob("checkpoint*.npz"))
    assert len(kept) == min(keep, 3)
    steps = [int(load_checkpoint(path, start())[0]["step"]) for path in kept]
    assert sorted(steps) == list(range(4 - len(kept), 4))
    assert int(load_checkpoint(tmp_path / "checkpoint.npz", start())[0]["step"]) == 3
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        RunDirectory(tmp_path, {}, keep=0)


def test_a_file_system_without_links_keeps_them_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with RunDirectory(tmp_path, {}) as run:
        go(run, 3)
    assert int(load_checkpoint(tmp_path / "checkpoint.1.npz", start())[0]["step"]) == 2


#: The default run takes every thirteenth.
EVERY = [13, pytest.param(1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_no_flipped_bit_and_no_cut_gives_other_numbers(tmp_path, damage, every):
    """The file is refused by name, or what it holds is what was written."""
    path = tmp_path / "c.npz"
    state, meta = start(), {"rows": [{"x": 0.5}], "config": {"seed": 1}}
    save_checkpoint(path, state, meta)
    whole = path.read_bytes()
    refused = same = 0
    for place in range(0, len(whole) * (8 if damage == "flip" else 1), every):
        content = bytearray(whole)
        if damage == "flip":
            content[place // 8] ^= 1 << place % 8
        else:
            del content[place:]
        path.write_bytes(content)
        try:
            loaded, found = load_checkpoint(path, state)
        except DamagedError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
            continue
        assert found == meta
        assert [np.asarray(x).tobytes() for x in _leaves(loaded)] == [np.asarray(x).tobytes() for x in _leaves(state)]
        same += 1
    print(f"{damage}, every {every}: {len(whole)} bytes, {refused} refused, {same} as written")
    if damage == "cut":
        assert same == 0
    else:
        assert refused > 2 * same > 0  # dates and the like
    assert refused + same == -(-len(whole) * (8 if damage == "flip" else 1) // every)


def _leaves(state):
    return [jr.key_data(state["key"]), state["x"], state["step"]]


def test_a_committed_checkpoint_loads():
    state, meta = load_checkpoint(COMMITTED, start())
    assert state["x"].tolist() == [0.25, -1.5, 3.0]
    assert int(state["step"]) == 7
    assert jr.key_data(state["key"]).tolist() == jr.key_data(jr.key(11)).tolist()
    assert meta["config"] == {"seed": 5}
    assert meta["rows"] == [{"phase": "main", "step": 7, "loss": 0.1}]
    assert meta["ring"].tolist() == [[1, 2], [3, 4]]


def test_nothing_is_unpickled_but_what_two_processes_of_ours_say_to_each_other():
    """Files are read by npz without pickles, JSON, HDF5 and safetensors; no file is code."""
    allowed = {"flowrl/rl/envs/_pool.py", "flowrl/rl/envs/_worker.py"}
    found = []
    for path in sorted([*(ROOT / "flowrl").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            bad = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
            found += [f"{name} imports {m}" for m in modules if m.split(".")[0] in bad and name not in allowed]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if called in ("np.load", "numpy.load", "jnp.load") and options.get("allow_pickle") != "False":
                    found.append(f"{name}: {called} without allow_pickle=False")
                if called in ("eval", "exec"):
                    found.append(f"{name} calls {called}")
    assert found == []


class _Full:
    """Lets some calls of a function through, and then says that the disk is full."""

    def __init__(self, function, calls, number=errno.ENOSPC):
        self.function, self.calls, self.number = function, calls, number

    def __call__(self, *arguments, **options):
        self.calls -= 1
        if self.calls < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*arguments, **options)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_at_any_write_loses_nothing(tmp_path, whole, monkeypatch, name, calls, number):
    with RunDirectory(tmp_path, {"seed": 1}) as run:
        state = go(run, 3)
        before = (tmp_path / "metrics.csv").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _Full(getattr(os, name), calls, number))
            # The first calls belong to the new checkpoint, the last ones to metrics.csv, which is made from it.
            with contextlib.suppress(OSError):
                run.rows.append({"step": 4})
                run.save(state | {"step": jnp.asarray(4, jnp.int32)})
        kept = load_checkpoint(tmp_path / "checkpoint.npz", start())[0]
        assert int(kept["step"]) in (3, 4)
        if int(kept["step"]) == 3:
            assert (tmp_path / "metrics.csv").read_bytes() == before
    if int(kept["step"]) == 3:
        with RunDirectory(tmp_path, {"seed": 1}, resume=True) as run:
            go(run)
        assert equal(tmp_path, whole)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 96 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.skipif(os.name != "posix", reason="needs mount")
def test_a_full_and_a_read_only_disk_are_named_and_nothing_is_lost(small_disk, whole):
    out = small_disk / "run"
    with RunDirectory(out, {"seed": 1}) as run:
        state = go(run, 4)
        with pytest.raises(OSError, match=r"the disk became full while writing .*checkpoint.*MiB free\)"):
            run.save(state, {"big": np.zeros(30_000)})
    before = (out / "checkpoint.npz").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"cannot write to .*run \(Read-only file system\); choose another --out"):
        RunDirectory(out, {"seed": 1}, resume=True)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert (out / "checkpoint.npz").read_bytes() == before
    with RunDirectory(out, {"seed": 1}, resume=True) as run:
        go(run)
    assert equal(out, whole)


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint.npz.4711.tmp").write_bytes(b"half")
    with RunDirectory(tmp_path, {}):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.json"}


def test_a_directory_that_is_refused_is_free_for_others(tmp_path):
    with RunDirectory(tmp_path, {"seed": 1}) as run:
        go(run, 1)
    with pytest.raises(ValueError, match="another configuration"):
        RunDirectory(tmp_path, {"seed": 2}, resume=True)
    with warnings.catch_warnings(), RunDirectory(tmp_path, {"seed": 1}, resume=True) as run:
        assert run.load(start()) is not None
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}
