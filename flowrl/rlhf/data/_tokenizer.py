"""Tokenizers: words counted on the spot, or the vocabulary that came with a model."""

import abc
import collections
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flowrl._distribution import require
from flowrl._io import parse_json

_SPECIAL = ("<pad>", "<unk>", "<end>")
_PAD, _UNKNOWN, _END = range(3)
_FORMAT = "flowrl.WordTokenizer"
# An unknown word that was decoded, words with their apostrophes, numbers with their separators, the marks of several
# characters, any other character.
_TOKEN = re.compile(r"<unk>|[^\W\d_]+(?:'[^\W\d_]+)*|\d+(?:[.,]\d+)*|\.\.\.|--|[^\w\s]|_")
# How one mark is written in several ways.
_SPELLINGS = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'), ("''", '"'), ("``", '"'), ("…", "..."), ("—", "--"))
_TO_THE_LEFT = frozenset(".,;:!?)]}%'") | {"..."}
_TO_THE_RIGHT = frozenset("([{$#@")
_TO_BOTH = frozenset("-/_")


class AbstractTokenizer(abc.ABC):
    """Texts to lists of token ids, and back."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without any special token.

        Args:
            text: any text.
        """

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without padding and end marks.

        Args:
            ids: each in [0, size).
        """

    @property
    @abc.abstractmethod
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary in the order of the ids; an id that no token has stands as an empty string."""

    @property
    @abc.abstractmethod
    def pad(self) -> int | None:
        """The id that fills up rows, if there is one."""

    @property
    @abc.abstractmethod
    def end(self) -> int | None:
        """The id that ends a text, if there is one."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the ordered vocabulary: equal if every id means the same token in two models."""
        return hashlib.sha256(json.dumps(list(self.tokens)).encode()).hexdigest()


