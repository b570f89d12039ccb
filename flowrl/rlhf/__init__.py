"""Alignment of language models by particle flows: models, spaces, learning from preferences, evaluation."""
