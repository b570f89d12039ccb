"""A score that the method under test never sees: predicted ratings of people, and fluency."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


class Gold:
    r"""Predicted human rating plus fluency, both in standard deviations of the reference's samples.

    $$\text{gold}(x) = \frac{r(x) - \bar r}{s_r} + w \, \min\!\left(0, \frac{\ell(x) - \bar\ell}{s_\ell}\right)$$

    with the rating r, the mean log-probability per token ℓ under an independent judge, and the means and standard
    deviations over samples of the reference. The judge must share neither weights nor training seed with the
    reference, or else what deceives one deceives the other.

    Args:
        rating: texts to ratings (n,), such as `RatingRegression.predict`.
        reference_texts: samples of the reference, at least two.
        reference_log_probs: (n,) their mean log-probabilities per token under the judge.
        weight: w >= 0, of the fluency.
    """

    def __init__(
        self,
        rating: Callable[[Sequence[str]], np.ndarray],
        reference_texts: Sequence[str],
        reference_log_probs: Any,
        *,
        weight: float = 1.5,
    ):
        if weight < 0:
            raise ValueError(f"weight must be >= 0, got {weight}.")
        self._rate = rating
        self.weight = weight
        ratings, log_probs = self._measure(reference_texts, reference_log_probs)
        self._rating_mean, self._rating_deviation = _moments(ratings, "ratings")
        self._log_prob_mean, self._log_prob_deviation = _moments(log_probs, "log-probabilities")

    def __call__(self, texts: Sequence[str], log_probs: Any) -> Float[np.ndarray, " n"]:
        """Return the gold score of each text, given its mean log-probability per token under the same judge."""
        rating, fluency = self.parts(texts, log_probs)
        return rating + self.weight * fluency

    def parts(self, texts: Sequence[str], log_probs: Any) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the rating and the clipped fluency (<= 0) without its weight.

        Args:
            texts: any number.
            log_probs: (n,) their mean log-probabilities per token under the same judge.
        """
        ratings, given = self._measure(texts, log_probs)
        # Without fluency a heap of "good great excellent" wins. It is clipped because a text that is likelier than the
        # reference's own is not better language but more repetitive.
        return (
            (ratings - self._rating_mean) / self._rating_deviation,
            np.minimum(given - self._log_prob_mean, 0.0) / self._log_prob_deviation,
        )

    def _measure(self, texts: Sequence[str], log_probs: Any) -> tuple[np.ndarray, np.ndarray]:
        ratings = np.asarray(self._rate(texts), np.float64)
        given = np.asarray(log_probs, np.float64)
        for name, values in (("ratings", ratings), ("log_probs", given)):
            if values.shape != (len(texts),) or not np.isfinite(values).all():
                raise ValueError(f"{name} must be ({len(texts)},), one for each text, and finite; got {values.shape}.")
        return ratings, given


def _moments(values: np.ndarray, name: str) -> tuple[float, float]:
    if values.size < 2 or not np.std(values):
        raise ValueError(f"the reference's {name} have no spread; needs at least two different samples.")
    return float(np.mean(values)), float(np.std(values))
