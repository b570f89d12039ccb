"""The bandit example in a small setting: its claims about zero steps are exact, and the flow climbs."""

import csv
import functools

import bandit
import jax
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # about 20 s on a core, nearly all of it compilation


SMALL = {"STEPS": (0, 1, 3), "DECISIONS": 40, "WEIGHTS": (10.0,), "UPDATES": 400, "HIDDEN": (32, 32), "RATE": 3e-3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bandit")
    # Nearly all of the time is compilation of code that runs for a second, so most of it is left out.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        # The example calls optax directly, and optax.adam mixes dtypes.
        with (
            pytest.MonkeyPatch.context() as patch,
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
        ):
            for name, value in SMALL.items():
                patch.setattr(bandit, name, value)
            rows = bandit.main(["--seeds", "3", "--noise", "0", "--out", str(out)])
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    return out, {(row["method"], row["setting"]): row for row in rows}


def test_zero_steps_are_best_of_n(run):
    _, rows = run
    expected = {k: v for k, v in rows["reference", "BC, best-of-N"].items() if k not in ("method", "setting")}
    for method in ("VGF", "VGF without kernel", "random direction"):
        row = rows[method, "L = 0"]
        assert {k: row[k] for k in expected} == expected  # bit for bit


def test_the_flow_climbs_and_a_random_direction_does_not(run):
    _, rows = run
    # One candidate of each, so that nothing of the gain is due to selection.
    cloned, at_random = rows["reference", "BC, best-of-N"]["one"], rows["random direction", "L = 3"]["one"]
    assert rows["VGF", "L = 3"]["one"] > cloned + 0.005
    assert rows["VGF", "L = 3"]["one"] > at_random + 0.03
    assert rows["VGF without kernel", "L = 3"]["one"] > cloned + 0.03
    assert rows["reference", "BC, best-of-N"]["best"] > cloned + 0.03


def test_files_and_data(run):
    out, rows = run
    with open(out / "results.csv", newline="") as file:
        assert [(row["method"], row["setting"]) for row in csv.DictReader(file)] == list(rows)
    assert (out / "bandit.png").stat().st_size > 10_000
    actions, rewards = jax.jit(functools.partial(bandit.log_data, noise=0.0))(jax.random.key(0))
    radii = np.linalg.norm(bandit.BOX * np.asarray(actions)[:, None] - bandit.CENTRES[None], axis=2).min(axis=1)
    # Centres are 5.4 apart, so an action can be no nearer to the other centre than to the edge of its own ring.
    assert bandit.RING[0] - 1e-4 < radii.min()
    assert radii.max() < bandit.RING[1] + 1e-4
    assert np.asarray(rewards).max() < 0.55  # without noise; the peak is 1


def test_one_seed_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="at least 2"):
        bandit.main(["--seeds", "1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
