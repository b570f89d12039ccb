"""Checkpoints and run directories: exact resume, and errors that say what to do."""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import bandit

from flowrl._io import DamagedError, code_digest, read_npz, software, stops_wait
from flowrl.rl import ReferenceLearner, Standardizer, fit, make_replay
from flowrl.rl.learning import presets
from flowrl.runs import RunDirectory, load_checkpoint, save_checkpoint, to_csv


def small(**changes):
    sizes = {"hidden": (16,), "batch_size": 16}
    return presets.default(1, 0.1, reference=ReferenceLearner(hidden=(16,), updates=40), **sizes, **changes)


def train(run, updates=60, **options):
    data = bandit(200)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    return fit(small(), replay, updates=updates, interval=20, key=jr.key(1), run=run, **options)


class Killed(Exception):
    """Stands for a process that ends between two intervals."""


@pytest.mark.thorough
@pytest.mark.parametrize("intervals", [1, 2, 3, 4])
def test_resume_is_exact(tmp_path, intervals):
    with RunDirectory(tmp_path / "whole", {"seed": 1}) as run:
        train(run)
    count = 0

    def stop(_):
        nonlocal count
        count += 1
        if count > intervals:
            raise Killed

    with RunDirectory(tmp_path / "cut", {"seed": 1}) as run, pytest.raises(Killed):
        train(run, progress=stop)
    with RunDirectory(tmp_path / "cut", {"seed": 1}, resume=True) as run:
        train(run)
    for name in ("metrics.csv", "checkpoint.npz", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_reference_trained_along_resumes_exactly_too(tmp_path):
    data = bandit(200)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    vgf = small(frozen_reference=False, relative=False)
    for name, parts in (("whole", (60,)), ("cut", (20, 60))):
        for i, updates in enumerate(parts):
            with RunDirectory(tmp_path / name, {}, resume=i > 0) as run:
                state = fit(vgf, replay, updates=updates, interval=20, key=jr.key(1), run=run)
    assert int(state.reference_step) == 60
    rows = run.rows
    assert rows[-1]["reference_loss"] < rows[0]["reference_loss"]
    for name in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_loses_no_interval_that_was_computed(tmp_path, monkeypatch, evaluated, signals):
    """It comes while the fourth call runs; a second one, or an evaluation that would follow, makes it end at once."""
    from flowrl.rl.learning import _fit

    original, calls = _fit.train, []
    points = {"evaluate": lambda *_: {"score": 1.0}, "evaluate_at": (40,)} if evaluated else {}

    def interrupted(*arguments):
        out = original(*arguments)
        calls.append(1)
        for _ in range(signals if len(calls) == 4 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return out

    with RunDirectory(tmp_path / "whole", {}) as run:
        train(run, **points)
    monkeypatch.setattr(_fit, "train", interrupted)
    with RunDirectory(tmp_path / "cut", {}) as run, pytest.raises(KeyboardInterrupt):
        train(run, **points)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with RunDirectory(tmp_path / "cut", {}, resume=True) as run:
        state = run.load(train(None))
        assert [int(row["step"]) for row in run.rows] == (
            [20, 40, 20] if evaluated or signals > 1 else [20, 40, 20, 40]
        )
        assert int(state.step) == run.rows[-1]["step"]
        train(run, **points)
    for name in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.usefixtures("ctrl_c")
def test_signals_that_nothing_waits_for_are_as_ever():
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with stops_wait() as stop:
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert not stop()
    seen = []

    def fails():
        with stops_wait() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop()
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        fails()

    def elsewhere():
        with stops_wait() as stop:
            seen.append((stop(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(False, signal.default_int_handler)]


@pytest.mark.slow
def test_sigkill_and_resume(tmp_path):
    """The real thing: a process killed while it trains, then started again."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from rl.test_run import RunDirectory, train
        resume = Path(sys.argv[1], "config.json").exists()
        with RunDirectory(sys.argv[1], {"seed": 1}, resume=resume) as run:
            train(run, updates=400)
        """
    )
    paths = [str(p) for p in sys.path if p]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n" + script]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    process = subprocess.Popen([*command, str(tmp_path / "cut")])
    metrics = tmp_path / "cut" / "metrics.csv"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 4) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert metrics.read_text().count("\n") < 23, "it ended before it could be killed"
    subprocess.run([*command, str(tmp_path / "cut")], check=True)
    for name in ("metrics.csv", "checkpoint.npz"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_configuration_is_refused(tmp_path):
    with RunDirectory(tmp_path, {"seed": 1, "hidden": (8, 8)}) as run:
        train(run)
    with pytest.raises(ValueError, match=r"cannot resume .* seed: 1 there, 2 here"):
        RunDirectory(tmp_path, {"seed": 2, "hidden": (8, 8)}, resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        RunDirectory(tmp_path, {"seed": 1})


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        RunDirectory(tmp_path / "none", {}, resume=True)


def test_a_run_is_not_shared(tmp_path):
    with RunDirectory(tmp_path, {}), pytest.raises(BlockingIOError, match="another process"):
        RunDirectory(tmp_path, {}, resume=True)


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        RunDirectory(tmp_path / "file" / "run", {})


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "holds no JSON object")])
def test_damaged_configuration(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunDirectory(tmp_path, {}, resume=True)


def test_a_run_without_a_checkpoint_can_be_started_again(tmp_path):
    with RunDirectory(tmp_path, {"discount": 2.0}):
        pass
    with RunDirectory(tmp_path, {"discount": 0.9}) as run:
        train(run)
    assert json.loads((tmp_path / "config.json").read_text()) == {"discount": 0.9}


def test_free_keys_may_differ_and_the_checkpoint_must_fit(tmp_path):
    with RunDirectory(tmp_path, {"seed": 1, "lanes": 3}, free=("lanes",)) as run:
        train(run)
    with RunDirectory(tmp_path, {"seed": 1, "lanes": 4}, free=("lanes",), resume=True) as run:
        assert run.load(train(None)) is not None
    save_checkpoint(tmp_path / "checkpoint.npz", {"a": jnp.zeros(1)}, {"config": {"seed": 9}, "rows": []})
    with (
        RunDirectory(tmp_path, {"seed": 1, "lanes": 4}, free=("lanes",), resume=True) as run,
        pytest.raises(ValueError, match="seed: 9 there, 1 here"),
    ):
        run.load({"a": jnp.zeros(1)})


def test_a_run_says_which_software_made_it(tmp_path, monkeypatch):
    """Other software is no reason to stop: it is said, and both are written down, the last one last."""
    from flowrl.runs import _run

    path = tmp_path / "software.json"
    monkeypatch.setattr(_run, "software", lambda: {"jax": "1", "code": "a", "device": "cpu"})
    with RunDirectory(tmp_path, {}) as run:
        run.write_software(protocol="p")
        run.write_software(protocol="q")  # nothing was made yet that depends on it
        assert json.loads(path.read_text()) == {"protocol": "q", "jax": "1", "code": "a", "device": "cpu"}
        run.save({"a": jnp.zeros(1)})
        run.write_software(protocol="q")
    for code, words in (("b", "code: a there, b here"), ("a", "code: b there, a here")):
        monkeypatch.setattr(_run, "software", lambda code=code: {"jax": "1", "code": code, "device": "cpu"})
        with RunDirectory(tmp_path, {}, resume=True) as run:
            with pytest.warns(UserWarning, match=rf"other software.*: {words}\.$") as said:
                run.write_software(protocol="q")
            assert "\n" not in str(said[0].message)
            run.write_software(protocol="q")
    there = {"protocol": "q", "jax": "1", "code": ["a", "b", "a"], "device": "cpu"}
    assert json.loads(path.read_text()) == there
    path.write_text("{}")
    with RunDirectory(tmp_path, {}, resume=True) as run, pytest.warns(UserWarning, match="jax: unknown there, 1 here"):
        run.write_software()


def test_the_digest_of_the_code_is_that_of_all_its_files(tmp_path):
    (tmp_path / "inner").mkdir()
    digests = set()
    for name, text in (("a.py", "x = 1"), ("a.py", "x = 2"), ("inner/a.py", "x = 2"), ("inner/b.py", "x = 2")):
        (tmp_path / name).write_text(text)
        (tmp_path / "notes.txt").write_text(name + text)
        digests.add(code_digest(tmp_path))
        assert code_digest(tmp_path) in digests
    assert len(digests) == 4
    found = software()
    assert set(found) == {"flowrl", "jax", "jaxlib", "equinox", "code", "platform", "device", "matmul_precision"}
    assert len(bytes.fromhex(found["code"])) == 6


def test_timing_has_the_seed_and_takes_columns_that_come_later(tmp_path):
    with RunDirectory(tmp_path, {"seed": 7}) as run:
        run.append_timing(a=1, b=0.1)
        run.append_timing(b=4, c=3)
    assert (tmp_path / "timing.csv").read_text() == "seed,a,b,c\n7,1,0.1,\n7,,4,3\n"


def test_timing_has_losses_and_the_seconds_of_evaluations(tmp_path):
    with RunDirectory(tmp_path, {"seed": 1}) as run:
        train(run, updates=40, evaluate=lambda state, step: time.sleep(0.05) or {"score": step}, evaluate_at=(40,))  # noqa: ARG005
    rows = list(csv.DictReader((tmp_path / "timing.csv").read_text().splitlines()))
    assert [row["seed"] for row in rows] == ["1"] * 4
    main = [row for row in rows if row["phase"] == "main"]
    assert [float(row["seconds_evaluating"]) > 0.05 for row in main] == [False, True]
    metrics = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [row["td_loss"] for row in metrics] == [row["td_loss"] for row in rows]


def test_a_finished_run_is_extended_to_what_a_run_of_that_length_is(tmp_path):
    def run(name, steps, **options):
        with RunDirectory(tmp_path / name, {"steps": steps}, grows=("steps",), ends=("results.csv",), **options) as run:
            train(run, updates=steps)
            run.write("results.csv", f"{steps}\n")
            return run.grown

    assert run("cut", 40) == {}
    assert run("cut", 40, resume=True) == {}
    assert run("cut", 80, resume=True) == {"steps": 40}
    assert run("whole", 80) == {}
    for name in ("checkpoint.npz", "metrics.csv", "config.json", "results.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(ValueError, match="steps: 80 there, 40 here. steps can only grow"):
        run("cut", 40, resume=True)


def test_results_of_a_shorter_run_are_gone_before_the_longer_one_is_begun(tmp_path):
    growth = {"grows": ("steps",), "ends": ("results.csv",)}
    with RunDirectory(tmp_path, {"steps": 20}, **growth) as run:
        train(run, updates=20)
        run.write("results.csv", "")
    with RunDirectory(tmp_path, {"steps": 20}, resume=True, **growth):
        assert (tmp_path / "results.csv").exists()
    with RunDirectory(tmp_path, {"steps": 40}, resume=True, **growth):
        assert not (tmp_path / "results.csv").exists()


def test_checkpoint_round_trip(tmp_path):
    state = {
        "a": jnp.arange(3.0, dtype=jnp.float32),
        "key": jr.key(3),
        "step": jnp.asarray(4, jnp.int32),
        "name": "static",
    }
    save_checkpoint(tmp_path / "c.npz", state, {"x": [1.5]})
    template = {"a": jnp.zeros(3, jnp.float32), "key": jr.key(0), "step": jnp.asarray(0, jnp.int32), "name": "static"}
    loaded, meta = load_checkpoint(tmp_path / "c.npz", template)
    assert meta == {"x": [1.5]}
    assert jr.key_data(loaded["key"]).tolist() == jr.key_data(state["key"]).tolist()
    assert loaded["step"].shape == ()
    np.testing.assert_array_equal(loaded["a"], state["a"])


def test_checkpoints_that_do_not_fit(tmp_path):
    path = tmp_path / "c.npz"
    save_checkpoint(path, {"a": jnp.zeros(3)}, {})
    with pytest.raises(ValueError, match=r"c\.npz: \['a'\] is .*\[3\], expected .*\[4\]"):
        load_checkpoint(path, {"a": jnp.zeros(4)})
    with pytest.raises(ValueError, match=r"missing \[\"\['b'\]\"\]"):
        load_checkpoint(path, {"a": jnp.zeros(3), "b": jnp.zeros(1)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"c\.npz"):
        load_checkpoint(path, {"a": jnp.zeros(3)})
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ValueError, match="missing __meta__"):
        load_checkpoint(path, {"a": jnp.zeros(3)})
    save_checkpoint(path, {"a": jnp.zeros(3)}, {"schema": 99})
    with pytest.raises(ValueError, match="schema 99"):
        load_checkpoint(path, {"a": jnp.zeros(3)})


def test_divergence_is_reported_and_the_checkpoint_kept(tmp_path):
    data = bandit(200)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    config = {"seed": 1}
    with RunDirectory(tmp_path, config) as run:
        vgf = small(learning_rate=1e30)
        with pytest.raises(FloatingPointError, match="diverged before update 20"):
            fit(vgf, replay, updates=60, interval=20, key=jr.key(1), run=run)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    assert (tmp_path / "metrics.csv").read_text().count("reference") > 1


@pytest.mark.parametrize(("loss", "words"), [(np.nan, "is nan"), (-2e15, "is -2e")])
def test_a_critic_on_its_way_to_infinity_is_stopped_before_it_is_saved(tmp_path, monkeypatch, loss, words):
    """The third interval is said to have this loss: the checkpoint is that of the second."""
    from flowrl.rl.learning import _fit

    original, calls = _fit.train, []

    def exploding(*arguments):
        state, metrics = original(*arguments)
        calls.append(1)
        return state, metrics | ({"td_loss": np.float64(loss)} if len(calls) == 5 else {})

    monkeypatch.setattr(_fit, "train", exploding)
    with (
        RunDirectory(tmp_path, {}) as run,
        pytest.raises(FloatingPointError, match=f"main phase. diverged before update 60: td_loss {words}.* is kept"),
    ):
        train(run)
    assert [row["step"] for row in run.rows if row["phase"] == "main"] == [20, 40]
    monkeypatch.undo()
    with RunDirectory(tmp_path, {}, resume=True) as run:
        assert int(train(run, updates=40).step) == 40


def test_a_state_that_its_last_update_ruined_is_not_saved(tmp_path, monkeypatch):
    """The loss of an update is that of the parameters before its step: here every metric is finite."""
    from flowrl.rl.learning import _fit

    original, calls = _fit.train, []

    def ruining(*arguments):
        state, metrics = original(*arguments)
        calls.append(1)
        where = lambda s: jax.tree.leaves(s.critic.network)[0]  # noqa: E731
        if len(calls) == 5:
            state = eqx.tree_at(where, state, replace_fn=lambda w: w.at[0].set(np.nan))
        return state, metrics

    monkeypatch.setattr(_fit, "train", ruining)
    words = r"diverged before update 60: state\.critic\.network\..* is not finite"
    with RunDirectory(tmp_path, {}) as run, pytest.raises(FloatingPointError, match=words):
        train(run)
    monkeypatch.undo()
    with RunDirectory(tmp_path, {}, resume=True) as run:
        state = run.load(train(None))
    assert int(state.step) == 40
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array)))


