"""Align a small language model at test time: its samples are particles that flow toward higher reward.

Everything is learned on the spot, from film opinions that a grammar makes up and rates:

    python examples/rlhf.py --steps 2 --step-size 4

`flowrl align` is the study on reviews that people rated: more spaces and budgets, and trained policies beside them.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowrl
from flowrl import rlhf
from flowrl.rlhf import data, evaluation
from flowrl.runs import require, to_csv

PROMPT, RESPONSE = 4, 16  # tokens
TEXTS, TRAINING, UNSEEN = 6000, 4500, 200


def main(options: argparse.Namespace) -> None:
    """Learn a reference and a reward model, transport samples, and compare the answers."""
    keys = jr.split(jr.key(options.seed), 6)
    # A prompt is the first four words of a text; texts after the first TRAINING give new prompts.
    rated = data.generated_ratings(TEXTS, seed=options.seed)
    words = data.WordTokenizer.fit(rated.texts)
    ids = [words.encode(text) for text in rated.texts]
    starts, rests = [words.decode(row[:PROMPT]) for row in ids], [words.decode(row[PROMPT:]) for row in ids]
    known = set(starts[:TRAINING])
    prompts = [start for start in dict.fromkeys(starts[TRAINING:]) if start not in known][: options.prompts]
    # A preference is between two texts that begin alike: the one with the higher rating is chosen.
    preferences = []
    for i, j in itertools.pairwise(sorted(range(TRAINING), key=lambda i: starts[i])):
        if starts[i] == starts[j] and rated.ratings[i] != rated.ratings[j]:
            better, worse = (i, j) if rated.ratings[i] > rated.ratings[j] else (j, i)
            preferences.append(data.Preference(starts[i], rests[better], rests[worse]))

    # The reference continues texts. The reward model learns from preferences alone, and may read in both directions.
    shape = rlhf.TransformerConfig(words.size, 64, layers=1, heads=4, key_value_heads=4, head_size=16, hidden=256)
    plan = rlhf.Fit(options.updates, learning_rate=3e-3)
    reference = rlhf.LanguageModel(shape, key=keys[0], tokens=words.fingerprint)
    rows = rlhf.pack_texts(words, starts[:TRAINING], rests[:TRAINING], PROMPT, RESPONSE)
    reference = rlhf.fit(rlhf.sft_loss, plan, plan.start(reference, key=keys[1]), rows)
    reward = rlhf.RewardModel(dataclasses.replace(shape, causal=False), key=keys[2], tokens=words.fingerprint)
    pairs = rlhf.pack_pairs(words, preferences, PROMPT, RESPONSE)
    unseen, seen = jax.tree.map(lambda x: x[:UNSEEN], pairs), jax.tree.map(lambda x: x[UNSEEN:], pairs)
    reward = rlhf.fit(rlhf.BradleyTerry(dropout=0.1), plan, plan.start(reward, key=keys[3]), seen)
    accuracy = float(rlhf.preference_accuracy(reward, unseen))
    print(f"{len(preferences)} preferences; the reward model agrees with {accuracy:.0%} of {UNSEEN} unseen ones")

    # --8<-- [start:align]
    # The N samples of a prompt are particles of one set and share their gradients; each takes a new text only if its
    # reward is higher. Rewards are in standard deviations, so that a step size means the same for every model of them.
    sampler = rlhf.Sampler(RESPONSE, end=words.end, forbidden=(words.pad, words.unknown))
    batch, count = rlhf.pack_prompts(words, prompts, PROMPT), options.particles
    samples, own = rlhf.sample(sampler, reference, batch, count=count, key=keys[4])
    reward = rlhf.standardised(reward, batch, samples)
    space, budget = rlhf.ReferenceSpace(reference, sampler), flowrl.Budget(options.steps, options.step_size, 0.0)
    aligned = rlhf.align(space, reward, batch, samples, own, budget, flow=flowrl.SVGD(), save=(0, options.steps))
    # --8<-- [end:align]

    # --8<-- [start:beside]
    # What the same computation buys without a flow. Best-of-N reads every text twice (sample, reward). Transport reads
    # it four times more at every step (a decoding; the reward there and back, and of the new text), and the reward at
    # the start and at the end: 2 + 4 L + 2 passes of models of one size, against 2.
    equal = count * (2 * options.steps + 2)
    more, _ = rlhf.sample(sampler, reference, batch, count=equal, key=keys[4])  # of which the first are `samples`
    every, best = np.arange(len(prompts)), np.argmax(rlhf.score(reward, batch, more.tokens, more.mask), axis=1)
    answers = {
        "one sample": (samples.tokens[:, 0], samples.mask[:, 0]),
        f"best of {count}": aligned.best(0),  # zero steps
        f"best of {equal}, at equal cost": (more.tokens[every, best], more.mask[every, best]),
        f"transported, L = {options.steps}": aligned.best(1),
    }
    # --8<-- [end:beside]

    # The judge is a regression on the ratings, which the models know by preferences at most: how often is an answer
    # better than a sample of the reference, with a 95 % interval over prompts?
    judge = evaluation.RatingRegression.fit(rated)
    read = lambda rows, masks: [words.decode(row[kept].tolist()) for row, kept in zip(rows, masks, strict=True)]
    others = jax.tree.map(np.asarray, rlhf.sample(sampler, reference, batch, count=16, key=keys[5])[0])
    against = np.stack([judge.predict(read(others.tokens[:, i], others.mask[:, i])) for i in range(16)], axis=1)
    table, texts = [], {name: read(*map(np.asarray, answer)) for name, answer in answers.items()}
    print("wins against samples of the reference          reward  distinct-2")
    for name, (tokens, mask) in answers.items():
        wins = evaluation.win_rate(judge.predict(texts[name]), against)
        scored = float(jnp.mean(rlhf.score(reward, batch, tokens[:, None], mask[:, None])))
        variety = evaluation.distinct_n([text.split() for text in texts[name]], 2)
        table.append({"answers": name, **wins._asdict(), "reward": scored, "distinct_2": variety})
        print(f"{name:28} {wins.value:5.0%} [{wins.low:3.0%}, {wins.high:3.0%}] {scored:9.2f} {variety:11.2f}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.csv").write_text(to_csv(table))
    (options.out / "texts.json").write_text(json.dumps({"prompts": prompts, **texts}, indent=1))
    print(f"{prompts[0]} … {texts[f'transported, L = {options.steps}'][0]}\ntable and texts are in {options.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rlhf_lesson"), help="directory of the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=100, help="new prompts")
    parser.add_argument("--particles", type=int, default=8, help="samples N per prompt")
    parser.add_argument("--steps", type=int, default=2, help="steps L of the budget")
    parser.add_argument("--step-size", type=float, default=4.0, help="for a reward in standard deviations")
    parser.add_argument("--updates", type=int, default=400, help="updates of each model")
    options = parser.parse_args()
    try:
        require("sklearn", extra="rlhf,examples")
    except ImportError as missing:
        raise SystemExit(str(missing)) from None
    main(options)
