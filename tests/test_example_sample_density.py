"""The densities of the plane against closed forms, and the example that moves particles toward them."""

import csv

import jax.numpy as jnp
import numpy as np
import plane
import pytest
import sample_density
import scipy.integrate
import scipy.stats
import tyro
from PIL import Image


def test_moments_by_quadrature_are_those_in_closed_form():
    exact = {
        "mixture": ((0, 0), (0.36 + 4, 0.36 + 4)),
        "banana": ((0, 1 - 0.5 * 1.5**2), (1.5**2, 0.7**2 + 0.25 * 2 * 1.5**4)),
        "funnel": ((0, 0), (1, np.exp(0.5))),
    }
    for name, (mean, variance) in exact.items():
        got, covariance = plane.quadrature(plane.DENSITIES[name], points=401)
        np.testing.assert_allclose(got, mean, atol=1e-3)
        np.testing.assert_allclose(covariance, np.diag(variance), atol=1e-2)  # the grid ends
    radius = lambda power: scipy.integrate.quad(lambda r: r**power * np.exp(-0.5 * ((r - 2) / 0.4) ** 2), 0, 9)[0]
    covariance = plane.quadrature(plane.ring, points=401)[1]
    np.testing.assert_allclose(covariance, np.eye(2) * radius(3) / radius(1) / 2, atol=1e-3)


def test_samples_have_the_law_of_the_density():
    points = plane.sample(plane.banana, 20_000, np.random.default_rng(1))
    # Straightened, the banana is a pair of independent normals.
    bend = points[:, 1] + 0.5 * points[:, 0] ** 2 - 1
    assert scipy.stats.kstest(points[:, 0] / 1.5, "norm").pvalue > 0.01
    assert scipy.stats.kstest(bend / 0.7, "norm").pvalue > 0.01
    assert abs(scipy.stats.spearmanr(points[:, 0], bend).statistic) < 0.02


@pytest.fixture
def small(monkeypatch):
    """Smaller samples and fewer frames; without the compiler's optimisation pairs of points are slow."""
    monkeypatch.setattr(sample_density, "TRUTH", 300)
    monkeypatch.setattr(sample_density, "REPETITIONS", 10)
    monkeypatch.setattr(sample_density, "SAVED", 5)


@pytest.mark.usefixtures("small")
def test_a_judge_tells_a_sample_from_one_that_is_not():
    judge = sample_density.judge("funnel", 50, np.random.default_rng(0))
    assert judge.independent.shape == (sample_density.REPETITIONS,)
    level = np.quantile(judge.independent, 0.95)
    assert judge.distance(judge.samples) < 1.5 * level
    assert judge.distance(judge.samples.at[:, 0].add(1)) > 1.5 * level
    assert judge.distance(judge.samples.at[0, 0].set(jnp.nan)) == np.inf


@pytest.mark.usefixtures("small")
def test_a_small_run_writes_what_it_says(tmp_path):
    words = ["--flows", "SinkhornFlow", "Ascent", "--densities", "banana", "double banana", "--particles", "40"]
    words += ["--paths", "--animate", "--out", str(tmp_path / "new" / "folder")]
    config = tyro.cli(sample_density.Config, args=words)
    rows = sample_density.main(config)
    with open(config.out / "results.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in rows]
    assert [(row["flow"], row["density"]) for row in rows] == [
        *(("SinkhornFlow", "banana"), ("SinkhornFlow", "double banana")),
        *(("Ascent", "banana"), ("Ascent", "double banana")),
    ]
    sinkhorn, ascent = rows[0], rows[2]
    assert sinkhorn["energy_distance"] < 1.5 * sinkhorn["independent_95"]
    assert ascent["energy_distance"] > 2 * ascent["independent_95"]
    assert ascent["ratio"] == ascent["energy_distance"] / ascent["independent_median"]
    assert sorted(path.name for path in config.out.iterdir()) == [
        *("banana.gif", "double_banana.gif", "results.csv", "sample_density.png", "value.png"),
    ]
    with Image.open(config.out / "double_banana.gif") as image:
        assert image.n_frames == 5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flows": ("SVDG",)}, "--flows: there is no 'SVDG'; did you mean 'SVGD'"),
        ({"flows": ("Langevin", "Langevin + Birth")}, "'Langevin \\+ BirthDeath'"),
        ({"densities": ("bananas",)}, "did you mean 'banana'"),
        ({"densities": ("qqq",)}, "'mixture' or 'banana' or"),
        ({"flows": ()}, "one name or more"),
        ({"flows": ("SVGD", "SVGD")}, "each once"),
        ({"particles": 1}, "at least 2"),
    ],
)
def test_bad_settings(wrong, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        sample_density.main(sample_density.Config(out=tmp_path / "out", **wrong))
    assert not (tmp_path / "out").exists()


# The largest ratio to the level of independent points that each flow may reach: of three seeds, with a margin.
# Flows without jumps keep the shares of the modes in which they start, so for them the mixture is another matter.
BOUNDS = {
    "SVGD": {"banana": 1.4, "ring": 1.4, "funnel": 1.2, "double banana": 8},
    "SVGD, preconditioned": {"banana": 1.4, "ring": 1.4, "funnel": 1.2, "double banana": 8},
    "Blob": {"banana": 3, "ring": 1.6, "funnel": 1.6, "double banana": 6},
    "Langevin": {"banana": 2.2, "ring": 2.2, "funnel": 2.2, "double banana": 6},
    "ALDI": {"banana": 2.2, "ring": 2.2, "funnel": 2.2, "double banana": 6},
    "Langevin + BirthDeath": dict.fromkeys(plane.DENSITIES, 2.2),
    "MMDFlow": dict.fromkeys(plane.DENSITIES, 3),
    "SinkhornFlow": dict.fromkeys(plane.DENSITIES, 2.5),
}


@pytest.mark.slow
def test_every_flow_on_every_density(tmp_path):
    rows = sample_density.main(sample_density.Config(out=tmp_path))
    ratios = {(row["flow"], row["density"]): row["ratio"] for row in rows}
    assert len(ratios) == len(sample_density.FLOWS) * len(plane.DENSITIES)
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
    for density in plane.DENSITIES:
        assert ratios["Ascent", density] > 4
        assert ratios["Consensus", density] > 7
        assert ratios["KSDDescent", density] > 2
    assert (tmp_path / "sample_density.png").stat().st_size > 100_000
