"""Judges that compare two answers, a user's program among them."""

import abc
import json
import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from flowrl.rlhf.evaluation._win_rate import mean_interval
from flowrl.runs.statistics import Estimate

_LAST_CHARACTERS = 500


class AbstractJudge(abc.ABC):
    """A judge of which of two answers to a prompt is better: it implements `compare`; `prefer` is what is called."""

    @abc.abstractmethod
    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Return the probabilities that the first answer is better, shown in this order; 0.5 for a tie.

        Args:
            prompts: (n,).
            first: (n,) answers.
            second: (n,) answers.
        """

    def prefer(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], *, seed: int = 0
    ) -> Float[np.ndarray, " n"]:
        """Return the probabilities that the first answer is better, without the judge's liking for a position.

        Args:
            prompts: (n,).
            first: (n,) answers.
            second: (n,) answers.
            seed: of the choice of the pairs that are shown the other way round.
        """
        count = len(prompts)
        if not count == len(first) == len(second):
            raise ValueError(f"needs two answers for each prompt, got {count}, {len(first)} and {len(second)}.")
        if not count:
            return np.zeros(0)
        # Language models favour what they read first (or last): half of the pairs, rounded down, is shown the other way
        # round, and so is what is said of them.
        swapped = np.random.default_rng(seed).permutation(count) < count // 2
        pairs = [(y, x) if swap else (x, y) for x, y, swap in zip(first, second, swapped, strict=True)]
        said = np.asarray(self.compare(prompts, [x for x, _ in pairs], [y for _, y in pairs]), np.float64)
        if said.shape != (count,) or not ((said >= 0) & (said <= 1)).all():
            raise ValueError(
                f"{type(self).__name__} must give {count} probabilities in [0, 1], got shape {said.shape}."
            )
        return np.where(swapped, 1 - said, said)


class ScoreJudge(AbstractJudge):
    """A judge that prefers the answer with the higher score.

    Args:
        score: (prompts, answers) to scores (n,).
        scale: > 0; the better answer is preferred with the logistic probability of the difference of scores over it.
            None means that the higher score always wins, and ties count half.
    """

    def __init__(self, score: Callable[[Sequence[str], Sequence[str]], np.ndarray], *, scale: float | None = None):
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be > 0, got {scale}.")
        self._score = score
        self._scale = scale

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        one, two = (np.asarray(self._score(prompts, answers), np.float64) for answers in (first, second))
        for scores in (one, two):
            if scores.shape != (len(prompts),) or not np.isfinite(scores).all():
                raise ValueError(f"scores must be ({len(prompts)},) and finite, got {scores.shape}.")
        if self._scale is None:
            return 0.5 + 0.5 * np.sign(one - two)
        # The logistic function, in a form that does not overflow.
        return 0.5 + 0.5 * np.tanh(0.5 * (one - two) / self._scale)


class CommandJudge(AbstractJudge):
    """Asks a program of the user's, such as a script that calls a language model.

    It is started once per call, reads lines `{"id": 0, "prompt": "...", "first": "...", "second": "..."}` from its
    standard input to the end, writes one line `{"id": 0, "first": 0.9}` for each to its standard output, in any order,
    and ends with 0. `first` is the probability that the first answer is better: 1, 0, 0.5 for a tie, or anything
    between. Which answer stands first is drawn by `prefer`.

    Args:
        argv: the program and its arguments; no shell reads them.
        timeout: seconds until it must have ended, > 0.

    Raises:
        ValueError: no program, or `timeout` is not > 0.
    """

    def __init__(self, argv: Sequence[str], *, timeout: float = 3600.0):
        if not argv or isinstance(argv, str):
            raise ValueError(f"argv must be a sequence of strings that begins with the program, got {argv!r}.")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0, got {timeout}.")
        self._argv = tuple(argv)
        self._timeout = timeout

    def compare(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        rows = enumerate(zip(prompts, first, second, strict=True))
        lines = [json.dumps({"id": i, "prompt": p, "first": x, "second": y}) + "\n" for i, (p, x, y) in rows]
        try:
            done = subprocess.run(
                self._argv,
                input="".join(lines),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the judge {self._argv[0]} did not end within {self._timeout:g} s.") from error
        except OSError as error:
            raise OSError(error.errno, f"the judge {self._argv[0]} cannot be started ({error.strerror})") from error
        if done.returncode:
            said = done.stderr.strip()[-_LAST_CHARACTERS:] or "nothing on its standard error"
            raise RuntimeError(f"the judge {self._argv[0]} ended with {done.returncode}: {said}")
        return self._read(done.stdout, len(lines))

    def _read(self, output: str, count: int) -> np.ndarray:
        answers = np.full(count, np.nan)
        for line in filter(str.strip, output.split("\n")):
            index, first = self._line(line)
            if not 0 <= index < count or not np.isnan(answers[index]):
                raise ValueError(f"the judge {self._argv[0]} wrote an id that was not asked, or twice: {line[:200]!r}.")
            answers[index] = first
        missing = np.flatnonzero(np.isnan(answers))
        if missing.size:
            raise ValueError(
                f"the judge {self._argv[0]} left out {missing.size} of {count}, the first with id {missing[0]}."
            )
        return answers

    def _line(self, line: str) -> tuple[int, float]:
        """Read one line; a boolean is not a number here."""
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the judge {self._argv[0]} wrote what is not JSON ({error}): {line[:200]!r}.") from error
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        index, first = fields.get("id"), fields.get("first", math.nan)
        if type(index) is not int or type(first) not in (int, float) or not 0 <= first <= 1:
            raise ValueError(
                f'the judge {self._argv[0]} must write {{"id": integer, "first": number in [0, 1]}}, '
                f"got {line[:200]!r}."
            )
        return index, float(first)


def judged_win_rate(
    judge: AbstractJudge,
    prompts: Sequence[str],
    answers: Sequence[str],
    references: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Return the mean probability that a judge prefers an answer to the reference's, with its interval.

    Args:
        judge: any judge.
        prompts: (n,).
        answers: (n,), of the method under test.
        references: (n,), what they are compared with.
        seed: of the order in which the judge sees them, and of the resampling.
        resamples: bootstrap samples >= 1.
        confidence: in (0, 1).
    """
    preferred = judge.prefer(prompts, answers, references, seed=seed)
    return mean_interval(preferred, resamples=resamples, confidence=confidence, seed=seed)
