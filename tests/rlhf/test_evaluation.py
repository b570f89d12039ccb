"""What is said of answers: gold score, win rates and their intervals, judges, counts."""

import json
import sys
import types

import numpy as np
import pytest

from flowrl.rlhf.data import RatedTexts, generated_ratings
from flowrl.rlhf.evaluation import (
    AbstractJudge,
    CommandJudge,
    Gold,
    RatingRegression,
    ScoreJudge,
    distinct_n,
    fraction_changed,
    judged_win_rate,
    mean_interval,
    vader_scores,
    win_rate,
)

# Regression of ratings


@pytest.fixture(scope="module")
def regression():
    pytest.importorskip("sklearn")
    return RatingRegression.fit(generated_ratings(600, seed=0))


def test_the_regression_predicts_ratings_it_has_not_seen(regression):
    fresh = generated_ratings(300, seed=1)
    correlation = np.corrcoef(regression.predict(fresh.texts), fresh.ratings)[0, 1]
    assert correlation > 0.6
    # The one reported is of 60 texts, so it is known to about 0.1.
    assert abs(regression.held_out_correlation - correlation) < 0.2


def test_the_regression_reports_what_it_has_not_seen():
    """Ratings that no word explains: what is fitted correlates, what is held out does not."""
    pytest.importorskip("sklearn")
    texts = generated_ratings(400, seed=2).texts
    noise = RatedTexts(texts, np.random.default_rng(0).uniform(-4, 4, 400).astype(np.float32), ("x",) * 400)
    regression = RatingRegression.fit(noise, held_out=0.4, penalty=0.1)
    assert abs(regression.held_out_correlation) < 0.25
    assert np.corrcoef(regression.predict(texts), noise.ratings)[0, 1] > 0.8


def test_the_regression_has_no_randomness(regression):
    again = RatingRegression.fit(generated_ratings(600, seed=0))
    texts = generated_ratings(50, seed=3).texts
    np.testing.assert_array_equal(regression.predict(texts), again.predict(texts))
    assert regression.held_out_correlation == again.held_out_correlation


def test_unknown_words_have_one_rating(regression):
    one, two = regression.predict(["qwertz asdf", "yxcv"])
    assert one == two
    assert abs(one) < 1
    assert regression.predict([]).shape == (0,)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (50, {"penalty": 0.0}, "penalty must be > 0"),
        (50, {"held_out": 1.0}, "held_out in"),
        (9, {}, "of 9 texts 1 would be held out"),
        (20, {"held_out": 0.1}, "of 20 texts 2 would be held out"),
        (20, {"held_out": 0.9}, "of 20 texts 18 would be held out"),
    ],
)
def test_the_regression_refuses_too_little(rows, options, message):
    with pytest.raises(ValueError, match=message):
        RatingRegression.fit(generated_ratings(rows, seed=0), **options)


def test_the_regression_needs_ratings_that_differ():
    pytest.importorskip("sklearn")
    texts = generated_ratings(50, seed=0).texts
    with pytest.raises(ValueError, match="no correlation"):
        RatingRegression.fit(RatedTexts(texts, np.ones(50, np.float32), ("x",) * 50))


# Gold


def _lengths(texts):
    return np.array([len(text) for text in texts], float)


def test_gold_has_known_values():
    # Ratings 1 and 3 (mean 2, deviation 1), log-probabilities -4 and -2 (mean -3, deviation 1).
    gold = Gold(_lengths, ["a", "aaa"], [-4.0, -2.0], weight=0.5)
    np.testing.assert_allclose(gold(["aaaa", "aa"], [-5.0, -3.5]), [2 - 0.5 * 2, 0 - 0.5 * 0.5])
    rating, fluency = gold.parts(["aaaa", "aa"], np.array([-5.0, -3.5], np.float32))
    np.testing.assert_allclose(rating, [2, 0])
    np.testing.assert_allclose(fluency, [-2, -0.5])


def test_gold_gives_nothing_for_text_that_is_likelier_than_the_references():
    gold = Gold(_lengths, ["a", "aaa"], [-4.0, -2.0])
    at_the_mean, above, far_above, below = gold(["aa"] * 4, [-3.0, -2.0, 0.0, -3.1])
    assert at_the_mean == above == far_above == 0
    assert below == pytest.approx(-0.15)


