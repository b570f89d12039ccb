"""Texts that are kept only if their reward rose, what they cost, the law of texts by Metropolis, units of reward."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Float
from tiny_texts import END, PAD, UNKNOWN, Curved, V, config, curved, language_model, lively, part, prompts

import flowrl
from flowrl.rlhf import (
    AbstractReward,
    LanguageModel,
    LogitSpace,
    ReferenceSpace,
    Sampler,
    align,
    noise_target,
    response_logits,
    sample,
    score,
    standardised,
)
from flowrl.rlhf.alignment import Costs

T, N, B, STEPS = 5, 4, 3, 3
SAMPLER = Sampler(T, END, PAD, forbidden=(PAD, UNKNOWN))
MODEL = functools.cache(lambda: language_model(5, size=0.35))


@functools.cache
def _drawn():
    asked = prompts(B)
    return (asked, *sample(SAMPLER, MODEL(), asked, count=N, key=jr.key(3)))


def _aligned(step_size, solver, reward=None, steps=STEPS):
    space, save = ReferenceSpace(MODEL(), SAMPLER), tuple(range(steps + 1))
    reward = curved() if reward is None else reward
    return align(space, reward, *_drawn(), flowrl.Budget(steps, step_size), solver=solver, save=save)


@pytest.mark.thorough
def test_no_text_gets_worse():
    # Steps so long that many moves lower the reward: without the acceptance texts do get worse.
    kept, all_moves = (np.asarray(_aligned(2.0, solver).rewards) for solver in (flowrl.Monotone(), flowrl.Euler()))
    assert np.all(np.diff(kept, axis=0) >= 0)
    assert np.mean(np.diff(kept, axis=0) > 0) > 0.2
    assert np.any(np.diff(all_moves, axis=0) < 0)


@pytest.mark.thorough
def test_a_move_by_hand():
    reward, size = curved(), 1.0
    aligned = _aligned(size, flowrl.Monotone(), reward)
    asked, responses, keys = _drawn()
    table, direction = (np.asarray(x, np.float64) for x in (reward.embedding, reward.direction))
    decode = eqx.filter_jit(lambda prompt, noise: SAMPLER.decode(MODEL(), prompt, noise))

    def reward_and_slope(prompt, tokens, mask):
        """Of the text as it is: the sum of sines, and its square; the slope in the embedding of each token."""
        along = table[np.concatenate([prompt.tokens, tokens])] @ direction
        seen = np.concatenate([prompt.mask, mask])
        total = np.sum(np.sin(along)[seen])
        slope = (1 + 0.6 * total) * np.where(seen, np.cos(along), 0)
        return total + 0.3 * total**2, slope[-T:, None] * direction

    kept = []
    for row, column in itertools.product(range(B), range(N)):
        prompt = jax.tree.map(np.asarray, part(asked, row))
        noise, step = np.asarray(SAMPLER.noise(V, key=keys[row, column]), np.float64), size
        tokens, mask = (np.asarray(leaf[row, column]) for leaf in (responses.tokens, responses.mask))
        for k in range(STEPS):
            value, slope = reward_and_slope(prompt, tokens, mask)
            moved = noise + step * slope @ table.T
            new = decode(part(asked, row), jnp.asarray(moved, jnp.float32))
            rises = reward_and_slope(prompt, np.asarray(new.tokens), np.asarray(new.mask))[0] > value + 1e-9
            kept.append(rises)
            if rises:
                noise, tokens, mask = moved, np.asarray(new.tokens), np.asarray(new.mask)
            else:
                step /= 2
            np.testing.assert_array_equal(aligned.tokens[k + 1, row, column], tokens)
            np.testing.assert_array_equal(aligned.mask[k + 1, row, column], mask)
    assert 0.2 < np.mean(kept) < 0.95


# What is read


class CountedModel(LanguageModel):
    """A language model that says how many tokens it is given."""

    def extend(self, cache, tokens, mask):
        jax.debug.callback(lambda read: READ.append(read.size), tokens)
        return super().extend(cache, tokens, mask)


class CountedReward(AbstractReward):
    """A reward that says how often it is read."""

    inner: Curved
    tokens: str | None = eqx.field(static=True, default=None)

    @property
    def embedding(self) -> Float[Array, "V d"]:
        return self.inner.embedding

    def __call__(self, embedded, mask) -> Array:
        jax.debug.callback(lambda _: REWARDED.append(1), embedded)
        return self.inner(embedded, mask)


READ: list[int] = []
REWARDED: list[int] = []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "solver", "passes", "rewards"),
    [
        # Decodings, one a step; rewards: each gradient, each value, at the start, at the end, the ranking.
        ("reference", flowrl.Monotone(), STEPS, 2 * STEPS + 3),
        ("reference", flowrl.Euler(), STEPS, STEPS + 1),
        ("logit-reference", flowrl.Euler(), 2, STEPS + 1),  # one encoding, one decoding
        ("logit", flowrl.Euler(), 1, STEPS + 1),
    ],
)
def test_nothing_is_read_twice(name, solver, passes, rewards):
    model = lively(lambda: CountedModel(config(), key=jr.key(0)), 5, 0.35)
    by = "reference" if name == "logit-reference" else "argmax"
    space = ReferenceSpace(model, SAMPLER) if name == "reference" else LogitSpace(model, SAMPLER, by=by)
    budget = flowrl.Budget(STEPS, 0.5)
    READ.clear()
    REWARDED.clear()
    align(space, CountedReward(curved()), *_drawn(), budget, solver=solver)
    jax.effects_barrier()
    asked = _drawn()[0].tokens.shape[1]
    assert sum(READ) == B * passes * (asked + N * T)
    assert len(REWARDED) == B * N * rewards
    # The same by the program's account: what a flow costs beyond drawing the samples and one ranking of them.
    costs = Costs(sampled=1.0, rewarded=1e-6, table=0.0, prompt=asked, response=T)
    rising = isinstance(solver, flowrl.Monotone)
    beyond = (costs.flow(name, N, STEPS, rising=rising) - costs.best_of(N)) * (asked + T)
    assert beyond == pytest.approx(passes * (asked + N * T), rel=1e-3)
    costs = Costs(sampled=1e-9, rewarded=1.0, table=0.0, prompt=asked, response=T)
    # Each gradient is a reading there and one back.
    readings = (costs.flow(name, N, STEPS, rising=rising) - costs.samples(N)) * 1e-9 / N
    assert readings == pytest.approx(rewards + STEPS, rel=1e-6)


@pytest.mark.thorough
def test_texts_by_the_reference_are_those_of_a_second_encoding():
    space, reward = LogitSpace(MODEL(), SAMPLER, by="reference"), curved()
    asked, responses, keys = _drawn()
    prompt, response, key = part(asked, 1), part(responses, 1, 2), keys[1, 2]
    push = jnp.asarray(np.random.default_rng(0).normal(size=(T, V)), jnp.float32)

    @eqx.filter_jit
    def both():
        start = space.encode(reward.embedding, prompt, response, key)
        ours = space.decode(reward.embedding, prompt, start + push, start, key)
        # The reference's log-probabilities, the sampled token 1 above the largest.
        logits = jax.nn.log_softmax(SAMPLER.allowed(response_logits(MODEL(), prompt, response.tokens, response.mask)))
        again = jnp.where(jax.nn.one_hot(response.tokens, V, dtype=bool), logits.max(axis=1, keepdims=True) + 1, logits)
        noise = SAMPLER.noise(V, key=key)
        return start, again, ours[0], SAMPLER.decode(MODEL(), prompt, noise + (start + push - again)).tokens

    start, again, ours, theirs = both()
    np.testing.assert_array_equal(start, again)
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(np.asarray(ours) != np.asarray(response.tokens))


# The law of texts


@pytest.mark.thorough
def test_metropolis_in_the_noise_samples_the_tilted_law_of_texts():
    sampler, reward, alpha, count = Sampler(2, END, PAD, forbidden=(PAD, UNKNOWN)), curved(), 4.0, 6000
    model, prompt = MODEL(), part(prompts(1), 0)
    words = [v for v in range(V) if v not in (PAD, UNKNOWN)]
    texts = [(END, PAD)] + [(a, b) for a in words if a != END for b in words]
    tokens = jnp.asarray(texts, jnp.int32)
    mask = jnp.asarray([[True, first != END] for first, _ in texts])
    # Enumerated: μ by the model's own conditionals among allowed tokens, the reward of each text.
    logits = eqx.filter_jit(jax.vmap(lambda t, m: response_logits(model, prompt, t, m)))(tokens, mask)
    terms = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(sampler.allowed(logits))), np.asarray(tokens)[..., None], -1
    )
    log_mu = np.sum(np.where(mask, terms[..., 0], 0), axis=1, dtype=np.float64)
    assert np.exp(log_mu).sum() == pytest.approx(1, abs=1e-4)
    rewards = np.asarray(score(reward, jax.tree.map(lambda x: x[None], prompt), tokens[None], mask[None]))[0]
    law = np.exp(log_mu + rewards / alpha - np.max(rewards) / alpha)
    law /= law.sum()

    start = jax.vmap(lambda k: sampler.noise(V, key=k))(jr.split(jr.key(0), count))
    solution = flowrl.transport(
        noise_target(model, sampler, reward, prompt), start, flowrl.Budget(100, 0.02, alpha),
        flow=flowrl.Langevin(), solver=flowrl.Metropolis(), key=jr.key(1), throw=False,
    )  # fmt: skip
    index = {text: i for i, text in enumerate(texts)}

    def distance(noise):
        drawn = eqx.filter_jit(jax.vmap(lambda g: sampler.decode(model, prompt, g).tokens))(noise)
        counts = np.bincount([index[tuple(map(int, row))] for row in np.asarray(drawn)], minlength=len(texts))
        return 0.5 * np.abs(counts / count - law).sum()

    # Independent draws of the law itself are this far from it, on average.
    exact = np.mean(
        [0.5 * np.abs(np.random.default_rng(i).multinomial(count, law) / count - law).sum() for i in range(20)]
    )
    assert distance(start) > 4 * exact
    assert distance(solution.particles) < 1.5 * exact
    assert solution.extras["acceptance"] > 0.3


# Units


class Affine(AbstractReward):
    """a reward + b."""

    inner: Curved
    scale: float
    shift: float
    tokens: str | None = eqx.field(static=True, default=None)

    @property
    def embedding(self) -> Float[Array, "V d"]:
        return self.inner.embedding

    def __call__(self, embedded, mask) -> Array:
        return self.scale * self.inner(embedded, mask) + self.shift


@pytest.mark.thorough
def test_a_budget_in_spreads_means_the_same_for_every_scale_of_the_reward():
    asked, responses, keys = _drawn()
    one, other = (standardised(r, asked, responses) for r in (curved(), Affine(curved(), 40.0, -3.0)))
    rewards = np.asarray(score(one, asked, responses.tokens, responses.mask), np.float64)
    assert rewards.mean() == pytest.approx(0, abs=1e-5)
    assert rewards.std() == pytest.approx(1, rel=1e-5)
    raw = np.asarray(score(curved(), asked, responses.tokens, responses.mask), np.float64)
    assert float(one.spread) == pytest.approx(raw.std(), rel=1e-5)
    assert float(other.spread) == pytest.approx(40 * raw.std(), rel=1e-5)
    texts = [_aligned(2.0, flowrl.Monotone(), reward).tokens for reward in (one, other)]
    np.testing.assert_array_equal(*texts)
    assert np.any(texts[0][-1] != responses.tokens)


def test_a_reward_without_a_spread_has_no_unit():
    asked, responses, _ = _drawn()
    with pytest.raises(ValueError, match="12 samples have the standard deviation 0, which is no unit of a step"):
        standardised(Affine(curved(), 0.0, 1.0), asked, responses)
