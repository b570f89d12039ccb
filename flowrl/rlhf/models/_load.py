"""Loading language models and reward models from the files of Hugging Face's libraries."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike

from flowrl._distribution import require
from flowrl._io import parse_json
from flowrl.rlhf.data import FileTokenizer
from flowrl.rlhf.models._families import Family, read_config
from flowrl.rlhf.models._gguf import GGUF
from flowrl.rlhf.models._lora import CONFIG, WEIGHTS, base_of, merged
from flowrl.rlhf.models._model import LanguageModel, RewardModel
from flowrl.rlhf.models._transformer import TransformerConfig
from flowrl.rlhf.models._weights import Tensor, fill

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED = (
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "model*.safetensors",
)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_language_model(
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> LanguageModel:
    """Load a causal language model: GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Qwen2 or Qwen3.

    Weights are read from safetensors, or from a GGUF file of a Llama, one tensor at a time; the fingerprint is that of
    the tokenizer beside them. What the model would do otherwise than `transformers` is refused. An adapter of low rank
    (LoRA, as `peft` saves it) is merged into its model.

    Args:
        source: a directory with `config.json`, a `.gguf` file, or a name on the Hugging Face hub such as
            "EleutherAI/pythia-160m", which is downloaded.
        dtype: of the weights.
        revision: branch, tag or commit on the hub.
        ignore: fields of `config.json` that flowrl does not know and that may have any value.

    Raises:
        FileNotFoundError: there is no such model, or it has no safetensors.
        ImportError: a package of the extra "rlhf" is missing.
        ValueError: a file is damaged, or the model is not implemented; the message names file and field or tensor.
    """
    with _opened(source, revision, ignore) as found:
        skeleton = eqx.filter_eval_shape(LanguageModel, found.config, key=jr.key(0), tokens=found.tokens)
        return found.fill(skeleton, dtype)


def load_reward_model(
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    pooling: Literal["last", "mean"] | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> RewardModel:
    """Load a reward model: a causal trunk and one linear score, as `*ForSequenceClassification` with one label.

    The score is that of the last token that is not padding. `transformers` tells padding by its token instead: if that
    is also the token that ends a text, it reads the token before.

    Args:
        source: a directory with `config.json`, or a name on the Hugging Face hub, which is downloaded.
        dtype: of the weights.
        pooling: which hidden state is scored; None means the last, which is what such models are trained for.
        revision: branch, tag or commit on the hub.
        ignore: fields of `config.json` that flowrl does not know and that may have any value.

    Raises:
        FileNotFoundError: there is no such model, or it has no safetensors.
        ImportError: a package of the extra "rlhf" is missing.
        ValueError: a file is damaged, or the model is not implemented; the message names file and field or tensor.
    """
    with _opened(source, revision, ignore) as found:
        score = found.tensors.get("score.weight")
        if score is None:
            raise ValueError(
                f"{found.file}: no tensor score.weight, so this is no reward model; load_language_model loads the "
                "others."
            )
        if score.shape[0] != 1:
            raise ValueError(
                f"{score.file}: tensor score.weight has shape {score.shape}, so the model has {score.shape[0]} labels; "
                "a reward is one number: keep the row of the label you want, of shape (1, d), and num_labels 1 in "
                "config.json."
            )
        skeleton = eqx.filter_eval_shape(RewardModel, found.config, key=jr.key(0), pooling=pooling, tokens=found.tokens)
        return found.fill(skeleton, dtype)


class _Found:
    """An opened model: its configuration, and tensors that can be read while it is open."""

    def __init__(
        self, file: str, family: Family, config: TransformerConfig, tensors: dict[str, Tensor], tokens: str | None
    ):
        self.file, self.family, self.config, self.tensors, self.tokens = file, family, config, tensors, tokens

    def fill(self, skeleton: Any, dtype: DTypeLike) -> Any:
        family = self.family
        return fill(skeleton, self.config, family.places, family.prefix, self.tensors, dtype, self.file)


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str], revision: str | None, ignore: Sequence[str]) -> Iterator[_Found]:
    path, *others = model_files(source, revision)
    if path.suffix == ".gguf":
        file = GGUF(path)
        family, config = read_config(file.config(), file=str(path), ignore=ignore)
        yield _Found(str(path), family, config, file.tensors(), file.fingerprint())
        return
    if not path.is_dir():
        raise ValueError(f"{path}: expected a directory with config.json and safetensors, or a .gguf file.")
    home = others[0] if others else path
    values = read_json(home / "config.json")
    family, config = read_config(values, file=str(home / "config.json"), ignore=ignore)
    words = next((where for where in (path, home) if (where / "tokenizer.json").is_file()), None)
    tokens = None if words is None else FileTokenizer.load(words).fingerprint
    with contextlib.ExitStack() as stack:
        tensors = _tensors(home, stack)
        if others:
            if not (path / WEIGHTS).is_file():
                raise FileNotFoundError(f"{path}: {_no_weights(path, WEIGHTS)}")
            adapter, changes = read_json(path / CONFIG), _file_tensors(path / WEIGHTS, stack)
            tensors = merged(tensors, changes, adapter, str(values["model_type"]), str(path))
        yield _Found(str(path), family, config, tensors, tokens)


def model_files(source: str | os.PathLike[str], revision: str | None = None) -> tuple[Path, ...]:
    """Return the directories that hold a model's files, most telling first: an adapter's own, then its model's."""
    path = _found(source, revision)
    if (path / CONFIG).is_file() and not any((path / name).is_file() for name in (_SINGLE, _INDEX)):
        return path, _found(base_of(path, read_json(path / CONFIG)), None)
    return (path,)


