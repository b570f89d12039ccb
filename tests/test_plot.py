"""Pictures hold what they should: artists against particles, curves against NumPy, files against what was asked."""

import os
import stat

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from problems import FLOAT, assert_close, draw, linear, log_normal, same_bits, tolerance

import flowrl
from flowrl import RESULTS, plot

# A picture holds float64, whatever the particles are.
CLOSE = tolerance(1e-12, 1e-6)


def by_label(ax, label):
    (found,) = [artist for artist in ax.collections if artist.get_label() == label]
    return found


def offsets(ax, label):
    return np.asarray(by_label(ax, label).get_offsets())


def filled(ax):
    """The regions of a density."""
    (found,) = [artist for artist in ax.collections if hasattr(artist, "levels")]
    return found


def extent(ax):
    """How far the filled regions reach: (left, bottom), (right, top)."""
    corners = np.concatenate([path.vertices for path in filled(ax).get_paths() if len(path.vertices)])
    return corners.min(axis=0), corners.max(axis=0)


def solution(moves, scale=1.0, saved=slice(None)):
    """What a transport through these sets (..., steps + 1, n, d) would return if it saved some of them."""
    rms = jnp.asarray(displacements(moves, scale)[..., -1], FLOAT)
    stats = {"steps": jnp.zeros(rms.shape, int), "displacement_rms": rms}
    trajectory = None if saved is None else jnp.asarray(moves[..., saved, :, :], FLOAT)
    return flowrl.Solution(jnp.asarray(moves[..., -1, :, :], FLOAT), None, RESULTS.successful, stats, trajectory)


def displacements(moves, scale=1.0):
    moved = np.linalg.norm((moves - moves[..., :1, :, :]) / scale, axis=-1)
    return np.sqrt(np.mean(moved**2, axis=-1))


MOVES = np.random.default_rng(0).normal(size=(4, 6, 2)).cumsum(axis=0)
MANY = np.random.default_rng(1).normal(size=(3, 4, 6, 2)).cumsum(axis=1)
normal = flowrl.Density(log_normal)


def test_the_regions_of_a_normal_hold_the_mass_they_say():
    """Of a normal distribution in the plane, the share 1 − h lies where the density is above h times its peak."""
    ax = plot.density(normal, ((-6, 6), (-6, 6)))
    np.testing.assert_allclose(filled(ax).levels[:-1], [0.01, 0.1, 0.3, 0.5, 0.7, 0.9], atol=5e-3)
    low, high = extent(ax)
    np.testing.assert_allclose([-low, high], np.sqrt(-2 * np.log(0.01)), atol=0.05)


def test_a_flat_value_is_drawn_all_the_same():
    flat = flowrl.Boltzmann(linear, jnp.zeros(2))
    for temperature in (0.0, 1.0):
        ax = plot.density(flat, ((0, 1), (0, 3)), temperature=temperature, points=20)
        np.testing.assert_allclose(extent(ax), [(0, 0), (1, 3)])


@pytest.mark.parametrize("temperature", [0.25, 4.0])
def test_the_law_of_a_value_depends_on_the_temperature(temperature):
    ax = plot.density(flowrl.Boltzmann(log_normal), ((-9, 9), (-9, 9)), temperature=temperature)
    low, high = extent(ax)
    np.testing.assert_allclose([-low, high], np.sqrt(-2 * temperature * np.log(0.01)), atol=0.1)


def test_at_temperature_zero_the_value_is_drawn():
    ax = plot.density(flowrl.Boltzmann(linear, jnp.asarray([2.0, 1.0])), ((0, 1), (0, 3)), temperature=0.0)
    np.testing.assert_allclose(filled(ax).levels, np.linspace(0, 5, 13), atol=1e-5)


def upper(x):
    """−∞ to the left of 0, NaN below 0, else a constant."""
    return jnp.where(x[0] < 0, -jnp.inf, jnp.sqrt(x[1]) * 0)


def test_where_a_target_is_not_finite_nothing_is_drawn():
    ax = plot.density(flowrl.Density(upper), ((-1, 3), (-2, 4)), points=100)
    low, high = extent(ax)
    np.testing.assert_allclose([low, high], [(0, 0), (3, 4)], atol=0.08)
    with pytest.raises(ValueError, match="finite nowhere within"):
        plot.density(flowrl.Density(upper), ((-3, -1), (-2, 4)))


def narrow(x):
    """A normal density over a dict: `a` of deviation 1 around 3, `b` of deviation 0.2."""
    return -0.5 * (x["a"] - 3) ** 2 - 0.5 * jnp.sum((x["b"] / 0.2) ** 2)