@pytest.mark.parametrize(
    ("texts", "log_probs", "message"),
    [
        (["a", "aa"], [-1.0], r"log_probs must be \(2,\)"),
        (["a", "aa"], [-1.0, -np.inf], "finite"),
        (["a", "b"], [-1.0, -2.0], "ratings have no spread"),
        (["a", "bb"], [-1.0, -1.0], "log-probabilities have no spread"),
        (["a"], [-1.0], "no spread"),
    ],
)
def test_gold_needs_samples_of_the_reference(texts, log_probs, message):
    with pytest.raises(ValueError, match=message):
        Gold(_lengths, texts, log_probs)


def test_gold_refuses_what_it_cannot_score():
    gold = Gold(_lengths, ["a", "aaa"], [-4.0, -2.0])
    with pytest.raises(ValueError, match="log_probs must be"):
        gold(["a"], [np.nan])
    with pytest.raises(ValueError, match="weight must be >= 0, got -1"):
        Gold(_lengths, ["a", "aaa"], [-4.0, -2.0], weight=-1.0)
    with pytest.raises(ValueError, match=r"ratings must be \(2,\)"):
        Gold(lambda _: np.zeros(3), ["a", "b"], [-4.0, -2.0])


# Win rates


def test_win_rates_count_ties_half():
    estimate = win_rate([1.0, 0.0], [[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    assert estimate.value == pytest.approx((2.5 / 4 + 0.5 / 4) / 2)
    seeds = win_rate([[1.0, 0.0], [3.0, -1.0]], [[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    assert seeds.value == pytest.approx((2.5 / 4 + 0.5 / 4 + 1 + 0) / 4)


def test_a_sure_win_has_a_short_interval():
    assert tuple(win_rate(np.ones(5), np.zeros((5, 3)))) == (1.0, 1.0, 1.0)
    assert tuple(win_rate(np.zeros((2, 5)), np.ones((5, 3)))) == (0.0, 0.0, 0.0)


def test_one_seed_is_the_same_with_and_without_its_axis():
    scores, reference = np.random.default_rng(0).normal(size=(1, 30)), np.random.default_rng(1).normal(size=(30, 4))
    assert win_rate(scores, reference) == win_rate(scores[0], reference)


@pytest.mark.parametrize(
    ("scores", "reference"), [((3,), (4, 2)), ((3,), (3,)), ((2, 3, 1), (1, 2)), ((2, 3), (2, 3)), ((0,), (0, 2))]
)
def test_win_rates_refuse_other_shapes(scores, reference):
    with pytest.raises(ValueError, match="got .*shape|got shape|got \\("):
        win_rate(np.zeros(scores), np.zeros(reference))


def test_intervals_refuse_what_has_none():
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            mean_interval([1.0, wrong])
    with pytest.raises(ValueError, match=r"\(seeds, prompts\)"):
        mean_interval(np.zeros((2, 2, 2)))
    for values in (np.zeros(3), np.zeros((2, 3))):
        with pytest.raises(ValueError, match="resamples must be >= 1"):
            mean_interval(values, resamples=0)
        with pytest.raises(ValueError, match="confidence in"):
            mean_interval(values, confidence=1.0)


def test_the_interval_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(size=400)
    estimate = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    np.testing.assert_allclose([estimate.low, estimate.high], estimate.value + np.array([-half, half]), atol=0.1 * half)
    again = mean_interval(values)
    assert estimate == again != mean_interval(values, seed=1)


def test_intervals_over_prompts_cover_the_mean():
    rng = np.random.default_rng(0)
    found = [mean_interval(rng.normal(size=60), resamples=400, seed=i) for i in range(300)]
    # 95 % of 300 is 285, with a deviation of 4; percentile intervals of 60 values fall short by a little.
    assert 272 <= sum(x.low <= 0 <= x.high for x in found) <= 297


def test_intervals_with_seeds_cover_the_mean_when_a_hard_prompt_is_hard_for_all():
    rng = np.random.default_rng(0)
    found = [
        mean_interval(rng.normal(size=50) + 0.3 * rng.normal(size=(5, 50)), resamples=400, seed=i) for i in range(200)
    ]
    # Prompts drawn again for each seed would give intervals too short by sqrt(5), and cover in about 65 %.
    assert sum(x.low <= 0 <= x.high for x in found) >= 178


def test_intervals_with_seeds_are_at_most_sqrt_3_too_long():
    """The noise of single entries counts for rows, for columns, and for both."""
    x = np.random.default_rng(0).normal(size=(20, 50))
    estimate = mean_interval(x)
    ratio = (estimate.high - estimate.low) / (2 * 1.96 / np.sqrt(1000))
    assert 1.5 < ratio < 1.95


# Judges


class _First(AbstractJudge):
    """Likes whatever stands first."""

    def compare(self, prompts, first, second):  # noqa: ARG002
        return np.ones(len(prompts))


class _Constant(AbstractJudge):
    def __init__(self, answer):
        self.answer = answer

    def compare(self, prompts, first, second):  # noqa: ARG002
        return self.answer


def _score(prompts, answers):
    return np.array([len(answer) - len(prompt) for prompt, answer in zip(prompts, answers, strict=True)], float)


def test_a_liking_for_the_first_position_is_worth_nothing():
    prompts, answers, references = ["p"] * 10, ["a"] * 10, ["b"] * 10
    preferred = _First().prefer(prompts, answers, references)
    assert sorted(preferred) == [0] * 5 + [1] * 5
    assert judged_win_rate(_First(), prompts, answers, references).value == 0.5
    assert preferred.tolist() != _First().prefer(prompts, answers, references, seed=1).tolist()


def test_scores_judge():
    prompts, first, second = ["p"] * 4, ["aaa", "a", "aa", "aaaa"], ["a", "aaa", "bb", "a"]
    np.testing.assert_array_equal(ScoreJudge(_score).prefer(prompts, first, second), [1, 0, 0.5, 1])
    soft = ScoreJudge(_score, scale=2.0).prefer(prompts, first, second)
    np.testing.assert_allclose(soft, 1 / (1 + np.exp([-1.0, 1.0, 0.0, -1.5])))
    assert judged_win_rate(ScoreJudge(_score), prompts, first, second).value == pytest.approx(2.5 / 4)


def test_a_large_difference_of_scores_does_not_overflow():
    judge = ScoreJudge(lambda _, answers: 1e6 * _lengths(answers), scale=1e-3)
    np.testing.assert_array_equal(judge.prefer(["p"] * 2, ["a", "aa"], ["aa", "a"]), [0, 1])


@pytest.mark.parametrize("answer", [np.zeros(3), np.array([0.5, 1.5]), np.array([0.5, np.nan]), np.zeros((2, 1))])
def test_judges_must_give_probabilities(answer):
    with pytest.raises(ValueError, match="_Constant must give 2 probabilities"):
        _Constant(answer).prefer(["p"] * 2, ["a"] * 2, ["b"] * 2)


def test_judges_refuse_what_they_cannot_compare():
    with pytest.raises(ValueError, match="two answers for each prompt, got 2, 2 and 1"):
        _First().prefer(["p"] * 2, ["a"] * 2, ["b"])
    with pytest.raises(ValueError, match="at least one"):
        judged_win_rate(_First(), [], [], [])
    with pytest.raises(ValueError, match="scores must be"):
        ScoreJudge(lambda prompts, _: np.full(len(prompts), np.nan)).prefer(["p"], ["a"], ["b"])
    with pytest.raises(ValueError, match="scale must be > 0"):
        ScoreJudge(_score, scale=0.0)
    assert _Constant(None).prefer([], [], []).shape == (0,)


HEAD = "import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n"


def _command(tmp_path, body, **options):
    script = tmp_path / "judge.py"
    script.write_text(HEAD + body)
    # -S -E: the interpreter starts faster without its site packages.
    return CommandJudge([sys.executable, "-S", "-E", str(script)], **options)


def test_a_program_judges_in_any_order(tmp_path):
    judge = _command(
        tmp_path,
        "for r in reversed(rows):\n"
        "    better = (len(r['first']) > len(r['second'])) + 0.5 * (len(r['first']) == len(r['second']))\n"
        "    print(json.dumps({'id': r['id'], 'first': better, 'why': r['prompt']}))\n",
    )
    first, second = ["aaa", "é\u2028", "aa\n"], ["a", "bbb", "bbb"]
    np.testing.assert_array_equal(judge.prefer(["p"] * 3, first, second), [1, 0, 0.5])


def test_the_program_is_shown_half_of_the_pairs_the_other_way_round(tmp_path):
    judge = _command(
        tmp_path,
        f"open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps(rows))\n"
        "for r in rows: print(json.dumps({'id': r['id'], 'first': 1}))\n",
    )
    preferred = judge.prefer([f"p{i}" for i in range(6)], ["a"] * 6, ["b"] * 6, seed=4)
    seen = json.loads((tmp_path / "seen").read_text())
    assert [row["prompt"] for row in seen] == [f"p{i}" for i in range(6)]
    assert sorted(row["first"] for row in seen) == ["a"] * 3 + ["b"] * 3
    np.testing.assert_array_equal(preferred, [float(row["first"] == "a") for row in seen])


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("sys.exit('no key')", RuntimeError, "ended with 1: no key"),
        ("sys.exit(3)", RuntimeError, "ended with 3: nothing on its standard error"),
        ("print('good')", ValueError, "not JSON .*'good'"),
        ("print('[1]')", ValueError, "must write"),
        ("print('{\"id\": 0}')", ValueError, "must write"),
        ('print(\'{"id": 0, "first": NaN}\')', ValueError, "must write"),
        ('print(\'{"id": 0, "first": true}\')', ValueError, "must write"),
        ('print(\'{"id": 0, "first": 1.1}\')', ValueError, "must write"),
        ('print(\'{"id": 0, "first": 1}\')', ValueError, "left out 1 of 2, the first with id 1"),
        ('print(\'{"id": 0, "first": 1}\\n\' * 2)', ValueError, "not asked, or twice"),
        ('print(\'{"id": 2, "first": 1}\')', ValueError, "not asked, or twice"),
    ],
)
def test_what_a_program_does_wrong_is_said(tmp_path, body, error, message):
    with pytest.raises(error, match=message):
        _command(tmp_path, body).prefer(["p"] * 2, ["a"] * 2, ["b"] * 2)


def test_a_program_has_its_time(tmp_path):
    with pytest.raises(RuntimeError, match=r"did not end within 0\.3 s"):
        _command(tmp_path, "import time\ntime.sleep(30)", timeout=0.3).prefer(["p"], ["a"], ["b"])


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="the judge .*none cannot be started"):
        CommandJudge([str(tmp_path / "none")]).prefer(["p"], ["a"], ["b"])
    for argv in ([], "judge --fast"):
        with pytest.raises(ValueError, match="argv must be a sequence"):
            CommandJudge(argv)
    with pytest.raises(ValueError, match="timeout must be > 0"):
        CommandJudge(["judge"], timeout=0.0)


# Counts


def test_distinct_n_grams_are_counted():
    texts = [[1, 2, 1, 2], [1, 2]]
    assert distinct_n(texts, 1) == pytest.approx(2 / 6)
    # (1, 2), (2, 1), (1, 2) and (1, 2): none reaches from one text into the next.
    assert distinct_n(texts, 2) == pytest.approx(2 / 4)
    assert distinct_n([["a", "b"], ["b"], []], 2) == 1
    with pytest.raises(ValueError, match="no text has 5 tokens"):
        distinct_n(texts, 5)
    with pytest.raises(ValueError, match="n must be >= 1"):
        distinct_n(texts, 0)


def test_changed_tokens_are_counted_where_the_mask_says():
    tokens, reference = [[1, 2, 3], [4, 5, 6]], [[9, 2, 9], [4, 9, 9]]
    assert fraction_changed(tokens, reference, [[False, True, True], [True, True, False]]) == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="counts no token"):
        fraction_changed(tokens, reference, np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match="one shape"):
        fraction_changed(tokens, reference, [True, True, True])


def test_vader_is_asked_for_the_compound_score(monkeypatch):
    class Analyzer:
        def polarity_scores(self, text):
            return {"neg": 9.0, "compound": len(text) / 10}

    module = types.ModuleType("vaderSentiment.vaderSentiment")
    module.SentimentIntensityAnalyzer = Analyzer
    monkeypatch.setitem(sys.modules, "vaderSentiment", types.ModuleType("vaderSentiment"))
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", module)
    np.testing.assert_allclose(vader_scores(["a", "abc"]), [0.1, 0.3])


def test_vader_has_its_published_values():
    pytest.importorskip("vaderSentiment")
    scores = vader_scores(["VADER is smart, handsome, and funny.", "The book was good.", "Today sux!", ""])
    np.testing.assert_allclose(scores, [0.8316, 0.4404, -0.4199, 0.0], atol=1e-4)


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("vaderSentiment.vaderSentiment", lambda: vader_scores(["a"])),
        ("sklearn", lambda: RatingRegression.fit(generated_ratings(50, seed=0))),
    ],
)
def test_missing_packages_are_named_with_their_extra(monkeypatch, module, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}.*flowrl-transport\[rlhf\]"):
        call()
