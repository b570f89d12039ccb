"""Trackers get the numbers of every row; a real event file is read back."""

import sys
import types

import jax.random as jr
import pytest
from rl.toys import bandit

from flowrl.rl import Standardizer, fit, make_replay
from flowrl.rl.learning import baselines
from flowrl.runs import Tracker


@pytest.mark.thorough
def test_tensorboard_files_hold_every_number(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = bandit(60)
    replay = make_replay(data, Standardizer.fit(data.observations), discount=0.9)
    algorithm = baselines.td3_bc(hidden=(8,), batch_size=16)
    with Tracker("tensorboard", tmp_path, {}) as tracker:
        rows = []
        fit(
            algorithm,
            replay,
            updates=6,
            interval=2,
            key=jr.key(0),
            log=lambda row, step: (rows.append((step, row)), tracker.log(row, step)),
        )
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("td_loss", "actor_loss"):
        tensors = events.Tensors(name)
        assert [event.step for event in tensors] == [2, 4, 6]
        found = [float(event.tensor_proto.float_val[0]) for event in tensors]
        assert found == pytest.approx([row[name] for _, row in rows], rel=1e-6)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_runs_are_named_and_finished(kind, tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append(("log", row, step)), finish=lambda: calls.append(("finish",))
    )
    monkeypatch.setitem(sys.modules, kind, types.SimpleNamespace(init=lambda **given: calls.append(given) or run))
    with Tracker(kind, tmp_path / "seed1", {"steps": 3}) as tracker:
        tracker.log({"phase": "main", "step": 2, "td_loss": 0.5}, 7)
    assert calls[0]["name"] == "seed1"
    Tracker(kind, tmp_path / "seed1", {}, name="iql seed1").log({}, 1)
    assert calls.pop(3)["name"] == "iql seed1"
    assert calls.pop(3) == ("log", {}, 1)
    assert calls[0]["config"] == {"steps": 3}
    assert calls[1:] == [("log", {"td_loss": 0.5}, 7), ("finish",)]


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"flowrl-transport\[tracking\]"):
        Tracker("wandb", tmp_path, {})
    with pytest.raises(ValueError, match="tracker must be"):
        Tracker("paper", tmp_path, {})
