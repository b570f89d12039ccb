"""Statistics against SciPy, closed forms and their own promises."""

import numpy as np
import pytest
from scipy import stats

from flowrl.runs import statistics


def test_iqm_is_the_mean_of_the_middle_half():
    x = np.array([0.0, 1, 2, 3, 4, 5, 6, 100])
    assert statistics.iqm(x) == pytest.approx(np.mean([2, 3, 4, 5]))
    rng = np.random.default_rng(0)
    for size in (4, 40, 100):
        x = rng.normal(size=size) ** 3
        assert statistics.iqm(x) == pytest.approx(stats.trim_mean(x, 0.25))


def test_iqm_counts_the_scores_at_the_cuts_in_part():
    # n = 3: 0.75 of a score is cut at each end, so the middle half is a quarter of each end and the whole middle.
    assert statistics.iqm(np.array([0.0, 3.0, 12.0])) == pytest.approx((0.25 * 0 + 3 + 0.25 * 12) / 1.5)
    # For every n: the mean of the quantile function over [1/4, 3/4].
    x = np.sort(np.random.default_rng(1).normal(size=7))
    levels = (np.arange(200_000) + 0.5) / 400_000 + 0.25
    assert statistics.iqm(x) == pytest.approx(x[np.floor(levels * 7).astype(int)].mean(), abs=1e-4)
    assert statistics.iqm(np.array([5.0])) == 5


def test_a_weight_counts_as_that_many_scores():
    rng = np.random.default_rng(9)
    x, counts = rng.normal(size=6), rng.integers(0, 5, 6)
    many = np.repeat(x, counts)
    assert statistics.iqm(x, counts) == pytest.approx(statistics.iqm(many))
    assert statistics.mean(x, counts) == pytest.approx(many.mean())
    assert statistics.mean(x) == pytest.approx(x.mean())


def test_the_bootstrap_of_the_mean_agrees_with_scipy():
    x = np.random.default_rng(2).exponential(size=(1, 60))
    ours = statistics.bootstrap_mean(x, resamples=20_000)
    theirs = stats.bootstrap((x[0],), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours.value == pytest.approx(x.mean())
    assert ours[1:] == pytest.approx(tuple(theirs), abs=0.02)
    assert statistics.bootstrap_mean(x) == statistics.bootstrap_mean(x)
    assert statistics.bootstrap_mean(x, seed=1) != statistics.bootstrap_mean(x)


# Percentile intervals of ten draws cover a little less than 95 %, those of three far less: the docs say 91 and 73 %.
@pytest.mark.parametrize(("seeds", "least", "most"), [(10, 0.84, 0.98), (3, 0.6, 0.85)])
def test_the_bootstrap_over_seeds_and_episodes_covers_the_mean_of_training(seeds, least, most):
    """Means of seeds are N(0, 1), episodes N(0, 1) around them: the interval is over both."""
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        x = rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, 20))
        interval = statistics.bootstrap_mean(x, resamples=300, seed=trial)
        hits += interval.low <= 0 <= interval.high
    assert least <= hits / 200 <= most


def test_stratified_bootstrap_resamples_within_tasks():
    """Tasks without spread have no interval, however far apart, and count alike, however many runs they have."""
    still = statistics.stratified_bootstrap([np.full(5, 1.0), np.full(3, 9.0)], statistics.mean)
    assert still == pytest.approx((5.0, 5.0, 5.0))
    # The middle half of two tasks, one of them run once and one of them ten times: a quarter of each.
    assert statistics.stratified_bootstrap([np.zeros(1), np.ones(10)]).value == pytest.approx(0.5)
    x = np.random.default_rng(4).normal(size=30)
    ours = statistics.stratified_bootstrap([x], statistics.mean, resamples=20_000)
    half = 1.96 * x.std() / np.sqrt(30)
    assert ours[1:] == pytest.approx((x.mean() - half, x.mean() + half), abs=0.03)
    assert statistics.stratified_bootstrap([x, x + 1]).value == pytest.approx(statistics.iqm(np.stack([x, x + 1])))


def test_one_run_of_a_task_says_nothing_of_its_spread():
    scores = [np.array([0.5]), np.array([0.1, 0.4, 0.9])]
    assert statistics.stratified_bootstrap(scores, statistics.mean)[1:] == (-np.inf, np.inf)
    _, low, high = statistics.performance_profile(scores, np.array([0.3, 0.6]))
    assert (low.tolist(), high.tolist()) == ([0, 0], [1, 1])
    assert statistics.probability_of_improvement(scores, [x - 1 for x in scores]) == (1, 0, 1)


def test_paired_differences_ignore_what_both_share():
    rng = np.random.default_rng(5)
    episode = 100 * rng.normal(size=(3, 50))
    better = episode + 2 + 0.1 * rng.normal(size=(3, 50))
    found = statistics.paired_difference(better, episode)
    assert found.value == pytest.approx(2, abs=0.05)
    assert 1.9 < found.episodes[0] < 2 < found.episodes[1] < 2.1
    means = (better - episode).mean(axis=1)
    t = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found.seeds == pytest.approx((t.low, t.high), rel=1e-4)
    assert statistics.paired_difference(better[:1], episode[:1]).seeds == (-np.inf, np.inf)


def test_profiles_count_runs_above_thresholds():
    share, low, high = statistics.performance_profile(
        [np.array([0.1, 0.5]), np.array([0.3, 0.9, 0.9])], np.array([0.0, 0.3, 0.6, 1.0])
    )
    np.testing.assert_allclose(share, [1, (1 / 2 + 2 / 3) / 2, (0 + 2 / 3) / 2, 0])
    assert (low <= share).all()
    assert (share <= high).all()
    assert (low[0], high[-1]) == (1, 0)


def test_improvement_is_the_statistic_of_mann_and_whitney():
    rng = np.random.default_rng(6)
    x, y = rng.normal(0.5, 1, 12), rng.normal(size=9)
    expected = stats.mannwhitneyu(x, y).statistic / (12 * 9)
    found = statistics.probability_of_improvement([x], [y])
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    assert statistics.probability_of_improvement([x, x], [x, x - 100]).value == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.iqm(np.array([])), "at least one score"),
        (lambda: statistics.iqm(np.array([1, np.nan])), "all finite"),
        (lambda: statistics.iqm(np.ones(3), np.ones(2)), r"of the scores' shape \(3,\), got \(2,\)"),
        (lambda: statistics.mean(np.ones(2), np.zeros(2)), "not all 0"),
        (lambda: statistics.bootstrap_mean(np.zeros(3)), r"\(seeds, episodes\), got shape \(3,\)"),
        (lambda: statistics.bootstrap_mean(np.zeros((2, 3)), confidence=1.0), "confidence"),
        (lambda: statistics.paired_difference(np.zeros((2, 3)), np.zeros((3, 2))), "same seeds and episodes"),
        (lambda: statistics.stratified_bootstrap([]), "no tasks"),
        (lambda: statistics.performance_profile([], np.zeros(1)), "no tasks"),
        (lambda: statistics.probability_of_improvement([np.zeros(2)], []), "same tasks"),
    ],
)
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
