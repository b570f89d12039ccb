"""Files: same arrays, same bytes; whole or not there; and an error that says which file is wrong and how."""

import collections
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest

from flowrl._io import _files
from flowrl.rl.data.files import _store
from flowrl.runs import require

ARRAYS = {"b": np.arange(2000.0), "a": np.ones((3, 2), bool)}


def test_npz_round_trip_and_same_bytes(tmp_path, monkeypatch):
    _files.write_npz(tmp_path / "one.npz", ARRAYS)
    # Neither the order of the keys nor the clock may show in the bytes.
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    _files.write_npz(tmp_path / "two.npz", dict(reversed(ARRAYS.items())))
    assert _files.sha256_file(tmp_path / "one.npz") == _files.sha256_file(tmp_path / "two.npz")
    got = _files.read_npz(tmp_path / "one.npz", required=("a", "b"))
    for key, value in ARRAYS.items():
        np.testing.assert_array_equal(got[key], value)
        assert got[key].dtype == value.dtype
    with np.load(tmp_path / "one.npz") as archive:
        assert sorted(archive.files) == ["a", "b"]
    assert sorted(os.listdir(tmp_path)) == ["one.npz", "two.npz"]


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    _files.write_npz(path, ARRAYS)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"full while writing .*x\.npz .*MiB free") as caught:
        _files.write_npz(path, {"a": np.zeros(3)})
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["x.npz"]
    assert path.read_bytes() == before


def test_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with _files.atomic_write(tmp_path / "x") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_read_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        _files.read_npz(tmp_path / "absent.npz")


def test_read_missing_key(tmp_path):
    _files.write_npz(tmp_path / "x.npz", ARRAYS)
    with pytest.raises(ValueError, match=r"x\.npz: missing observations; found a, b"):
        _files.read_npz(tmp_path / "x.npz", required=("observations", "a"))


def test_read_truncated(tmp_path):
    path = tmp_path / "x.npz"
    _files.write_npz(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.npz: .*truncated"):
        _files.read_npz(path)


@pytest.mark.parametrize("content", [b"", b"these are not zipped arrays" * 10])
def test_read_what_is_no_zip(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: not an npz"):
        _files.read_npz(path)


def test_read_plain_npy(tmp_path):
    with open(tmp_path / "x.npz", "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match=r"x\.npz: not an npz"):
        _files.read_npz(tmp_path / "x.npz")


def test_read_damaged_member(tmp_path):
    path = tmp_path / "x.npz"
    _files.write_npz(path, {"a": np.random.default_rng(0).normal(size=5000)}, compress=False)
    content = bytearray(path.read_bytes())
    content[20000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: a is damaged .*CRC"):
        _files.read_npz(path)


def test_read_never_unpickles(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"not": "numbers"}], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz: a cannot be read"):
        _files.read_npz(tmp_path / "x.npz")


def test_read_zip_without_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"x\.npz: readme\.txt is not an array"):
        _files.read_npz(tmp_path / "x.npz")


def _manifest(files):
    return _store.Manifest("d-v0", 0, 5, 2, {"noise": 0.1}, {"numpy": "2"}, None, files)


def test_manifest_round_trip_and_verification(tmp_path):
    assert _store.read_manifest(tmp_path) is None
    _files.write_npz(tmp_path / "x.npz", ARRAYS)
    manifest = _manifest({"x.npz": _files.sha256_file(tmp_path / "x.npz")})
    _store.write_manifest(tmp_path, manifest)
    assert _store.read_manifest(tmp_path) == manifest
    _store.verify(tmp_path, manifest)
    with open(tmp_path / "x.npz", "r+b") as file:
        file.write(b"?")
    with pytest.raises(ValueError, match=r"x\.npz: SHA-256 .* damaged"):
        _store.verify(tmp_path, manifest)
    (tmp_path / "x.npz").unlink()
    with pytest.raises(ValueError, match=r"x\.npz: missing"):
        _store.verify(tmp_path, manifest)


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "not JSON"), ("[]", "schema_version is None"), ('{"schema_version": 99}', "schema_version is 99")],
)
def test_foreign_manifest(tmp_path, content, words):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=rf"manifest\.json: {words}"):
        _store.read_manifest(tmp_path)


def test_manifest_with_unknown_field(tmp_path):
    _store.write_manifest(tmp_path, _manifest({}))
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "extra": 1}))
    with pytest.raises(ValueError, match="unknown fields: extra"):
        _store.read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../x.npz", "/etc/passwd", "a/b.npz", "..", "", "a\\b"])
def test_manifest_that_leads_out_of_its_folder(tmp_path, name):
    _store.write_manifest(tmp_path, _manifest({name: "0" * 64}))
    with pytest.raises(ValueError, match=r"manifest\.json: files names .*expected a file in the same folder"):
        _store.read_manifest(tmp_path)


def test_manifest_without_a_list_of_files(tmp_path):
    _store.write_manifest(tmp_path, _manifest({}))
    content = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "files": ["x.npz"]}))
    with pytest.raises(ValueError, match=r"files is \['x\.npz'\]"):
        _store.read_manifest(tmp_path)


def test_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _files.resolve_dir(None) == tmp_path / "flowrl" / "data"
    assert _files.resolve_dir(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _files.resolve_dir(None) == tmp_path / "home" / ".cache" / "flowrl" / "data"


def test_directory_that_cannot_be_written_to(tmp_path):
    # The tests may run as root, for whom no directory is read-only; below a file there can be none at all.
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the data directory .*file/data .*data_dir"):
        _files.make_dir(tmp_path / "file" / "data")


def test_too_little_space(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 5 * 2**20))
    _files.check_space(tmp_path, 2**20)
    with pytest.raises(OSError, match="about 7 MiB needed, 5 MiB free") as caught:
        _files.check_space(tmp_path, 7 * 2**20)
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)


def test_lock_excludes(tmp_path):
    entered = threading.Event()

    def second():
        with _files.lock(tmp_path / ".lock"):
            entered.set()

    thread = threading.Thread(target=second)
    with _files.lock(tmp_path / ".lock"):
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(5)
    thread.join()


def test_a_lock_is_refused_at_once_and_ends_with_its_holder(tmp_path):
    hold = f"""
import pathlib, time
from flowrl._io import only_one
with only_one(pathlib.Path({str(tmp_path / ".lock")!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"another process is writing to {re.escape(str(tmp_path))}\.$"
        with pytest.raises(BlockingIOError, match=message) as caught, _files.only_one(tmp_path / ".lock"):
            pass
        assert caught.value.errno == errno.EAGAIN
    finally:
        holder.kill()  # SIGKILL: nothing of it can tidy up
        holder.communicate()
    with _files.only_one(tmp_path / ".lock"), pytest.raises(BlockingIOError), _files.only_one(tmp_path / ".lock"):
        pass
    assert (tmp_path / ".lock").exists()  # removing it would race with who waits for it


def test_no_lock_outlives_its_holder_where_the_file_system_has_none(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def missing(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", missing)
    for lock in (_files.lock, _files.only_one):
        with pytest.raises(OSError, match="no locks here"), lock(tmp_path / ".lock"):
            pass


def test_a_missing_package_is_named_with_the_command_that_brings_it():
    with pytest.raises(ImportError, match=r"^nowhere is needed here .*pip install -e \"\.\[rl,examples\]\"") as caught:
        require("json", "nowhere", extra="rl,examples")
    assert caught.value.name == "nowhere"
    require("json", extra="rl")
