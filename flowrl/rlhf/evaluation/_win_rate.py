"""Win rates against the reference, with intervals."""

from typing import Any

import numpy as np

from flowrl.runs.statistics import Estimate, bootstrap_mean


def win_rate(
    scores: Any, reference_scores: Any, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Return the probability that an answer scores higher than a sample of the reference for the same prompt.

    Ties count half. The interval is that of `mean_interval`; the reference's samples are taken as given, so their own
    noise is small only if there are many.

    Args:
        scores: (prompts,), or (seeds, prompts) of several runs on the same prompts.
        reference_scores: (prompts, samples) of the reference's answers.
        resamples: bootstrap samples >= 1.
        confidence: in (0, 1).
        seed: of the resampling.
    """
    x, reference = _finite(scores, "scores"), _finite(reference_scores, "reference_scores")
    if x.ndim not in (1, 2) or reference.ndim != 2 or x.shape[-1] != reference.shape[0]:
        raise ValueError(
            "scores must be (prompts,) or (seeds, prompts) and reference_scores (prompts, samples), got "
            f"{x.shape} and {reference.shape}."
        )
    wins = (0.5 + 0.5 * np.sign(x[..., None] - reference)).mean(axis=-1)
    return mean_interval(wins, resamples=resamples, confidence=confidence, seed=seed)


def mean_interval(values: Any, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Return the mean of something measured for each prompt, with its percentile bootstrap interval.

    With several seeds whole rows and whole columns are resampled. The interval is too long, by the square root of 3 at
    most, where neither seeds nor prompts differ and all is noise, and too short where seeds differ much and are few:
    three draws cannot show more spread than three runs have.

    Args:
        values: (prompts,), or (seeds, prompts).
        resamples: bootstrap samples >= 1.
        confidence: in (0, 1).
        seed: of the resampling.

    ??? cite "Source"
        Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 2007.
    """
    x = _finite(values, "values")
    if x.ndim not in (1, 2):
        raise ValueError(f"values must be (prompts,) or (seeds, prompts), got {x.shape}.")
    if x.ndim == 1 or x.shape[0] == 1:
        return bootstrap_mean(x.reshape(1, -1), resamples=resamples, confidence=confidence, seed=seed)
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"resamples must be >= 1 and confidence in (0, 1), got {resamples} and {confidence}.")
    rng = np.random.default_rng(seed)
    seeds, prompts = x.shape
    # The prompts are the same for all seeds, so a hard one is hard for all of them: resampling prompts for each seed by
    # itself would give too short an interval.
    # How often each row and each column is drawn: the mean of a resampled table is then a bilinear form.
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    columns = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples) / prompts
    drawn = np.einsum("bs,sp,bp->b", rows, x, columns, optimize=True)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(x.mean()), float(low), float(high))


def _finite(values: Any, name: str) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"{name}: needs at least one number, all finite, got shape {x.shape}.")
    return x
