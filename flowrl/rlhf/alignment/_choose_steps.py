"""The choice of a budget without a gold score: the reward of texts that still resemble the reference, and its price."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """Statistics of a method's texts, measured without people or a gold score.

    Attributes:
        proxy: mean reward of the decoded texts under the reward model that was climbed.
        nll: mean over texts of the negative log-likelihood per token under the reference, in nats.
        distinct_2: share of different pairs of words, of a fixed number of texts.
        disagreement: mean over texts of the standard deviation over members of a reward ensemble; 0 without one.
        displacement: mean over sets of the distance travelled, `Aligned.displacement`; 0 without a flow.
        forwards: what one text costs, in any unit that all candidates share.
        rewards: reward of each text (n,), of the same prompts for all candidates, from which the noise of a difference
            in `proxy` is known; None if it is not.
    """

    proxy: float
    nll: float
    distinct_2: float
    disagreement: float = 0.0
    displacement: float = 0.0
    forwards: float = 0.0
    rewards: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on what texts may lose before their reward no longer counts.

    The proxy reward rises with the budget until the end; what people would say of the texts does not. Likelihood under
    the reference and variety fall when texts leave what the reward model was trained on, and both can be measured.

    Attributes:
        nll_band: largest excess of `nll` over the reference's own samples, in standard deviations over these texts.
        variety: least ratio of `distinct_2` to that of the samples that were chosen without a flow. Both are of one
            text for each of many prompts: it is variety across prompts that a reward takes first.
        disagreement: largest ratio of `disagreement` to the same; None for no limit.
        displacement: largest `displacement`, in the space's coordinates; None for no limit. It chooses among budgets;
            `Budget(max_displacement=...)` caps every particle while it moves.
    """

    nll_band: float = 0.25
    variety: float = 0.9
    disagreement: float | None = 2.0
    displacement: float | None = None

    def __post_init__(self):
        if not self.nll_band >= 0 or not 0 <= self.variety <= 1:
            raise ValueError(f"nll_band must be >= 0 and variety in [0, 1], got {self.nll_band} and {self.variety}.")
        if self.disagreement is not None and not self.disagreement > 0:
            raise ValueError(f"disagreement must be > 0 or None, got {self.disagreement}.")
        if self.displacement is not None and not self.displacement >= 0:
            raise ValueError(f"displacement must be >= 0 or None, got {self.displacement}.")

    def vetoes(
        self, texts: TextStatistics, selected: TextStatistics, reference_nll: tuple[float, float]
    ) -> tuple[str, ...]:
        """Return one sentence per limit that some texts break; none if they may be used.

        Args:
            texts: of the method.
            selected: of best-of-N over the same samples, the same number of texts.
            reference_nll: mean and standard deviation over the reference's own samples.
        """
        mean, deviation = reference_nll
        reasons = []
        if texts.nll > mean + self.nll_band * deviation:
            reasons.append(
                f"NLL {texts.nll:.2f} is above the reference's band ({mean:.2f} + {self.nll_band:g} × {deviation:.2f})"
            )
        if texts.distinct_2 < self.variety * selected.distinct_2:
            reasons.append(
                f"distinct-2 {texts.distinct_2:.2f} is below {self.variety:g} × {selected.distinct_2:.2f} of best-of-N"
            )
        if self.disagreement is not None and texts.disagreement > self.disagreement * selected.disagreement > 0:
            reasons.append(
                f"the reward models disagree by {texts.disagreement:.2f}, more than {self.disagreement:g} × "
                f"{selected.disagreement:.2f}"
            )
        if self.displacement is not None and texts.displacement > self.displacement:
            reasons.append(f"particles moved {texts.displacement:.3g}, further than {self.displacement:.3g}")
        return tuple(reasons)


@dataclasses.dataclass(frozen=True)
class ChosenSteps:
    """The candidate that may be used, and why the others may not.

    Attributes:
        index: of the candidate; None if none is better than best-of-N and allowed: then no flow.
        vetoes: for each candidate what speaks against it.
    """

    index: int | None
    vetoes: tuple[tuple[str, ...], ...]


def choose_steps(
    candidates: Sequence[TextStatistics],
    selected: TextStatistics,
    reference_nll: tuple[float, float],
    limits: Limits = Limits(),  # noqa: B008  (frozen)
) -> ChosenSteps:
    """Choose among budgets on validation prompts, without a gold score.

    Of those that no limit vetoes, and whose proxy reward is above best-of-N's, the cheapest whose proxy is within one
    standard error of the highest; the standard error is that of the difference prompt by prompt. Best-of-N itself,
    without a flow, if none is left.

    Args:
        candidates: texts of every budget (steps and step size), on the same prompts.
        selected: texts of best-of-N over the same samples: the budget of zero steps.
        reference_nll: mean and standard deviation over texts of the reference's own samples.
        limits: what is allowed.

    ??? cite "Source"
        Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees*, 1984, section 3.4.3: the simplest
        model within one standard error of the best.
    """
    for texts in (*candidates, selected):
        if not all(np.all(np.isfinite(x)) for x in dataclasses.astuple(texts) if x is not None):
            raise ValueError(f"statistics of texts must be finite, got {texts}.")
    vetoes = tuple(limits.vetoes(texts, selected, reference_nll) for texts in candidates)
    allowed = [i for i, veto in enumerate(vetoes) if not veto and candidates[i].proxy > selected.proxy]
    if not allowed:
        return ChosenSteps(None, vetoes)
    best = max(allowed, key=lambda i: candidates[i].proxy)
    as_good = [i for i in allowed if _within_noise(candidates[i], candidates[best])]
    return ChosenSteps(min(as_good, key=lambda i: (candidates[i].forwards, -candidates[i].proxy)), vetoes)


def _within_noise(texts: TextStatistics, best: TextStatistics) -> bool:
    """Whether the reward of the best is no more than one standard error above that of some texts."""
    if texts.rewards is None or best.rewards is None:
        return texts.proxy == best.proxy
    gains = np.asarray(best.rewards, np.float64) - np.asarray(texts.rewards, np.float64)
    return bool(gains.mean() <= gains.std(ddof=1) / np.sqrt(gains.size)) if gains.size > 1 else not gains.any()


def hacking_starts(statistics: Sequence[TextStatistics], reference_nll: tuple[float, float], band: float) -> int | None:
    """Find the first budget at which the proxy still rises while the texts have left the reference's band, or None.

    Args:
        statistics: of increasing budgets.
        reference_nll: mean and standard deviation over texts of the reference's own samples.
        band: allowed excess in standard deviations.
    """
    mean, deviation = reference_nll
    for i in range(1, len(statistics)):
        rises = statistics[i].proxy > statistics[i - 1].proxy
        if rises and statistics[i].nll > mean + band * deviation:
            return i
    return None
