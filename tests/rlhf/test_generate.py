"""Prompts become texts: ranked as the reward model reads them, the same in parts, refused in sentences."""

import dataclasses
import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowrl import Ascent, Budget
from flowrl.rlhf import (
    Limits,
    LogitSpace,
    ReferenceSpace,
    TextModel,
    TextReward,
    TokenSpace,
    align_vocabulary,
    generate,
    sample,
)
from flowrl.rlhf.data import JinjaTemplate, plain_chat
from flowrl.rlhf.generation._memory import _free, plan
from flowrl.rlhf.generation._packing import pack

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
pytest.importorskip("safetensors")

HOME = pathlib.Path(__file__).resolve().parent / "reference_texts"
MODEL, REWARD = TextModel.load(HOME / "chat"), TextReward.load(HOME / "reward")
PROMPTS = ["the film", [{"role": "user", "content": "is the cast good, and the end?"}], "a"]
SMALL = {"length": 12, "particles": 4}
ANYTHING = Limits(nll_band=1e3, variety=0.0)


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def _read(prompt, tokens):
    """The reward that a reader of texts gives: the reward model's own ids, and no mark of the language model."""
    before, after = REWARD.frame(prompt)
    names = [MODEL.tokenizer.tokens[i] for i in tokens if i not in MODEL.ends]
    ids = before + [REWARD.tokenizer.tokens.index(name) for name in names] + after
    padded = jnp.asarray(ids + [0] * (120 - len(ids)))  # one program for all lengths
    return float(_OF_TOKENS(REWARD.model, padded, jnp.arange(120) < len(ids)))


_OF_TOKENS = eqx.filter_jit(lambda model, tokens, mask: model.of_tokens(tokens, mask))


def _answers(*, model=MODEL, reward=REWARD, prompts=PROMPTS, seed=0, **options):
    return generate(model, reward, prompts, key=jr.key(seed), **(SMALL | options))


@pytest.mark.thorough
def test_no_steps_are_the_best_of_the_samples_as_a_reader_ranks_them():
    answers = _answers(budget=Budget(0), length=24, temperature=0.5)
    asked = pack([MODEL.encode(prompt) for prompt in PROMPTS], MODEL, 24)
    drawn, _ = sample(MODEL.sampler(24, temperature=0.5), MODEL.model, asked, count=4, key=jr.key(0))
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    rows = [[row[seen].tolist() for row, seen in zip(*part, strict=True)] for part in zip(tokens, mask, strict=True)]
    scores = np.array([[_read(prompt, row) for row in part] for prompt, part in zip(PROMPTS, rows, strict=True)])
    assert any(row[-1] in MODEL.ends for part in rows for row in part)
    np.testing.assert_allclose(answers.sample_scores, scores, rtol=0, atol=1e-4)
    assert answers.samples == tuple(tuple(MODEL.decode(row) for row in part) for part in rows)
    assert answers.texts == tuple(part[i] for part, i in zip(answers.samples, scores.argmax(axis=1), strict=True))
    np.testing.assert_array_equal(answers.scores, answers.sample_scores.max(axis=1))
    ended = [part[i][-1] in MODEL.ends for part, i in zip(rows, scores.argmax(axis=1), strict=True)]
    np.testing.assert_array_equal(answers.ended, ended)
    assert answers.steps == 0
    assert answers.verdict.startswith("The best of 4 samples, with a mean reward of")


@pytest.mark.thorough
@pytest.mark.parametrize("space", [ReferenceSpace, LogitSpace, TokenSpace])
def test_moved_texts_have_the_rewards_that_a_reader_gives(space):
    told = {i: [] for i in range(len(PROMPTS))}
    stream = lambda i, text, rate: told[i].append((text, rate))
    answers = _answers(budget=Budget(2, 1.0), space=space, limits=ANYTHING, stream=stream)
    for i in range(len(PROMPTS)):
        best = answers.sample_scores[i].max()
        assert told[i][0][1] == best
        assert told[i][0][0] == answers.samples[i][answers.sample_scores[i].argmax()]
        assert len(told[i]) == 2
    moved = np.array([told[i][1][1] for i in range(len(PROMPTS))])
    if answers.steps:
        assert answers.scores.mean() > answers.sample_scores.max(axis=1).mean()
        np.testing.assert_array_equal(answers.scores, moved)
        assert answers.texts == tuple(told[i][1][0] for i in range(len(PROMPTS)))
        assert answers.verdict.startswith("Moved texts with a mean reward of")
    else:
        assert moved.mean() <= answers.sample_scores.max(axis=1).mean()
        assert "moved texts were turned down (their reward was no higher)" in answers.verdict


