"""From the directories of a model and a reward model, and a list of strings, to texts."""

import sys

import jax

from flowrl import rlhf

model, reward = rlhf.TextModel.load(sys.argv[1]), rlhf.TextReward.load(sys.argv[2])
answers = rlhf.generate(model, reward, sys.argv[3:], key=jax.random.key(0))
texts, scores, verdict = answers.texts, answers.scores, answers.verdict
