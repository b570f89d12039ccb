"""Texts are read and written token for token as `transformers` does: beginnings, templates, ends, stop strings."""

import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.rlhf import Prompt, TextModel, TextReward

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
pytest.importorskip("safetensors")

HOME = pathlib.Path(__file__).resolve().parent / "reference_texts"
FOUND = json.loads((HOME / "reference.json").read_text())
MODEL = TextModel.load(HOME / "chat")
PLAIN = TextModel(MODEL.model, MODEL.tokenizer, None, MODEL.ends)
REWARD = TextReward.load(HOME / "reward")
EITHER = [(MODEL, row) for row in FOUND["chat"]] + [(PLAIN, row) for row in FOUND["plain"]]


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def noise(i):
    """As make_reference_texts.py draws it."""
    size = (FOUND["length"], MODEL.model.trunk.config.vocabulary)
    return np.random.default_rng(i).gumbel(size=size).astype(np.float32)


@pytest.mark.parametrize("i", range(len(EITHER)))
def test_prompts_are_read_as_transformers_does(i):
    model, row = EITHER[i]
    assert model.encode(row["given"]) == row["prompt"]


def test_a_text_begins_as_its_tokenizer_says():
    begin = MODEL.tokenizer.tokens.index("<|begin|>")
    assert PLAIN.encode("the film")[0] == begin
    assert begin not in MODEL.tokenizer.encode("the film")


def _packed(prompts):
    rows = [row["prompt"] for row in prompts]
    longest = max(map(len, rows))
    tokens, mask = np.full((len(rows), longest), 7, np.int32), np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):  # padding on the left, with a token that means something
        tokens[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
    return Prompt(jnp.asarray(tokens), jnp.asarray(mask))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "stop"), [("chat", False), ("chat", True), ("plain", False)])
def test_answers_are_those_of_transformers_token_for_token(name, stop):
    given, strings = FOUND[name], FOUND["stop"] if stop else ()
    warm, exact = FOUND["temperature"], FOUND["length"]
    sampler = MODEL.sampler(exact, stop=strings, temperature=warm, top_p=FOUND["top_p"])
    noises = jnp.asarray(np.stack([noise(i) for i in range(len(given))]))

    def both(model, prompt, noise):
        return {"greedy": sampler.greedy(model, prompt), "sampled": sampler.decode(model, prompt, noise)}

    run = eqx.filter_jit(lambda model, *rest: jax.vmap(lambda p, g: both(model, p, g))(*rest))
    written = run(MODEL.model, _packed(given), noises)
    for kind, responses in written.items():
        for i, row in enumerate(given):
            expected = (row["stopped"] if stop else row)[kind]
            assert responses.tokens[i][responses.mask[i]].tolist() == expected
            seen = sampler.running(responses.tokens[i])
            np.testing.assert_array_equal(seen, responses.mask[i])


def test_some_of_these_answers_end_at_each_end_and_at_stop_strings():
    rows = [row[kind] for row in FOUND["chat"] + FOUND["plain"] for kind in ("greedy", "sampled")]
    assert {row[-1] for row in rows if len(row) < FOUND["length"]} == set(MODEL.ends)
    assert len(MODEL.ends) == 2
    stopped = [row["stopped"][kind] for row in FOUND["chat"] for kind in ("greedy", "sampled")]
    cut = [row for row in stopped if row[-1] not in MODEL.ends and len(row) < FOUND["length"]]
    assert len(cut) >= 3
    for row in cut:
        assert any(string in MODEL.decode(row) for string in FOUND["stop"])
        assert not any(string in MODEL.decode(row[:-1]) for string in FOUND["stop"])


@pytest.mark.parametrize("i", range(len(FOUND["rewards"])))
def test_rewards_are_those_of_transformers(i):
    row = FOUND["rewards"][i]
    before, after = REWARD.frame(row["given"])
    answer = REWARD.tokenizer.encode(row["answer"])
    assert before + answer + after == row["ids"]
    np.testing.assert_allclose(_reward(REWARD.model, row["ids"]), row["reward"], rtol=0, atol=1e-4)


def _reward(model, ids):
    padded = jnp.asarray(ids + [0] * (120 - len(ids)))  # one program for all lengths
    return _OF_TOKENS(model, padded, jnp.arange(120) < len(ids))


_OF_TOKENS = eqx.filter_jit(lambda model, tokens, mask: model.of_tokens(tokens, mask))


def test_an_adapter_is_merged_into_its_model():
    merged, row = TextReward.load(HOME / "adapter"), FOUND["adapter"]
    np.testing.assert_allclose(_reward(merged.model, row["ids"]), row["reward"], rtol=0, atol=1e-4)
    assert abs(row["reward"] - FOUND["rewards"][0]["reward"]) > 0.1
    assert merged.tokenizer.tokens == REWARD.tokenizer.tokens
    assert merged.template == REWARD.template
