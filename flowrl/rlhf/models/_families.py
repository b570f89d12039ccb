"""Families of language models: what their configurations mean, and how their tensors are called.

Each is read as `transformers` reads it. An option that is not implemented is refused, and so is one that is not known:
a model that computes something else than it was trained for is worse than none.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from flowrl.rlhf.models._transformer import TransformerConfig
from flowrl.rlhf.models._weights import HEADWISE, SAME, THIRDS, TRANSPOSED, Layout, Place

_NOTHING = (None, False, "", [], {})  # a value that switches nothing on

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}

# Settings of training, of generation, and of the library: none changes what a model computes.
_HARMLESS = re.compile(
    r"""architectures|model_type|_name_or_path|transformers_version|(torch_)?dtype|use_cache|return_dict(_in_generate)?
    |output_(attentions|hidden_states|scores|router_logits)|problem_type|id2label|label2id|num_labels|finetuning_task|task_specific_params|is_decoder
    |(\w+_)?(dropout|pdrop)(_prob)?|initializer_range|summary_\w+|gradient_checkpointing|chunk_size_feed_forward
    |(\w+_)?token_ids?|tokenizer_class|prefix|model_max_length|max_length|max_window_layers|n_ctx|reorder_and_upcast_attn
    |pretraining_tp|(_?attn_implementation\w*)|transformers\.js_config|unsloth_\w+|is_llama_config|torchscript
    |do_sample|temperature|top_k|top_p|num_beams|num_return_sequences|repetition_penalty|length_penalty|early_stopping
    """,
    re.VERBOSE,
)

_UNKNOWN = object()


class Options:
    """The fields of a config.json, taken out one by one so that the rest is what nobody has read."""

    def __init__(self, values: Mapping[str, Any], file: str, ignore: Sequence[str] = ()):
        self._left = dict(values)
        self.file = file
        self.ignore = tuple(ignore)

    def peek(self, name: str) -> Any:
        """Look at a field that stays."""
        return self._left.get(name)

    def require(self, name: str) -> None:
        """Check that a field is there."""
        if name not in self._left:
            raise self.error(f"field {name!r} is missing")

    def add(self, name: str, value: Any) -> None:
        """Put a field in that was found elsewhere; null is left out."""
        if value is not None and self._left.setdefault(name, value) != value:
            raise self.error(f"field {name!r} is {self._left[name]!r} here and {value!r} outside")

    def take(self, *names: str, default: Any = _UNKNOWN) -> Any:
        """Take out a field that may have several names; if it stands twice, both must agree."""
        found = {name: self._left.pop(name) for name in names if name in self._left}
        values = list(found.values())
        if any(value != values[0] for value in values[1:]):
            raise self.error(f"fields {' and '.join(map(repr, found))} contradict each other: {values}")
        if values:
            return values[0]
        if default is _UNKNOWN:
            raise self.error(f"field {' or '.join(map(repr, names))} is missing")
        return default

    def count(self, *names: str, default: Any = _UNKNOWN) -> int:
        """Take out a positive integer."""
        value = self.take(*names, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"field {names[0]!r} must be a positive integer, got {value!r}")
        return value

    def maybe(self, *names: str, default: int | None = None) -> int | None:
        """Take out a positive integer or null."""
        value = self.take(*names, default=default)
        self.add(names[0], value)
        return None if value is None else self.count(names[0])

    def number(self, *names: str, default: Any = _UNKNOWN) -> float:
        """Take out a positive number."""
        value = self.take(*names, default=default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(f"field {names[0]!r} must be a positive number, got {value!r}")
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """Take out true or false."""
        value = self.take(name, default=default)
        if not isinstance(value, bool):
            raise self.error(f"field {name!r} must be true or false, got {value!r}")
        return value

    def fields(self, name: str) -> dict[str, Any]:
        """Take out an object; null is an empty one."""
        value = self.take(name, default=None) or {}
        if not isinstance(value, dict):
            raise self.error(f"field {name!r} must be an object, got {value!r}")
        return value

    def must(self, name: str, allowed: Collection[Any], why: str) -> None:
        """Refuse all but some values of a field that may be absent."""
        value = self.take(name, default=_UNKNOWN) if name in self._left else _UNKNOWN
        if value is not _UNKNOWN and value not in allowed:
            raise self.error(f"field {name!r} is {value!r}: {why}")

    def finish(self) -> None:
        """Refuse what nobody has read."""
        left = {
            name: value
            for name, value in self._left.items()
            if value not in _NOTHING and not _HARMLESS.fullmatch(name) and name not in self.ignore
        }
        if left:
            listed = ", ".join(f"{name!r} ({value!r:.60})" for name, value in sorted(left.items()))
            raise self.error(
                f"not known to flowrl: {listed}. If you know that the model computes the same without, name it in "
                "`ignore`"
            )

    def error(self, text: str) -> ValueError:
        """Make an error that names the file."""
        return ValueError(f"{self.file}: {text}.")


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: how its configuration is read, the prefix of its trunk, where our arrays are in its files."""

    read: Callable[[Options], TransformerConfig]
    prefix: str
    places: Mapping[str, Place]


