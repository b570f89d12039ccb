"""The lesson on a posterior: particles and NUTS are near a long run, and it writes what it prints."""

import csv

import jax
import numpy as np
import posterior
import pytest


def test_errors_are_in_units_of_the_standard():
    draws = jax.random.normal(jax.random.key(0), (60, 4))
    set_of = lambda rows: {"bias": rows[:, 0], "weights": rows[:, 1:]}
    mean, sd = reference = posterior.moments(set_of(draws))
    assert posterior.errors(set_of(draws), reference) == (0, 0)
    shifted = np.asarray(draws) + np.array([0, 1, 0, 0]) * sd
    np.testing.assert_allclose(posterior.errors(set_of(shifted), reference), (np.sqrt(1 / 4), 0), atol=1e-6)
    wider = mean + 2 * (np.asarray(draws) - mean)
    np.testing.assert_allclose(posterior.errors(set_of(wider), reference), (0, np.log(2)), atol=1e-6)


@pytest.mark.parametrize("wrong", [("--particles", "1"), ("--steps", "0"), ("--particles", "200", "--draws", "100")])
def test_bad_settings(wrong, tmp_path):
    with pytest.raises(SystemExit, match="must be at least 2, --draws at least --particles"):
        posterior.main([*wrong, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_run(tmp_path, capsys):
    # The lesson calls numpyro directly, which mixes dtypes.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = posterior.main(["--draws", "300", "--out", str(tmp_path)])
    ours, chain, thinned = rows
    assert max(ours["mean_error"], ours["log_sd_error"]) < 0.08
    assert max(chain["mean_error"], chain["log_sd_error"]) < 0.15
    assert thinned["mean_error"] > chain["mean_error"]
    assert ours["gradients"] == 100_000
    assert 10_000 < chain["gradients"] < 100_000
    assert ours["method"] in capsys.readouterr().out
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    assert (tmp_path / "posterior.png").stat().st_size > 10_000
