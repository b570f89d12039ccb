"""Text in, text out: models with their tokenizers and templates, and the call that answers prompts."""

from flowrl.rlhf.generation._answers import Answers as Answers
from flowrl.rlhf.generation._generate import generate as generate
from flowrl.rlhf.generation._memory import Memory as Memory
from flowrl.rlhf.generation._text_models import (
    Conversation as Conversation,
    TextModel as TextModel,
    TextReward as TextReward,
)
from flowrl.rlhf.generation._vocabulary import align_vocabulary as align_vocabulary
