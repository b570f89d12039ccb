"""Chat templates in Jinja, the form that models are published with, rendered as `transformers` renders them."""

import dataclasses
import datetime
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowrl._distribution import require
from flowrl.rlhf.data._tokenizer import read_fields, special_names

_FIELDS = re.compile(r"(?:bos|eos|unk|sep|pad|cls|mask)_token")
_MARK = re.compile(r"<\|[^<>|\s]+\|>")


@dataclasses.dataclass(frozen=True)
class JinjaTemplate:
    """A chat template in Jinja: messages to the text that a model was trained on.

    Templates are programs that came from elsewhere; they run in Jinja's sandbox.

    Attributes:
        source: the template.
        names: special tokens by the names that the template has for them, such as "bos_token".
    """

    source: str
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "JinjaTemplate | None":
        """Read the template of a model's directory: `chat_template.jinja`, else that of `tokenizer_config.json`.

        Of several templates in `tokenizer_config.json` it is the one named "default".

        Args:
            path: the directory.

        Returns:
            The template, or None if the model has none.

        Raises:
            ValueError: a file cannot be read.
        """
        directory = Path(path)
        names, file = special_names(directory), directory / "chat_template.jinja"
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), names)
        found = read_fields(directory / "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):
            entries = [entry for entry in found if isinstance(entry, dict)]
            found = next((entry.get("template") for entry in entries if entry.get("name") == "default"), None)
        if found is None:
            return None
        if not isinstance(found, str):
            raise ValueError(
                f"{directory / 'tokenizer_config.json'}: field chat_template must be a string, or a list of which one "
                'is named "default".'
            )
        return cls(found, names)

    def __call__(self, messages: Sequence[Mapping[str, str]], open_turn: bool) -> str:  # noqa: FBT001
        """Render a conversation.

        Args:
            messages: with keys "role" and "content".
            open_turn: whether the assistant's next turn is begun.

        Raises:
            ImportError: a package of the extra "rlhf" is missing.
            ValueError: the template is not Jinja, refuses the conversation, or writes a token that it has no name for.
        """
        compiled, wanted = _compiled(self.source)
        if missing := sorted(wanted - set(self.names)):
            raise ValueError(
                f"the chat template writes {', '.join(missing)}, which the tokenizer's files do not name: name it in "
                "tokenizer_config.json, or use no template (dataclasses.replace(model, template=None))."
            )
        import jinja2

        try:
            rest = {"tools": None, "documents": None, "add_generation_prompt": open_turn}
            return compiled.render(messages=[dict(message) for message in messages], **rest, **self.names)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"the chat template cannot render {str(list(messages))[:80]}: {error}.") from error

    @property
    def marks(self) -> tuple[str, ...]:
        """What looks like a mark of a turn in the template, such as `<|im_start|>`, each once."""
        return tuple(dict.fromkeys(_MARK.findall(self.source)))


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[Any, frozenset[str]]:
    """The template, and the names of special tokens that it asks for."""
    require("jinja2", extra="rlhf")
    import jinja2
    import jinja2.ext
    import jinja2.meta
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """The block that says what an assistant wrote: it writes what is in it."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(inside, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: FBT001, FBT002
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)  # Jinja's own would escape for HTML

    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        asked = jinja2.meta.find_undeclared_variables(sandbox.parse(source))
        return sandbox.from_string(source), frozenset(name for name in asked if _FIELDS.fullmatch(name))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not Jinja: {error}.") from error
