"""What texts are made with: stop strings, chat templates, tokenizers' own beginnings, adapters, frames, early ends."""

import json
import pathlib
import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tiny_texts import language_model, reward_model

from flowrl.rlhf import Frame, Prompt, Sampler, Stop, load_language_model, load_reward_model, score
from flowrl.rlhf.data import FileTokenizer, JinjaTemplate
from flowrl.rlhf.models import model_files

HOME = pathlib.Path(__file__).resolve().parent / "reference_texts"


# Stop strings


def _naive(pieces, strings, tokens):
    """The first place at which the text so far contains one of the strings."""
    text = b""
    for place, token in enumerate(tokens):
        text += pieces[token]
        if any(string.encode() in text for string in strings):
            return place
    return None


@pytest.mark.parametrize("strings", [["ab"], ["aab", "b"], ["abab", "baa", "é"], ["aaaa"]])
def test_stop_strings_are_found_where_a_search_of_the_text_finds_them(strings):
    pieces = [b"a", b"b", b"ab", b"ba", b"aa", "é".encode()[:1], "é".encode()[1:], b"", b"x"]
    stop, rng = Stop(strings, pieces), np.random.default_rng(0)
    rows = rng.integers(0, len(pieces), (200, 12))
    found = np.asarray(jax.vmap(stop.found)(jnp.asarray(rows)))
    places = [_naive(pieces, strings, row) for row in rows]
    assert any(place is None for place in places) or strings == ["ab"]
    assert len({place for place in places if place is not None}) > 2
    for place, marks in zip(places, found, strict=True):
        expected = np.zeros(12, bool) if place is None else np.arange(12) >= place
        np.testing.assert_array_equal(marks, expected)


def test_stop_strings_must_be_writable_and_not_empty():
    with pytest.raises(ValueError, match="must be strings that are not empty"):
        Stop([""], [b"a"])
    with pytest.raises(ValueError, match="must be strings that are not empty, got 'a'"):
        Stop("a", [b"a"])
    with pytest.raises(ValueError, match="stop string 'ac' never comes, since no token of the vocabulary writes all"):
        Stop(["ac"], [b"a", b"b"])


@pytest.mark.thorough
def test_drawing_ends_when_the_last_text_of_a_batch_has_ended():
    model, places = language_model(), []
    sampler = Sampler(12, end=(3, 5))

    def bias(at):
        """Text i of the batch ends after i + 2 tokens."""

        def add(t):
            jax.debug.callback(lambda t: places.append(int(t)), t)
            never = jnp.zeros(12, jnp.float32).at[jnp.array([3, 5])].set(-1e5)
            return never.at[3].add(jnp.where(t < at, jnp.float32(0), jnp.float32(1e6)))

        return add

    prompt = Prompt(jnp.array([4, 6]), jnp.ones(2, bool))
    draw = lambda at: sampler.greedy(model, prompt, bias(at))
    responses = eqx.filter_jit(jax.vmap(draw))(jnp.arange(1, 4, dtype=jnp.int32))
    jax.effects_barrier()
    np.testing.assert_array_equal(responses.mask.sum(axis=1), [2, 3, 4])
    assert max(places) == 3
    assert (responses.tokens[:, 4:] == sampler.pad).all()
    assert (responses.log_probs[:, 4:] == 0).all()


# Templates


def _rendered(source, open_turn=False, messages=({"role": "user", "content": "Hi <b>"},), **names):
    return JinjaTemplate(source, names)(list(messages), open_turn)


def test_templates_have_what_templates_of_models_use():
    pytest.importorskip("jinja2")
    source = """{% for message in messages %}
    {% if loop.index > 1 %}{% break %}{% endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}
{% endfor %}{{ 'next' if add_generation_prompt }}{{ strftime_now('%%') }}{{ tools is none }}"""
    two = [{"role": "user", "content": "é <b>"}, {"role": "assistant", "content": "no"}]
    assert _rendered(source, True, two) == '{"role": "user", "content": "é <b>"}next%True'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "is not Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "cannot render .*: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ eos_token }}", "template writes eos_token, which the tokenizer's files do not name: name it in"),
        ("{{ messages.__class__.__mro__ }}", "cannot render"),
    ],
)
def test_templates_that_fail_say_why(source, message):
    pytest.importorskip("jinja2")
    with pytest.raises(ValueError, match=message):
        _rendered(source)


def test_a_template_is_read_from_the_files_of_a_model(tmp_path):
    assert JinjaTemplate.load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one", "bos_token": {"content": "<s>"}}))
    assert JinjaTemplate.load(tmp_path) == JinjaTemplate("one", {"bos_token": "<s>"})
    several = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert JinjaTemplate.load(tmp_path) == JinjaTemplate("three", {})
    (tmp_path / "chat_template.jinja").write_text("four")
    assert JinjaTemplate.load(tmp_path) == JinjaTemplate("four", {})
    (tmp_path / "chat_template.jinja").unlink()
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(ValueError, match="chat_template must be a string, or a list"):
        JinjaTemplate.load(tmp_path)


# Tokenizers


@pytest.mark.parametrize(
    ("fields", "before", "after"),
    [
        ({}, ["<|begin|>"], []),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|begin|>"], ["<|end|>"]),
        ({"add_eos_token": True}, [], ["<|end|>"]),
        ({"add_bos_token": True, "bos_token": None}, [], []),
    ],
)
def test_what_begins_and_ends_a_text_is_what_the_configuration_says(tmp_path, fields, before, after):
    pytest.importorskip("tokenizers")
    shutil.copy(HOME / "chat" / "tokenizer.json", tmp_path)
    config = json.loads((HOME / "chat" / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | fields))
    tokenizer = FileTokenizer.load(tmp_path)
    ids, last = tokenizer.framed("the film")
    names = lambda ids: [tokenizer.tokens[i] for i in ids]
    assert (names(ids)[: len(before)], names(last)) == (before, after)
    assert ids[len(before) :] == tokenizer.encode("the film")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "bos_token": "<none>"}))
    with pytest.raises(ValueError, match="bos_token is '<none>', which the vocabulary does not have"):
        FileTokenizer.load(tmp_path)


