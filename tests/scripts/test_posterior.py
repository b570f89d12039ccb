"""`flowrl posterior`: its measures, its data, and its particles against quadrature and against NUTS."""

import contextlib
import csv
import functools
import subprocess
import sys

import jax
import jax.random as jr
import numpy as np
import pytest
from scipy import stats

import flowrl
from flowrl import scripts
from flowrl.scripts.posterior import Config, main
from flowrl.scripts.posterior._measures import Judge, standard
from flowrl.scripts.posterior._methods import DEFAULT_STEP, starts, step_sizes, transport_of
from flowrl.scripts.posterior._models import load


@contextlib.contextmanager
def as_users_run_it():
    """The program calls numpyro directly, which mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def schools():
    """Mean and sd of mu and of log tau in eight schools, by quadrature: the effects integrate out."""
    with as_users_run_it():
        data = load("eight-schools", 0).data
    y, sigma = (np.asarray(data[name], float) for name in ("y", "sigma"))
    mu, log_tau = np.linspace(-25, 35, 601)[:, None], np.linspace(-12, 6, 721)[None]
    scale = np.sqrt(sigma**2 + np.exp(log_tau)[..., None] ** 2)
    log_density = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(scale=5).logpdf(np.exp(log_tau)) + log_tau
    log_density = log_density + stats.norm(mu[..., None], scale).logpdf(y).sum(axis=2)
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    means = [np.sum(weight * x) for x in (mu, log_tau)]
    return np.array(means), np.array(
        [np.sqrt(np.sum(weight * (x - m) ** 2)) for x, m in zip((mu, log_tau), means, strict=True)]
    )


@pytest.mark.thorough
def test_particles_have_the_moments_of_quadrature():
    with as_users_run_it():
        problem = load("eight-schools", 0)
        target = flowrl.from_numpyro(problem.model, key=jr.key(0), **problem.data)
        start = starts("zero", target, 50, jr.key(1))
        budget = flowrl.Budget(200, step_sizes("svgd", 200, DEFAULT_STEP["svgd"]))
        particles = transport_of("svgd")(target.target, start, budget).particles
    mean, sd = schools()
    found = np.stack([particles["mu"], particles["tau"]], axis=1)
    assert np.all(np.abs(np.stack([start["mu"], start["tau"]]).mean(axis=1) - mean) > 0.3 * sd)  # not there at first
    np.testing.assert_allclose((found.mean(axis=0) - mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(found.std(axis=0, ddof=1) / sd, 1, atol=0.2)


def test_errors_are_in_units_of_the_standard():
    with as_users_run_it():
        problem = load("eight-schools", 0)
        target = flowrl.from_numpyro(problem.model, key=jr.key(0), **problem.data)
        judge = Judge(problem, target, starts("zero", target, 60, jr.key(2)))
        own = judge.coordinates(starts("zero", target, 60, jr.key(2)))
    assert judge.errors(own) == (0, 0)
    shift = np.zeros(10)
    shift[3] = 1
    mean, sd = judge.errors(own + shift * judge.sd)
    np.testing.assert_allclose((mean, sd), (np.sqrt(1 / 10), 0), atol=1e-6)
    _, sd = judge.errors(judge.mean + 2 * (own - judge.mean))
    np.testing.assert_allclose(sd, np.log(2), rtol=1e-6)


def test_batting_averages_are_those_of_the_hits():
    with as_users_run_it():
        problem = load("baseball", 0)
    test = {name: np.asarray(x, float) for name, x in problem.test.items()}
    average = test["y"] / test["at_bats"]
    assert np.all(test["y"] == np.round(test["y"]))
    assert (np.round(average[0], 3), np.round(average[-2], 3)) == (0.346, 0.316)  # Clemente, Munson
    np.testing.assert_allclose(np.asarray(problem.data["y"]).mean() / 45, 0.265, atol=5e-4)  # Efron and Morris


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"particles": 1}, "--particles must be at least 2"),
        ({"step_size": -1.0}, "--step-size must be a finite number above 0"),
        ({"particles": 200, "nuts_draws": 100}, "at least --particles = 200"),
        ({"reference_draws": 0}, "--reference-draws must be at least 20"),
    ],
)
def test_bad_settings(wrong, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main(Config(out=tmp_path, **wrong))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flow": "aldi", "particles": 11}, r"more than d \+ 1 = 11 particles"),
        ({"flow": "langevin", "step_size": 1e6, "steps": 100}, "no finite score, with --step-size 1e"),
    ],
)
def test_settings_that_only_the_run_can_refuse(wrong, message, tmp_path):
    with as_users_run_it(), pytest.raises(SystemExit, match=message):
        main(Config("eight-schools", out=tmp_path, **wrong))


@pytest.mark.slow
def test_nuts_has_the_moments_of_quadrature():
    with as_users_run_it():
        problem = load("eight-schools", 0)
        draws, r_hat, effective = standard(problem, 500, 1000, jr.key(3))
        centred, _, _ = standard(load("eight-schools-centred", 0), 500, 1000, jr.key(3))
    assert r_hat < 1.02
    assert effective > 1000
    mean, sd = schools()
    for chains in (draws, centred):
        found = np.stack([chains["mu"], chains["tau"]], axis=1)
        np.testing.assert_allclose((found.mean(axis=0) - mean) / sd, 0, atol=0.1)
        np.testing.assert_allclose(found.std(axis=0) / sd, 1, atol=0.1)


# Errors of 100 particles at the end: of the mean in sd, of the log of sd.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flow", "bounds"),
    [
        ("logistic", "svgd", (0.08, 0.08)),
        ("logistic", "preconditioned", (0.08, 0.08)),
        ("baseball", "aldi", (0.3, 0.25)),
        ("network", "langevin", (1.0, 0.5)),
    ],
)
def test_the_whole_run(model, flow, bounds, tmp_path, capsys):
    config = Config(model, flow, nuts_warmup=300, nuts_draws=300, reference_draws=500, out=tmp_path)
    with as_users_run_it():
        rows = main(config)
    assert "compilation" in capsys.readouterr().out
    ours, chain, thinned = rows
    assert ours["mean_error"] < bounds[0]
    assert ours["log_sd_error"] < bounds[1]
    assert ours["gradients"] == 100_000
    assert chain["mean_error"] < 0.15
    assert np.isclose(ours["test_log_likelihood"], chain["test_log_likelihood"], atol=0.1)
    assert chain["ksd"] < thinned["ksd"]
    with open(tmp_path / "results.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in rows]
    with open(tmp_path / "moments.csv", newline="") as file:
        moments = list(csv.DictReader(file))
    assert len(moments) == len(load(model, 0).names)
    off = [(float(row["mean"]) - float(row["nuts_mean"])) / float(row["nuts_sd"]) for row in moments]
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(off))), ours["mean_error"], rtol=1e-6)
    assert (tmp_path / "posterior.png").stat().st_size > 10_000


def test_without_its_extra_the_command_says_in_one_line_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "numpyro", None)
    with pytest.raises(
        SystemExit, match=r"^flowrl posterior: numpyro is needed here .* pip install .*\[bayes,examples\]"
    ):
        scripts.main(["posterior", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_options_are_known_without_numpyro():
    code = "import sys; from flowrl.scripts.posterior import Config; assert 'numpyro' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