@pytest.mark.thorough
def test_moving_raises_the_reward_where_there_is_something_to_gain():
    answers = _answers(budget=Budget(1, 3.0), limits=ANYTHING)
    assert answers.steps == 1
    assert answers.scores.mean() > answers.sample_scores.max(axis=1).mean()
    assert "single samples have" in answers.verdict
    assert answers.forwards > _answers(budget=Budget(0)).forwards
    vetoed = _answers(budget=Budget(1, 3.0), limits=Limits(variety=1.0, nll_band=0.0, displacement=0.0))
    assert vetoed.steps in (0, 1)


@pytest.mark.thorough
def test_a_prompt_gets_the_same_answer_whatever_stands_beside_it_and_in_whatever_parts():
    settings = {"limits": ANYTHING, "budget": Budget(1, 3.0), "flow": Ascent()}  # by which no text sees another
    whole = _answers(**settings)
    one = whole.memory.prompt // 4
    parts = _answers(**settings, memory=2 * one)
    assert (whole.memory.prompts, whole.memory.particles) == (3, 4)
    assert (parts.memory.prompts, parts.memory.particles) == (1, 2)
    assert parts.texts == whole.texts
    np.testing.assert_allclose(parts.scores, whole.scores, rtol=0, atol=1e-4)
    alone = _answers(prompts=PROMPTS[:1], budget=Budget(0))
    assert alone.samples[0] == whole.samples[0]


@pytest.mark.thorough
def test_half_precision_answers():
    model = TextModel.load(HOME / "chat", dtype=jnp.bfloat16)
    reward = TextReward.load(HOME / "reward", dtype=jnp.bfloat16)
    answers = _answers(model=model, reward=reward, prompts=PROMPTS[:1])
    assert np.isfinite(answers.scores).all()
    assert answers.memory.weights < 0.6 * _answers(prompts=PROMPTS[:1]).memory.weights


@pytest.mark.thorough
def test_an_answer_that_is_cut_is_counted_and_a_stop_string_that_never_comes_is_named():
    answers = _answers(budget=Budget(0), length=2, stop=["the cast is good"])
    cut = int(np.sum(~answers.ended))
    assert cut > 0
    assert f"{cut} of 3 were cut at 2 tokens before 'the cast is good' came, which a larger length mends" in (
        answers.verdict
    )


def test_a_stop_string_that_cannot_come_is_refused():
    with pytest.raises(ValueError, match=r"stop string '.' never comes, since no token .* leave it out, or name one"):
        _answers(model=_without_bytes(), stop=["."])


def _without_bytes():
    """The model with a tokenizer that cannot write a full stop."""

    class Short(type(MODEL.tokenizer)):
        def pieces(self):
            return [piece.replace(b".", b"") for piece in super().pieces()]

    words = object.__new__(Short)
    words.__dict__.update(MODEL.tokenizer.__dict__)
    return dataclasses.replace(MODEL, tokenizer=words)


@pytest.mark.thorough
def test_stop_strings_end_texts():
    free = _answers(budget=Budget(0), length=24)
    texts = [text for part in free.samples for text in part]
    letters = [text[3] for text in texts if len(text) > 8 and text[3].isascii() and text[3].isprintable()]
    stopped = _answers(budget=Budget(0), length=24, stop=letters[:2])
    changed = 0
    for before, after in zip(texts, (text for part in stopped.samples for text in part), strict=True):
        first = min((before.find(letter) for letter in letters[:2] if letter in before), default=None)
        if first is None:
            assert after == before
        else:
            changed += after != before
            assert before.startswith(after.rstrip("�"))
            assert any(letter in after for letter in letters[:2])
    assert changed


