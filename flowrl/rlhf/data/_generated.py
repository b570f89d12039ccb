"""Film opinions from a small grammar, rated by the words in them: data that needs no file and no network."""

import numpy as np

from flowrl.rlhf.data._rated import RATING_LIMIT, RatedTexts, distinct

_SUBJECTS = (
    *("the film", "this movie", "the plot", "the script", "the cast", "the lead actor", "the director", "the story"),
    *("the dialogue", "the ending", "the first half", "the camera work", "the score", "the comedy", "the thriller"),
    *("the romance", "the sequel", "the remake", "the documentary", "every scene"),
)
_VERBS = {"is": 1.0, "seems": 0.8, "feels": 0.9, "remains": 0.9, "is never": -0.7, "is hardly": -0.5}
_DEGREES = {"": 1.0, "very": 1.3, "truly": 1.3, "rather": 0.8, "a little": 0.5, "often": 0.7, "utterly": 1.4}
_QUALITIES = {
    **{"brilliant": 2.6, "wonderful": 2.5, "funny": 1.7, "charming": 1.8, "clever": 1.6, "moving": 1.7, "fresh": 1.2},
    **{"warm": 1.2, "honest": 1.1, "gripping": 1.8, "elegant": 1.5, "fine": 1.0, "lively": 1.2, "smart": 1.5},
    **{"long": -0.2, "quiet": 0.1, "strange": -0.3, "familiar": -0.2, "loud": -0.6, "simple": 0.1, "slow": -0.9},
    **{"dull": -1.7, "boring": -1.9, "awful": -2.6, "clumsy": -1.5, "silly": -1.1, "tired": -1.3, "lifeless": -1.9},
    **{"predictable": -1.2, "empty": -1.5, "terrible": -2.6, "tedious": -1.8, "shallow": -1.4, "messy": -1.2},
}
_JOINTS = ("and", "but", "while", "because")
_VERDICTS = {
    "": 0.0,
    ", and i loved it": 1.2,
    ", and it is worth the ticket": 0.9,
    ", so take the children": 0.5,
    ", as in the book": 0.0,
    ", if you have the time": 0.1,
    ", so wait for the video": -0.6,
    ", and i wanted to leave": -1.2,
    ", and it wastes good actors": -1.1,
}
_ENDS = (".", ".", ".", "!")
# Of the mean rating of many people, about what is left of their disagreement.
_NOISE = 0.4
# The grammar has billions of sentences, so up to here a repetition is rare.
_MOST = 100_000


def generated_ratings(rows: int, *, seed: int) -> RatedTexts:
    """Make up film opinions, each with a rating that follows from its words plus noise.

    Two clauses of a subject, a verb, a degree and a quality, and a verdict. It shows that a learner works; it says
    nothing about real language.

    Args:
        rows: how many, all different; at most 100,000.
        seed: the same seed gives the same texts and ratings.
    """
    if not 1 <= rows <= _MOST:
        raise ValueError(f"rows must be in [1, {_MOST}], got {rows}.")
    rng = np.random.default_rng(seed)
    made: list[tuple[str, float, str]] = []
    texts: set[str] = set()
    while len(made) < rows:
        text, rating = _sentence(rng)
        if text not in texts:
            texts.add(text)
            made.append((text, rating, "generated"))
    return distinct(made)


def _sentence(rng: np.random.Generator) -> tuple[str, float]:
    first, one = _clause(rng)
    second, two = _clause(rng)
    joint, verdict = _pick(rng, _JOINTS), _pick(rng, tuple(_VERDICTS))
    # The mean of the clauses' (a quality, scaled by its degree and negated by "never"), the verdict's, and noise.
    rating = 0.5 * (one + two) + _VERDICTS[verdict] + _NOISE * rng.standard_normal()
    return (
        f"{first} {joint} {second}{verdict}{_pick(rng, _ENDS)}",
        float(np.clip(rating, -RATING_LIMIT, RATING_LIMIT)),
    )


def _clause(rng: np.random.Generator) -> tuple[str, float]:
    verb, degree, quality = (_pick(rng, tuple(words)) for words in (_VERBS, _DEGREES, _QUALITIES))
    words = (_pick(rng, _SUBJECTS), verb, degree, quality)
    return " ".join(word for word in words if word), _VERBS[verb] * _DEGREES[degree] * _QUALITIES[quality]


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
