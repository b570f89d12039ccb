"""Reading GGUF files, the format of llama.cpp: quantised weights, their configuration and their tokens in one file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from flowrl._distribution import require
from flowrl.rlhf.models._weights import Tensor

# GGUF's names of Llama's tensors, and those of `transformers`.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # the type of a token that is not text


class GGUF:
    """A GGUF file of a plain Llama: configuration, tensors and tokens as `transformers` has them."""

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such GGUF file.")
        require("gguf", extra="rlhf")
        import gguf

        self._path = path

        class Reader(gguf.GGUFReader):
            """Refuses arrays that are longer than the file, over which the package would loop."""

            def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
                if raw_type == gguf.GGUFValueType.ARRAY:
                    (length,) = self._get(orig_offs + 4, np.uint64)
                    if length > self.data.nbytes:
                        raise ValueError(f"an array claims {length} entries")
                return super()._get_field_parts(orig_offs, raw_type)

        try:
            reader = Reader(path)
            self._fields = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"{path}: not a GGUF file, or a damaged one ({error}).") from error
        self._entries = {str(entry.name): entry for entry in reader.tensors}

    def config(self) -> dict[str, Any]:
        """Return what a config.json would hold."""
        kind = self._take("general.architecture")
        if kind != "llama":
            raise ValueError(f"{self._path}: its architecture is {kind!r}; of GGUF files flowrl reads 'llama' only.")
        fields = {name: value for name, value in self._fields.items() if name.startswith("llama.")}

        def take(name: str, *default: Any) -> Any:
            found = self._take(f"llama.{name}", *default)
            fields.pop(f"llama.{name}", None)
            return found

        width, heads = take("embedding_length"), take("attention.head_count")
        if not (isinstance(heads, int) and heads >= 1):
            raise ValueError(f"{self._path}: field llama.attention.head_count must be a count >= 1, got {heads!r}.")
        size = take("attention.key_length", width // heads)
        config = {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self._shape("token_embd.weight")[0],
            "hidden_size": width,
            "num_hidden_layers": take("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": take("attention.head_count_kv", heads),
            "head_dim": size,
            "intermediate_size": take("feed_forward_length"),
            "hidden_act": "silu",
            "rms_norm_eps": float(take("attention.layer_norm_rms_epsilon")),
            "rope_theta": float(take("rope.freq_base", 10_000.0)),
            "max_position_embeddings": take("context_length"),
            "tie_word_embeddings": "output.weight" not in self._entries,
        }
        take("vocab_size", None)
        for name in ("attention.value_length", "rope.dimension_count"):
            if take(name, size) != size:
                raise ValueError(f"{self._path}: field llama.{name} must be the size of a head, {size}.")
        if fields:
            listed = ", ".join(f"{name} = {value!r:.40}" for name, value in sorted(fields.items()))
            raise ValueError(f"{self._path}: not known to flowrl: {listed}.")
        ids = {"bos": "bos", "eos": "eos", "pad": "padding"}
        found = {name: self._fields.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in ids.items()}
        return config | {f"{name}_token_id": value for name, value in found.items() if value is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors under the names they have in `transformers`; they stay on the disk until they are read."""
        heads = self._take("llama.attention.head_count")
        groups = {"attn_q": heads, "attn_k": self._take("llama.attention.head_count_kv", heads)}
        found = {}
        for theirs in self._entries:
            part = theirs.split(".")[2] if theirs.startswith("blk.") and theirs.count(".") == 3 else ""
            name = _NAMES.get(theirs, theirs)
            if part in _LAYER_NAMES:
                name = f"model.layers.{theirs.split('.')[1]}.{_LAYER_NAMES[part]}.{theirs.split('.')[3]}"
            found[name] = Tensor(str(self._path), self._shape(theirs), self._reader(theirs, groups.get(part)))
        return found

    def fingerprint(self) -> str:
        """Return the fingerprint of a tokenizer of these tokens, whatever cuts texts into them."""
        # As in flowrl.rlhf.data.AbstractTokenizer: a test holds the two against each other.
        return hashlib.sha256(json.dumps(list(self._take("tokenizer.ggml.tokens"))).encode()).hexdigest()

    def tokenizer(self) -> Any:
        """Make the `tokenizers.Tokenizer`."""
        kind = self._take("tokenizer.ggml.model"), self._take("tokenizer.ggml.pre", None)
        if kind != ("gpt2", "smollm"):
            raise ValueError(
                f"{self._path}: its tokenizer is of kind {kind}; of GGUF files flowrl reads ('gpt2', 'smollm') only. "
                "The model's repository has a tokenizer.json, which FileTokenizer reads."
            )
        require("tokenizers", extra="rlhf")
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens, types = self._take("tokenizer.ggml.tokens"), self._take("tokenizer.ggml.token_type")
        merges = [tuple(merge.split(" ", 1)) for merge in self._take("tokenizer.ggml.merges")]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
        made.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return made

    def _take(self, name: str, *default: Any) -> Any:
        if name in self._fields:
            return self._fields[name]
        if default:
            return default[0]
        raise ValueError(f"{self._path}: field {name} is missing.")

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._entries:
            raise ValueError(f"{self._path}: tensor {name} is missing.")
        # The file counts axes from the fastest on.
        return tuple(int(size) for size in reversed(self._entries[name].shape))

    def _reader(self, name: str, heads: int | None) -> Any:
        def read() -> np.ndarray:
            import gguf

            entry = self._entries[name]
            values = gguf.dequantize(entry.data, entry.tensor_type).reshape(self._shape(name))
            return values if heads is None else _unpermute(values, heads)

        return read


def _unpermute(stored: np.ndarray, heads: int) -> np.ndarray:
    """Move a head's rows from pairs of neighbours, which llama.cpp rotates, to pairs half a head apart."""
    pairs = stored.reshape(heads, -1, 2, *stored.shape[1:])
    return pairs.swapaxes(1, 2).reshape(stored.shape)
