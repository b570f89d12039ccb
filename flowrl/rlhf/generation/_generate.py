"""The call from prompts to texts: samples, transport toward higher reward, choice."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowrl import SVGD, AbstractFlow, Ascent, Budget
from flowrl._custom_types import Key
from flowrl.rlhf.alignment import Costs, Limits, Standardised, TextStatistics, choose_steps, name_of
from flowrl.rlhf.evaluation import distinct_n
from flowrl.rlhf.generation._answers import Answers, verdict
from flowrl.rlhf.generation._memory import plan
from flowrl.rlhf.generation._packing import pack, pack_frames
from flowrl.rlhf.generation._text_models import Conversation, TextModel, TextReward
from flowrl.rlhf.generation._vocabulary import align_vocabulary
from flowrl.rlhf.generation._work import RankedTexts, Stream, Work
from flowrl.rlhf.models import LanguageModel, Prompt, Sampler, log_probs, sample
from flowrl.rlhf.spaces import AbstractReferenceSpace, ReferenceSpace


def generate(
    model: TextModel,
    reward: TextReward,
    prompts: Sequence[Conversation],
    *,
    key: Key,
    budget: Budget | None = None,
    length: int = 64,
    particles: int = 8,
    stop: Sequence[str] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    space: Callable[[LanguageModel, Sampler], AbstractReferenceSpace] = ReferenceSpace,
    flow: AbstractFlow = SVGD(),  # noqa: B008
    limits: Limits = Limits(),  # noqa: B008
    memory: int | None = None,
    stream: Stream | None = None,
) -> Answers:
    """Answer prompts by a language model whose samples are moved toward higher reward.

    Of each prompt N texts are drawn and moved, and the one of the highest reward is its answer. Nothing is trained. If
    the moved texts of all prompts together break a limit, or gain nothing, the answers are the best of the samples.

    Args:
        model: writes the answers.
        reward: ranks them, and drives the flow by its gradient.
        prompts: texts, or conversations; a text is a user's turn if the model has a chat template.
        key: randomness.
        budget: how far the samples may travel. Step size and temperature are in standard deviations of the reward over
            the samples, so that one budget goes with any reward model. None is `Budget(1, 4.0, 0.0)`, `Budget(0)`
            best-of-N.
        length: the longest answer, in tokens.
        particles: N, texts per prompt.
        stop: strings after which an answer is over; it keeps them.
        temperature: divides the logits when texts are drawn; it is not the α of the budget.
        top_p: only the most likely tokens whose probabilities sum to this are drawn from.
        space: where particles live.
        flow: the velocity field; `SVGD` shares the gradients of a prompt's texts, `Ascent` needs less memory. A text
            keeps a move only if its reward rose.
        limits: what moved texts may lose. Of B prompts the band of likelihoods is 1/√B standard deviations wider than
            `nll_band`, which is how far their mean varies by chance.
        memory: bytes that may be taken besides the weights; None for what is free.
        stream: called with the number of a prompt, its best text so far and the reward: once when its samples are
            ranked, again when they have moved. Which of N texts wins is not known before they end, so there is no
            stream of tokens.

    Raises:
        MemoryError: one prompt does not fit.
        ValueError: no prompts, a prompt without tokens or longer than a model's context, vocabularies that do not go
            together, or a number out of its range.
    """
    begun = time.perf_counter()
    budget = Budget(1, 4.0, 0.0) if budget is None else budget
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got one text: give [{prompts[:40]!r}].")
    if not prompts:
        raise ValueError("there are no prompts: give at least one text or conversation.")
    read_by, unreadable = align_vocabulary(reward, model)
    sampler = model.sampler(length, stop=stop, temperature=temperature, top_p=top_p, forbidden=unreadable)
    asked = pack([model.encode(prompt) for prompt in prompts], model, length)
    hides = reward.template is not None or bool(set(model.ends) & set(unreadable))
    frames = pack_frames(reward, prompts, length, model.ends if hides else (), soft_ends=not stop)
    where, steps, count = space(model.model, sampler), budget.bound, len(prompts)
    planned = plan(
        where, reward.model, (count, asked.tokens.shape[1]), frames.length, length, particles, steps,
        splits=isinstance(flow, Ascent), given=memory,
    )  # fmt: skip

    work = Work(model, where, read_by, asked, frames, planned, stream)
    drawn, keys = sample(sampler, model.model, asked, count=particles, key=key, at_once=planned.prompts)
    samples = answers = work.ranked(drawn)
    costs = Costs.of(model.model, reward.model, asked.tokens.shape[1], length).with_reading(frames.length + length)
    vetoes, frozen, moved_by, forwards = (), 0, 0, costs.best_of(particles)
    if steps:
        unit = Standardised.of(read_by, samples.scores.astype(np.float32))
        further, frozen = work.moved(drawn, keys, unit, budget, flow)
        nll = -np.asarray(drawn.log_probs, np.float64).sum(axis=-1) / np.maximum(samples.mask.sum(axis=-1), 1)
        wide = dataclasses.replace(limits, nll_band=limits.nll_band + count**-0.5)
        both = [_statistics(model, asked, texts, planned.prompts) for texts in (further, samples)]
        choice = choose_steps(both[:1], both[1], (float(nll.mean()), float(nll.std())), wide)
        vetoes, forwards = (
            choice.vetoes[0],
            costs.flow(name_of(where), particles, steps, rising=True) + 2,
        )  # and two likelihoods
        if choice.index is not None:
            answers, moved_by = further, steps
    tokens, _ = answers.best
    ended = ~np.asarray(jax.vmap(sampler.running)(jnp.asarray(np.append(tokens, tokens[:, -1:], axis=1))))[:, -1]
    said = verdict(
        answers.best_scores, samples.scores, ended, steps=moved_by, asked=steps, vetoes=vetoes, frozen=frozen,
        forwards=forwards, length=length, stop=stop,
    )  # fmt: skip
    return Answers(
        tuple(prompts),
        tuple(answers.written(model)),
        answers.best_scores,
        ended,
        samples.all_written(model),
        samples.scores,
        moved_by,
        forwards,
        time.perf_counter() - begun,
        planned,
        said,
    )


def _statistics(model: TextModel, asked: Prompt, texts: RankedTexts, at_once: int) -> TextStatistics:
    tokens, mask = texts.best
    nll = np.asarray(_nll(model.model, asked, jnp.asarray(tokens), jnp.asarray(mask), at_once))
    words = [[int(i) for i in row[seen] if int(i) not in model.ends] for row, seen in zip(tokens, mask, strict=True)]
    variety = distinct_n(words, 2) if any(len(row) > 1 for row in words) else 1.0
    return TextStatistics(float(texts.best_scores.mean()), float(nll.mean()), variety)


@eqx.filter_jit
def _nll(model: LanguageModel, asked: Prompt, tokens: jax.Array, mask: jax.Array, at_once: int) -> jax.Array:
    def one(row: tuple[Prompt, jax.Array, jax.Array]) -> jax.Array:
        terms = log_probs(model, *row)
        return -jnp.sum(terms) / jnp.maximum(jnp.sum(row[2].astype(terms.dtype)), 1)

    return jax.lax.map(one, (asked, tokens, mask), batch_size=at_once)
