"""Adapters of low rank, merged into the weights of their model when these are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowrl.rlhf.models._weights import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PART = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_WHOLE = re.compile(r"base_model\.model\.((?!.*\.lora_).+\.(?:weight|bias))")
_HEADS = ("lm_head.weight", "embed_out.weight")


def merged(
    tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor], config: Mapping[str, Any], kind: str, file: str
) -> dict[str, Tensor]:
    """Return a model's tensors with an adapter of `peft` merged into them: W + α/r · B A, and whole tensors it trained.

    Args:
        tensors: of the model, by name.
        adapter: of the adapter, by name.
        config: the adapter's configuration.
        kind: the model's `model_type`.
        file: the adapter's directory, for messages.

    Raises:
        ValueError: the adapter is of another kind, or belongs to another model.
    """
    asked = {"peft_type": "LORA", "use_dora": False, "bias": "none", "alpha_pattern": {}, "lora_bias": False}
    for name, value in asked.items():
        if config.get(name, value) not in (value, None):
            raise ValueError(
                f"{file}: an adapter with {name} = {config[name]!r} is not merged here: save the whole model instead "
                "(peft: merge_and_unload, then save_pretrained)."
            )
    parts: dict[str, dict[str, Tensor]] = {}
    found = dict(tensors)
    for name, tensor in adapter.items():
        if part := _PART.fullmatch(name):
            parts.setdefault(f"{part[1]}.weight", {})[part[2]] = tensor
        elif whole := _WHOLE.fullmatch(name):
            found[_stored(whole[1], tensors)] = tensor
        else:
            raise ValueError(
                f"{file}: tensor {name} is of no plain adapter of low rank: save the whole model instead (peft: "
                "merge_and_unload, then save_pretrained)."
            )
    if "score.weight" in found and "score.weight" not in tensors:  # trained as a reward model on a language model
        found = {name: tensor for name, tensor in found.items() if name not in _HEADS}
    for name, part in parts.items():
        stored = _stored(name, found)
        if stored not in found or set(part) != {"A", "B"}:
            raise ValueError(
                f"{file}: the adapter changes {name}, which its model {'lacks' if stored not in found else 'has'}, by "
                f"{' and '.join(sorted(part))} of A and B; it belongs to another model (base_model_name_or_path)."
            )
        first, second, base = part["A"], part["B"], found[stored]
        flipped = kind == "gpt2" and name not in _HEADS  # stored as (inputs, outputs)
        shape = (second.shape[0], first.shape[1])
        if base.shape != (shape[::-1] if flipped else shape) or first.shape[0] != second.shape[1]:
            raise ValueError(
                f"{file}: the adapter's {name} has shapes {second.shape} and {first.shape}, the model's {base.shape}; "
                "it belongs to another model (base_model_name_or_path)."
            )
        rank = first.shape[0]
        scale = float(config.get("lora_alpha", rank)) / (rank**0.5 if config.get("use_rslora") else rank)
        found[stored] = Tensor(base.file, base.shape, _reader(base, first, second, scale, flipped))
    return found


def base_of(directory: Path, config: Mapping[str, Any]) -> str | Path:
    """Return where the model of an adapter is: a directory, also beside the adapter, or a name on the hub."""
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{directory / CONFIG}: field base_model_name_or_path must say which model it is for.")
    return next((path for path in (Path(name), directory / name, directory.parent / name) if path.is_dir()), name)


def _stored(name: str, tensors: Mapping[str, Tensor]) -> str:
    """The name in the model's own file, which may leave out that of the trunk."""
    short = name.partition(".")[2]
    return short if name not in tensors and short in tensors else name


def _reader(base: Tensor, first: Tensor, second: Tensor, scale: float, flipped: bool) -> Any:  # noqa: FBT001
    def read() -> np.ndarray:
        change = scale * (second.read().astype(np.float32) @ first.read().astype(np.float32))
        return base.read().astype(np.float32) + (change.T if flipped else change)

    return read