def read_config(
    values: Mapping[str, Any], *, file: str, ignore: Sequence[str] = ()
) -> tuple[Family, TransformerConfig]:
    """Find the family of a model and the shape of its transformer; `ignore` names fields that may be left over."""
    options = Options(values, file, ignore)
    kind = options.take("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise options.error(f"field 'model_type' is {kind!r}; flowrl knows {', '.join(FAMILIES)}")
    options.must("quantization_config", _NOTHING, "quantised weights are not read; get the checkpoint without")
    options.must("is_encoder_decoder", _NOTHING, "encoder-decoder models are not implemented")
    options.must("pruned_heads", _NOTHING, "heads cannot be pruned here")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        options.must(name, _NOTHING, "capped logits are not implemented")
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        options.must(name, (*_NOTHING, 0, 1), "mixtures of experts are not implemented")
    config = family.read(options)
    options.finish()
    return family, config


def _gpt2(o: Options) -> TransformerConfig:
    width, heads = o.count("n_embd", "hidden_size"), o.count("n_head", "num_attention_heads")
    o.must("scale_attn_weights", (True,), "scores without their scale 1/√size are not implemented")
    o.must("scale_attn_by_inverse_layer_idx", (False,), "scales of attention that differ by layer are not implemented")
    o.must("add_cross_attention", (False,), "cross attention is not implemented")
    hidden = o.maybe("n_inner", "intermediate_size")
    return TransformerConfig(
        vocabulary=o.count("vocab_size"),
        width=width,
        layers=o.count("n_layer", "num_hidden_layers"),
        heads=heads,
        key_value_heads=heads,
        head_size=_share(o, width, heads),
        hidden=hidden or 4 * width,
        norm_epsilon=o.number("layer_norm_epsilon", default=1e-5),
        positions="learned",
        max_positions=o.count("n_positions", "max_position_embeddings"),
        activation=_activation(o, "activation_function", "gelu_new"),
        tied=o.flag("tie_word_embeddings", default=True),
    )


def _gpt_neox(o: Options) -> TransformerConfig:
    width, heads = o.count("hidden_size"), o.count("num_attention_heads")
    bias = o.flag("attention_bias", default=True)
    return TransformerConfig(
        vocabulary=o.count("vocab_size"),
        width=width,
        layers=o.count("num_hidden_layers"),
        heads=heads,
        key_value_heads=heads,
        head_size=_share(o, width, heads),
        hidden=o.count("intermediate_size"),
        norm_epsilon=o.number("layer_norm_eps", default=1e-5),
        max_positions=o.count("max_position_embeddings", default=2048),
        activation=_activation(o, "hidden_act", "gelu"),
        parallel=o.flag("use_parallel_residual", default=True),
        query_bias=bias,
        output_bias=bias,
        tied=o.flag("tie_word_embeddings", default=False),
        **_rotations(o, bases=("rotary_emb_base", "rope_theta"), fractions=("rotary_pct",), fraction=0.25),
    )


def _llama(o: Options) -> TransformerConfig:
    bias = o.flag("attention_bias", default=False)
    o.must("rope_interleaved", _NOTHING, "rotations of neighbours are not implemented")
    return _gated(o, query_bias=bias, output_bias=bias, bias=o.flag("mlp_bias", default=False))


def _mistral(o: Options) -> TransformerConfig:
    _refuse_window(o, default=4096)
    o.require("num_key_value_heads")
    return _gated(o, query_bias=False, bias=False)


def _qwen_window(o: Options) -> None:
    o.require("num_key_value_heads")
    if o.flag("use_sliding_window", default=False):
        _refuse_window(o, default=None)
    else:
        o.take("sliding_window", default=None)


def _qwen2(o: Options) -> TransformerConfig:
    _qwen_window(o)
    return _gated(o, query_bias=True, bias=False)


def _qwen3(o: Options) -> TransformerConfig:
    _qwen_window(o)
    bias = o.flag("attention_bias", default=False)
    return _gated(o, size=128, query_bias=bias, output_bias=bias, bias=False, query_key_norm=True)


def _gated(o: Options, *, size: int | None = None, **settings: Any) -> TransformerConfig:
    """Read what Llama and all that came after it have in common."""
    width, heads = o.count("hidden_size"), o.count("num_attention_heads")
    kinds = o.take("layer_types", default=None) or []
    if any(kind != "full_attention" for kind in kinds):
        raise o.error(f"field 'layer_types' is {kinds!r:.80}: only full attention is implemented")
    return TransformerConfig(
        vocabulary=o.count("vocab_size"),
        width=width,
        layers=o.count("num_hidden_layers"),
        heads=heads,
        key_value_heads=o.maybe("num_key_value_heads") or heads,
        head_size=o.maybe("head_dim", default=size) or _share(o, width, heads),
        hidden=o.count("intermediate_size"),
        norm="rms",
        norm_epsilon=o.number("rms_norm_eps", default=1e-6),
        max_positions=o.count("max_position_embeddings", default=2048),
        activation=_activation(o, "hidden_act", "silu"),
        gated=True,
        tied=o.flag("tie_word_embeddings", default=False),
        **_rotations(o),
        **settings,
    )


def _share(o: Options, width: int, heads: int) -> int:
    if width % heads:
        raise o.error(f"the width {width} must be a multiple of the number of heads {heads}")
    return width // heads


def _activation(o: Options, name: str, default: str) -> Any:
    given = o.take(name, default=default)
    if given not in _ACTIVATIONS:
        raise o.error(f"field {name!r} is {given!r}; flowrl knows {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[given]


def _refuse_window(o: Options, *, default: int | None) -> None:
    """Refuse sliding-window attention that acts; a window as wide as the longest text does not."""
    window, longest = o.take("sliding_window", default=default), o.peek("max_position_embeddings")
    if window is not None and not (isinstance(longest, int) and window >= longest):
        raise o.error(
            f"field 'sliding_window' is {window!r} (its value if absent: {default}): sliding windows are not "
            "implemented. Texts shorter than the window do not notice it: for them, set the field to null"
        )


def _rotations(
    o: Options,
    *,
    bases: tuple[str, ...] = ("rope_theta",),
    fractions: tuple[str, ...] = (),
    fraction: float = 1.0,
) -> dict[str, Any]:
    """Read rotary positions, from `rope_parameters` (since transformers 5) or from the fields before it."""
    given = {name: value for name, value in o.fields("rope_scaling").items() if value is not None}
    newer = {name: value for name, value in o.fields("rope_parameters").items() if value is not None}
    if any(isinstance(value, dict) for value in newer.values()):
        raise o.error("field 'rope_parameters' differs by kind of layer, which is not implemented")
    if newer and given and newer != given:
        raise o.error("fields 'rope_parameters' and 'rope_scaling' contradict each other")
    where = f"{o.file}, field '{'rope_parameters' if newer else 'rope_scaling'}'"
    rope = Options(newer or given, where, o.ignore)
    for name in (*bases, *fractions, "partial_rotary_factor"):
        rope.add(name, o.take(name, default=None))
    kind = rope.take("rope_type", "type", default="default")
    base = rope.number(*bases, default=10_000.0)
    share = rope.number("partial_rotary_factor", *fractions, default=fraction)
    if fraction == 1.0 and share != 1.0:
        raise rope.error(f"field 'partial_rotary_factor' is {share}: this family rotates whole heads")
    scaling = None
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = tuple(rope.number(name) for name in names)
    elif kind != "default":
        raise rope.error(f"the kind of scaling is {kind!r}; flowrl knows 'default' and 'llama3'")
    rope.finish()
    return {"rotary_base": base, "rotary_fraction": share, "rotary_scaling": scaling}


def _dense(path: str, name: str, layout: Layout) -> dict[str, Place]:
    return {f"{path}.weight": Place((f"{name}.weight",), layout), f"{path}.bias": Place((f"{name}.bias",), SAME)}


def _norm(path: str, name: str) -> dict[str, Place]:
    return {f"{path}.scale": Place((f"{name}.weight",), SAME), f"{path}.shift": Place((f"{name}.bias",), SAME)}


def _fused(name: str, layouts: tuple[Layout, ...]) -> dict[str, Place]:
    """Queries, keys and values in one tensor."""
    found = {}
    for part, layout in zip(("query", "key", "value"), layouts, strict=True):
        found[f"{_BLOCKS}.{part}.weight"] = Place((f"{name}.weight",), layout)
        found[f"{_BLOCKS}.{part}.bias"] = Place((f"{name}.bias",), layout)
    return found


_BLOCKS = "trunk.blocks"
_SCORE = {"score.weight": Place(("score.weight",), TRANSPOSED)}

_GPT2_PLACES = {
    "trunk.embedding": Place(("wte.weight",), SAME),
    "trunk.position_embedding": Place(("wpe.weight",), SAME),
    **_norm(f"{_BLOCKS}.attention_norm", "h.{}.ln_1"),
    **_fused("h.{}.attn.c_attn", THIRDS),
    **_dense(f"{_BLOCKS}.output", "h.{}.attn.c_proj", SAME),
    **_norm(f"{_BLOCKS}.mlp_norm", "h.{}.ln_2"),
    **_dense(f"{_BLOCKS}.up", "h.{}.mlp.c_fc", SAME),
    **_dense(f"{_BLOCKS}.down", "h.{}.mlp.c_proj", SAME),
    **_norm("trunk.norm", "ln_f"),
    "head.weight": Place(("lm_head.weight",), TRANSPOSED),
    **_SCORE,
}

_GPT_NEOX_PLACES = {
    "trunk.embedding": Place(("embed_in.weight",), SAME),
    **_norm(f"{_BLOCKS}.attention_norm", "layers.{}.input_layernorm"),
    **_fused("layers.{}.attention.query_key_value", HEADWISE),
    **_dense(f"{_BLOCKS}.output", "layers.{}.attention.dense", TRANSPOSED),
    **_norm(f"{_BLOCKS}.mlp_norm", "layers.{}.post_attention_layernorm"),
    **_dense(f"{_BLOCKS}.up", "layers.{}.mlp.dense_h_to_4h", TRANSPOSED),
    **_dense(f"{_BLOCKS}.down", "layers.{}.mlp.dense_4h_to_h", TRANSPOSED),
    **_norm("trunk.norm", "final_layer_norm"),
    "head.weight": Place(("embed_out.weight", "lm_head.weight"), TRANSPOSED),
    **_SCORE,
}

_GATED_PLACES = {
    "trunk.embedding": Place(("embed_tokens.weight",), SAME),
    **_norm(f"{_BLOCKS}.attention_norm", "layers.{}.input_layernorm"),
    **_dense(f"{_BLOCKS}.query", "layers.{}.self_attn.q_proj", TRANSPOSED),
    **_dense(f"{_BLOCKS}.key", "layers.{}.self_attn.k_proj", TRANSPOSED),
    **_dense(f"{_BLOCKS}.value", "layers.{}.self_attn.v_proj", TRANSPOSED),
    **_norm(f"{_BLOCKS}.query_norm", "layers.{}.self_attn.q_norm"),
    **_norm(f"{_BLOCKS}.key_norm", "layers.{}.self_attn.k_norm"),
    **_dense(f"{_BLOCKS}.output", "layers.{}.self_attn.o_proj", TRANSPOSED),
    **_norm(f"{_BLOCKS}.mlp_norm", "layers.{}.post_attention_layernorm"),
    **_dense(f"{_BLOCKS}.gate", "layers.{}.mlp.gate_proj", TRANSPOSED),
    **_dense(f"{_BLOCKS}.up", "layers.{}.mlp.up_proj", TRANSPOSED),
    **_dense(f"{_BLOCKS}.down", "layers.{}.mlp.down_proj", TRANSPOSED),
    **_norm("trunk.norm", "norm"),
    "head.weight": Place(("lm_head.weight",), TRANSPOSED),
    **_SCORE,
}

FAMILIES = {
    "gpt2": Family(_gpt2, "transformer.", _GPT2_PLACES),
    "gpt_neox": Family(_gpt_neox, "gpt_neox.", _GPT_NEOX_PLACES),
    "llama": Family(_llama, "model.", _GATED_PLACES),
    "mistral": Family(_mistral, "model.", _GATED_PLACES),
    "qwen2": Family(_qwen2, "model.", _GATED_PLACES),
    "qwen3": Family(_qwen3, "model.", _GATED_PLACES),
}
