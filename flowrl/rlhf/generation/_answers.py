"""Answers to prompts, what they cost, and what to think of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from flowrl.rlhf.generation._memory import Memory
from flowrl.rlhf.generation._text_models import Conversation


@dataclasses.dataclass(frozen=True)
class Answers:
    """One text for each prompt, and the samples that they came from.

    Attributes:
        prompts: what was answered.
        texts: the answers, one for each prompt.
        scores: their rewards, in the reward model's own unit, (B,).
        ended: False where an answer was cut because it was too long, (B,).
        samples: the N texts that were drawn for each prompt.
        sample_scores: their rewards, (B, N).
        steps: of the flow; 0 if the answers are the best of the samples.
        forwards: what one answer cost, in passes of the language model over a prompt and an answer of full length; an
            upper bound, since drawing ends when all texts have ended.
        seconds: for all answers, compilation included.
        memory: what was estimated before it ran.
        verdict: one sentence on the above.
    """

    prompts: tuple[Conversation, ...]
    texts: tuple[str, ...]
    scores: Float[np.ndarray, " B"]
    ended: Bool[np.ndarray, " B"]
    samples: tuple[tuple[str, ...], ...]
    sample_scores: Float[np.ndarray, "B N"]
    steps: int
    forwards: float
    seconds: float
    memory: Memory
    verdict: str


def verdict(
    scores: np.ndarray,
    sample_scores: np.ndarray,
    ended: np.ndarray,
    *,
    steps: int,
    asked: int,
    vetoes: Sequence[str],
    frozen: int,
    forwards: float,
    length: int,
    stop: Sequence[str],
) -> str:
    """Return a sentence on what the answers are and what to think of them."""
    count = sample_scores.shape[1]
    means = f"{scores.mean():.3g}, single samples have {sample_scores.mean():.3g} ± {sample_scores.std():.2g}"
    if steps:
        selected = sample_scores.max(axis=1).mean()
        parts = [f"Moved texts with a mean reward of {means} and the best of {count} {selected:.3g}"]
    elif not asked:
        parts = [f"The best of {count} samples, with a mean reward of {means}"]
    else:
        why = "; ".join(vetoes) or "their reward was no higher"
        parts = [f"The best of {count} samples, with a mean reward of {means}: moved texts were turned down ({why})"]
    parts.append(f"{forwards:.0f} forwards each")
    if frozen:
        parts.append(f"{frozen} particles stood still because their gradients were not finite")
    if cut := int(np.sum(~ended)):
        never = f" before {' or '.join(map(repr, stop))} came" if stop else ""
        parts.append(f"{cut} of {len(ended)} were cut at {length} tokens{never}, which a larger length mends")
    return "; ".join(parts) + "."
