"""The task of `flowrl align`: film reviews, the reference that continues them, and a gold score the learner never sees.

Texts are split once: one half of the films trains the reference, the other half (and product reviews) the judge, and
the prompts are of a third part. Ratings of people train the gold score; reference and reward models never see one.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl.rlhf import (
    Fit,
    LanguageModel,
    Prompt,
    Sampler,
    TextModel,
    Texts,
    TransformerConfig,
    fit,
    log_probs,
    pack_prompts,
    pack_texts,
    sample,
    sft_loss,
    smollm2,
)
from flowrl.rlhf.data import (
    AbstractTokenizer,
    RatedTexts,
    WordTokenizer,
    generated_ratings,
    plain_chat,
    rated_snippets,
    read_prompts,
)
from flowrl.rlhf.evaluation import Gold, RatingRegression
from flowrl.runs import load_checkpoint, save_checkpoint
from flowrl.scripts.align._options import Config

Report = Callable[[str, int, int], None]  # what, done, total
_HEAD = 16  # size of an attention head of the small models
_STOPPING = 200  # texts that say when reference and judge are trained enough; no prompt is of one of them
_GOLD_PROMPTS = 500  # whose samples say what mean and spread of the gold score are


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts as texts and as tokens, and how people went on, if that is known."""

    texts: tuple[str, ...]
    prompt: Prompt
    people: tuple[str, ...] | None = None

    def take(self, rows: np.ndarray) -> "Batch":
        """Return some of the prompts."""
        part = jax.tree.map(lambda leaf: leaf[jnp.asarray(rows)], self.prompt)
        people = None if self.people is None else tuple(self.people[i] for i in rows)
        return Batch(tuple(self.texts[i] for i in rows), part, people)