@pytest.mark.parametrize("coordinates", [("b[0]", "a"), (1, 0)])
def test_particles_may_be_a_tree_and_coordinates_have_names(coordinates):
    particles = {"a": 3 + draw(2, (8,)), "b": draw(3, (8, 1))}
    ax = plot.particles(particles, flowrl.Density(narrow), coordinates=coordinates, limits=((-2, 2), (-2, 8)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("b[0]", "a")
    assert_close(offsets(ax, "particles"), np.stack([particles["b"][:, 0], particles["a"]], axis=1), CLOSE)
    low, high = extent(ax)
    radius = np.sqrt(-2 * np.log(0.01))
    np.testing.assert_allclose([low, high], [(-0.2 * radius, 3 - radius), (0.2 * radius, 3 + radius)], atol=0.1)


def test_positions_paths_and_start_are_those_of_the_solution():
    ax = plot.particles(solution(MOVES), normal)
    assert_close(offsets(ax, "particles"), MOVES[-1], CLOSE)
    assert_close(offsets(ax, "start"), MOVES[0], CLOSE)
    assert_close(np.asarray(by_label(ax, "paths").get_segments()), MOVES.swapaxes(0, 1), CLOSE)
    points = MOVES.reshape(-1, 2)
    for (low, high), coordinate in zip((ax.get_xlim(), ax.get_ylim()), points.T, strict=True):
        width = np.ptp(coordinate)
        np.testing.assert_allclose([low, high], [coordinate.min() - 0.08 * width, coordinate.max() + 0.08 * width])
    ax = plot.particles(solution(MOVES), paths=False)
    assert [artist.get_label() for artist in ax.collections] == ["particles"]


def test_two_coordinates_of_many_are_drawn_without_the_target():
    particles = draw(4, (5, 7))
    ax = plot.particles(particles, coordinates=(5, "x[2]"))
    assert_close(offsets(ax, "particles"), np.asarray(particles)[:, [5, 2]], CLOSE)
    with pytest.raises(ValueError, match="density over 7 coordinates"):
        plot.particles(particles, normal)


def test_samples_are_drawn_as_points():
    samples, particles = 10 + draw(5, (9, 3)), draw(6, (4, 3))
    ax = plot.particles(particles, flowrl.Empirical(samples), coordinates=(2, 0))
    assert_close(offsets(ax, "samples"), np.asarray(samples)[:, [2, 0]], CLOSE)
    assert ax.get_xlim()[1] > samples[:, 2].max()
    alone = plot.density(flowrl.Empirical(samples))
    assert_close(offsets(alone, "samples"), np.asarray(samples)[:, :2], CLOSE)


def test_pictures_are_put_together_on_one_axes_and_pyplot_is_left_alone():
    import matplotlib.pyplot as plt

    settings, figures = dict(matplotlib.rcParams), plt.get_fignums()
    ax = Figure().subplots()
    first, second = jnp.asarray(MOVES[0], FLOAT), jnp.asarray(100 + MOVES[1], FLOAT)
    assert plot.particles(first, ax=ax) is ax
    assert plot.particles(second.at[0].set(jnp.nan), ax=ax) is ax
    assert ax.get_xlim()[0] < MOVES[0, :, 0].min()
    assert ax.get_xlim()[1] > second[1:, 0].max()
    assert (dict(matplotlib.rcParams), plt.get_fignums()) == (settings, figures)


def value_of(x):
    return -np.sum(np.asarray(x, np.float64) ** 2, axis=-1) / 2


def band(ax):
    """The lower and upper end of the band, from left to right."""
    (found,) = ax.collections
    corners = found.get_paths()[0].vertices
    count = (len(corners) - 3) // 2
    return corners[1 : count + 1], corners[count + 2 : -1][::-1]


@pytest.mark.parametrize("scale", [None, (2.0, 0.5)])
def test_value_against_displacement_of_one_set(scale):
    unit = 1.0 if scale is None else np.array(scale)
    moves = MOVES[[0, 3, 1, 2]]  # there, and half the way back: what was spent stays spent
    ax = plot.value(solution(moves, unit), normal, scale=scale)
    mean, best = ax.lines
    values, spent = value_of(moves), np.maximum.accumulate(displacements(moves, unit))
    assert spent[2] > displacements(moves, unit)[2]
    for line, expected in ((mean, values.mean(axis=1)), (best, values.max(axis=1))):
        np.testing.assert_allclose(line.get_xydata(), np.stack([spent, expected], axis=1), rtol=tolerance(1e-9, 1e-4))
    low, high = band(ax)
    np.testing.assert_allclose(low[:, 1], np.quantile(values, 0.1, axis=1), rtol=tolerance(1e-9, 1e-4))
    np.testing.assert_allclose(high[:, 1], np.quantile(values, 0.9, axis=1), rtol=tolerance(1e-9, 1e-4))


def test_value_of_a_batch_against_steps():
    ax = plot.value({"sets": solution(MANY)}, normal, steps=(0, 2, 4, 8))
    mean, best = ax.lines
    values = value_of(MANY)
    assert_close(mean.get_xydata(), np.stack([(0, 2, 4, 8), values.mean(axis=(0, 2))], axis=1), tolerance(1e-9, 1e-4))
    assert_close(best.get_ydata(), values.max(axis=2).mean(axis=0), tolerance(1e-9, 1e-4))
    low, high = band(ax)
    means = values.mean(axis=2)
    np.testing.assert_allclose(low[:, 1], np.quantile(means, 0.1, axis=0), rtol=tolerance(1e-9, 1e-4))
    np.testing.assert_allclose(high[:, 1], np.quantile(means, 0.9, axis=0), rtol=tolerance(1e-9, 1e-4))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["sets"]
    against = plot.value(solution(MANY), normal)
    spent = np.maximum.accumulate(displacements(MANY).mean(axis=0))
    np.testing.assert_allclose(against.lines[0].get_xdata(), spent, rtol=tolerance(1e-9, 1e-4))


def test_values_that_are_not_finite_are_left_out():
    values = np.array([[1.0, np.nan, 3.0, 5.0, -np.inf, 7.0], [np.nan] * 6, [2.0] * 6, [4.0] * 6])
    mean, best = plot.value(solution(MOVES), values).lines
    np.testing.assert_array_equal(mean.get_ydata(), [4, np.nan, 2, 4])
    np.testing.assert_array_equal(best.get_ydata(), [7, np.nan, 2, 4])


def test_what_was_spent_is_what_the_transport_says(key):
    """A batch under vmap, in a unit of length: the last displacement is the one in `stats`."""
    start = jr.normal(key, (2, 5, 2), FLOAT)
    budget = flowrl.Budget(6, 0.1, scale=(2.0, 0.5))
    move = lambda x: flowrl.transport(normal, x, budget, flow=flowrl.Ascent(), save=(0, 3, 6), throw=False)
    moved = jax.vmap(move)(start)
    ax = plot.value(moved, normal, scale=(2.0, 0.5))
    last = np.mean(moved.stats["displacement_rms"])
    np.testing.assert_allclose(ax.lines[0].get_xdata()[-1], last, rtol=1e-4)
    with pytest.raises(ValueError, match="scale of the budget"):
        plot.value(moved, normal)


def recorded(monkeypatch, fail_at=None):
    """Where the dots of every panel lie in every frame that is written."""
    frames, grab = [], matplotlib.animation.PillowWriter.grab_frame

    def watch(writer, **options):
        if len(frames) == fail_at:
            raise OSError("the disk is full")
        frames.append([offsets(ax, "particles").copy() for ax in writer.fig.axes])
        grab(writer, **options)

    monkeypatch.setattr(matplotlib.animation.PillowWriter, "grab_frame", watch)
    return frames


def test_an_animation_has_a_frame_for_every_set_saved(tmp_path, monkeypatch):
    frames, other = recorded(monkeypatch), 5 + MOVES[::-1]
    path = plot.animate({"a": solution(MOVES), "b": solution(other)}, tmp_path / "moves.gif", normal, fps=10)
    assert path == tmp_path / "moves.gif"
    assert_close(np.asarray(frames), np.stack([MOVES, other], axis=1), CLOSE)
    with Image.open(path) as image:
        assert (image.n_frames, image.info["duration"]) == (4, 100)
        pictures = []
        for frame in range(4):
            image.seek(frame)
            pictures.append(np.asarray(image.convert("RGB")))
    assert all((one != two).any() for one, two in zip(pictures, pictures[1:], strict=False))
    assert os.listdir(tmp_path) == ["moves.gif"]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "moves.gif"
    path.write_text("old")
    recorded(monkeypatch, fail_at=2)
    with pytest.raises(OSError, match="disk is full"):
        plot.animate(solution(MOVES), path)
    assert os.listdir(tmp_path) == ["moves.gif"]
    assert path.read_text() == "old"


FFMPEG = """#!/bin/sh
for last; do :; done
cat > "$last"
"""


def test_mp4_goes_through_ffmpeg(tmp_path, monkeypatch):
    """By a program of that name that keeps the frames as they come: four of one size, not all the same."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match="needs the program ffmpeg"):
        plot.animate(solution(MOVES), tmp_path / "moves.mp4")
    assert os.listdir(tmp_path) == []
    program = tmp_path / "programs" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
    path = plot.animate(solution(MOVES), tmp_path / "moves.mp4", steps=(0, 1, 2, 3))
    frames = np.frombuffer(path.read_bytes(), np.uint8).reshape(4, -1)
    assert (frames[0] != frames[3]).any()
    assert sorted(os.listdir(tmp_path)) == ["moves.mp4", "programs"]


FREE = np.random.default_rng(2).normal(size=(6, 2))
WITHOUT, LATE = solution(MOVES, saved=None), solution(MOVES, saved=slice(1, None))
REFUSALS = {
    "paths without a trajectory": (lambda: plot.particles(WITHOUT, paths=True), "call transport with save="),
    "values without a trajectory": (lambda: plot.value(WITHOUT, normal), "call transport with save="),
    "frames without a trajectory": (lambda: plot.animate(WITHOUT, "a.gif"), "call transport with save="),
    "paths of particles": (lambda: plot.particles(jnp.asarray(FREE), paths=True), "belong to a solution"),
    "a batch": (lambda: plot.particles(solution(MANY)), r"batch of sets of shape \(3,\)"),
    "frames of a batch": (lambda: plot.animate(solution(MANY), "a.gif"), r"batch of sets of shape \(3,\)"),
    "one coordinate": (lambda: plot.particles(jnp.ones((3, 1))), "two coordinates or more"),
    "no such coordinate": (lambda: plot.particles(jnp.ones((3, 4)), coordinates=(0, 4)), "no coordinate 4; the 4"),
    "no such name": (lambda: plot.particles(jnp.ones((3, 4)), coordinates=(0, "x[7]")), r"such as \['x\["),
    "a coordinate twice": (lambda: plot.particles(jnp.ones((3, 4)), coordinates=(1, "x[1]")), "two different ones"),
    "integers": (lambda: plot.particles(jnp.ones((3, 2), int)), "only floating leaves"),
    "nothing finite": (lambda: plot.particles(jnp.full((3, 2), jnp.nan)), "no particle is finite"),
    "limits": (lambda: plot.particles(jnp.asarray(FREE), limits=((1, 0), (0, 1))), "finite and increasing"),
    "no limits": (lambda: plot.density(normal), "needs limits"),
    "points": (lambda: plot.density(normal, ((0, 1), (0, 1)), points=1), "points must be"),
    "a score": (lambda: plot.particles(jnp.asarray(FREE), flowrl.Score(jnp.negative)), "knows only its gradient"),
    "the value of a score": (lambda: plot.value(solution(MOVES), flowrl.Score(jnp.negative)), "knows no value"),
    "a cold density": (lambda: plot.density(normal, ((0, 1), (0, 1)), temperature=0.0), "at temperature 0"),
    "a negative temperature": (lambda: plot.density(normal, ((0, 1), (0, 1)), temperature=-1.0), "finite and >= 0"),
    "a batch of data": (
        lambda: plot.density(
            flowrl.Posterior(log_normal, lambda x, y: 0 * y * x[0], jnp.zeros(9, FLOAT), batch_size=2), ((0, 1), (0, 1))
        ),
        "batch_size=None",
    ),
    "another start": (lambda: plot.value(LATE, normal), r"save=\(0, ...\)"),
    "steps that do not fit": (lambda: plot.value(solution(MOVES), normal, steps=(0, 1)), "4 counts that were saved"),
    "steps with a scale": (lambda: plot.value(solution(MOVES), normal, steps=range(4), scale=2.0), "leave it out"),
    "values that do not fit": (lambda: plot.value(solution(MOVES), np.zeros((6, 4))), r"\(4, 6\), got \(6, 4\)"),
    "values of two": (lambda: plot.value(dict.fromkeys("ab", solution(MOVES)), np.zeros((4, 6))), "one solution"),
    "nothing": (lambda: plot.value({}, normal), "no solution"),
    "another suffix": (lambda: plot.animate(solution(MOVES), "a.avi"), r"\.gif or \.mp4, got '\.avi'"),
    "another length": (
        lambda: plot.animate({"a": solution(MOVES), "b": solution(MOVES[1:])}, "a.gif"),
        "same number of saved sets",
    ),
    "no such folder": (lambda: plot.animate(solution(MOVES), "nowhere/a.gif"), "nowhere"),
    "frames a second": (lambda: plot.animate(solution(MOVES), "a.gif", fps=0), "fps must be"),
    "tail": (lambda: plot.animate(solution(MOVES), "a.gif", tail=-1), "tail must be"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_misuse_is_refused_in_words(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, words = REFUSALS[case]
    with pytest.raises((ValueError, TypeError, OSError), match=words):
        call()
    assert os.listdir(tmp_path) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.animation", None)
    with pytest.raises(ImportError, match=r"flowrl-transport\[plot\]") as caught:
        plot.particles(jnp.asarray(FREE))
    assert caught.value.name == "matplotlib"


def test_drawing_changes_nothing():
    moved = solution(MOVES)
    before = jax.tree.map(np.array, (moved.particles, moved.trajectory))
    plot.particles(moved, normal)
    plot.value(moved, normal)
    assert same_bits((moved.particles, moved.trajectory), before)
