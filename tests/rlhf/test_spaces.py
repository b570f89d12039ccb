"""Spaces of texts and alignment in them: round trips, pull-backs by hand, what steps buy, and what does not mix."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jaxtyping import Array, Bool, Float
from tiny_texts import (
    END,
    PAD,
    UNKNOWN,
    Curved,
    V,
    curved,
    language_model,
    likes,
    lively,
    part,
    prompts,
    reward_model,
    words,
)

import flowrl
from flowrl.rlhf import (
    AbstractReward,
    Fit,
    LatentSpace,
    LogitSpace,
    Prompt,
    ReferenceSpace,
    Sampler,
    TokenSpace,
    align,
    check_tokens,
    fit,
    relaxed_reward,
    sample,
    score,
    target,
)

T, N, B, LATENT = 5, 4, 3, 16
SAMPLER = Sampler(T, END, PAD, temperature=0.8, top_p=0.95, forbidden=(PAD, UNKNOWN))
MODEL = functools.cache(lambda: language_model(5, size=0.35))
LIKED = 7


class Encoder(eqx.Module):
    """One-hot tokens times a matrix."""

    weight: Array

    def __call__(self, prompt, response):
        del prompt
        onehot = jax.nn.one_hot(response.tokens, V, dtype=jnp.float32) * response.mask[:, None].astype(jnp.float32)
        return onehot.reshape(-1) @ self.weight


class Decoder(eqx.Module):
    """Logits that are affine in z."""

    weight: Array
    bias: Array

    def __call__(self, prompt, z):
        del prompt
        return (z @ self.weight).reshape(T, V) + self.bias


def _autoencoder(size=0.3):
    make = lambda: (
        Encoder(jnp.zeros((T * V, LATENT), jnp.float32)),
        Decoder(jnp.zeros((LATENT, T * V), jnp.float32), jnp.zeros((T, V), jnp.float32)),
    )
    return lively(make, 0, size)


def _spaces():
    encoder, decoder = _autoencoder()
    return {
        "logits": LogitSpace(MODEL(), SAMPLER),
        "logits by reference": LogitSpace(MODEL(), SAMPLER, by="reference"),
        "tokens": TokenSpace(MODEL(), SAMPLER),
        "tokens by prior": TokenSpace(MODEL(), SAMPLER, by="prior"),
        "reference": ReferenceSpace(MODEL(), SAMPLER),
        "latent": LatentSpace(encoder, decoder, SAMPLER),
    }


NAMES = ("logits", "logits by reference", "tokens", "tokens by prior", "reference", "latent")
every_space = pytest.mark.parametrize("name", NAMES)


def _draw(sampler, count=N):
    """Prompts, responses, keys."""
    asked = prompts(B)
    return (asked, *sample(sampler, MODEL(), asked, count=count, key=jr.key(3)))


@functools.cache
def _drawn(count=N):
    return _draw(SAMPLER, count)


def _check_text(tokens, mask):
    """Up to and with the first end token, then padding; nothing that is forbidden."""
    tokens, mask = np.asarray(tokens).reshape(-1, T), np.asarray(mask).reshape(-1, T)
    for row, seen in zip(tokens, mask, strict=True):
        length = int(np.argmax(row == END)) + 1 if END in row else T
        np.testing.assert_array_equal(seen, np.arange(T) < length)
        assert np.all(row[length:] == PAD)
        assert not set(row[:length]) & {PAD, UNKNOWN}


def _counted(asked, tokens, mask, token=LIKED):
    """How often a token is in prompt and response."""
    in_prompt = np.sum((np.asarray(asked.tokens) == token) & np.asarray(asked.mask), axis=-1)
    return np.sum((np.asarray(tokens) == token) & np.asarray(mask), axis=-1) + in_prompt[:, None]


# Round trips


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["logits", "logits by reference", "tokens", "reference"])
def test_the_particle_of_a_sample_decodes_to_it(name):
    space, table = _spaces()[name], curved().embedding
    asked, responses, keys = _drawn()

    @eqx.filter_jit
    def there_and_back(space, prompt, responses, keys):
        def one(response, key):
            particle = space.encode(table, prompt, response, key)
            return space.decode(table, prompt, particle, particle, key)

        return jax.vmap(one)(responses, keys)

    _check_text(responses.tokens, responses.mask)
    assert not np.all(responses.mask)
    for row in range(B):
        tokens, mask = there_and_back(space, part(asked, row), part(responses, row), keys[row])
        np.testing.assert_array_equal(tokens, responses.tokens[row])
        np.testing.assert_array_equal(mask, responses.mask[row])
        assert tokens.dtype == jnp.int32


def test_logits_start_as_those_of_the_reference():
    space = LogitSpace(MODEL(), SAMPLER, margin=0.7)
    asked, responses, keys = _drawn()
    encode = eqx.filter_jit(lambda prompt, response, key: space.encode(curved().embedding, prompt, response, key))
    prompt, response = part(asked, 0), part(responses, 0, 1)
    particle = np.asarray(encode(prompt, response, keys[0, 1]))
    whole = jnp.concatenate([prompt.tokens, response.tokens])
    logits = np.array(eqx.filter_jit(MODEL())(whole, jnp.concatenate([prompt.mask, response.mask]))[2:-1])
    logits[:, [PAD, UNKNOWN]] = -1e4
    expected = np.array(jax.nn.log_softmax(logits))
    chosen = np.asarray(response.tokens)
    expected[np.arange(T), chosen] = expected.max(axis=1) + 0.7
    alive = np.asarray(response.mask)
    np.testing.assert_allclose(particle[alive], expected[alive], rtol=0, atol=2e-3)  # −10⁴ costs digits
    np.testing.assert_array_equal(particle.argmax(axis=1), chosen)


def test_half_a_distance_is_a_dead_zone():
    space, table = TokenSpace(MODEL(), Sampler(V)), np.asarray(curved().embedding)
    distance = np.linalg.norm(table[:, None] - table[None, :], axis=-1) + np.diag(np.full(V, np.inf))
    unused = (jnp.zeros(table.shape, jnp.float32), jr.key(0))
    prompt = part(prompts(B), 0)
    decode = eqx.filter_jit(lambda table, u: space.decode(table, prompt, u, *unused)[0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        direction = rng.normal(size=table.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        inside = table + 0.499 * distance.min(axis=1, keepdims=True) * direction
        found = decode(jnp.asarray(table), jnp.asarray(inside, jnp.float32))
        np.testing.assert_array_equal(found, np.arange(V))
    neighbour = distance.argmin(axis=1)
    beyond = table + 0.501 * (table[neighbour] - table)
    np.testing.assert_array_equal(decode(jnp.asarray(table), jnp.asarray(beyond, jnp.float32)), neighbour)
    # An offset of all embeddings costs no digits.
    beyond = table + 0.51 * (table[neighbour] - table)
    far = decode(jnp.asarray(table + 1000), jnp.asarray(beyond + 1000, jnp.float32))
    np.testing.assert_array_equal(far, neighbour)


@pytest.mark.thorough
def test_the_prior_goes_from_nearest_to_greedy():
    table, prompt = curved().embedding, part(prompts(B), 0)
    unused = (jnp.zeros((T, 5), jnp.float32), jr.key(0))
    points = jnp.asarray(np.random.default_rng(1).normal(size=(20, T, 5)), jnp.float32)

    @eqx.filter_jit
    def decode(space):
        return jax.vmap(lambda u: space.decode(table, prompt, u, *unused))(points)

    prior = lambda width: decode(TokenSpace(MODEL(), SAMPLER, by="prior", width=jnp.asarray(width, jnp.float32)))
    nearest, greedy = decode(TokenSpace(MODEL(), SAMPLER)), SAMPLER.greedy(MODEL(), prompt)
    for got, expected in zip(prior(1e-6), nearest, strict=True):
        np.testing.assert_array_equal(got, expected)
    _check_text(*nearest)
    tokens, mask = prior(1e8)
    np.testing.assert_array_equal(tokens, np.broadcast_to(greedy.tokens, tokens.shape))
    np.testing.assert_array_equal(mask, np.broadcast_to(greedy.mask, mask.shape))
    between = prior(1.0)[0]
    assert np.any(np.asarray(between) != nearest[0])
    assert np.any(np.asarray(between) != tokens)


# Pull-backs


@pytest.mark.thorough
def test_pull_backs_are_those_by_hand():
    rng = np.random.default_rng(0)
    table, prompt = curved().embedding, part(prompts(B), 0)
    cotangent = rng.normal(size=(T, 5)).astype(np.float32)

    @eqx.filter_jit
    def pull_back(space, particle):
        (embedded, mask), back = jax.vjp(lambda x: space.relax(table, prompt, x), particle)
        return embedded, mask, back((jnp.asarray(cotangent), np.zeros(mask.shape, jax.dtypes.float0)))[0]

    y = rng.normal(size=(T, V)).astype(np.float32)
    straight = cotangent @ np.asarray(table).T
    p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)

    embedded, _, pulled = pull_back(LogitSpace(MODEL(), SAMPLER), jnp.asarray(y))
    np.testing.assert_allclose(embedded, p @ np.asarray(table), rtol=0, atol=1e-5)
    np.testing.assert_allclose(pulled, straight - straight.mean(axis=1, keepdims=True), rtol=0, atol=1e-5)

    space, noise = ReferenceSpace(MODEL(), SAMPLER), jnp.asarray(y)
    decoded = SAMPLER.decode(MODEL(), prompt, noise)
    stale = jax.tree.map(lambda leaf: leaf[None], space.encode(table, prompt, part(_drawn()[1], 0, 0), jr.key(0)))
    particle = space.domain(prompt).restrict(stale._replace(noise=noise[None]))
    embedded, mask, pulled = pull_back(space, jax.tree.map(lambda leaf: leaf[0], particle))
    np.testing.assert_array_equal(embedded, np.asarray(table)[decoded.tokens])
    np.testing.assert_array_equal(mask, decoded.mask)
    np.testing.assert_allclose(pulled.noise, straight, rtol=0, atol=1e-5)
    assert not np.any(pulled.text)

    u = rng.normal(size=(T, 5)).astype(np.float32)
    embedded, _, pulled = pull_back(TokenSpace(MODEL(), SAMPLER), jnp.asarray(u))
    np.testing.assert_array_equal(embedded, u)
    np.testing.assert_array_equal(pulled, cotangent)

    encoder, decoder = _autoencoder()
    z = rng.normal(size=LATENT).astype(np.float32)
    logits = (z @ np.asarray(decoder.weight)).reshape(T, V) + np.asarray(decoder.bias)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    embedded, _, pulled = pull_back(LatentSpace(encoder, decoder, SAMPLER), jnp.asarray(z))
    np.testing.assert_allclose(embedded, p @ np.asarray(table), rtol=0, atol=1e-5)
    through_softmax = p * (straight - np.sum(p * straight, axis=1, keepdims=True))
    np.testing.assert_allclose(pulled, np.asarray(decoder.weight) @ through_softmax.ravel(), rtol=0, atol=1e-4)


def test_the_flow_of_logits_is_mirror_ascent_of_probabilities():
    sampler = Sampler(T)
    asked, responses, keys = _draw(sampler)
    space, reward, prompt = LogitSpace(MODEL(), sampler), curved(), part(asked, 0)
    budget = flowrl.Budget(8, 0.3)

    def of_probabilities(reward, prompt, p):
        embedded = jnp.concatenate([reward.embedding[prompt.tokens], p @ reward.embedding])
        return reward(embedded, jnp.concatenate([prompt.mask, jnp.ones(T, bool)]))

    @eqx.filter_jit
    def both(space, reward, prompt, responses, keys):
        y = jax.vmap(lambda r, k: space.encode(reward.embedding, prompt, r, k))(responses, keys)
        in_logits = flowrl.transport(target(space, reward, prompt), y, budget, flow=flowrl.Ascent(), throw=False)
        value = flowrl.Boltzmann(of_probabilities, reward, prompt)
        start = jax.nn.softmax(y)
        in_p = flowrl.transport(value, start, budget, flow=flowrl.Ascent(), domain=flowrl.Simplex(), throw=False)
        return start, jax.nn.softmax(in_logits.particles), in_p.particles, in_logits.values, in_p.values

    start, ours, theirs, our_values, their_values = both(space, reward, prompt, part(responses, 0), keys[0])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(our_values, their_values, rtol=1e-4)
    assert np.max(np.abs(ours - start)) > 0.2
    # The first steps by hand: exponentiated gradient.
    p = np.asarray(start, np.float64)
    table, direction = np.asarray(reward.embedding, np.float64), np.asarray(reward.direction, np.float64)
    before = np.sum(np.sin(table[np.asarray(prompt.tokens)] @ direction)[np.asarray(prompt.mask)])
    for _ in range(8):
        along = p @ table @ direction
        total = before + np.sin(along).sum(axis=1)
        slope = (1 + 0.6 * total)[:, None] * np.cos(along)
        p = p * np.exp(0.3 * slope[..., None] * (table @ direction))
        p /= p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(ours, p, rtol=0, atol=1e-4)


def test_what_comes_after_the_end_has_no_weight():
    asked, responses, keys = _drawn()
    reward, mask = curved(), np.asarray(responses.mask)
    garbage = jnp.where(responses.mask, responses.tokens, words(9, B, N, T))
    scores = score(reward, asked, responses.tokens, responses.mask)
    assert not np.array_equal(garbage, responses.tokens)
    np.testing.assert_array_equal(scores, score(reward, asked, garbage, responses.mask))
    np.testing.assert_allclose(scores, score(reward, asked, garbage, responses.mask, at_once=1), rtol=1e-6)
    row, column = np.argwhere(mask.sum(axis=-1) < T)[0]
    prompt, response, key = part(asked, row), part(responses, row, column), keys[row, column]

    @eqx.filter_jit
    def slope(space):
        particle = space.encode(reward.embedding, prompt, response, key)
        return jax.grad(lambda x: relaxed_reward(space, reward, prompt, x))(particle)

    for name in ("logits", "reference"):
        gradient = np.abs(np.asarray(jax.tree.leaves(slope(_spaces()[name]))[0])).max(axis=1)
        assert np.all(gradient[~mask[row, column]] == 0)
        assert np.all(gradient[mask[row, column]] > 0)


# Alignment

# Step sizes that reach other tokens, and what is saved.
STEPS = {
    "logits": (1.5, (0, 2, 6)),
    "logits by reference": (0.8, (0, 6)),
    "tokens": (0.25, (0, 2, 6)),
    "tokens by prior": (0.25, (0, 6)),
    "reference": (0.8, (0, 6)),
    "latent": (2.0, (0, 6)),
}


@pytest.mark.thorough
@every_space
def test_steps_buy_reward_and_zero_steps_are_best_of_n(name):
    space, reward = _spaces()[name], likes(LIKED)
    asked, responses, keys = _drawn()
    step_size, save = STEPS[name]
    result = align(space, reward, asked, responses, keys, flowrl.Budget(6, step_size), save=save)
    assert result.tokens.shape == (len(save), B, N, T)
    np.testing.assert_array_equal(result.tokens[0], responses.tokens)
    np.testing.assert_array_equal(result.mask[0], responses.mask)
    counts = [_counted(asked, result.tokens[k], result.mask[k]) for k in range(len(save))]
    np.testing.assert_allclose(result.rewards, counts, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.chosen, np.argmax(counts, axis=-1))
    _check_text(result.tokens, result.mask)
    for k in (0, -1):
        tokens, mask = result.best(k)
        for row in range(B):
            best = int(np.argmax(counts[k][row]))
            np.testing.assert_array_equal(tokens[row], result.tokens[k, row, best])
            np.testing.assert_array_equal(mask[row], result.mask[k, row, best])
    assert not np.any(result.nonfinite)
    assert not np.any(result.displacement[0])
    assert np.min(result.displacement[-1]) > 0
    if name != "latent":  # there the start is another text than the sample
        mean = [np.mean(c) for c in counts]
        assert mean == sorted(mean)
        assert np.all(np.max(counts[-1], axis=-1) > np.max(counts[0], axis=-1))
    # Sets do not know of each other: the sets in another order, and another set beside them, are the same program.
    order = np.array([2, 0, 1])
    turned = [part(tree, order) for tree in (asked, responses, keys)]
    other = align(space, reward, *turned, flowrl.Budget(6, step_size), save=save)
    np.testing.assert_array_equal(other.tokens, result.tokens[:, order])
    np.testing.assert_allclose(other.displacement, result.displacement[:, order], rtol=1e-5)


@pytest.mark.thorough
def test_prompts_one_by_one_are_prompts_together():
    space, reward, budget = _spaces()["logits"], curved(), flowrl.Budget(3, 0.5)
    asked, responses, keys = _drawn()
    whole = align(space, reward, asked, responses, keys, budget)
    assert whole.tokens.shape == (1, B, N, T)
    assert np.any(whole.tokens[0] != responses.tokens)
    one_by_one = align(space, reward, asked, responses, keys, budget, at_once=1)
    np.testing.assert_array_equal(one_by_one.tokens, whole.tokens)
    np.testing.assert_allclose(one_by_one.rewards, whole.rewards, rtol=1e-4, atol=1e-5)


def test_no_steps_leave_all_as_it_was_drawn():
    asked, responses, keys = _drawn()
    result = align(_spaces()["latent"], curved(), asked, responses, keys, flowrl.Budget(0))
    np.testing.assert_array_equal(result.tokens[0], responses.tokens)
    np.testing.assert_array_equal(result.chosen[0], np.argmax(result.rewards[0], axis=-1))
    scores = score(curved(), asked, responses.tokens, responses.mask)
    np.testing.assert_allclose(result.rewards[0], scores, rtol=1e-4, atol=1e-6)
    assert not np.any(result.displacement)


@pytest.mark.thorough
def test_forbidden_tokens_are_in_no_text():
    asked, responses, keys = _drawn()
    table, prompt = likes(LIKED).embedding, part(asked, 0)
    response, key = part(responses, 0, 0), keys[0, 0]

    @eqx.filter_jit
    def decode(space, x):
        start = space.encode(table, prompt, response, key)
        if isinstance(space, ReferenceSpace):
            one = jax.tree.map(lambda leaf: leaf[None], start._replace(noise=x))
            x = jax.tree.map(lambda leaf: leaf[0], space.domain(prompt).restrict(one))
        return space.decode(table, prompt, x, start, key)

    # Particles that are all for what is forbidden, and a little for what is not.
    push = np.zeros((T, V), np.float32)
    push[:, [PAD, UNKNOWN, LIKED]] = 3e6, 2e6, 1e6
    near = np.broadcast_to(np.asarray(table)[PAD] + 0.1 * np.asarray(table)[LIKED], (T, V))
    encoder, decoder = _autoencoder()
    biased = LatentSpace(encoder, eqx.tree_at(lambda d: d.bias, decoder, jnp.asarray(push)), SAMPLER)
    spaces = _spaces() | {"latent": biased, "tokens by prior": TokenSpace(MODEL(), SAMPLER, by="prior", width=1e-6)}
    particles = {"tokens": near, "tokens by prior": near, "latent": np.zeros(LATENT, np.float32)}
    for name, space in spaces.items():
        tokens, mask = decode(space, jnp.asarray(particles.get(name, push)))
        np.testing.assert_array_equal(tokens, np.full(T, LIKED))
        assert np.all(mask)


@pytest.mark.thorough
def test_repulsion_keeps_texts_apart():
    asked, responses, keys = _drawn()
    space, reward, prompt = _spaces()["logits"], likes(LIKED), part(asked, 0)

    @eqx.filter_jit
    def spread(flow, budget):
        y = jax.vmap(lambda r, k: space.encode(reward.embedding, prompt, r, k))(part(responses, 0), keys[0])
        y = flowrl.transport(target(space, reward, prompt), y, budget, flow=flow, throw=False).particles
        p = jax.nn.softmax(y).reshape(N, -1)
        return jnp.sqrt(jnp.sum((p[:, None] - p[None, :]) ** 2, axis=-1)).sum() / (N * (N - 1))

    together = spread(flowrl.Ascent(), flowrl.Budget(20, 0.5))
    apart = spread(flowrl.SVGD(), flowrl.Budget(20, 0.5, 20.0))
    assert apart > 1.5 * together
    result = align(space, reward, asked, responses, keys, flowrl.Budget(3, 0.5, 1.0), flow=flowrl.SVGD())
    assert np.min(result.displacement[-1]) > 0
    _check_text(result.tokens, result.mask)


class Poisoned(AbstractReward):
    """Not a number if the first token of the prompt has a last coordinate above 1/2."""

    inner: Curved
    tokens: str | None = eqx.field(static=True, default=None)

    @property
    def embedding(self):
        return self.inner.embedding

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        return self.inner(embedded, mask) * jnp.where(embedded[0, -1] > 0.5, jnp.nan, 1).astype(embedded.dtype)


def test_a_reward_that_is_not_finite_harms_one_set_only():
    table = np.array(curved().embedding)
    table[:, -1] = np.arange(V) == V - 1
    reward = Poisoned(eqx.tree_at(lambda r: r.embedding, curved(), jnp.asarray(table)))
    asked, responses, keys = _drawn()
    tokens = np.array(asked.tokens)
    tokens[:, 0] = np.where(asked.mask[:, 0], 3, PAD)
    space, budget = _spaces()["logits"], flowrl.Budget(3, 1.0)
    clean = align(space, reward, Prompt(jnp.asarray(tokens), asked.mask), responses, keys, budget)
    tokens[0, 0] = V - 1
    result = align(space, reward, Prompt(jnp.asarray(tokens), asked.mask), responses, keys, budget)
    np.testing.assert_array_equal(result.nonfinite, [N, 0, 0])
    np.testing.assert_array_equal(clean.nonfinite, [0, 0, 0])
    np.testing.assert_array_equal(result.tokens[:, 0], responses.tokens[None, 0])
    assert not np.any(np.isfinite(result.rewards[:, 0]))
    for field in ("tokens", "rewards", "chosen"):
        mine, theirs = (np.asarray(getattr(r, field)) for r in (result, clean))
        np.testing.assert_array_equal(mine[:, 1:], theirs[:, 1:])
    assert np.any(clean.tokens[0, 0] != responses.tokens[0])


class Counting(AbstractReward):
    """A reward whose Python body counts how often it is traced."""

    embedding: Float[Array, "V d"]
    direction: Float[Array, " d"]
    traces: list = eqx.field(static=True)
    tokens: str | None = eqx.field(static=True, default=None)

    def __call__(self, embedded: Float[Array, "T d"], mask: Bool[Array, " T"]) -> Float[Array, ""]:
        self.traces.append(None)
        return jnp.sum(jnp.where(mask, embedded @ self.direction, 0))


class _Hashable(list):
    __hash__ = object.__hash__  # pyright: ignore
    __eq__ = object.__eq__


@pytest.mark.thorough
def test_new_numbers_do_not_retrace():
    asked, responses, keys = _drawn()
    space, reward, traces = _spaces()["logits"], curved(), _Hashable()
    counting = Counting(reward.embedding, reward.direction, traces)
    twice = lambda tree: jax.tree.map(
        lambda leaf: jnp.asarray(2 * np.asarray(leaf)) if eqx.is_inexact_array(leaf) else leaf, tree
    )

    def traced(space=space, reward=counting, asked=asked, responses=responses, keys=keys, step_size=0.1, steps=2):
        before = len(traces)
        align(space, reward, asked, responses, keys, flowrl.Budget(steps, step_size))
        return len(traces) > before

    assert traced()
    assert not traced(step_size=0.7)
    assert not traced(reward=twice(counting))
    assert not traced(space=twice(space))
    assert not traced(space=LogitSpace(MODEL(), dataclasses.replace(SAMPLER, temperature=0.9), margin=0.5))
    order = np.array([1, 2, 0])
    assert not traced(asked=prompts(B, seed=4), responses=part(responses, order), keys=keys[order])
    assert traced(steps=3)


# A latent space


@functools.cache
def _trained():
    """An autoencoder of the texts that the reference draws, and those texts."""
    asked, responses, keys = _drawn(16)
    texts = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), responses)

    def loss(pair, batch, key):
        encoder, decoder = pair
        if key is not None:  # a smooth latent: neighbours of a code decode alike
            noise = 0.1 * jr.normal(key, (batch.tokens.shape[0], LATENT), jnp.float32)
        else:
            noise = jnp.zeros((batch.tokens.shape[0], LATENT), jnp.float32)
        logits = jax.vmap(lambda response, eps: decoder(None, encoder(None, response) + eps))(batch, noise)
        terms = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.tokens[..., None], axis=-1)[..., 0]
        return -jnp.mean(jnp.sum(jnp.where(batch.mask, terms, 0), axis=-1))

    plan = Fit(600, 32, 0.03, interval=300)
    pair = fit(loss, plan, plan.start(Pair(*_autoencoder(0.1)), key=jr.key(0)), texts)
    return pair, asked, responses, keys


class Pair(eqx.Module):
    encoder: Encoder
    decoder: Decoder

    def __iter__(self):
        return iter((self.encoder, self.decoder))


@pytest.mark.thorough
def test_a_flow_in_the_latent_of_an_autoencoder():
    (encoder, decoder), asked, responses, keys = _trained()
    space, reward = LatentSpace(encoder, decoder, SAMPLER, "the decoder's"), likes(LIKED)
    table, prompt = reward.embedding, part(asked, 0)

    @eqx.filter_jit
    def reconstructed(responses):
        def one(response):
            z = space.encode(table, prompt, response, jr.key(0))
            return space.decode(table, prompt, z, z, jr.key(0))

        return jax.vmap(jax.vmap(one))(responses)

    tokens, mask = reconstructed(responses)
    np.testing.assert_array_equal(tokens, responses.tokens)
    np.testing.assert_array_equal(mask, responses.mask)
    few = part(responses, slice(None), slice(N))
    # A decoder that is sure of its texts has small gradients; Adam's steps do not care.
    adam = flowrl.Optax(optax.adam(1.0))
    result = align(space, reward, asked, few, keys[:, :N], flowrl.Budget(20, 0.3), solver=adam, save=(0, 5, 20))
    best = np.max(result.rewards, axis=-1)
    np.testing.assert_array_equal(best[0], np.max(_counted(asked, few.tokens, few.mask), axis=-1))
    assert np.all(best[1] >= best[0])
    assert np.all(best[2] > best[0])
    _check_text(result.tokens, result.mask)


# Refusals


def test_tokens_of_two_kinds_are_not_mixed():
    asked, responses, keys = _drawn()
    model, other, same = language_model(tokens="a" * 64), curved(tokens="b" * 64), curved(tokens="a" * 64)
    for space in (LogitSpace(model, SAMPLER), TokenSpace(model, SAMPLER), ReferenceSpace(model, SAMPLER)):
        name = type(space).__name__
        with pytest.raises(ValueError, match=f"{name} decodes to tokens of one tokenizer .aaaaaaaaaaaa…"):
            check_tokens(space, other)
        with pytest.raises(ValueError, match="Use a reward model with the policy's tokenizer, or LatentSpace"):
            align(space, other, asked, responses, keys, flowrl.Budget(1))
        check_tokens(space, same)
        check_tokens(space, curved())
    check_tokens(LogitSpace(MODEL(), SAMPLER), other)
    encoder, decoder = _autoencoder()
    check_tokens(LatentSpace(encoder, decoder, SAMPLER, "b" * 64), other)
    with pytest.raises(ValueError, match="LatentSpace decodes"):
        check_tokens(LatentSpace(encoder, decoder, SAMPLER, "a" * 64), other)


@pytest.mark.parametrize("save", [(), (2, 1), (1, 1), (0, 4), (-1, 2)])
def test_a_save_that_cannot_be_is_refused(save):
    with pytest.raises(ValueError, match=r"save must be increasing numbers of steps in \[0, 3\], got"):
        align(_spaces()["tokens"], curved(), *_drawn(), flowrl.Budget(3), save=save)


def test_spaces_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="margin must be >= 0, got -1"):
        LogitSpace(MODEL(), SAMPLER, margin=-1.0)
    with pytest.raises(ValueError, match="width must be > 0, got 0"):
        TokenSpace(MODEL(), SAMPLER, width=0.0)
    with pytest.raises(ValueError, match="Langevin|key"):
        align(_spaces()["tokens"], curved(), *_drawn(), flowrl.Budget(1), flow=flowrl.Langevin())


@pytest.mark.parametrize("name", ["logits by reference", "tokens by prior", "reference", "latent"])
def test_half_precision_is_steered_in_single(name):
    cast = lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_inexact_array(leaf) else leaf
    half = functools.partial(jax.tree.map, cast)
    asked, responses, keys = _drawn()
    space, reward = _spaces()[name], half(reward_model())
    space = space if name == "latent" else half(space)
    result = eqx.filter_eval_shape(
        align, space, reward, asked, responses, keys, flowrl.Budget(2, 0.1), flow=flowrl.Ascent(), save=(0, 2)
    )
    assert result.tokens.shape == (2, B, N, T)
