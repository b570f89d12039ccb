"""Texts: rated by people or made up, cut into tokens, and compared in pairs."""

from flowrl.rlhf.data._generated import generated_ratings as generated_ratings
from flowrl.rlhf.data._preferences import (
    ChatTemplate as ChatTemplate,
    Preference as Preference,
    plain_chat as plain_chat,
    read_preferences as read_preferences,
    read_prompts as read_prompts,
    write_preferences as write_preferences,
)
from flowrl.rlhf.data._rated import RatedTexts as RatedTexts, rated_snippets as rated_snippets
from flowrl.rlhf.data._template import JinjaTemplate as JinjaTemplate
from flowrl.rlhf.data._tokenizer import (
    AbstractTokenizer as AbstractTokenizer,
    FileTokenizer as FileTokenizer,
    WordTokenizer as WordTokenizer,
)
