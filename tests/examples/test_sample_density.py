"""The densities of the plane against closed forms, and the example that moves particles toward them."""

import csv
import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
import sample_density
import scipy.integrate
import scipy.stats
from problems import quadrature

from flowrl import diagnostics


def test_moments_by_quadrature_are_those_in_closed_form():
    exact = {
        "mixture": ((0, 0), (0.36 + 4, 0.36 + 4)),
        "banana": ((0, 1 - 0.5 * 1.5**2), (1.5**2, 0.7**2 + 0.25 * 2 * 1.5**4)),
        "funnel": ((0, 0), (1, np.exp(0.5))),
    }
    for name, (mean, variance) in exact.items():
        got, covariance = quadrature(sample_density.DENSITIES[name], points=401)
        np.testing.assert_allclose(got, mean, atol=1e-3)
        np.testing.assert_allclose(covariance, np.diag(variance), atol=1e-2)  # the grid ends
    radius = lambda power: scipy.integrate.quad(lambda r: r**power * np.exp(-0.5 * ((r - 2) / 0.4) ** 2), 0, 9)[0]
    covariance = quadrature(sample_density.DENSITIES["ring"], points=401)[1]
    np.testing.assert_allclose(covariance, np.eye(2) * radius(3) / radius(1) / 2, atol=1e-3)


@pytest.mark.thorough
def test_samples_have_the_distribution_of_the_density(monkeypatch):
    monkeypatch.setattr(sample_density, "TRUTH", 20_000)
    monkeypatch.setattr(sample_density, "REPETITIONS", 1)
    points = np.asarray(sample_density.judge("banana", 2, np.random.default_rng(1))[0])
    # Straightened, the banana is a pair of independent normals.
    bend = points[:, 1] + 0.5 * points[:, 0] ** 2 - 1
    assert scipy.stats.kstest(points[:, 0] / 1.5, "norm").pvalue > 0.01
    assert scipy.stats.kstest(bend / 0.7, "norm").pvalue > 0.01
    assert abs(scipy.stats.spearmanr(points[:, 0], bend).statistic) < 0.02


@pytest.fixture
def small(monkeypatch):
    """Smaller samples; without the compiler's optimisation pairs of points are slow."""
    monkeypatch.setattr(sample_density, "TRUTH", 300)
    monkeypatch.setattr(sample_density, "REPETITIONS", 10)


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
def test_the_yardstick_tells_a_sample_from_one_that_is_not():
    truth, samples, independent = sample_density.judge("funnel", 50, np.random.default_rng(0))
    assert independent.shape == (sample_density.REPETITIONS,)
    level = np.quantile(independent, 0.95)
    distance = lambda particles: float(diagnostics.energy_distance(particles, truth))
    assert distance(samples) < 1.5 * level
    assert distance(samples.at[:, 0].add(1)) > 1.5 * level
    assert np.isnan(distance(samples.at[0, 0].set(jnp.nan)))


@pytest.mark.usefixtures("small")
@pytest.mark.thorough
def test_a_small_run_writes_what_it_says(tmp_path):
    out = tmp_path / "new" / "folder"
    words = ["--flows", "SinkhornFlow", "Ascent", "--densities", "banana", "double banana", "--particles", "40"]
    rows = sample_density.main([*words, "--out", str(out)])
    with open(out / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    assert [(row["flow"], row["density"]) for row in rows] == [
        *(("SinkhornFlow", "banana"), ("Ascent", "banana")),
        *(("SinkhornFlow", "double banana"), ("Ascent", "double banana")),
    ]
    sinkhorn, ascent = rows[:2]
    assert sinkhorn["energy_distance"] < 1.5 * sinkhorn["independent_95"]
    assert ascent["energy_distance"] > 2 * ascent["independent_95"]
    assert ascent["ratio"] == ascent["energy_distance"] / ascent["independent_median"]
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "sample_density.png"]


@pytest.mark.slow
def test_the_pictures_of_plots_are_drawn(tmp_path):
    script = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "docs" / "snippets" / "figures" / "plot.py"))
    script["main"](tmp_path, particles=(5, 5), frames=5, densities=("banana", "double banana"))
    assert (tmp_path / "plot_particles.png").stat().st_size > 10_000
    assert (tmp_path / "plot_value.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--flows", "SVDG"), "invalid choice: 'SVDG' (choose from "),
        (("--densities", "bananas"), "invalid choice: 'bananas' (choose from "),
        (("--flows",), "expected at least one argument"),
        (("--particles", "1"), "--particles must be at least 2, got 1."),
    ],
)
def test_bad_settings(wrong, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        sample_density.main(["--out", str(tmp_path / "out"), *wrong])
    assert message in capsys.readouterr().err + str(stop.value)
    assert not (tmp_path / "out").exists()


# The largest ratio to the level of independent points that each flow may reach: of three seeds, with a margin.
# Flows without jumps keep the shares of the modes in which they start, so for them the mixture is another matter.
BOUNDS = {
    "SVGD": {"banana": 1.4, "ring": 1.4, "funnel": 1.2, "double banana": 8},
    "SVGD, preconditioned": {"banana": 1.4, "ring": 1.4, "funnel": 1.2, "double banana": 8},
    "Blob": {"banana": 3, "ring": 1.6, "funnel": 1.6, "double banana": 6},
    "Langevin": {"banana": 2.2, "ring": 2.2, "funnel": 2.2, "double banana": 6},
    "ALDI": {"banana": 2.2, "ring": 2.2, "funnel": 2.2, "double banana": 6},
    "Langevin + BirthDeath": dict.fromkeys(sample_density.DENSITIES, 2.2),
    "MMDFlow": dict.fromkeys(sample_density.DENSITIES, 3),
    "SinkhornFlow": dict.fromkeys(sample_density.DENSITIES, 2.5),
}


@pytest.mark.slow
def test_every_flow_on_every_density(tmp_path):
    rows = sample_density.main(["--out", str(tmp_path)])
    ratios = {(row["flow"], row["density"]): row["ratio"] for row in rows}
    assert len(ratios) == len(sample_density.FLOWS) * len(sample_density.DENSITIES)
    # Consensus explores by rare excursions, and some end where the density is zero in floating point.
    assert sum(row["nonfinite"] for row in rows if row["flow"] != "Consensus") == 0
    far = {
        (flow, density): (ratios[flow, density], bound)
        for flow, bounds in BOUNDS.items()
        for density, bound in bounds.items()
        if not ratios[flow, density] <= bound
    }
    assert far == {}
    # What the pictures are said to show.
    for flow in ("SVGD", "SVGD, preconditioned", "Blob", "Langevin", "ALDI"):
        assert ratios[flow, "mixture"] > 2
    for density in sample_density.DENSITIES:
        assert ratios["Ascent", density] > 4
        assert ratios["Consensus", density] > 7
        assert ratios["KSDDescent", density] > 2
    assert (tmp_path / "sample_density.png").stat().st_size > 100_000