# What cannot be answered


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="there are no prompts: give at least one"):
        _answers(prompts=[])
    with pytest.raises(ValueError, match=r"must be a list of texts, got one text: give \['the film'\]"):
        _answers(prompts="the film")
    with pytest.raises(ValueError, match="prompt 0 has no token, so nothing can follow it"):
        pack([[]], MODEL, 4)


def test_prompts_longer_than_a_context_are_refused():
    message = r"prompt 1 has \d+ tokens, with 12 of the answer more than the 160 that the model knows .*: shorten"
    with pytest.raises(ValueError, match=message):
        _answers(prompts=["a", "good " * 200])
    short = eqx.tree_at(lambda r: r.trunk, REWARD.model, REWARD.model.trunk)
    config = dataclasses.replace(short.trunk.config, max_positions=30)
    object.__setattr__(short.trunk, "config", config)
    with pytest.raises(ValueError, match="than the 30 that the reward model knows"):
        _answers(reward=dataclasses.replace(REWARD, model=short), prompts=["good film, good cast"])


def test_another_vocabulary_is_refused():
    class Other(type(REWARD.tokenizer)):
        @property
        def tokens(self):
            return tuple("ž" if i == 40 else token for i, token in enumerate(super().tokens))

    words = object.__new__(Other)
    words.__dict__.update(REWARD.tokenizer.__dict__)
    with pytest.raises(ValueError, match="another vocabulary: token 40 is 'ž' there and .* trained from a model"):
        _answers(reward=dataclasses.replace(REWARD, tokenizer=words))


def test_too_little_memory_is_refused_before_it_runs():
    with pytest.raises(MemoryError, match=r"one particle takes about .* 1e-06 GB are free: shorter answers .*bfloat16"):
        _answers(memory=1000, flow=Ascent())
    with pytest.raises(MemoryError, match=r"a set of 4 particles takes .*whose particles do not meet \(Ascent\)"):
        _answers(memory=1000)


def test_a_conversation_needs_a_template():
    plain = dataclasses.replace(MODEL, template=None)
    with pytest.raises(ValueError, match="a prompt is a conversation, and the model has no chat template: give its"):
        plain.encode(PROMPTS[1])
    assert dataclasses.replace(MODEL, template=plain_chat).encode(PROMPTS[1])
    with pytest.raises(ValueError, match=r"and the reward has no chat template: .*replace\(reward, template="):
        dataclasses.replace(REWARD, template=None).frame(PROMPTS[1])
    with pytest.raises(ValueError, match='must have messages, each with "role" and "content"'):
        MODEL.encode([])


def test_templates_whose_marks_are_no_tokens_are_refused():
    foreign = JinjaTemplate("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    message = r"writes <\|im_start\|>, <\|im_end\|>, of which the tokenizer knows none as a token.*take the template"
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODEL, template=foreign).encode("the film")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(REWARD, template=foreign).frame("the film")
    # Marks that are text, in a model whose turns end with a token.
    textual = JinjaTemplate(
        "{% for m in messages %}<|user|>{{ m.content + eos_token }}{% endfor %}", MODEL.template.names
    )
    assert dataclasses.replace(MODEL, template=textual).encode("the film")
    with pytest.raises(ValueError, match="template writes bos_token, which the tokenizer's files do not name: name"):
        dataclasses.replace(MODEL, template=JinjaTemplate("{{ bos_token }}")).encode("the film")
    with pytest.raises(ValueError, match="writes an answer 0 times; give the reward another template"):
        dataclasses.replace(REWARD, template=JinjaTemplate("{{ messages[0].content }}")).frame("the film")


def test_a_reward_without_a_template_reads_the_text_as_its_tokenizer_says():
    plain = dataclasses.replace(REWARD, template=None)
    before, after = plain.frame("the film")
    assert before == [plain.tokenizer.tokens.index("<|begin|>"), *plain.tokenizer.encode("the film")]
    assert after == []


