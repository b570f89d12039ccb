"""Pairs of answers of which one is preferred: read in the forms they are published in, and written in one of them."""

import dataclasses
import gzip
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from flowrl._io import atomic_write
from flowrl.rlhf.data import _jsonl

#: Renders a conversation; with True also the beginning of the assistant's turn that comes next.
ChatTemplate = Callable[[Sequence[Mapping[str, str]], bool], str]

_TURN = "\n\nAssistant:"


@dataclasses.dataclass(frozen=True)
class Preference:
    """Two answers to one prompt; a text is `prompt + answer`, with nothing between.

    Attributes:
        prompt: what is answered; may be empty.
        chosen: the answer that is preferred.
        rejected: the other one.

    Raises:
        ValueError: the answers are the same.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError(f"chosen and rejected must differ, both are {self.chosen[:60]!r}.")


def plain_chat(messages: Sequence[Mapping[str, str]], open_turn: bool) -> str:  # noqa: FBT001  (a template's form)
    r"""Render a conversation as lines "role: content" with an empty line between them.

    `[{"role": "user", "content": "Hi"}]` is `"user: Hi"`, and `"user: Hi\n\nassistant:"` with an open turn. The
    template a chat model was trained with is another function of the same form, such as
    `lambda messages, open_turn: tokenizer.apply_chat_template(messages, tokenize=False,
    add_generation_prompt=open_turn)` with a tokenizer of transformers.

    Args:
        messages: with keys "role" and "content".
        open_turn: whether the assistant's next turn is begun.
    """
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n\n".join([*lines, "assistant:"] if open_turn else lines)


def read_preferences(
    path: str | os.PathLike[str],
    *,
    format: str = "trl",
    template: ChatTemplate = plain_chat,
    ignore: Collection[str] = (),
) -> list[Preference]:
    r"""Read preferences from a file of JSON lines.

    | format | a line |
    |---|---|
    | `"trl"` | `{"prompt", "chosen", "rejected"}`: strings, or lists of messages `{"role", "content"}`. Without a prompt, what both answers begin with is taken for it: whole messages, or text up to a border of words. |
    | `"tldr"` | a comparison of OpenAI's *summarize from feedback*: `info.subreddit`, `info.title`, `info.post`, `summaries[0].text`, `summaries[1].text`, `choice`. The prompt is `"SUBREDDIT: r/...\n\nTITLE: ...\n\nPOST: ...\n\nTL;DR:"`. Other fields are about the comparison and are not read. |
    | `"hh"` | Anthropic's *helpful and harmless*: `{"chosen", "rejected"}`, each a dialogue `"\n\nHuman: ...\n\nAssistant: ..."`. The prompt ends with the last `"\n\nAssistant:"` that both share. |

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        format: "trl", "tldr" or "hh".
        template: renders messages, in the format "trl".
        ignore: fields that the lines may have besides and that are not read, in the formats "trl" and "hh".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown format, no preferences, or a line that is not of the format; the message names file, line
            and field.
    """  # noqa: E501  (rows of a table)
    readers: dict[str, Callable[[dict[str, Any], str], Preference]] = {
        "trl": lambda row, where: _trl(row, where, template, ignore),
        "tldr": _tldr,
        "hh": lambda row, where: _hh(row, where, ignore),
    }
    if format not in readers:
        raise ValueError(f"format must be one of {', '.join(readers)}, got {format!r}.")
    preferences = [readers[format](row, where) for where, row in _jsonl.read(path)]
    if not preferences:
        raise ValueError(f"{os.fspath(path)}: no preferences.")
    return preferences


@overload
def read_prompts(
    path: str | os.PathLike[str], *, template: ChatTemplate = plain_chat, ignore: Collection[str] = ()
) -> list[str]: ...


@overload
def read_prompts(
    path: str | os.PathLike[str], *, template: None, ignore: Collection[str] = ()
) -> list[str | list[dict[str, str]]]: ...


def read_prompts(
    path: str | os.PathLike[str], *, template: ChatTemplate | None = plain_chat, ignore: Collection[str] = ()
) -> list[Any]:
    """Read prompts from a file of JSON lines `{"prompt": ...}`, each a string or a list of messages.

    Args:
        path: a `.jsonl` or `.jsonl.gz` file.
        template: renders messages; None leaves them as they are, for `generate`.
        ignore: fields that the lines may have besides and that are not read.

    Raises:
        ValueError: no prompts, or a line without one; the message names file, line and field.
    """
    prompts = []
    for where, row in _jsonl.read(path):
        _refuse_others(row, ("prompt",), ignore, where)
        prompt = _text_or_messages(row, "prompt", where)
        prompts.append(prompt if template is None else _prompt(prompt, template))
    if not prompts:
        raise ValueError(f"{os.fspath(path)}: no prompts.")
    return prompts


def write_preferences(path: str | os.PathLike[str], preferences: Iterable[Preference]) -> None:
    """Write preferences as JSON lines `{"prompt", "chosen", "rejected"}` of strings, whole or not at all.

    Args:
        path: its directory exists; gzipped if it ends in ".gz". The same preferences give the same bytes.
        preferences: any number.
    """
    lines = [json.dumps(dataclasses.asdict(preference), ensure_ascii=False) for preference in preferences]
    content = "".join(f"{line}\n" for line in lines).encode()
    file = Path(path)
    with atomic_write(file) as stream:
        stream.write(gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)


def _trl(row: dict[str, Any], where: str, template: ChatTemplate, ignore: Collection[str]) -> Preference:
    _refuse_others(row, ("prompt", "chosen", "rejected"), ignore, where)
    chosen = _text_or_messages(row, "chosen", where)
    rejected = _text_or_messages(row, "rejected", where)
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError(f"{where}: fields 'chosen' and 'rejected' must both be strings or both lists of messages.")
    if chosen == rejected:
        raise ValueError(f"{where}: fields 'chosen' and 'rejected' are the same.")
    if "prompt" not in row:
        cut = _shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    else:
        prompt = _text_or_messages(row, "prompt", where)
        if isinstance(prompt, str) != isinstance(chosen, str):
            raise ValueError(f"{where}, field 'prompt': must be a string, or a list of messages, as the answers are.")
    begin = _prompt(prompt, template)
    return _preference(
        begin,
        _answer(begin, prompt, chosen, template, f"{where}, field 'chosen'"),
        _answer(begin, prompt, rejected, template, f"{where}, field 'rejected'"),
        where,
    )


def _tldr(row: dict[str, Any], where: str) -> Preference:
    info = _jsonl.field(row, "info", where)
    summaries = _jsonl.field(row, "summaries", where)
    choice = _jsonl.field(row, "choice", where)
    if not isinstance(info, dict):
        raise ValueError(f"{where}, field 'info': expected an object, got {_jsonl.kind(info)}.")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(x, dict) for x in summaries):
        raise ValueError(f"{where}, field 'summaries': expected two objects.")
    if choice not in (0, 1) or isinstance(choice, bool):
        raise ValueError(f"{where}, field 'choice': expected 0 or 1, got {choice!r}.")
    subreddit, title, post = (_jsonl.text(info, name, f"{where}, info") for name in ("subreddit", "title", "post"))
    texts = [_jsonl.text(x, "text", f"{where}, summaries[{index}]").strip() for index, x in enumerate(summaries)]
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    return _preference(prompt, f" {texts[choice]}", f" {texts[1 - choice]}", where)


def _hh(row: dict[str, Any], where: str, ignore: Collection[str]) -> Preference:
    _refuse_others(row, ("chosen", "rejected"), ignore, where)
    chosen, rejected = (_jsonl.text(row, name, where) for name in ("chosen", "rejected"))
    # In a few published lines the dialogues part before the last turn, so only what is shared can be the prompt.
    found = os.path.commonprefix([chosen, rejected]).rfind(_TURN)
    if found < 0:
        raise ValueError(f"{where}: fields 'chosen' and 'rejected' share no dialogue that ends with {_TURN!r}.")
    cut = found + len(_TURN)
    return _preference(chosen[:cut], chosen[cut:], rejected[cut:], where)


def _preference(prompt: str, chosen: str, rejected: str, where: str) -> Preference:
    try:
        return Preference(prompt, chosen, rejected)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _refuse_others(row: dict[str, Any], known: Collection[str], ignore: Collection[str], where: str) -> None:
    others = sorted(set(row) - set(known) - set(ignore))
    if others:
        raise ValueError(f"{where}: unknown fields {', '.join(others)}; name them in `ignore` if they may be left out.")


def _text_or_messages(row: dict[str, Any], name: str, where: str) -> Any:
    """Return a field that is a string or a list of messages."""
    value = _jsonl.field(row, name, where)
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{where}, field {name!r}: expected a string or a list of messages, got "
            f"{'an empty list' if value == [] else _jsonl.kind(value)}."
        )
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise ValueError(f"{where}, field {name!r}[{index}]: expected a message, got {_jsonl.kind(message)}.")
        for key in ("role", "content"):
            _jsonl.text(message, key, f"{where}, field {name!r}[{index}]")
    return value


def _shared(first: Any, second: Any) -> int:
    """Count the messages, or characters up to a border of words, that two answers begin with."""
    cut = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second)))
    if not isinstance(first, str):
        return cut
    # Answers that begin with the same letters do not share half a word.
    while cut and not (_is_border(first, cut) and _is_border(second, cut)):
        cut -= 1
    # The space belongs to the answer, as tokenizers have it.
    return cut - 1 if cut and first[cut - 1] == " " else cut


def _is_border(text: str, cut: int) -> bool:
    return cut == len(text) or text[cut].isspace() or text[cut - 1].isspace()


def _prompt(prompt: Any, template: ChatTemplate) -> str:
    if isinstance(prompt, str):
        return prompt
    return template(prompt, not prompt or prompt[-1]["role"] != "assistant")


def _answer(begin: str, prompt: Any, answer: Any, template: ChatTemplate, where: str) -> str:
    """Return what the template adds to the prompt for an answer."""
    if isinstance(answer, str):
        return answer
    whole = template([*prompt, *answer], False)  # noqa: FBT003  (a template's form)
    if not whole.startswith(begin):
        raise ValueError(
            f"{where}: as the template has it, the conversation does not begin with its prompt "
            f"({whole[:60]!r}, {begin[:60]!r}); an answer's first message must have the role 'assistant'."
        )
    return whole[len(begin) :]