def test_fit_refuses_numbers_that_do_not_fit():
    data = bandit(50)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    for options, message in (
        ({"updates": 0, "interval": 10}, "updates must be a Python int >= 1, got 0"),
        ({"updates": 25, "interval": 10}, "positive multiple"),
        ({"updates": 30, "interval": 30}, r"updates of the reference \(40\)"),
        ({"updates": 40, "interval": 20, "evaluate_at": (30,)}, "evaluate_at"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(small(), replay, key=jr.key(0), **options)


def test_csv_keeps_columns_of_all_rows():
    text = to_csv([{"a": 1, "b": 0.1}, {"a": 2, "c": "x"}])
    assert text == "a,b,c\n1,0.1,\n2,,x\n"


def test_training_traces_once_per_interval_length():
    data = bandit(200)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    from flowrl.rl.learning import _vgf

    traced = []
    original = _vgf.td_target
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_vgf, "td_target", lambda *a: traced.append(1) or original(*a))
        fit(small(particles=3), replay, updates=80, interval=20, key=jr.key(1))
    assert len(traced) == 1


@pytest.mark.parametrize("name", ["config.json", "checkpoint.npz", "metrics.csv", "results.csv"])
def test_a_run_that_lost_files_does_not_end_as_if_it_were_whole(tmp_path, name):
    run = RunDirectory(tmp_path, {"steps": 3})
    run.save({"step": jnp.zeros(())})
    run.write("results.csv", "")
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"removed from .*: {name}. What is there is not"), run:
        pass