class WordTokenizer(AbstractTokenizer):
    """Lower-cased words and punctuation marks as tokens, for small models that are trained on the spot.

    Ids 0, 1 and 2 are padding, the unknown word and the end of a text. `encode(decode(ids))` gives words back, the
    unknown one too; white space, case and the kind of quotation marks are not kept.

    Args:
        words: the words and marks in the order of their ids, which begin with 3; each as `encode` cuts texts.

    Raises:
        ValueError: a word is there twice, or is not one token.
    """

    def __init__(self, words: Iterable[str]):
        self.words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self.words, start=len(_SPECIAL))}
        if len(self._ids) != len(self.words):
            twice = [word for word, count in collections.Counter(self.words).items() if count > 1]
            raise ValueError(f"words must differ, got {', '.join(map(repr, twice[:5]))} more than once.")
        if wrong := [word for word in self.words if _split(word) != [word]]:
            raise ValueError(f"words must be single lower-case tokens, got {', '.join(map(repr, wrong[:5]))}.")

    @classmethod
    def fit(cls, texts: Iterable[str], size: int = 3000) -> "WordTokenizer":
        """Take the most frequent words of some texts; of equally frequent ones the alphabetically first.

        Args:
            texts: at least one with a word.
            size: of the vocabulary, at most, with the three special tokens.
        """
        if size <= len(_SPECIAL):
            raise ValueError(f"size must be more than {len(_SPECIAL)}, the special tokens; got {size}.")
        counts = collections.Counter(word for text in texts for word in _split(text))
        if not counts:
            raise ValueError("no words in the texts.")
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered[: size - len(_SPECIAL)])

    @classmethod
    def from_json(cls, text: str) -> "WordTokenizer":
        """Read what `to_json` wrote.

        Args:
            text: of the file.
        """
        try:
            content = parse_json(text)
        except ValueError as error:
            raise ValueError(f"not a word tokenizer: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("version") != 1:
            raise ValueError(f'not a word tokenizer: expected {{"format": "{_FORMAT}", "version": 1, "words": [...]}}.')
        words = content.get("words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError("a word tokenizer's field 'words' must be a list of strings.")
        return cls(words)

    def to_json(self) -> str:
        """Return the tokenizer as the text of a JSON file."""
        return json.dumps({"format": _FORMAT, "version": 1, "words": self.words}, indent=0)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words and marks of a text; nothing in it is read as a special token."""
        return [self._ids.get(word, _UNKNOWN) for word in _split(text)]

    def decode(self, ids: Sequence[int]) -> str:
        if wrong := [index for index in ids if not 0 <= index < self.size]:
            raise ValueError(f"ids must be in [0, {self.size}), got {wrong[0]}.")
        return _join([self.tokens[index] for index in ids if index not in (_PAD, _END)])

    @property
    def tokens(self) -> tuple[str, ...]:
        return _SPECIAL + self.words

    @property
    def pad(self) -> int:
        return _PAD

    @property
    def unknown(self) -> int:
        """The id of every word that is not in the vocabulary."""
        return _UNKNOWN

    @property
    def end(self) -> int:
        return _END


_BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte that is no letter by itself, in vocabularies of letters

#: Ids may leave holes, but no more than this many times the tokens, and this many beside.
_HOLES, _SPARE = 16, 2**16


class FileTokenizer(AbstractTokenizer):
    """The tokenizer that came with a model, in the format of the `tokenizers` package.

    Truncation and padding that the file asks for are switched off: a model's caller says what is cut. `encode` adds no
    special tokens to a text; `framed` says which ones the model's own configuration puts around it.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        pad: the id that fills up rows; None if there is none.
        end: the id that ends a text; None if there is none.

    Raises:
        ValueError: `pad` or `end` is no id of the vocabulary.
    """

    def __init__(self, tokenizer: Any, *, pad: int | None = None, end: int | None = None):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        ids = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
        self._tokens = tuple(ids.get(index, "") for index in range(max(ids, default=-1) + 1))
        for name, index in (("pad", pad), ("end", end)):
            if index is not None and not 0 <= index < self.size:
                raise ValueError(f"{name} must be an id in [0, {self.size}), got {index}.")
        self._pad, self._end = pad, end

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FileTokenizer":
        """Read a tokenizer from a model's directory.

        The padding and end tokens are those of `tokenizer_config.json`, else of `special_tokens_map.json`, else of
        `config.json`, if one of them names them. What begins and ends a text is what `tokenizer_config.json` says
        (`add_bos_token`, `add_eos_token`), else the `tokenizer.json` itself, as in `transformers`.

        Args:
            path: the directory, or the `tokenizer.json` in it.

        Raises:
            FileNotFoundError: there is no `tokenizer.json`.
            ValueError: a file cannot be read, or names a token that the vocabulary does not have.
        """
        given = Path(path)
        file = given / "tokenizer.json" if given.is_dir() else given
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such tokenizer; expected a tokenizer.json or the directory of one.")
        require("tokenizers", extra="rlhf")
        from tokenizers import Tokenizer

        _check_ids(file)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing more special
            raise ValueError(f"{file}: not a tokenizer that this `tokenizers` can read ({error}).") from error
        pad, end = (_special(file.parent, name, tokenizer) for name in ("pad", "eos"))
        _say_what_frames(file.parent, tokenizer)
        return cls(tokenizer, pad=pad, end=end)

    def encode(self, text: str) -> list[int]:
        return list(self._encode(text, add_special_tokens=False).ids)

    def framed(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text with what begins it, and the ids that end it, as the configuration says.

        Args:
            text: any text.
        """
        found = self._encode(text, add_special_tokens=True)
        last = len(found.ids)
        while last and found.special_tokens_mask[last - 1]:
            last -= 1
        # Of an empty text nobody can say where its beginning ends; what there is begins it.
        return (list(found.ids[:last]), list(found.ids[last:])) if last else (list(found.ids), [])

    def _encode(self, text: str, *, add_special_tokens: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            # A panic of Rust is no Exception, so that no caller would see it for what it is: an error of this text.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the tokenizer failed on a text of {len(text)} characters ({error}).") from error

    def decode(self, ids: Sequence[int]) -> str:
        if wrong := [index for index in ids if not 0 <= index < self.size]:
            raise ValueError(f"ids must be in [0, {self.size}), got {wrong[0]}.")
        hidden = {self._pad, self._end}
        kept = [int(index) for index in ids if index not in hidden]
        return self._tokenizer.decode(kept, skip_special_tokens=True)

    @property
    def added(self) -> frozenset[int]:
        """The ids that were added to the vocabulary a tokenizer was learned with, special ones among them."""
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @property
    def special(self) -> frozenset[int]:
        """The ids that `decode` leaves out: marks that a reader does not see."""
        return frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def pieces(self) -> list[bytes]:
        """Return what each token writes within a text, as UTF-8; a special token writes its name."""
        by_bytes = '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder"))
        byte, added, found = _byte_of_letter(), self._tokenizer.get_added_tokens_decoder(), []
        # Some decoders take the space off a text's first token, so it is seen what a token adds to another one.
        first = next((i for i in range(self.size) if i not in added and self.decode([i]).strip()), 0)
        before = len(self.decode([first]))
        for index, token in enumerate(self._tokens):
            if index in added:
                found.append(added[index].content.encode())
            elif by_bytes:
                found.append(bytes(byte[letter] for letter in token if letter in byte))
            elif match := _BYTE.fullmatch(token):
                found.append(bytes([int(match[1], 16)]))
            else:
                found.append(self.decode([first, index])[before:].encode() if token else b"")
        return found

    @property
    def tokens(self) -> tuple[str, ...]:
        return self._tokens

    @property
    def pad(self) -> int | None:
        return self._pad

    @property
    def end(self) -> int | None:
        return self._end


def _split(text: str) -> list[str]:
    """Cut a text into words and marks."""
    text = unicodedata.normalize("NFC", text)
    for written, meant in _SPELLINGS:
        text = text.replace(written, meant)
    return _TOKEN.findall(text.lower())


def _join(tokens: Sequence[str]) -> str:
    """Write words and marks so that `_split` cuts them in the same places."""
    pieces: list[str] = []
    previous, glue, is_open = "", True, False
    for token in tokens:
        closes = token == '"' and is_open
        left = glue or closes or token in _TO_THE_LEFT or token in _TO_BOTH
        # Two equal marks side by side may be another mark: ' ' is not ".
        left = left and not (previous and previous[-1] == token[0])
        pieces += [token] if left else [" ", token]
        glue = token in _TO_THE_RIGHT or token in _TO_BOTH or (token == '"' and not is_open)
        is_open = is_open != (token == '"')
        previous = token
    return "".join(pieces).strip()


def _check_ids(file: Path) -> None:
    """Refuse ids far beyond the number of tokens: a table by id would fill the memory, in Rust before it comes back."""
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        vocabulary, added = content.get("model", {}).get("vocab", {}), content.get("added_tokens") or []
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary)]
        ids += [token["id"] for token in added]
        largest = max(ids, default=0)
        many = largest > _HOLES * (len(ids) + len(vocabulary)) + _SPARE
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not a tokenizer that this `tokenizers` can read ({error}).") from error
    if many:
        raise ValueError(f"{file}: its largest id is {largest}, for {len(ids)} tokens; the file is damaged.")


def special_names(directory: Path) -> dict[str, str]:
    """Return the special tokens that the files beside a tokenizer name, such as "bos_token", as templates know them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = read_fields(directory / file)
        for name, token in content.items():
            token = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(token, str):
                found[name] = token
    return found


def _say_what_frames(directory: Path, tokenizer: Any) -> None:
    """Set what begins and ends a text, if the configuration says so beside the tokenizer."""
    content = read_fields(directory / "tokenizer_config.json")
    if "add_bos_token" not in content and "add_eos_token" not in content:
        return
    from tokenizers import processors

    names, whole, ids = special_names(directory), ["$A"], []
    for name, place in (("bos_token", 0), ("eos_token", 2)):
        if content.get(f"add_{name}") and name in names:
            token = names[name]
            index = tokenizer.token_to_id(token)
            if index is None:
                raise ValueError(
                    f"{directory / 'tokenizer_config.json'}: field {name} is {token!r}, which the vocabulary does not "
                    "have."
                )
            whole.insert(place, token)
            ids.append((token, index))
    tokenizer.post_processor = processors.TemplateProcessing(single=whole, special_tokens=ids)


def _byte_of_letter() -> dict[str, int]:
    """The letters that stand for bytes in vocabularies of bytes: printable ones for themselves, then the next free."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def read_fields(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; an empty one if there is no file."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object.")
    return content


def _special(directory: Path, name: str, tokenizer: Any) -> int | None:
    """Find the id of a special token ("pad" or "eos") in the files that may stand beside a tokenizer."""
    for file in ("tokenizer_config.json", "special_tokens_map.json", "config.json"):
        path = directory / file
        content = read_fields(path)
        token, index = content.get(f"{name}_token"), content.get(f"{name}_token_id")
        if isinstance(token, dict):
            token = token.get("content")
        # Some models end in one of several ways; the first is the one they are trained with.
        if isinstance(index, list) and index:
            index = index[0]
        if isinstance(token, str):
            found = tokenizer.token_to_id(token)
            if found is None:
                raise ValueError(f"{path}: field {name}_token is {token!r}, which the vocabulary does not have.")
            return int(found)
        if isinstance(index, int) and not isinstance(index, bool):
            return index
    return None
