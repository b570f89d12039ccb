"""Texts with ratings, and the 23,000 snippets whose ratings people gave."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float32, Int

from flowrl.rlhf.data import _sdist

#: Ratings lie in [-RATING_LIMIT, RATING_LIMIT].
RATING_LIMIT = 4.0

_INNER = f"{_sdist.PROJECT}-{_sdist.VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_MEMBERS = {
    "movie": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "amazon": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "nyt": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
    "tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
}


@dataclasses.dataclass(frozen=True, eq=False)
class RatedTexts:
    """Texts with a rating each.

    Attributes:
        texts: (n,) different texts.
        ratings: (n,) float32, the mean rating of each in [-4, 4]; below 0 is unfavourable.
        sources: (n,) where each text is from, such as "movie".

    Raises:
        ValueError: the three differ in length, or a rating is out of range.
    """

    texts: tuple[str, ...]
    ratings: Float32[np.ndarray, " n"]
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.sources) == self.ratings.shape[0]:
            raise ValueError(
                f"texts, ratings and sources must have one entry each, got {len(self.texts)}, {self.ratings.shape[0]} "
                f"and {len(self.sources)}."
            )
        # Written so that NaN is refused too.
        if not (np.abs(self.ratings) <= RATING_LIMIT).all():
            raise ValueError(f"ratings must be in [-{RATING_LIMIT:g}, {RATING_LIMIT:g}].")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Int[np.ndarray, " rows"]) -> "RatedTexts":
        """Return some of the texts, in the order of `rows`.

        Args:
            rows: indices.
        """
        return RatedTexts(tuple(self.texts[i] for i in rows), self.ratings[rows], tuple(self.sources[i] for i in rows))


def rated_snippets(
    data_dir: str | os.PathLike[str] | None = None, *, sources: Sequence[str] = ("movie",), download: bool = True
) -> RatedTexts:
    """Load English snippets with the mean of about twenty people's ratings.

    They come with the source distribution of vaderSentiment 3.3.2 (2.5 MB, MIT licence), which pip downloads once and
    whose SHA-256 is pinned: 10,603 sentences of film reviews ("movie"), 3,697 of product reviews ("amazon"), 5,119 of
    newspaper editorials ("nyt") and 4,140 tweets ("tweets"; they contain HTML entities). Of texts that are there twice
    the first is kept, so that no text stands on both sides of a split.

    Args:
        data_dir: directory of the archive, or of a folder `vaderSentiment-3.3.2` with it; None means flowrl's cache.
        sources: which, in the order in which they are given.
        download: whether the archive may be downloaded.

    Raises:
        FileNotFoundError: the archive is not there and `download` is False.
        OSError: it could not be downloaded; the message says how to get it by hand.
        ValueError: no or unknown sources, or the archive is not what it should be.

    ??? cite "Source"
        Hutto and Gilbert, *VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text*, ICWSM
        2014.
    """
    unknown = [source for source in sources if source not in _MEMBERS]
    if unknown or not sources:
        raise ValueError(f"sources must be some of {', '.join(_MEMBERS)}, got {tuple(sources)!r}.")
    path = _sdist.obtain(data_dir, download=download)
    inner = _sdist.read_member(path.read_bytes(), _INNER, origin=str(path))
    rows: list[tuple[str, float, str]] = []
    for source in dict.fromkeys(sources):
        origin = f"{path}: {_INNER}"
        content = _sdist.read_member(inner, _MEMBERS[source], origin=origin)
        rows += ((text, rating, source) for text, rating in _parse(content, f"{origin}: {_MEMBERS[source]}"))
    return distinct(rows)


def distinct(rows: Iterable[tuple[str, float, str]]) -> RatedTexts:
    """Make `RatedTexts` of (text, rating, source), each text once."""
    first = {}
    for text, rating, source in rows:
        first.setdefault(" ".join(text.casefold().split()), (text, rating, source))
    kept = tuple(first.values())
    return RatedTexts(
        tuple(text for text, _, _ in kept),
        np.array([rating for _, rating, _ in kept], np.float32),
        tuple(source for _, _, source in kept),
    )


def _parse(content: bytes, origin: str) -> list[tuple[str, float]]:
    """Read lines of id, mean rating and text, with tabs between them."""
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # The files are UTF-8; an older printing of the same data is in the encoding of Windows.
        decoded = content.decode("cp1252", errors="replace")
    rows = []
    # Not splitlines(): it also breaks at characters that stand inside texts.
    for number, line in enumerate(decoded.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip():
            continue
        fields = line.split("\t", 2)
        if len(fields) != 3 or not fields[2].strip():
            raise ValueError(f"{origin}, line {number}: expected id, rating and text with tabs between, got {line!r}.")
        rows.append((fields[2].strip(), _rating(fields[1], f"{origin}, line {number}")))
    if not rows:
        raise ValueError(f"{origin}: no texts.")
    return rows


def _rating(field: str, where: str) -> float:
    try:
        rating = float(field)
    except ValueError:
        rating = math.nan
    if not abs(rating) <= RATING_LIMIT:
        raise ValueError(f"{where}: rating must be a number in [-4, 4], got {field!r}.")
    return rating