def test_pieces_are_what_tokens_write():
    tokenizers = pytest.importorskip("tokenizers")
    by_bytes = FileTokenizer.load(HOME / "chat")
    text = "the film, été ça\n\u3042"
    ids = by_bytes.encode(text)
    assert b"".join(by_bytes.pieces()[i] for i in ids) == text.encode()
    letters = {"<unk>": 0, "▁a": 1, "b": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], byte_fallback=True, unk_token="<unk>"))
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<s>"])
    assert FileTokenizer(made).pieces() == [b"<unk>", b" a", b"b", b"\xc3", b"\xa9", b" ", b"<s>"]


# Adapters


def _adapter(tmp_path, **fields):
    """A copy of the adapter whose configuration differs."""
    shutil.copytree(HOME / "adapter", tmp_path / "adapter")
    shutil.copytree(HOME / "reward", tmp_path / "reward")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3' is not merged here: save the whole model instead"),
        ({"use_dora": True}, "use_dora = True is not merged here"),
        ({"alpha_pattern": {"q": 3}}, "alpha_pattern = "),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path must say which model it is for"),
    ],
)
def test_other_adapters_are_refused(tmp_path, fields, message):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match=message):
        load_reward_model(_adapter(tmp_path, **fields))


def test_an_adapter_of_another_model_is_refused(tmp_path):
    pytest.importorskip("tokenizers")
    from safetensors.numpy import load_file, save_file

    home = _adapter(tmp_path)
    assert model_files(home) == (home, tmp_path / "reward")
    file = home / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: np.zeros((2, 5), np.float32)}, file)
    with pytest.raises(ValueError, match="it belongs to another model"):
        load_reward_model(home)
    save_file(tensors | {name.replace("lora_A", "lora_magnitude_vector"): tensors[name]}, file)
    with pytest.raises(ValueError, match="is of no plain adapter of low rank: save the whole model instead"):
        load_reward_model(home)
    save_file({key: value for key, value in tensors.items() if key != name}, file)
    with pytest.raises(ValueError, match="by B of A and B"):
        load_reward_model(home)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_model\.safetensors"):
        load_reward_model(home)


def test_an_adapter_of_gpt2_is_turned_as_its_weights_are(tmp_path):
    from safetensors.numpy import load_file, save_file

    base = HOME.parent / "reference_models" / "gpt2"
    stored = load_file(base / "model.safetensors")
    name = next(name for name in stored if name.endswith("h.0.mlp.c_fc.weight"))
    inputs, outputs = stored[name].shape
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=size).astype(np.float32) for size in ((2, inputs), (outputs, 2)))
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_rslora": True, "base_model_name_or_path": str(base)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    path = "base_model.model.transformer.h.0.mlp.c_fc"
    parts = {f"{path}.lora_A.weight": first, f"{path}.lora_B.weight": second}
    save_file(parts, tmp_path / "adapter_model.safetensors")
    changed, same = load_language_model(tmp_path), load_language_model(base)
    expected = stored[name] + 6 / 2**0.5 * (second @ first).T
    np.testing.assert_allclose(changed.trunk.blocks.up.weight[0], expected, atol=1e-5)
    np.testing.assert_array_equal(changed.trunk.blocks.up.weight[1], same.trunk.blocks.up.weight[1])


# Frames


def test_a_frame_is_read_in_the_place_of_the_prompt_and_its_ends_are_not():
    reward = reward_model()
    table, mask = reward.embedding, lambda n: jnp.ones((1, n), bool)
    before, after = jnp.array([[5, 6, 7]]), jnp.array([[8]])
    frame = Frame(table[before], mask(3), table[after], mask(1), hidden=(2, 3))
    asked = Prompt(jnp.array([[4, 4]]), mask(2), frame)
    # One that ends early, one whose last token is an end, one that is cut.
    tokens = jnp.array([[[9, 10, 2, 0], [9, 10, 11, 3], [9, 10, 11, 9]]])
    seen = jnp.array([[[True, True, True, False], [True] * 4, [True] * 4]])
    rewards = score(reward, asked, tokens, seen)
    for reward_, shown in zip(rewards[0], ([9, 10], [9, 10, 11], [9, 10, 11, 9]), strict=True):
        whole = jnp.array([5, 6, 7, *shown, 8])
        np.testing.assert_allclose(reward_, reward.of_tokens(whole, jnp.ones(len(whole), bool)), rtol=1e-5)


@pytest.mark.parametrize(("soft", "shown"), [(True, [True, True, False, False]), (False, [True, True, True, False])])
def test_the_end_of_a_relaxation_is_its_last_place(soft, shown):
    table = jr.normal(jr.key(0), (6, 3))
    none = jnp.zeros((0, 3)), jnp.zeros(0, bool)
    frame = Frame(*none, *none, hidden=(2,), soft_ends=soft)
    prompt = Prompt(jnp.array([1]), jnp.ones(1, bool), frame)
    mixed = jax.nn.softmax(jr.normal(jr.key(1), (4, 6))) @ table
    _, mask = prompt.around(table, mixed, jnp.array([True, True, True, False]))
    assert mask.tolist() == shown
    _, whole = prompt.around(table, mixed, jnp.ones(4, bool))
    assert whole.tolist() == [True] * 4