def _found(source: str | os.PathLike[str], revision: str | None) -> Path:
    path = Path(source)
    if not path.exists():
        return _downloaded(source, revision)
    if revision is not None:
        raise ValueError(f"revision is for models on the hub, but {path} is here; got {revision!r}.")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object.")
    return content


def _downloaded(source: str | os.PathLike[str], revision: str | None) -> Path:
    if not isinstance(source, str) or not _HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f'{os.fspath(source)}: no such directory or file, and no name on the Hugging Face hub ("owner/name").'
        )
    require("huggingface_hub", extra="rlhf")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, allow_patterns=list(_WANTED)))


def _tensors(directory: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """Open a model's safetensors, in one file or in several with an index."""
    if (directory / _SINGLE).is_file():
        return _file_tensors(directory / _SINGLE, stack)
    if not (directory / _INDEX).is_file():
        raise FileNotFoundError(f"{directory}: {_no_weights(directory)}")
    index = directory / _INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: field 'weight_map' must be an object that says which file each tensor is in.")
    files = sorted(set(map(str, places.values())))
    for name in files:
        # Files lie beside their index, always; another path could lead anywhere.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {name!r} must be the plain name of a .safetensors file beside the index.")
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name}: no such file, but {index.name} names it.")
    found: dict[str, Tensor] = {}
    for name in files:
        for tensor, content in _file_tensors(directory / name, stack).items():
            if places.get(tensor) != name:
                raise ValueError(f"{index}: tensor {tensor} is in {name}, not in {places.get(tensor)}.")
            found[tensor] = content
    missing = sorted(set(places) - set(found))
    if missing:
        raise ValueError(
            f"{directory / places[missing[0]]}: tensor {missing[0]} is missing, but {index.name} names it."
        )
    return found


def _file_tensors(path: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    require("safetensors", extra="rlhf")
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(path, "numpy"))
        # The default argument binds the name of each turn.
        return {
            name: Tensor(str(path), tuple(file.get_slice(name).get_shape()), lambda name=name: file.get_tensor(name))
            for name in file.keys()  # noqa: SIM118 (not a dictionary)
        }
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error}).") from error


def _no_weights(directory: Path, wanted: str = _SINGLE) -> str:
    names = sorted(path.name for path in directory.iterdir())
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"holds {', '.join(pickles[:3])} but no {wanted}. Pickles can run any code when they are read, so they "
            "never are; save the model with transformers' save_pretrained, which writes safetensors."
        )
    return f"holds neither {_SINGLE} nor {_INDEX}." if wanted == _SINGLE else f"holds no {wanted}."
