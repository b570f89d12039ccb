"""The bandit example in a small setting: its claims about zero steps are exact, and the flow climbs."""

import contextlib
import functools
import io
import pathlib
import runpy

import bandit
import jax
import numpy as np
import pytest

pytestmark = pytest.mark.slow  # about 20 s on a core, nearly all of it compilation


SMALL = {"STEPS": (0, 1, 3), "DECISIONS": 40, "WEIGHTS": (10.0,), "UPDATES": 400, "HIDDEN": (32, 32), "RATE": 3e-3}


@pytest.fixture(scope="module")
def run():
    # Nearly all of the time is compilation of code that runs for a second, so most of it is left out.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        # The example calls optax directly, and optax.adam mixes dtypes.
        with (
            pytest.MonkeyPatch.context() as patch,
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            contextlib.redirect_stdout(io.StringIO()) as printed,
        ):
            for name, value in SMALL.items():
                patch.setattr(bandit, name, value)
            return *bandit.main(["--seeds", "3", "--noise", "0"]), printed.getvalue()
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def test_zero_steps_are_best_of_n(run):
    rows, _, _ = run
    for method in ("VGF", "VGF without kernel", "random direction"):
        assert rows[method, "L = 0"] == rows["reference", "BC, best-of-N"]  # bit for bit


def test_the_flow_climbs_and_a_random_direction_does_not(run):
    rows, _, _ = run
    mean = lambda method, setting, column="one": rows[method, setting][column][0]
    # One candidate of each, so that nothing of the gain is due to selection.
    cloned, at_random = mean("reference", "BC, best-of-N"), mean("random direction", "L = 3")
    assert mean("VGF", "L = 3") > cloned + 0.005
    assert mean("VGF", "L = 3") > at_random + 0.03
    assert mean("VGF without kernel", "L = 3") > cloned + 0.03
    assert mean("reference", "BC, best-of-N", "best") > cloned + 0.03


def test_the_table_has_every_method(run):
    rows, _, printed = run
    _, *lines = printed.splitlines()
    assert [(line[:19].strip(), line[19:33].strip()) for line in lines] == list(rows)
    for line, row in zip(lines, rows.values(), strict=True):
        assert line[33:].replace("±", " ").split() == [f"{number:.3f}" for pair in row.values() for number in pair]


def test_the_picture_is_drawn(run, tmp_path):
    script = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "docs" / "snippets" / "figures" / "bandit.py"))
    rows, results, _ = run
    script["draw"](vars(bandit) | SMALL, rows, results).savefig(tmp_path / "bandit.png")
    assert (tmp_path / "bandit.png").stat().st_size > 10_000


def test_data_leave_out_the_maxima():
    actions, rewards = jax.jit(functools.partial(bandit.log_data, noise=0.0))(jax.random.key(0))
    radii = np.linalg.norm(bandit.BOX * np.asarray(actions)[:, None] - bandit.CENTRES[None], axis=2).min(axis=1)
    # Centres are 5.4 apart, so an action can be no nearer to the other centre than to the edge of its own ring.
    assert bandit.RING[0] - 1e-4 < radii.min()
    assert radii.max() < bandit.RING[1] + 1e-4
    assert np.asarray(rewards).max() < 0.55  # without noise; the peak is 1


def test_one_seed_is_refused():
    with pytest.raises(SystemExit, match="at least 2"):
        bandit.main(["--seeds", "1"])