def test_a_configuration_that_was_lost_is_written_again_with_the_next_checkpoint(tmp_path):
    with RunDirectory(tmp_path, {"steps": 3}) as run:
        run.save({"step": jnp.zeros(())})
        (tmp_path / "config.json").unlink()
        run.save({"step": jnp.ones(())})
    with RunDirectory(tmp_path, {"steps": 3}, resume=True) as run:
        assert run.load({"step": jnp.zeros(())})["step"] == 1


def test_the_error_of_a_run_is_not_hidden_by_files_that_it_lost(tmp_path):
    run = RunDirectory(tmp_path, {"steps": 3})
    run.write("results.csv", "")
    (tmp_path / "results.csv").unlink()
    with pytest.raises(KeyError, match="its own"), run:
        raise KeyError("its own")


def test_json_nested_too_deeply_is_damage_like_any_other(tmp_path):
    deep = "[" * 200_000
    with RunDirectory(tmp_path, {"steps": 3}) as run:
        run.save({"step": jnp.zeros(())})
        run.save({"step": jnp.ones(())})
    with np.load(tmp_path / "checkpoint.npz") as stored:
        arrays = dict(stored)
    (name,) = [name for name, value in arrays.items() if value.dtype == np.uint8]
    np.savez(tmp_path / "checkpoint.npz", **arrays | {name: np.frombuffer(deep.encode(), np.uint8)})
    with RunDirectory(tmp_path, {"steps": 3}, resume=True) as run, pytest.warns(UserWarning, match="nested too deeply"):
        assert run.load({"step": jnp.zeros(())})["step"] == 0  # from the checkpoint before it
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(ValueError, match="config.json is not JSON .it is nested too deeply"):
        RunDirectory(tmp_path, {"steps": 3}, resume=True)


def test_an_array_whose_header_claims_too_much_is_damage_of_its_file(tmp_path):
    path = tmp_path / "claims.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % (2**55,)
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(DamagedError, match="claims.npz: x claims to hold more than it can"):
        read_npz(path)
