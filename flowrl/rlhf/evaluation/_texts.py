"""Counts in texts: repetition, change, the words of a lexicon."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flowrl._distribution import require


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> float:
    """Return the share of different n-grams among all n-grams of all texts together.

    It falls with the amount of text, so compare the same number of texts of the same length.

    Args:
        texts: the tokens of each, ids or words.
        n: tokens in a row, >= 1; no n-gram reaches over the end of a text.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}.")
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    if not grams:
        raise ValueError(f"no text has {n} tokens.")
    return len(set(grams)) / len(grams)


def fraction_changed(tokens: Any, reference_tokens: Any, mask: Any) -> float:
    """Return the share of tokens that differ from those a method began with.

    Args:
        tokens: (..., length) ids.
        reference_tokens: of the same shape.
        mask: of the same shape, True where a token counts (an answer's, not its prompt's or padding).
    """
    x, y, counts = np.asarray(tokens), np.asarray(reference_tokens), np.asarray(mask, bool)
    if not x.shape == y.shape == counts.shape:
        raise ValueError(f"tokens and mask must have one shape, got {x.shape}, {y.shape} and {counts.shape}.")
    if not counts.any():
        raise ValueError("the mask counts no token.")
    return float(np.mean((x != y)[counts]))


def vader_scores(texts: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Return VADER's compound sentiment in [-1, 1] of each text, by rules and a lexicon.

    Args:
        texts: any number.
    """
    require("vaderSentiment.vaderSentiment", extra="rlhf")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # pyright: ignore[reportMissingImports]

    analyzer = SentimentIntensityAnalyzer()
    return np.array([analyzer.polarity_scores(text)["compound"] for text in texts], np.float64)
