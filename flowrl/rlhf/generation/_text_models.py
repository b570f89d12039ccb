"""A language model and a reward model with all that makes texts of tokens: tokenizer, chat template, ends."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from flowrl.rlhf.data import ChatTemplate, FileTokenizer, JinjaTemplate
from flowrl.rlhf.models import (
    LanguageModel,
    RewardModel,
    Sampler,
    Stop,
    load_language_model,
    load_reward_model,
    model_files,
    read_json,
)

#: A text, or the messages of a conversation, each with "role" and "content"; the answer is what comes next.
Conversation = str | Sequence[Mapping[str, str]]

# Stands for an answer where a template is asked what it writes around one; private characters, which nobody types.
_ANSWER = "\ue000answer\ue001"


@dataclasses.dataclass(frozen=True)
class TextModel:
    """A language model that reads and writes texts.

    Attributes:
        model: the language model.
        tokenizer: of its tokens.
        template: how a conversation is written, or None for a model that goes on with a text; a prompt that is a string
            is then the text itself, else the first turn of a user.
        ends: tokens after which an answer is over.
    """

    model: LanguageModel
    tokenizer: FileTokenizer
    template: ChatTemplate | None = None
    ends: tuple[int, ...] = ()

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: DTypeLike = jnp.float32,
        revision: str | None = None,
        ignore: Sequence[str] = (),
    ) -> "TextModel":
        """Load a model with its tokenizer, chat template and end tokens.

        The end tokens are those of `generation_config.json`, else of `config.json`, and the tokenizer's own.

        Args:
            source: a directory, also of a LoRA adapter, or a name on the Hugging Face hub, which is downloaded.
            dtype: of the weights; `jnp.bfloat16` halves the memory.
            revision: branch, tag or commit on the hub.
            ignore: as in `load_language_model`.

        Raises:
            FileNotFoundError: there is no such model, or it has no safetensors or no `tokenizer.json`.
            ImportError: a package of the extra "rlhf" is missing.
            ValueError: a file is damaged, or the model is not implemented.
        """
        model = load_language_model(source, dtype=dtype, revision=revision, ignore=ignore)
        directories = model_files(source, revision)
        tokenizer, template = _words(directories)
        rows = model.trunk.config.vocabulary
        if tokenizer.size > rows:
            raise ValueError(
                f"{directories[0]}: its tokenizer has {tokenizer.size} tokens, the model knows {rows}: resize the "
                "model's embeddings, or take the tokenizer it was trained with."
            )
        return cls(model, tokenizer, template, _ends(directories, tokenizer))

    def encode(self, prompt: Conversation) -> list[int]:
        """Return the tokens that the model reads before it answers.

        A text begins as the tokenizer's configuration says; a conversation is all that its template writes.

        Args:
            prompt: a text, or a conversation.

        Raises:
            ValueError: a conversation without a template, or a template whose marks the tokenizer does not know.
        """
        if self.template is None:
            before, after = self.tokenizer.framed(_text(prompt, "model"))
            return before + after
        return _encoded(self.template, self.template(_messages(prompt), True), self.tokenizer)  # noqa: FBT003

    def decode(self, tokens: Any) -> str:
        """Return the text of an answer.

        Args:
            tokens: integers; special ones and ends are left out.
        """
        return self.tokenizer.decode([int(token) for token in tokens if int(token) not in self.ends])

    def sampler(
        self,
        length: int,
        *,
        stop: Sequence[str] = (),
        temperature: float = 1.0,
        top_p: float = 1.0,
        forbidden: Sequence[int] = (),
    ) -> Sampler:
        """Return how answers are drawn: until an end token, a stop string, or `length` tokens.

        Tokens that no reader would see are never drawn: special ones other than the ends, and rows without a token.

        Args:
            length: T, the longest answer.
            stop: strings after which an answer is over; it keeps them.
            temperature: divides the logits.
            top_p: only the most likely tokens whose probabilities sum to this are drawn from.
            forbidden: tokens that are never drawn besides.

        Raises:
            ValueError: a number is out of its range, or a stop string that no tokens write.
        """
        rows, tokens = self.model.trunk.config.vocabulary, self.tokenizer.tokens
        nameless = {i for i in range(rows) if i >= len(tokens) or not tokens[i]}
        hidden = (nameless | self.tokenizer.special | set(forbidden)) - set(self.ends)
        pieces = self.tokenizer.pieces() + [b""] * (rows - len(tokens)) if stop else []
        return Sampler(
            length,
            end=self.ends or None,
            pad=self.tokenizer.pad or 0,
            temperature=temperature,
            top_p=top_p,
            forbidden=tuple(sorted(hidden)),
            stop=Stop(stop, pieces) if stop else None,
        )


@dataclasses.dataclass(frozen=True)
class TextReward:
    """A reward model that reads texts.

    Attributes:
        model: the reward model.
        tokenizer: of its tokens.
        template: how a conversation is written, or None for one that reads the prompt and the answer after it.
    """

    model: RewardModel
    tokenizer: FileTokenizer
    template: ChatTemplate | None = None

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        dtype: DTypeLike = jnp.float32,
        revision: str | None = None,
        ignore: Sequence[str] = (),
    ) -> "TextReward":
        """Load a reward model with its tokenizer and chat template.

        Args:
            source: a directory, also of a LoRA adapter, or a name on the Hugging Face hub, which is downloaded.
            dtype: of the weights; `jnp.bfloat16` halves the memory.
            revision: branch, tag or commit on the hub.
            ignore: as in `load_reward_model`.

        Raises:
            FileNotFoundError: there is no such model, or it has no safetensors or no `tokenizer.json`.
            ImportError: a package of the extra "rlhf" is missing.
            ValueError: a file is damaged, or the model is no reward model, or not implemented.
        """
        model = load_reward_model(source, dtype=dtype, revision=revision, ignore=ignore)
        return cls(model, *_words(model_files(source, revision)))

    def frame(self, prompt: Conversation) -> tuple[list[int], list[int]]:
        """Return the tokens that the reward model reads before an answer, and those after it.

        Args:
            prompt: a text, or a conversation.

        Raises:
            ValueError: a conversation without a template, or a template that writes no answer.
        """
        if self.template is None:
            return self.tokenizer.framed(_text(prompt, "reward"))
        whole = self.template([*_messages(prompt), {"role": "assistant", "content": _ANSWER}], False)  # noqa: FBT003
        parts = whole.split(_ANSWER)
        if len(parts) != 2:
            raise ValueError(
                f"the reward model's chat template writes an answer {len(parts) - 1} times; give the reward another "
                "template, or none (dataclasses.replace(reward, template=None))."
            )
        before, after = parts
        _encoded(self.template, whole, self.tokenizer)  # refuses marks that are no tokens
        return self.tokenizer.encode(before), self.tokenizer.encode(after)


def _words(directories: Sequence[Path]) -> tuple[FileTokenizer, JinjaTemplate | None]:
    """The tokenizer and the template of the first directory that has one."""
    home = next((path for path in directories if (path / "tokenizer.json").is_file()), directories[0])
    if home.is_file():
        raise ValueError(f"{home}: texts need a directory with config.json, safetensors and tokenizer.json.")
    templates = (JinjaTemplate.load(path) for path in directories)
    return FileTokenizer.load(home), next((found for found in templates if found is not None), None)


def _ends(directories: Sequence[Path], tokenizer: FileTokenizer) -> tuple[int, ...]:
    found: list[int] = []
    places = [path / name for name in ("generation_config.json", "config.json") for path in reversed(directories)]
    for place in places:
        given = read_json(place).get("eos_token_id") if place.is_file() else None
        if given is None:
            continue
        ids = given if isinstance(given, list) else [given]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < tokenizer.size for i in ids):
            raise ValueError(f"{place}: field eos_token_id must be ids in [0, {tokenizer.size}), got {given!r}.")
        found = ids
        break
    own = [] if tokenizer.end is None else [tokenizer.end]
    return tuple(dict.fromkeys([*found, *own]))


def _text(prompt: Conversation, who: str) -> str:
    if not isinstance(prompt, str):
        raise ValueError(
            f"a prompt is a conversation, and the {who} has no chat template: give its text as a string, or a template "
            f"(dataclasses.replace({who}, template=rlhf.data.plain_chat))."
        )
    return prompt


def _messages(prompt: Conversation) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [dict(message) for message in prompt]
    if not messages or not all({"role", "content"} <= set(message) for message in messages):
        raise ValueError(f'a conversation must have messages, each with "role" and "content", got {messages!r:.80}.')
    return messages


def _encoded(template: ChatTemplate, text: str, tokenizer: FileTokenizer) -> list[int]:
    """Tokens of what a template wrote; refused if its marks are no tokens and no token of the tokenizer is a mark."""
    ids = tokenizer.encode(text)
    marks = [mark for mark in template.marks if mark in text] if isinstance(template, JinjaTemplate) else []
    unknown = [mark for mark in marks if mark not in tokenizer.tokens]
    begin = tokenizer.encode(template.names.get("bos_token", "")) if isinstance(template, JinjaTemplate) else []
    # Some models were trained on marks that are text like any other, but their turns end with a token.
    if unknown and not (set(ids) & tokenizer.added) - set(begin):
        raise ValueError(
            f"the chat template writes {', '.join(unknown[:4])}, of which the tokenizer knows none as a token, so the "
            "model would read them letter by letter: take the template that belongs to this tokenizer, or none "
            "(dataclasses.replace(model, template=None))."
        )
    return ids