def test_two_labels_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(HOME / "reward", tmp_path / "reward")
    file = tmp_path / "reward" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"score.weight": np.repeat(tensors["score.weight"], 2, axis=0)}, file)
    with pytest.raises(ValueError, match="has 2 labels; a reward is one number: keep the row of the label you want"):
        TextReward.load(tmp_path / "reward")


@pytest.mark.thorough
def test_a_reward_that_tells_nothing_apart_is_refused():
    flat = eqx.tree_at(lambda r: r.score.weight, REWARD.model, jnp.zeros_like(REWARD.model.score.weight))
    with pytest.raises(ValueError, match=r"standard deviation 0, which is no unit of a step"):
        _answers(reward=dataclasses.replace(REWARD, model=flat))


def test_directories_without_a_tokenizer_and_ends_out_of_range_are_refused(tmp_path):
    shutil.copytree(HOME / "chat", tmp_path / "chat")
    (tmp_path / "chat" / "generation_config.json").write_text(json.dumps({"eos_token_id": [283, 999]}))
    with pytest.raises(ValueError, match=r"eos_token_id must be ids in \[0, 285\), got \[283, 999\]"):
        TextModel.load(tmp_path / "chat")
    (tmp_path / "chat" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        TextModel.load(tmp_path / "chat")


# Parts of it


def test_vocabularies_that_differ_by_what_was_added_are_aligned():
    aligned, unknown = align_vocabulary(REWARD, MODEL)
    mine, theirs = MODEL.tokenizer.tokens, REWARD.tokenizer.tokens
    assert [mine[i] for i in unknown] == ["<|turn|>"]
    assert aligned.tokens == MODEL.model.tokens
    assert aligned.embedding.shape[0] == MODEL.model.trunk.config.vocabulary
    assert mine.index("<|end|>") != theirs.index("<|end|>")
    for i, token in enumerate(mine):
        expected = 0 if i in unknown else REWARD.model.embedding[theirs.index(token)]
        np.testing.assert_array_equal(aligned.embedding[i], expected)
    assert align_vocabulary(dataclasses.replace(REWARD, tokenizer=MODEL.tokenizer), MODEL)[1] == ()


def test_tokens_that_no_reader_sees_are_never_drawn():
    sampler = MODEL.sampler(4)
    hidden = MODEL.tokenizer.special - set(MODEL.ends)
    assert set(sampler.forbidden) == hidden
    assert len(hidden) == 3


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("space", "steps", "fields"),
    [
        (LogitSpace, 1, {}),
        (LogitSpace, 1, {"length": 64}),
        (ReferenceSpace, 2, {"particles": 8}),
        (TokenSpace, 1, {}),
    ],
)
def test_the_estimate_of_memory_holds_what_the_compiler_takes(space, steps, fields):
    from flowrl.rlhf import LanguageModel, Prompt, Response, RewardModel, TransformerConfig, align

    size = {"length": 16, "particles": 4, "tokens": 16} | fields
    shape = TransformerConfig(8000, 64, 4, 4, 2, 16, 256, norm="rms", gated=True)
    model, reward = LanguageModel(shape, key=jr.key(0)), RewardModel(shape, key=jr.key(1))
    sampler = MODEL.sampler(size["length"])
    where = space(model, dataclasses.replace(sampler, forbidden=()))
    blank = jnp.zeros((1, size["tokens"]), jnp.int32)
    rows = jnp.zeros((1, size["particles"], size["length"]), jnp.int32)
    responses = Response(rows, rows == 0, rows.astype(jnp.float32))
    keys = jr.split(jr.key(0), (1, size["particles"]))
    lowered = align.lower(where, reward, Prompt(blank, blank == 0), responses, keys, Budget(steps, 1.0), save=(steps,))
    taken = lowered.compile().compiled.memory_analysis().temp_size_in_bytes
    planned = plan(
        where, reward, blank.shape, size["tokens"], size["length"], size["particles"], steps, splits=True, given=10**12
    )
    assert taken < planned.prompt < 4 * taken
    assert planned.weights == sum(x.nbytes for x in jax.tree.leaves(eqx.filter((model, reward), eqx.is_array)))


def test_free_memory_is_known_here():
    free = _free()
    assert free is None or free > 0
