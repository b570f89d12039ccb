"""A budget for text is chosen by what can be measured without a gold score, and its vetoes hold."""

import dataclasses

import numpy as np
import pytest

from flowrl.rlhf import Limits, TextStatistics, choose_steps, hacking_starts

SELECTED = TextStatistics(proxy=1.0, nll=5.0, distinct_2=0.8, disagreement=0.1)
NLL = (5.4, 0.8)  # mean and deviation over the reference's samples; the band ends at 5.6


def texts(proxy, nll=5.0, distinct_2=0.8, disagreement=0.1):
    return TextStatistics(proxy, nll, distinct_2, disagreement)


def test_the_highest_reward_within_the_limits_is_taken():
    candidates = [
        texts(1.2),
        texts(1.5),
        texts(2.0, nll=5.61),
        texts(2.5, distinct_2=0.71),
        texts(3, disagreement=0.21),
    ]
    chosen = choose_steps(candidates, SELECTED, NLL)
    assert chosen.index == 1
    assert chosen.vetoes[:2] == ((), ())
    for veto, word in zip(chosen.vetoes[2:], ("NLL 5.61", "distinct-2 0.71", "disagree by 0.21"), strict=True):
        assert len(veto) == 1
        assert word in veto[0]


def test_the_edges_of_the_limits_are_allowed():
    candidates = [texts(2.0, nll=5.6, distinct_2=0.9 * 0.8, disagreement=0.2)]
    assert choose_steps(candidates, SELECTED, NLL).index == 0


def priced(rewards, forwards):
    return TextStatistics(float(np.mean(rewards)), 5.0, 0.8, 0.1, forwards=forwards, rewards=np.asarray(rewards))


def test_of_what_is_as_good_as_the_best_the_cheapest_is_taken():
    # A mean gain of 0.1 with a standard deviation of 0.9 over 100 prompts has a standard error of 0.09; with 0.2, 0.02.
    base = 1.5 + np.linspace(-1, 1, 100)
    turns = np.where(np.arange(100) % 2, 1.0, -1.0) * np.sqrt(99 / 100)
    dear = priced(base + 0.1, 87.0)
    for deviation, chosen in ((1.01, 1), (0.99, 0)):
        cheap = priced(base + deviation * turns, 27.0)
        error = np.std(np.asarray(dear.rewards) - cheap.rewards, ddof=1) / 10
        assert error == pytest.approx(0.1 * deviation)
        assert choose_steps([dear, cheap], SELECTED, NLL).index == chosen
    # Noise that both share is none, and without the rewards of single texts no difference is noise.
    assert choose_steps([dear, priced(base, 27.0)], SELECTED, NLL).index == 0
    assert choose_steps([dear, dataclasses.replace(cheap, rewards=None)], SELECTED, NLL).index == 0
    # Of two at one price the better one; what is vetoed is nobody's measure.
    better = priced(base + 0.1 + 0.2 * turns, 27.0)
    assert choose_steps([dear, priced(base + 0.09 + 0.8 * turns, 27.0), better], SELECTED, NLL).index == 2
    vetoed = dataclasses.replace(priced(base + 9, 87.0), nll=9.0)
    assert choose_steps([vetoed, better, dear], SELECTED, NLL).index == 1


def test_no_budget_is_better_than_one_that_does_not_beat_selection():
    assert choose_steps([texts(0.9), texts(1.0)], SELECTED, NLL).index is None
    assert choose_steps([texts(2.0, nll=9.0)], SELECTED, NLL).index is None
    assert choose_steps([], SELECTED, NLL).index is None


def test_limits_can_be_moved():
    candidate = [texts(2.0, nll=5.9, distinct_2=0.5, disagreement=9.0)]
    assert choose_steps(candidate, SELECTED, NLL, Limits(1.0, 0.5, None)).index == 0
    assert choose_steps(candidate, SELECTED, NLL, Limits(1.0, 0.5, 2.0)).index is None


def test_the_distance_travelled_may_be_limited():
    near, far = (dataclasses.replace(texts(reward), displacement=d) for reward, d in ((1.5, 1.0), (2.0, 1.1)))
    assert choose_steps([near, far], SELECTED, NLL, Limits(displacement=1.0)).index == 0
    assert "moved 1.1, further than 1" in choose_steps([far], SELECTED, NLL, Limits(displacement=1.0)).vetoes[0][0]
    assert choose_steps([near, far], SELECTED, NLL).index == 1


def test_a_single_reward_model_does_not_disagree():
    alone = dataclasses.replace(SELECTED, disagreement=0.0)
    assert choose_steps([texts(2.0, disagreement=0.0)], alone, NLL).index == 0


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        choose_steps([texts(float("nan"))], SELECTED, NLL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nll_band": -1.0},
        {"variety": 1.1},
        {"variety": -0.1},
        {"disagreement": 0.0},
        {"displacement": -1.0},
        {"nll_band": float("nan")},
    ],
)
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)


def test_hacking_starts_where_reward_rises_outside_the_band():
    rising = [texts(1.0), texts(1.5), texts(1.8, nll=5.9), texts(2.0, nll=6.5)]
    assert hacking_starts(rising, NLL, 0.25) == 2
    assert hacking_starts(rising, NLL, 1.0) == 3
    assert hacking_starts(rising[:2], NLL, 0.25) is None
    falling = [texts(1.0), texts(0.5, nll=9.0)]
    assert hacking_starts(falling, NLL, 0.25) is None
