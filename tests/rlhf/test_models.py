"""Transformers and their caches, sampling, reward models: what they compute against the long way round."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tiny_texts import (
    END,
    PAD,
    UNKNOWN,
    V,
    config,
    language_model,
    lively,
    part,
    prompts,
    reward_ensemble,
    reward_model,
    words,
)

from flowrl.rlhf import (
    LanguageModel,
    Prompt,
    RewardEnsemble,
    RewardModel,
    Sampler,
    Transformer,
    log_probs,
    response_logits,
    sample,
)

KINDS = {
    "gpt2": {"positions": "learned", "max_positions": 9, "activation": "gelu_tanh", "layers": 2},
    "neox": {
        "heads": 4,
        "key_value_heads": 1,
        "rotary_fraction": 0.5,
        "parallel": True,
        "tied": False,
        "output_bias": False,
        "activation": "relu",
    },
    "qwen3": {
        "heads": 4,
        "norm": "rms",
        "gated": True,
        "activation": "silu",
        "query_key_norm": True,
        "bias": False,
        "query_bias": False,
        "rotary_scaling": (8.0, 1.0, 4.0, 16.0),
    },
}

kinds = pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
LENGTH = 7
TOKENS = words(0, LENGTH)
ALL = jnp.ones(LENGTH, bool)


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


# One program for every test that needs it.
_hidden = eqx.filter_jit(lambda trunk, embedded, mask: trunk(embedded, mask))
_logits = eqx.filter_jit(lambda model, tokens, mask: model(tokens, mask))
_extend = eqx.filter_jit(lambda model, cache, tokens, mask: model.extend(cache, tokens, mask))
_reward = eqx.filter_jit(lambda model, embedded, mask: jax.value_and_grad(model)(embedded, mask))
_draw = eqx.filter_jit(
    lambda sampler, model, prompt, keys: jax.vmap(lambda k: sampler.sample(model, prompt, key=k))(keys)
)


def _other(tokens, place):
    """The tokens, with another one at one place."""
    tokens = np.array(tokens)
    tokens[place] = 3 + (tokens[place] - 2) % (V - 3)
    return jnp.asarray(tokens)


def _spread_out(tokens, places, length, filler):
    """The tokens at some places, and where they are."""
    padded, mask = np.full(length, filler, np.int32), np.zeros(length, bool)
    padded[places], mask[places] = tokens, True
    return jnp.asarray(padded), jnp.asarray(mask)


def _close(a, b, atol=2e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# Transformers


@kinds
def test_token_by_token_is_all_at_once(fields):
    model = language_model(**fields)
    whole = np.asarray(_logits(model, TOKENS, ALL))
    assert whole.std() > 0.1
    cache, one_by_one = model.trunk.empty(9), []
    for token in np.asarray(TOKENS):
        logits, cache = _extend(model, cache, jnp.asarray([token]), jnp.asarray([True]))
        one_by_one.append(logits[0])
    _close(np.stack(one_by_one), whole)
    assert (int(cache.filled), int(cache.position), int(cache.valid.sum())) == (7, 7, 7)
    # Later tokens change no earlier logits.
    after = np.asarray(_logits(model, _other(TOKENS, 4), ALL))
    np.testing.assert_array_equal(whole[:4], after[:4])
    assert np.min(np.max(np.abs(whole - after)[4:], axis=1)) > 1e-3


def test_a_cache_may_be_extended_by_several_tokens_and_padding():
    model = language_model(**KINDS["gpt2"])
    whole = _logits(model, TOKENS, ALL)
    tokens, mask = _spread_out(TOKENS, [1, 2, 4, 5, 6, 7, 8], 9, PAD)
    first, cache = _extend(model, model.trunk.empty(9), tokens[:4], mask[:4])
    rest, cache = _extend(model, cache, tokens[4:], mask[4:])
    _close(np.concatenate([first, rest])[np.asarray(mask)], whole)
    assert (int(cache.filled), int(cache.position), int(cache.valid.sum())) == (9, 7, 7)


@pytest.mark.parametrize(("name", "causal"), [*((name, True) for name in KINDS), ("gpt2", False), ("qwen3", False)])
def test_padding_changes_nothing_wherever_it_is(name, causal):
    trunk = lively(lambda: Transformer(config(**KINDS[name], causal=causal), key=jr.key(0)), 1)
    plain = _hidden(trunk, trunk.embedding[TOKENS], ALL)
    for places in ([2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6], [0, 2, 3, 4, 6, 7, 8]):
        for filler in (PAD, 7):
            tokens, mask = _spread_out(TOKENS, places, 9, filler)
            hidden = np.asarray(_hidden(trunk, trunk.embedding[tokens], mask))
            assert np.all(np.isfinite(hidden))
            _close(hidden[places], plain)
    changed = np.abs(plain - _hidden(trunk, trunk.embedding[_other(TOKENS, 6)], ALL)).max(axis=1)
    assert np.all(changed[:6] == 0) == causal
    assert np.all(changed[:6] > 1e-3) != causal


def test_grouped_heads_are_repeated_heads():
    grouped, whole = (language_model(heads=4, key_value_heads=groups) for groups in (2, 4))

    def repeated(leaf):
        return jnp.asarray(np.repeat(leaf.reshape(*leaf.shape[:-1], 2, 4), 2, axis=-2).reshape(*leaf.shape[:-1], 16))

    shared = lambda m: [p for map in (m.trunk.blocks.key, m.trunk.blocks.value) for p in (map.weight, map.bias)]
    weights = jax.tree.leaves(eqx.tree_at(shared, grouped, [repeated(np.asarray(leaf)) for leaf in shared(grouped)]))
    whole = eqx.tree_at(jax.tree.leaves, whole, weights)
    _close(_logits(whole, TOKENS, ALL), _logits(grouped, TOKENS, ALL))


def test_learned_positions_are_added_and_end():
    model = language_model(**KINDS["gpt2"])
    trunk, table = model.trunk, np.asarray(model.trunk.position_embedding)
    assert table.shape == (9, 8)
    without = eqx.tree_at(lambda t: t.position_embedding, trunk, jnp.zeros((9, 8), jnp.float32))
    embedded = np.asarray(trunk.embedding)[TOKENS]
    expected = _hidden(trunk, jnp.asarray(embedded), ALL)
    _close(_hidden(without, jnp.asarray(embedded + table[:7]), ALL), expected)
    assert np.max(np.abs(_hidden(without, jnp.asarray(embedded), ALL) - expected)) > 1e-2
    too_long = "knows 9 positions .max_positions.*a sequence of 10 tokens is too long"
    with pytest.raises(ValueError, match=too_long):
        model(words(0, 10))
    with pytest.raises(ValueError, match=too_long):
        sample(Sampler(7), model, prompts(), count=1, key=jr.key(0))
    assert eqx.filter_eval_shape(model, words(0, 9)).shape == (9, V)
    assert eqx.filter_eval_shape(language_model(max_positions=10), words(0, 10)).shape == (10, V)
    with pytest.raises(ValueError, match=too_long):  # rotations too
        language_model(max_positions=9)(words(0, 10))


def test_soft_tokens_that_are_one_hot_are_tokens():
    model, mask = language_model(), jnp.arange(LENGTH) != 2
    soft = eqx.filter_jit(lambda weights: model.from_soft(jnp.asarray(weights, jnp.float32), mask))
    onehot = np.eye(V)[TOKENS]
    _close(soft(onehot), _logits(model, TOKENS, mask))
    assert np.max(np.abs(soft(np.full_like(onehot, 1 / V)) - soft(onehot))) > 1e-2


def test_configurations_that_cannot_be_are_refused(key):
    with pytest.raises(ValueError, match="heads must be a multiple of key_value_heads, got 4 and 3"):
        config(heads=4, key_value_heads=3)
    with pytest.raises(ValueError, match="must be even, got 3"):
        config(head_size=3)
    with pytest.raises(ValueError, match="must be even, got 1"):
        config(rotary_fraction=0.25)
    assert config(head_size=3, positions="learned").head_size == 3
    with pytest.raises(ValueError, match="must have causal=True"):
        LanguageModel(config(causal=False), key=key)


# Sampling


@pytest.fixture(scope="module")
def model():
    return language_model(5, size=0.35)


def _prompt(*tokens):
    return Prompt(jnp.asarray(tokens, jnp.int32), jnp.ones(len(tokens), bool))


@pytest.mark.parametrize("fields", [{"temperature": 0.6, "top_p": 0.7}, {"temperature": 2.0, "forbidden": (0, 4)}])
@pytest.mark.thorough
def test_a_sample_is_what_its_noise_decodes_to(model, fields, key):
    sampler, keys = Sampler(6, END, PAD, **fields), jr.split(key, 30)
    drawn = _draw(sampler, model, _prompt(3, 4), keys)
    noise = jax.vmap(lambda k: sampler.noise(V, key=k))(keys)
    decode = eqx.filter_jit(lambda noise: jax.vmap(lambda g: sampler.decode(model, _prompt(3, 4), g))(noise))
    again = decode(noise)
    np.testing.assert_array_equal(drawn.tokens, again.tokens)
    np.testing.assert_array_equal(drawn.mask, again.mask)
    assert len(np.unique(drawn.tokens, axis=0)) > 10
    assert not np.array_equal(decode(noise[::-1]).tokens, again.tokens)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.6)])
def test_tokens_come_as_often_as_their_probabilities_say(model, temperature, top_p, key):
    count = 4000
    drawn = _draw(Sampler(1, temperature=temperature, top_p=top_p), model, _prompt(5), jr.split(key, count))
    logits = np.asarray(_logits(model, jnp.asarray([5], jnp.int32), jnp.ones(1, bool))[0], np.float64)
    p = np.exp(logits / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1] if top_p < 1 else order
    assert len(kept) < V or top_p == 1
    seen = np.bincount(np.asarray(drawn.tokens[:, 0]), minlength=V)
    assert seen[kept].sum() == count
    expected = count * p[kept] / p[kept].sum()
    enough = expected >= 5
    statistic = np.sum((seen[kept] - expected)[enough] ** 2 / expected[enough])
    freedom = enough.sum() - 1
    assert statistic < freedom + 4 * np.sqrt(2 * freedom) + 4  # beyond the 0.999 quantile of the distribution
    # The log-probabilities are those of the model as it is, whatever was drawn from.
    _close(drawn.log_probs[:, 0], (logits - np.log(np.exp(logits).sum()))[drawn.tokens[:, 0]])


@pytest.mark.thorough
def test_after_the_end_there_is_padding(model, key):
    sampler, prompt = Sampler(8, END, PAD, forbidden=(PAD,)), _prompt(6, 3, 9)
    drawn = _draw(sampler, model, prompt, jr.split(key, 60))
    tokens, mask = np.asarray(drawn.tokens), np.asarray(drawn.mask)
    ended = np.any(tokens == END, axis=1)
    assert 5 < ended.sum() < 60
    for row, seen, over in zip(tokens, mask, ended, strict=True):
        length = int(np.argmax(row == END)) + 1 if over else 8
        np.testing.assert_array_equal(seen, np.arange(8) < length)
        assert np.all(row[length:] == PAD)
        assert PAD not in row[:length]
    assert np.all(np.asarray(drawn.log_probs)[~mask] == 0)
    read = eqx.filter_jit(jax.vmap(lambda t, m: log_probs(model, prompt, t, m)))
    _close(read(drawn.tokens, drawn.mask), drawn.log_probs)
    # By hand: the model reads all of it at once.
    row = int(np.argmax(ended & (mask.sum(1) > 2)))
    whole = jnp.concatenate([prompt.tokens, drawn.tokens[row]])
    logits = _logits(model, whole, jnp.concatenate([prompt.mask, drawn.mask[row]]))
    by_hand = jax.nn.log_softmax(logits)[jnp.arange(2, 10), drawn.tokens[row]]
    _close(jnp.sum(jnp.where(drawn.mask[row], by_hand, 0)), jnp.sum(drawn.log_probs[row]))


def test_forbidden_tokens_are_out_of_reach(model, key):
    sampler, prompt = Sampler(6, forbidden=(PAD, UNKNOWN, 5)), _prompt(6)
    drawn = _draw(sampler, model, prompt, jr.split(key, 100))
    assert set(np.unique(drawn.tokens)) == set(range(V)) - {PAD, UNKNOWN, 5}
    assert np.all(drawn.mask)  # without an end, the end token is one like others

    @eqx.filter_jit
    def pushed(size):
        push = jnp.zeros(V, jnp.float32).at[jnp.asarray([PAD, 5, 7])].set(size * jnp.asarray([3.0, 2.0, 1.0], "f4"))
        biased = sampler.greedy(model, prompt, lambda t: push)  # noqa: ARG005
        return biased.tokens, sampler.decode(model, prompt, jnp.broadcast_to(push, (6, V))).tokens

    for size in (20.0, 1e6):
        for tokens in pushed(jnp.asarray(size, jnp.float32)):
            np.testing.assert_array_equal(tokens, np.full(6, 7))
    logits = sampler.allowed(jnp.ones((2, V), jnp.float32))
    assert np.all(np.isfinite(logits))
    assert np.all(np.asarray(logits)[:, [0, 1, 5]] < -1000)


def test_greedy_takes_the_likeliest(model):
    tokens = eqx.filter_jit(lambda: Sampler(5).greedy(model, _prompt(4, 8)).tokens)()
    whole = [4, 8]
    for token in tokens:
        padded, mask = _spread_out(whole, np.arange(len(whole)), LENGTH, PAD)
        assert int(token) == int(np.argmax(_logits(model, padded, mask)[len(whole) - 1]))
        whole.append(int(token))


@pytest.mark.thorough
@pytest.mark.parametrize("places", [[3, 4], [0, 1], [1, 3]])
def test_padded_prompts_give_the_same_text(model, places, key):
    sampler, keys = Sampler(6, END, PAD), jr.split(key, 20)
    plain = _draw(sampler, model, _prompt(5, 9), keys)
    place = jnp.asarray(places)
    tokens = jnp.full(5, 7, jnp.int32).at[place].set(jnp.asarray([5, 9], jnp.int32))
    prompt = Prompt(tokens, jnp.zeros(5, bool).at[place].set(True))
    padded = _draw(sampler, model, prompt, keys)
    np.testing.assert_array_equal(plain.tokens, padded.tokens)
    _close(plain.log_probs, padded.log_probs)
    read = eqx.filter_jit(lambda model, prompt, response: log_probs(model, prompt, response.tokens, response.mask))
    first = part(plain, 0)
    _close(read(model, prompt, first), first.log_probs)


@pytest.mark.thorough
def test_sampling_is_deterministic_and_batched(model, key):
    sampler, asked = Sampler(5, END, PAD), prompts(5)
    drawn, keys = sample(sampler, model, asked, count=3, key=key)
    assert drawn.tokens.shape == (5, 3, 5)
    assert keys.shape == (5, 3)
    again, _ = sample(sampler, model, asked, count=3, key=key)
    assert eqx.tree_equal(drawn, again)
    more, _ = sample(sampler, model, prompts(7), count=4, key=key)
    np.testing.assert_array_equal(drawn.tokens, more.tokens[:5, :3])
    other, same = sample(sampler, model, asked, count=3, key=key, at_once=2)
    np.testing.assert_array_equal(drawn.tokens, other.tokens)
    _close(drawn.log_probs, other.log_probs)
    assert np.array_equal(jr.key_data(keys), jr.key_data(same))
    assert not np.array_equal(sample(sampler, model, asked, count=3, key=jr.key(1))[0].tokens, drawn.tokens)


def test_samplers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 0.0"):
        Sampler(3, top_p=0.0)
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], got 1.5"):
        Sampler(3, top_p=1.5)
    with pytest.raises(ValueError, match="temperature must be > 0 .the most likely text is `greedy`., got 0"):
        Sampler(3, temperature=0.0)
    with pytest.raises(ValueError, match="length must be a Python int >= 1"):
        Sampler(0)


# Reward models


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("causal", [True, False])
def test_rewards_read_the_last_token_or_the_mean_and_no_padding(pooling, causal):
    model = reward_model(pooling=pooling, causal=causal)
    assert eqx.filter_eval_shape(lambda: RewardModel(config(causal=causal), key=jr.key(0))).pooling == (
        "last" if causal else "mean"
    )
    seen = np.flatnonzero([False, True, True, False, True, False, False])
    text = TOKENS[:3]
    rewards = []
    for places in (seen, seen + 2, np.arange(3), np.arange(3) + 4):
        tokens, mask = _spread_out(text, places, LENGTH, 9)
        embedded = model.embedding[tokens]
        reward, gradient = _reward(model, embedded, mask)
        rewards.append(float(reward))
        hidden = np.asarray(_hidden(model.trunk, embedded, mask))
        pooled = hidden[places[-1]] if pooling == "last" else hidden[places].mean(axis=0)
        _close(reward, pooled @ np.asarray(model.score.weight)[:, 0])
        assert not np.any(np.asarray(gradient)[~np.asarray(mask)])
        assert np.any(np.asarray(gradient)[np.asarray(mask)])
    _close(rewards, rewards[0])


@pytest.mark.parametrize("aggregate", ["mean", "min", "lower"])
def test_ensembles_aggregate(aggregate):
    ensemble = reward_ensemble(count=4, aggregate=aggregate, caution=1.5, tokens="abc")
    mask = jnp.arange(LENGTH) > 0
    embedded = ensemble.embedding[TOKENS]
    members = [part(ensemble.members, i) for i in range(4)]
    rewards, gradients = (np.stack(of) for of in zip(*(_reward(m, embedded, mask) for m in members), strict=True))
    _close(eqx.filter_jit(lambda e: e.each(embedded, mask))(ensemble), rewards)
    deviation = rewards.std()
    assert deviation > 0.1
    shares = {
        "mean": np.full(4, 0.25),
        "min": np.arange(4) == rewards.argmin(),
        "lower": 0.25 - 1.5 * (rewards - rewards.mean()) / (4 * deviation),
    }
    value = {"mean": rewards.mean(), "min": rewards.min(), "lower": rewards.mean() - 1.5 * deviation}
    reward, gradient = _reward(ensemble, embedded, mask)
    _close(reward, value[aggregate])
    _close(gradient, np.tensordot(shares[aggregate], gradients, 1), atol=1e-4)
    assert ensemble.tokens == "abc"


@pytest.mark.parametrize("members", [1, 3])
def test_members_that_agree_have_a_gradient(members):
    ensemble = reward_ensemble(count=members, aggregate="lower")
    same = jax.tree.map(lambda leaf: jnp.asarray(np.broadcast_to(leaf[:1], leaf.shape)), ensemble.members)
    ensemble = eqx.tree_at(lambda e: e.members, ensemble, same)
    embedded = ensemble.embedding[TOKENS]
    gradient = _reward(ensemble, embedded, ALL)[1]
    expected = _reward(part(same, 0), embedded, ALL)[1]
    # Their spread has no slope there: three equal numbers may differ from their mean by rounding, one does not.
    _close(gradient, expected, atol=1e-4)
    assert np.abs(expected).max() > 1e-2


def test_ensembles_that_cannot_be_are_refused(key):
    with pytest.raises(ValueError, match="caution must be >= 0, got -1"):
        RewardEnsemble(config(), 2, key=key, caution=-1.0)
    with pytest.raises(ValueError, match="count must be a Python int >= 1"):
        RewardEnsemble(config(), 0, key=key)


def test_half_precision_runs():
    half = functools.partial(jax.tree.map, lambda leaf: leaf.astype(jnp.bfloat16))
    model = half(language_model(tied=False))
    assert eqx.filter_eval_shape(model, TOKENS).dtype == jnp.bfloat16
    assert eqx.filter_eval_shape(half(reward_model()).of_tokens, TOKENS, ALL).dtype == jnp.bfloat16
    asked = Prompt(TOKENS[None], ALL[None])
    drawn, _ = eqx.filter_eval_shape(sample, Sampler(4, END, PAD), model, asked, count=2, key=jr.key(0))
    # A sum of many small numbers, and noise of 8 bits, would be of little use.
    assert drawn.log_probs.dtype == jnp.float32
    read = eqx.filter_eval_shape(response_logits, model, Prompt(TOKENS, ALL), TOKENS, ALL)
    assert (read.shape, read.dtype) == ((LENGTH, V), jnp.float32)
