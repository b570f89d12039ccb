"""Writes tiny models of every family with random weights, and what torch computes with them.

Run by hand where torch and transformers are installed: `python tests/rlhf/make_reference_models.py`. What it writes
into `reference_models/` is committed, so that the tests need neither.
"""

import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent / "reference_models"
PAD = 0
LENGTH, PADDING = 11, 3

_SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _SMALL | {"num_key_value_heads": 2}
_GPT2 = {key: value for key, value in _SMALL.items() if key not in ("intermediate_size", "num_hidden_layers")}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _rope(theta, **fields):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **fields}}


# Name: family of classes, configuration class, fields. Between them: every field that a loader could get wrong.
MODELS = {
    "gpt2": ("GPT2", "GPT2LMHeadModel", _GPT2 | {"n_layer": 2, "layer_norm_epsilon": 1e-3}),
    "gpt_neox": ("GPTNeoX", "GPTNeoXForCausalLM", _SMALL | _rope(300.0, partial_rotary_factor=0.5)),
    "gpt_neox_sequential": (
        "GPTNeoX",
        "GPTNeoXForCausalLM",
        _SMALL
        | _rope(1e4, partial_rotary_factor=1.0)
        | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new"},
    ),
    "llama": ("Llama", "LlamaForCausalLM", _GROUPED | _rope(700.0) | {"attention_bias": True, "rms_norm_eps": 1e-3}),
    "llama3": (
        "Llama",
        "LlamaForCausalLM",
        _GROUPED | {"rope_parameters": _LLAMA3, "tie_word_embeddings": True, "head_dim": 6, "mlp_bias": True},
    ),
    "mistral": ("Mistral", "MistralForCausalLM", _GROUPED | {"sliding_window": None}),
    "qwen2": ("Qwen2", "Qwen2ForCausalLM", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", "Qwen3ForCausalLM", _GROUPED | {"head_dim": 8}),
}


def randomise(model, seed):
    """Weights, biases and norms all differ from what they are made as, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            if "norm" in name or "ln_" in name:
                value.add_(1.0 if name.endswith("weight") else 0.0)
    return model.eval()


def cases(size, seed):
    """A text alone, with padding to its left, and with padding to its right."""
    text = np.random.default_rng(seed).integers(3, size, LENGTH)
    padding, mask = np.full(PADDING, PAD), np.ones(LENGTH, bool)
    yield "alone", text, mask
    yield "left", np.concatenate([padding, text]), np.concatenate([padding.astype(bool), mask])
    yield "right", np.concatenate([text, padding]), np.concatenate([mask, padding.astype(bool)])


def _inputs(tokens, mask):
    visible = torch.tensor(mask)[None]
    positions = torch.clamp(torch.cumsum(visible.int(), dim=-1) - 1, min=0)
    return {"input_ids": torch.tensor(tokens)[None], "attention_mask": visible.int(), "position_ids": positions}


def language_reference(model, seed):
    """Tokens, masks and logits."""
    found = {}
    for name, tokens, mask in cases(model.config.vocab_size, seed):
        with torch.no_grad():
            logits = model(**_inputs(tokens, mask)).logits[0]
        found |= {f"{name}/tokens": tokens.astype(np.int32), f"{name}/mask": mask, f"{name}/logits": logits.numpy()}
    return found


def reward_reference(model, seed):
    """Tokens, masks, rewards, and the rewards' gradients in the token embeddings."""
    found, seen = {}, []
    hook = model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    for name, tokens, mask in cases(model.config.vocab_size, seed):
        reward = model(**_inputs(tokens, mask)).logits[0, 0]
        (gradient,) = torch.autograd.grad(reward, seen[-1])
        found |= {f"{name}/tokens": tokens.astype(np.int32), f"{name}/mask": mask}
        found |= {f"{name}/reward": reward.detach().numpy(), f"{name}/gradient": gradient[0].numpy()}
    hook.remove()
    return found


def make(name, seed):
    """The language model and the reward model of an entry of `MODELS`."""
    stem, language, fields = MODELS[name]
    config = getattr(transformers, f"{stem}Config")
    torch.manual_seed(seed)
    reward = f"{stem}ForSequenceClassification"
    return (
        randomise(getattr(transformers, language)(config(**fields)), seed),
        randomise(getattr(transformers, reward)(config(**fields, num_labels=1)), seed + 1),
    )


def write(directory, model, reference):
    """A model and its reference, without what no loader reads."""
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    (directory / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(directory / "reference.npz", **reference)


def main(home=HERE):
    for seed, name in enumerate(MODELS):
        language, reward = make(name, 10 * seed)
        write(home / name, language, language_reference(language, seed))
        write(home / f"{name}_reward", reward, reward_reference(reward, seed))
    total = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    print(f"{total / 1e3:.0f} kB in {home}", file=sys.stderr)


if __name__ == "__main__":
    main()