@dataclasses.dataclass(frozen=True)
class Judge:
    """An independent language model: how likely it finds a text."""

    model: LanguageModel
    tokenizer: AbstractTokenizer
    prompt_length: int
    length: int

    def log_probs(self, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Return the mean log-probability per token of each text after its prompt."""
        rows = pack_texts(self.tokenizer, prompts, texts, self.prompt_length, self.length)
        return np.asarray(_mean_log_probs(self.model, rows))


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything but the preferences: what is aligned, on which prompts, and how it is judged."""

    model: LanguageModel
    tokenizer: AbstractTokenizer
    sampler: Sampler
    train: Batch
    validation: Batch
    test: Batch
    judge: Judge | None
    gold: Gold | None
    facts: dict[str, Any]

    def decode(self, tokens: Any, mask: Any) -> list[str]:
        """Return texts (n,) of tokens (n, T)."""
        seen = np.asarray(mask) & ~np.asarray(self.sampler.ends(jnp.asarray(tokens)))
        rows = zip(np.asarray(tokens), seen, strict=True)
        return [self.tokenizer.decode([int(i) for i in row[keep]]) for row, keep in rows]

    def nll(self, prompts: Prompt, tokens: Any, mask: Any) -> np.ndarray:
        """Return the negative log-likelihood per token under the reference, (n,)."""
        return -np.asarray(_mean_log_probs(self.model, Texts(prompts, jnp.asarray(tokens), jnp.asarray(mask))))


@eqx.filter_jit
def _mean_log_probs(model: LanguageModel, rows: Texts) -> jax.Array:
    def one(row: Texts) -> jax.Array:
        terms = log_probs(model, row.prompt, row.tokens, row.mask)
        return jnp.sum(terms) / jnp.maximum(jnp.sum(row.mask.astype(terms.dtype)), 1)

    return jax.lax.map(one, rows, batch_size=256)


def make_task(config: Config, cache: Path, report: Report) -> Task:
    """Build the task; reference and judge are trained once and kept in the directory `cache`."""
    inputs = config.inputs
    if inputs.model is not None:
        return _real_task(config)
    films, products = _corpus(config)
    words = WordTokenizer.fit(films.texts, size=config.learning.vocabulary)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(films))[::-1]
    held = min(3 * (inputs.prompts + inputs.validation_prompts) + 100, len(films) // 4)
    stop = held + min(_STOPPING, len(films) // 8)
    half = stop + (len(films) - stop) // 2
    parts = [films.take(np.sort(order[i:j])) for i, j in ((0, held), (held, stop), (stop, half), (half, len(films)))]
    held_out, stopping, mine, others = (_split(words, part.texts, inputs.prompt_length) for part in parts)
    more = _split(words, products.texts, inputs.prompt_length)
    if len(held_out[0]) < inputs.prompts + inputs.validation_prompts:
        raise SystemExit(
            f"{len(held_out[0])} held-out texts are long enough for prompts, {inputs.prompts} + "
            f"{inputs.validation_prompts} are asked for: fewer --prompts, a shorter --prompt-length, or more --rows."
        )

    def rows(texts: tuple[list[str], list[str]]) -> Texts:
        return pack_texts(words, *texts, inputs.prompt_length, inputs.length)

    judge_texts = (others[0] + more[0], others[1] + more[1])
    small_judge = Judge(
        _trained(config, words, rows(judge_texts), rows(stopping), cache, 7, "judge", report),
        words,
        inputs.prompt_length,
        inputs.length,
    )
    if inputs.mu == "smollm2":
        model, tokenizer = smollm2(config.data_dir)
        prompt_length = 3 * inputs.prompt_length  # its tokens are shorter than words
    else:
        model = _trained(config, words, rows(mine), rows(stopping), cache, 0, "reference (SFT)", report)
        tokenizer, prompt_length = words, inputs.prompt_length

    def batch(texts: tuple[list[str], list[str]], first: int, last: int | None) -> Batch:
        prompts, people = (part[first:last] for part in texts)
        # A person's text is as long as an answer; what the judge does not know, it does not know of answers either.
        ends = tuple(words.decode(words.encode(text)[: inputs.length]) for text in people)
        return Batch(tuple(prompts), pack_prompts(tokenizer, prompts, prompt_length), ends)

    train = batch(mine, 0, 200 if inputs.mu == "smollm2" else None)
    test = batch(held_out, 0, inputs.prompts)
    validation = batch(held_out, inputs.prompts, inputs.prompts + inputs.validation_prompts)
    sampler = _sampler(config, model, tokenizer)
    # Of all films but those of the prompts: gold is not learned on what it will judge.
    rating = RatingRegression.fit(films.take(np.sort(order[held:])))
    some = train.take(rng.choice(len(train.texts), min(_GOLD_PROMPTS, len(train.texts)), replace=False))
    responses, _ = sample(sampler, model, some.prompt, count=4, key=jr.key(5))
    task = Task(model, tokenizer, sampler, train, validation, test, small_judge, None, {})
    texts = task.decode(*(leaf.reshape(-1, inputs.length) for leaf in (responses.tokens, responses.mask)))
    log_p = small_judge.log_probs([text for text in some.texts for _ in range(4)], texts)
    facts = {"held-out correlation of the gold score with people": round(rating.held_out_correlation, 3)}
    return dataclasses.replace(task, gold=Gold(rating.predict, texts, log_p), facts=facts)


def _real_task(config: Config) -> Task:
    inputs = config.inputs
    assert inputs.model is not None
    assert inputs.prompt_file is not None
    words = TextModel.load(inputs.model)
    prompts = read_prompts(inputs.prompt_file, template=None)
    wanted = inputs.prompts + inputs.validation_prompts
    if len(prompts) < wanted:
        raise SystemExit(f"{inputs.prompt_file} has {len(prompts)} prompts, {wanted} are asked for: fewer --prompts.")
    encoded = [words.encode(prompt) for prompt in prompts[:wanted]]
    longest = max(map(len, encoded))
    if longest > inputs.prompt_length:
        raise SystemExit(f"the longest prompt has {longest} tokens and would be cut: --prompt-length {longest}.")
    sampler = words.sampler(inputs.length)

    def batch(first: int, last: int) -> Batch:
        size = (last - first, inputs.prompt_length)
        tokens, mask = np.full(size, sampler.pad, np.int32), np.zeros(size, bool)
        for i, row in enumerate(encoded[first:last]):
            tokens[i, size[1] - len(row) :], mask[i, size[1] - len(row) :] = row, True
        texts = (one if isinstance(one, str) else plain_chat(one, open_turn=True) for one in prompts[first:last])
        return Batch(tuple(texts), Prompt(jnp.asarray(tokens), jnp.asarray(mask)))

    test, validation = batch(0, inputs.prompts), batch(inputs.prompts, wanted)
    return Task(words.model, words.tokenizer, sampler, validation, validation, test, None, None, {})


def _corpus(config: Config) -> tuple[RatedTexts, RatedTexts]:
    """The films, and the product reviews that only the judge reads."""
    inputs = config.inputs
    if inputs.data == "generated":
        rows = 4000 if inputs.rows is None else inputs.rows
        return generated_ratings(rows, seed=0), generated_ratings(max(rows // 4, 10), seed=1)
    films, products = (rated_snippets(config.data_dir, sources=(name,)) for name in ("movie", "amazon"))
    count = len(films) if inputs.rows is None else min(inputs.rows, len(films))
    return films.take(np.arange(count)), products


def _split(words: WordTokenizer, texts: Sequence[str], length: int) -> tuple[list[str], list[str]]:
    """Prompts of `length` words without unknown ones, and at least four words that follow."""
    prompts, responses = [], []
    for text in texts:
        ids = words.encode(text)
        if len(ids) >= length + 4 and words.unknown not in ids[:length]:
            prompts.append(words.decode(ids[:length]))
            responses.append(words.decode(ids[length:]))
    return prompts, responses


def _sampler(config: Config, model: LanguageModel, tokenizer: AbstractTokenizer) -> Sampler:
    forbidden = set(range(tokenizer.size, model.trunk.config.vocabulary))
    if tokenizer.pad is not None and tokenizer.pad != tokenizer.end:
        forbidden.add(tokenizer.pad)
    if isinstance(tokenizer, WordTokenizer):
        forbidden.add(tokenizer.unknown)
    pad = 0 if tokenizer.pad is None else tokenizer.pad
    return Sampler(config.inputs.length, end=tokenizer.end, pad=pad, forbidden=tuple(sorted(forbidden)))


def small_shape(width: int, vocabulary: int, *, layers: int, causal: bool) -> TransformerConfig:
    """Return the shape of the small models."""
    heads = width // _HEAD
    return TransformerConfig(vocabulary, width, layers, heads, heads, _HEAD, 4 * width, causal=causal)


def _trained(
    config: Config,
    words: WordTokenizer,
    rows: Texts,
    held_out: Texts,
    cache: Path,
    seed: int,
    name: str,
    report: Report,
) -> LanguageModel:
    """A small language model, from the cache if it was trained before on the same texts."""
    shape = small_shape(config.learning.width, words.size, layers=config.learning.layers, causal=True)
    model = LanguageModel(shape, key=jr.key(seed), tokens=words.fingerprint)
    plan = Fit(config.learning.sft_steps, 64, 3e-3, interval=50, patience=2)
    digest = hashlib.sha256(json.dumps([str(shape), str(plan), seed, words.fingerprint]).encode())
    for part in (rows, held_out):
        digest.update(np.asarray(part.tokens).tobytes())
    path = cache / f"{name.split()[0]}-{digest.hexdigest()[:16]}.npz"
    if path.exists():
        return load_checkpoint(path, model)[0]
    state = plan.start(model, key=jr.key(seed + 100))
    show = lambda _, row: report(name, int(row["step"]), plan.steps)
    model = fit(sft_loss, plan, state, rows, held_out, report=show)
    cache.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, {})
    return model
