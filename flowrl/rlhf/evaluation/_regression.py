"""Ratings of people, predicted from the words of a text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flowrl._distribution import require
from flowrl.rlhf.data import RatedTexts


class RatingRegression:
    """Ridge regression of ratings on the TF-IDF of words and pairs of words.

    A word counts if it is in two texts, so a text of unknown words has about the mean rating.

    Args:
        vectorizer: a fitted `sklearn.feature_extraction.text.TfidfVectorizer`.
        model: a fitted `sklearn.linear_model.Ridge`.
        held_out_correlation: Pearson's, between predicted and given ratings of texts held out.
    """

    def __init__(self, vectorizer: Any, model: Any, held_out_correlation: float):
        self._vectorizer = vectorizer
        self._model = model
        self.held_out_correlation = held_out_correlation

    @classmethod
    def fit(
        cls, rated: RatedTexts, *, penalty: float = 1.0, held_out: float = 0.1, seed: int = 0
    ) -> "RatingRegression":
        """Fit without some of the texts, to learn how well ratings are predicted, and then to all of them.

        Args:
            rated: at least 10 texts.
            penalty: weight of the squared coefficients, > 0.
            held_out: share of the texts that are held out to measure `held_out_correlation`, in (0, 1).
            seed: of the choice of these texts; nothing else is random.
        """
        if penalty <= 0 or not 0 < held_out < 1:
            raise ValueError(f"penalty must be > 0 and held_out in (0, 1), got {penalty} and {held_out}.")
        count = round(held_out * len(rated))
        if len(rated) < 10 or not 3 <= count <= len(rated) - 5:
            raise ValueError(f"of {len(rated)} texts {count} would be held out; needs 3 of these, and 5 others.")
        order = np.random.default_rng(seed).permutation(len(rated))
        unseen, seen = rated.take(order[:count]), rated.take(order[count:])
        predicted = _predict(*_fit(seen, penalty), unseen.texts)
        if not np.std(predicted) or not np.std(unseen.ratings):
            raise ValueError(
                "no correlation can be had: all ratings held out, or all predictions of them, are the same."
            )
        correlation = np.corrcoef(predicted, unseen.ratings.astype(np.float64))[0, 1]
        return cls(*_fit(rated, penalty), float(correlation))

    def predict(self, texts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Return the predicted mean rating of each text.

        Args:
            texts: any number.
        """
        return _predict(self._vectorizer, self._model, texts)


def _fit(rated: RatedTexts, penalty: float) -> tuple[Any, Any]:
    require("sklearn", extra="rlhf")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    # Apostrophes stay inside words ("don't"), and words of one letter count: in pairs they carry negation.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\b\w+(?:'\w+)*\b")
    # The solver is named because the default one is chosen by what else is asked for, and some are random.
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-6)
    model.fit(vectorizer.fit_transform(rated.texts), rated.ratings.astype(np.float64))
    return vectorizer, model


def _predict(vectorizer: Any, model: Any, texts: Sequence[str]) -> np.ndarray:
    if not texts:
        return np.zeros(0)
    return np.asarray(model.predict(vectorizer.transform(texts)), np.float64)
