"""Downloads from a server on this machine: mirrors, cut connections, ranges, checksums; and what is labelled how."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import http.server
import inspect
import io
import json
import os
import re
import shutil
import threading

import numpy as np
import pytest

from flowrl.rl import data
from flowrl.rl.data.files import _download, _published
from flowrl.rl.data.schema import check_origin
from flowrl.rl.data.sources import _ogbench as _ogbench_load

MAZE, MAZE_TASK = "pointmaze-medium-navigate-v0", "pointmaze-medium-navigate-singletask-task1-v0"


@dataclasses.dataclass
class File:
    """How the server answers for one address.

    Attributes:
        content: the file.
        cuts: bytes after which each of the first answers breaks off.
        ranges: whether it can begin in the middle.
        status: another answer than the file.
        etag: of the content.
        location: where the file is instead.
    """

    content: bytes = b""
    cuts: list = dataclasses.field(default_factory=list)
    ranges: bool = True
    status: int | None = None
    etag: str | None = '"one"'
    location: str | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, files, requests, *args):
        self.files, self.requests = files, requests
        super().__init__(*args)

    def do_GET(self):
        file = self.files.get(self.path, File(status=404))
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        if file.location is not None:
            self.send_response(302)
            self.send_header("Location", file.location)
            self.end_headers()
            return
        if file.status is not None:
            self.send_error(file.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and file.ranges else 0
        if self.headers.get("If-Range", file.etag) != file.etag:
            start = 0
        if start >= len(file.content):
            self.send_error(416)
            return
        body = file.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(file.content) - 1}/{len(file.content)}")
        if file.etag:
            self.send_header("ETag", file.etag)
        self.end_headers()
        cut = file.cuts.pop(0) if file.cuts else None
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """An address, the files behind it by path, and the requests so far as (path, Range)."""
    monkeypatch.setenv("no_proxy", "*")
    files, requests = {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, files, requests)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", files, requests
        httpd.shutdown()
        thread.join()


def _npz(seed=0, **changes):
    """The bytes of an OGBench file of two trajectories in the point maze."""
    rng = np.random.default_rng(seed)
    arrays = {
        "observations": rng.normal(size=(600, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (600, 2)).astype(np.float32),
        "terminals": np.isin(np.arange(600), (299, 599)),
        "qpos": rng.normal(size=(600, 2)).astype(np.float32),
        **changes,
    }
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


CONTENT = _npz()


def _fetch(urls, path, **options):
    """The address that the file came from."""
    came = []
    _download.fetch(urls, path, check=lambda _: None, record=lambda _, url: came.append(url), pause=0.0, **options)
    return came[0]


def _left(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith("."))


def test_a_cut_connection_is_taken_up_where_it_broke(server, tmp_path):
    address, files, requests = server
    files["/x"] = File(CONTENT, cuts=[5000, 3000])
    seen = []
    path = tmp_path / "x.npz"
    assert _fetch([f"{address}/x"], path, progress=lambda *call: seen.append(call)) == f"{address}/x"
    assert path.read_bytes() == CONTENT
    assert requests == [("/x", None), ("/x", "bytes=5000-"), ("/x", "bytes=8000-")]
    assert seen == [(5000, len(CONTENT)), (8000, len(CONTENT)), (len(CONTENT), len(CONTENT))]
    assert _left(path) == []


def test_a_later_call_goes_on(server, tmp_path):
    address, files, requests = server
    files["/x"] = File(CONTENT, cuts=[5000] + [0] * 9)
    path = tmp_path / "x.npz"
    with pytest.raises(OSError, match=rf"dropped after 5000 of {len(CONTENT)} bytes.*kept"):
        _fetch([f"{address}/x"], path)
    assert not path.exists()
    files["/x"].cuts.clear()
    requests.clear()
    _fetch([f"{address}/x"], path)
    assert requests == [("/x", "bytes=5000-")]
    assert path.read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed(server, tmp_path):
    address, files, _ = server
    files["/x"] = File(CONTENT, cuts=[5000] + [0] * 9)
    path = tmp_path / "x.npz"
    with pytest.raises(OSError, match="dropped"):
        _fetch([f"{address}/x"], path)
    files["/x"] = File(_npz(1), etag='"two"')
    _fetch([f"{address}/x"], path)
    assert path.read_bytes() == _npz(1)
    # Without a tag only the size tells; then it begins again too.
    files["/y"] = File(CONTENT, cuts=[5000] + [0] * 9, etag=None)
    path = tmp_path / "y.npz"
    with pytest.raises(OSError, match="dropped"):
        _fetch([f"{address}/y"], path)
    files["/y"] = File(CONTENT + b"more", etag=None)
    _fetch([f"{address}/y"], path)
    assert path.read_bytes() == CONTENT + b"more"


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    address, files, requests = server
    files["/x"] = File(CONTENT, cuts=[5000], ranges=False)
    path = tmp_path / "x.npz"
    _fetch([f"{address}/x"], path)
    assert [wanted for _, wanted in requests] == [None, "bytes=5000-"]
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    address, files, requests = server
    files["/x"] = File(CONTENT)
    path = tmp_path / "x.npz"
    part = path.with_name(f".x.npz.{_download._digest(f'{address}/x')[:8]}.part")
    part.write_bytes(CONTENT + b"something")
    _fetch([f"{address}/x"], path)
    assert [wanted for _, wanted in requests] == [f"bytes={len(CONTENT) + 9}-", None]
    assert path.read_bytes() == CONTENT


def test_mirrors_in_order_and_every_reason(server, tmp_path):
    address, files, requests = server
    files["/b/x"] = File(status=503)
    files["/c/x"] = File(b"<html>moved</html>")
    files["/d/x"] = File(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = tmp_path / "x.npz"
    urls = [f"{address}/{mirror}/x" for mirror in "abcd"]
    assert _fetch(urls, path, sha256=sha256) == urls[3]
    assert path.read_bytes() == CONTENT
    assert [at for at, _ in requests] == ["/a/x", *["/b/x"] * 5, "/c/x", "/d/x"]
    assert _left(path) == []
    path.unlink()
    closed = "http://127.0.0.1:9/x"
    with pytest.raises(OSError, match="could not download x.npz from any mirror") as caught:
        _fetch([*urls[:3], closed, "ftp://host/x"], path, sha256=sha256)
    reasons = ("a/x: HTTP 404", "b/x: HTTP 503", "c/x: .*deleted: its SHA-256 is", "9/x: no connection", "begins with")
    for reason, line in zip(reasons, str(caught.value).splitlines()[1:], strict=True):
        assert re.search(reason, line)
    assert not path.exists()


@pytest.fixture
def elsewhere(monkeypatch):
    """The server of this machine counts as one of another."""
    monkeypatch.setattr(_download, "_HERE", frozenset())


@pytest.mark.usefixtures("elsewhere")
def test_without_encryption_only_what_a_checksum_vouches_for_is_taken(server, tmp_path):
    address, files, requests = server
    files["/x"] = File(CONTENT)
    path = tmp_path / "x.npz"
    with pytest.raises(OSError, match=r"http://127.0.0.1 is not encrypted, and no SHA-256 .* one of `mirrors`"):
        _fetch([f"{address}/x"], path)
    assert requests == []
    assert not path.exists()
    assert _fetch([f"{address}/x"], path, sha256=hashlib.sha256(CONTENT).hexdigest()) == f"{address}/x"
    path.unlink()
    assert _fetch([f"{address}/x"], path, plain=True) == f"{address}/x"


def test_a_redirection_to_an_address_without_encryption_is_not_followed(server, tmp_path):
    address, files, _ = server
    files["/x"] = File(location="http://flowrl.invalid/x")
    with pytest.raises(OSError, match="http://flowrl.invalid is not encrypted"):
        _fetch([f"{address}/x"], tmp_path / "x.npz")
    files["/x"] = File(location=f"{address}/y")
    files["/y"] = File(CONTENT)
    _fetch([f"{address}/x"], tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == CONTENT


@pytest.mark.usefixtures("elsewhere")
def test_d4rl_asks_its_address_without_encryption_for_known_files_alone(monkeypatch, tmp_path):
    asked = []

    def connect(opener, url, part, progress, timeout):  # noqa: ARG001
        asked.append(url)
        raise _download._RefusedError("nobody is there")

    monkeypatch.setattr(_download, "_attempt", connect)
    for name in ("d4rl:hopper-medium-v2", "d4rl:walker2d-medium-v2"):
        with pytest.raises(OSError, match="from any mirror"):
            data.download(name, tmp_path)
    plain = [url.rsplit("/", 1)[-1] for url in asked if url.startswith("http://")]
    assert plain == ["hopper_medium-v2.hdf5"]
    asked.clear()
    with pytest.raises(OSError, match="from any mirror"):
        data.download("d4rl:walker2d-medium-v2", tmp_path, mirrors=["http://flowrl.invalid"])
    assert asked == ["http://flowrl.invalid/walker2d_medium-v2.hdf5"]


@pytest.mark.parametrize(
    ("expected", "words"), [({"sha256": "0" * 64}, "its SHA-256 is .*, expected 000"), ({"size": 7}, "expected 7")]
)
def test_what_is_wrong_is_deleted_and_said(server, tmp_path, expected, words):
    address, files, _ = server
    files["/x"] = File(CONTENT)
    path = tmp_path / "x.npz"
    with pytest.raises(OSError, match=f"is not the file and was deleted: .*{words}"):
        _fetch([f"{address}/x"], path, **expected)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_said_before_anything_is_written(server, tmp_path, monkeypatch):
    address, files, requests = server
    files["/x"] = File(CONTENT)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(OSError, match="not enough disk space"):
        _fetch([f"{address}/x", f"{address}/y"], tmp_path / "x.npz")
    assert len(requests) == 1  # another mirror would not help


@pytest.fixture
def maze(server):
    address, files, requests = server
    files[f"/{MAZE}.npz"] = File(CONTENT, cuts=[4000])
    files[f"/{MAZE}-val.npz"] = File(_npz(1))
    return address, files, requests


def test_published_ogbench_data(maze, tmp_path, monkeypatch):
    address, _, requests = maze
    monkeypatch.setattr(_ogbench_load, "_MIRRORS", (f"{address}/gone", address))
    loaded = data.load(MAZE_TASK, tmp_path, origin="published")
    assert (loaded.info.label, loaded.info.seed, loaded.info.rows, loaded.info.val_rows) == (
        "published",
        None,
        598,
        598,
    )
    folder = tmp_path / MAZE / "published"
    assert loaded.info.sha256 == hashlib.sha256(CONTENT).hexdigest()
    record = json.loads((folder / "download.json").read_text())["files"]
    assert record[f"{MAZE}.npz"] == {
        "bytes": len(CONTENT),
        "checked": "integrity only",
        "sha256": loaded.info.sha256,
        "url": f"{address}/{MAZE}.npz",
    }
    # Downloaded once; a path into that folder is recognised; data made here are something else.
    requests.clear()
    again = data.load(MAZE_TASK, tmp_path, origin="published")
    by_path = data.load(MAZE_TASK, dataset_path=folder / f"{MAZE}.npz")
    assert requests == []
    assert again.info == by_path.info == loaded.info
    local = data.load(MAZE_TASK, tmp_path, rows=20, val_rows=10, workers=1)
    assert local.info.label == "local"
    copied = tmp_path / "mine.npz"
    for suffix in ("", "-val"):
        copied.with_name(f"mine{suffix}.npz").write_bytes((folder / f"{MAZE}{suffix}.npz").read_bytes())
    assert data.load(MAZE_TASK, dataset_path=copied).info.label == "file"


def test_published_data_are_checked_at_every_use(maze, tmp_path):
    address, files, _ = maze
    path = data.download(MAZE, tmp_path, mirrors=[f"{address}/"])
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ValueError, match=r"npz: SHA-256 is .* was changed; delete it"):
        data.load(MAZE_TASK, tmp_path, origin="published")
    # What was here once must come back the same.
    path.unlink()
    files[f"/{MAZE}.npz"] = File(_npz(2))
    with pytest.raises(OSError, match="its SHA-256 is"):
        data.download(MAZE, tmp_path, mirrors=[address])
    path.write_bytes(CONTENT)
    (path.parent / "download.json").unlink()
    with pytest.raises(ValueError, match="origin is unknown"):
        data.download(MAZE, tmp_path, mirrors=[address])


class Killed(BaseException):
    """Stands for a process that ends there."""


@pytest.mark.parametrize("rename", range(4))
@pytest.mark.parametrize("done", [False, True])
def test_a_process_that_is_killed_leaves_nothing_that_the_next_refuses(maze, tmp_path, monkeypatch, rename, done):
    """Before or after each rename: of the two files, and of their two records."""
    address, _, requests = maze
    original, calls = os.replace, []

    def replace(*paths):
        calls.append(paths)
        if len(calls) <= rename:
            return original(*paths)
        if done:
            original(*paths)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            data.download(MAZE, tmp_path, mirrors=[address])
    requests.clear()
    path = data.download(MAZE, tmp_path, mirrors=[address])
    assert path.read_bytes() == CONTENT
    assert {at for at, _ in requests} <= {f"/{MAZE}-val.npz"}  # the first file had arrived
    assert data.load(MAZE_TASK, tmp_path, origin="published").info.label == "published"
    assert not any(name.endswith(".part") for name in _left(path))


def test_a_damaged_archive_is_not_accepted(server, tmp_path):
    address, files, _ = server
    spoiled = bytearray(CONTENT)
    spoiled[2000] ^= 255
    files[f"/{MAZE}.npz"] = File(bytes(spoiled))
    with pytest.raises(OSError, match="observations.npy is damaged"):
        data.download(MAZE, tmp_path, mirrors=[address])
    files[f"/{MAZE}.npz"] = File(CONTENT[:-50])
    with pytest.raises(OSError, match="not an npz, or a truncated one"):
        data.download(MAZE, tmp_path, mirrors=[address])


def test_known_checksums_are_enforced(server, tmp_path):
    address, files, _ = server
    files["/cube-double-play-v0.npz"] = File(CONTENT)
    with pytest.raises(OSError, match="has .* bytes, expected 297435656"):
        data.download("cube-double-play-v0", tmp_path, mirrors=[address])
    assert all(size > 1e7 and len(bytes.fromhex(sha256)) == 32 for size, sha256 in _published.KNOWN.values())
    assert not _published.is_published(tmp_path / "cube-double-play-v0.npz", "0" * 64)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema_version": 2}',
        '{"schema_version": 1, "files": []}',
        '{"schema_version": 1, "files": {"../x.npz": {}}}',
        '{"schema_version": 1, "files": {"x.npz": "what"}}',
    ],
)
def test_a_bad_record_is_named(tmp_path, content):
    folder = tmp_path / MAZE / "published"
    folder.mkdir(parents=True)
    (folder / "download.json").write_text(content)
    (folder / f"{MAZE}.npz").write_bytes(CONTENT)
    (folder / f"{MAZE}-val.npz").write_bytes(CONTENT)
    with pytest.raises(ValueError, match=r"download\.json: "):
        data.download(MAZE, tmp_path)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.download("pointmaze-medium-navigat-v0"), r"did you mean pointmaze-medium-navigate.*published"),
        (lambda: data.download("gym:Pendulum-v1"), "unknown data set"),
        # Unwrapped: while the tests run, the annotation is checked too, and first.
        (lambda: inspect.unwrap(check_origin)("elsewhere"), "origin is 'elsewhere'"),
        (lambda: data.load(MAZE_TASK, origin="local", dataset_path="x.npz"), "only one of the two"),
        (lambda: data.load(MAZE_TASK, validation=0.1), "validation split of its own"),
        (lambda: data.load(MAZE_TASK, validation=float("nan")), "validation is nan"),
        (lambda: data.load("halfcheetah-medium-local-v0", origin="published"), "never published"),
        (lambda: data.load("d4rl:hopper-medium-v2", origin="local"), "cannot be made on this machine"),
        (lambda: data.load("antmaze-large-navigate-singletask-v0"), 'origin="published"'),
    ],
)
def test_wrong_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_lists():
    assert MAZE in data.available()
    assert {MAZE, "antmaze-large-navigate-v0", "d4rl:pen-human-v1"} <= set(data.available("published"))
    assert "antmaze-large-navigate-v0" not in data.available("local")
