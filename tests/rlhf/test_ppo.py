"""PPO of a language model: its parts against loops and closed forms, and what it finds against the exact optimum."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from flowrl.rlhf import (
    PPO,
    AbstractReward,
    LanguageModel,
    PPOState,
    Prompt,
    Sampler,
    TransformerConfig,
    ValueModel,
    ppo_update,
)
from flowrl.rlhf.learning._ppo import Rollout
from flowrl.rlhf.learning._ppo_terms import clipped_error, clipped_surrogate, gae, whiten
from flowrl.runs import load_checkpoint, save_checkpoint

VOCABULARY, END, PAD = 8, 1, 0
SHAPE = TransformerConfig(
    VOCABULARY, width=16, layers=1, heads=2, key_value_heads=2, head_size=8, hidden=16, tied=False
)


TRACES = []


class Tally(AbstractReward):
    """The sum of a number for each token; every trace of it is counted."""

    tokens: str | None = eqx.field(static=True)
    embedding: jax.Array
    worth: jax.Array

    def __init__(self, worth, tokens=None):
        self.tokens, self.embedding, self.worth = tokens, jnp.eye(VOCABULARY, dtype=jnp.float32), jnp.asarray(worth)

    def __call__(self, embedded, mask):
        TRACES.append(1)
        return jnp.sum(jnp.where(mask, embedded @ self.worth, 0))


def one_token(token):
    return Tally(jnp.zeros(VOCABULARY, jnp.float32).at[token].set(1))


def language_model(key, spread=1.0, tokens=None):
    """A model whose next tokens are clearly not uniform."""
    model = LanguageModel(SHAPE, key=key, tokens=tokens)
    head = spread * jr.normal(jr.fold_in(key, 1), model.head.weight.shape, jnp.float32) / SHAPE.width**0.5
    return eqx.tree_at(lambda m: m.head.weight, model, head)


def some_prompts(rows=4, left=2, right=0):
    """Prompts of three tokens, and padding."""
    tokens = 2 + jnp.arange(rows * 3, dtype=jnp.int32).reshape(rows, 3) % (VOCABULARY - 2)
    wide = lambda leaf: jnp.pad(leaf, ((0, 0), (left, right)))
    return Prompt(wide(tokens), wide(jnp.ones((rows, 3), bool)))


SAMPLER = Sampler(5, end=END, pad=PAD, forbidden=(PAD,))
SMALL = PPO(SAMPLER, learning_rate=3e-3, value_learning_rate=3e-3, rollouts=32, epochs=2, minibatches=2)


def leaves(tree):
    keys = lambda leaf: jr.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return [np.asarray(keys(leaf)) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array))]


# The parts


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_advantages_agree_with_a_loop(key, lam):
    rewards, values = jr.normal(key, (2, 6, 7), jnp.float32)
    lengths = np.array([1, 3, 7, 5, 2, 7])
    mask = np.arange(7) < lengths[:, None]
    expected = np.zeros((6, 7))
    for row, length in enumerate(lengths):
        for t in range(length):
            for k in range(t, length):
                after = float(values[row, k + 1]) if k + 1 < length else 0.0
                expected[row, t] += lam ** (k - t) * (float(rewards[row, k]) + after - float(values[row, k]))
    got = jax.vmap(lambda r, v, m: gae(r, v, m, lam))(rewards, values, jnp.asarray(mask))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_whitening_sees_no_padding(key):
    terms = 3 + 5 * jr.normal(key, (6, 7), jnp.float32)
    mask = jnp.asarray(np.arange(7) < np.array([1, 3, 7, 5, 2, 7])[:, None])
    white = whiten(terms, mask)
    np.testing.assert_array_equal(white[~mask], 0)
    np.testing.assert_allclose([white[mask].mean(), white[mask].std()], [0, 1], atol=1e-5)
    np.testing.assert_array_equal(white, whiten(jnp.where(mask, terms, 1e6), mask))
    np.testing.assert_array_equal(whiten(jnp.ones((2, 3), jnp.float32), jnp.ones((2, 3), bool)), 0)


def test_the_surrogate_is_clipped_where_it_would_reward_going_further():
    advantages, ratios = jnp.array([1.0, 1.0, -1.0, -1.0]), jnp.array([1.5, 0.5, 1.5, 0.5])
    value, slope = jax.vmap(jax.value_and_grad(lambda l, a: clipped_surrogate(l, jnp.zeros(()), a, 0.2)))(
        jnp.log(ratios), advantages
    )
    np.testing.assert_allclose(value, [1.2, 0.5, -1.5, -0.8], rtol=1e-6)
    np.testing.assert_allclose(slope, [0.0, 0.5, -1.5, 0.0], atol=1e-6)


def test_a_value_that_has_moved_too_far_is_not_pulled_further():
    slope = jax.grad(lambda v: clipped_error(v, jnp.zeros(()), jnp.ones(()), 0.2))
    np.testing.assert_allclose([slope(jnp.array(v)) for v in (0.1, 0.5, -0.5)], [-0.9, 0.0, -1.5], atol=1e-6)


WHOLE = dataclasses.replace(SMALL, gae_lambda=1.0, beta=0.5)
roll_out = eqx.filter_jit(WHOLE._roll_out)
gradient = eqx.filter_jit(eqx.filter_grad(WHOLE._losses, has_aux=True))


@eqx.filter_jit
def table(model, row):
    """Log-probabilities of the tokens that may be drawn, read without padding between prompt and response."""
    whole = jnp.concatenate([row.prompt.tokens[2:], row.tokens])
    logits = model(whole, jnp.concatenate([row.prompt.mask[2:], row.mask]))[2:-1]
    return jax.nn.log_softmax(logits.at[:, PAD].set(-jnp.inf))


@pytest.fixture(scope="module")
def rolled():
    """A state, a reference that is not its policy, a rollout and its metrics; values that are not 0."""
    state = WHOLE.start(language_model(jr.key(1)), key=jr.key(2))
    state = eqx.tree_at(lambda s: s.value.head.weight, state, jr.normal(jr.key(3), (SHAPE.width, 1), jnp.float32))
    reference = language_model(jr.key(4))
    return state, reference, *roll_out(state, reference, one_token(3), some_prompts(), jr.key(5))


@pytest.mark.thorough
def test_at_ratio_one_the_surrogate_has_the_policy_gradient(rolled):
    state, _, rollout, _ = rolled
    assert 0 < int(jnp.sum(~rollout.mask)) < rollout.mask.size / 2

    @eqx.filter_jit
    @eqx.filter_grad
    def policy_gradient(model):
        tokens = jnp.where(rollout.mask, rollout.tokens, END)
        log_probs = jax.vmap(lambda row, t: table(model, row)[jnp.arange(5), t])(rollout, tokens)
        return -jnp.sum(jnp.where(rollout.mask, log_probs * rollout.advantages, 0)) / jnp.sum(rollout.mask, dtype="f4")

    got = gradient((state.policy, state.value), rollout)[0][0]
    for mine, exact in zip(leaves(got), leaves(policy_gradient(state.policy)), strict=True):
        np.testing.assert_allclose(mine, exact, atol=1e-6)


def test_rollouts_hold_the_penalty_and_the_reward(rolled):
    state, reference, rollout, metrics = rolled
    lengths, divergences, entropies, rewards = [], [], [], []
    for i in range(32):
        row = jax.tree.map(lambda leaf: leaf[i], rollout)  # noqa: B023
        length = int(row.mask.sum())
        tokens = np.asarray(row.tokens[:length])
        mine, other = (np.asarray(table(model, row))[:length, 1:] for model in (state.policy, reference))
        at = np.arange(length), tokens - 1
        np.testing.assert_allclose(row.log_probs[:length], mine[at], atol=1e-5)
        rewards.append(np.sum(np.concatenate([row.prompt.tokens, tokens]) == 3))
        token_rewards = -0.5 * (mine - other)[at]
        token_rewards[-1] += rewards[-1]
        np.testing.assert_allclose(row.returns[:length], token_rewards[::-1].cumsum()[::-1], atol=1e-4)
        divergences.append(np.sum(np.exp(mine) * (mine - other)))
        entropies.append(np.sum(-np.exp(mine) * mine))
        lengths.append(length)
    assert 1 <= min(lengths) < max(lengths) == 5
    expected = {"reward": np.mean(rewards), "kl": np.mean(divergences), "length": np.mean(lengths)}
    expected["entropy"] = np.sum(entropies) / np.sum(lengths)
    assert {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()} == metrics


def test_each_prompt_is_drawn_alike_often(rolled):
    prompts = np.asarray(rolled[2].prompt.tokens)
    assert np.unique(prompts, axis=0, return_counts=True)[1].tolist() == [16, 16]  # four prompts, pairs of them alike


@pytest.mark.parametrize(("left", "right"), [(0, 2), (1, 1)])
def test_padding_of_prompts_changes_nothing(rolled, left, right):
    state, reference, rollout, metrics = rolled
    other, again = roll_out(state, reference, one_token(3), some_prompts(left=left, right=right), jr.key(5))
    np.testing.assert_array_equal(other.tokens, rollout.tokens)
    for name in ("log_probs", "values", "advantages", "returns"):
        np.testing.assert_allclose(getattr(other, name), getattr(rollout, name), atol=1e-4, err_msg=name)
    assert {name: pytest.approx(float(value), abs=1e-5) for name, value in metrics.items()} == again


@pytest.mark.thorough
def test_what_stands_after_the_end_changes_nothing(rolled):
    state, _, rollout, _ = rolled
    junk = lambda leaf, value: jnp.where(rollout.mask, leaf, value)
    parts = {name: junk(getattr(rollout, name), 7) for name in ("tokens", "log_probs", "values", "advantages")}
    other = Rollout(rollout.prompt, mask=rollout.mask, returns=junk(rollout.returns, 7), **parts)
    first, second = (gradient((state.policy, state.value), batch) for batch in (rollout, other))
    for mine, others in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_allclose(mine, others, atol=1e-6)


# What it finds


@pytest.fixture(scope="module")
def runs():
    """Runs at two β, one program for both, with what was reported and how often the reward model was traced."""
    model, prompts, reward = language_model(jr.key(5)), some_prompts(), one_token(3)
    found = {}
    for beta in (0.02, 1.0):
        rows, traces = [], []

        def report(state, row, rows=rows, traces=traces):
            rows.append(row | {"key": jr.key_data(state.key)})
            traces.append(len(TRACES))

        ppo = dataclasses.replace(SMALL, beta=beta)
        start = ppo.start(model, key=jr.key(6))
        end = ppo_update(ppo, start, model, reward, prompts, iterations=25, report=report)
        found[beta] = rows, traces, end
    return model, prompts, reward, found


@pytest.mark.thorough
def test_the_reward_rises_and_beta_holds_the_policy_back(runs):
    found = runs[3]
    late = lambda beta, name: np.mean([row[name] for row in found[beta][0][-5:]])
    first = found[0.02][0][0]
    assert late(0.02, "reward") > first["reward"] + 1.5
    assert late(0.02, "reward") > late(1.0, "reward") + 0.5
    assert late(0.02, "kl") > 3 * late(1.0, "kl") > 0
    assert late(1.0, "kl") < 0.5
    assert [row["step"] for row in found[1.0][0]] == list(range(1, 26))
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["entropy"] > late(0.02, "entropy") > 0
    assert all(1 <= row["length"] <= 5 and 0 <= row["clip_fraction"] < 1 for row in found[0.02][0])


def test_values_learn_what_responses_are_worth(runs):
    losses = [row["value_loss"] for row in runs[3][1.0][0]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2


def test_iterations_and_a_new_beta_do_not_retrace(runs):
    found = runs[3]
    assert len(set(found[0.02][1]) | set(found[1.0][1])) == 1


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(runs, tmp_path):
    model, prompts, reward, found = runs
    ppo = dataclasses.replace(SMALL, beta=0.02)
    half = ppo_update(ppo, ppo.start(model, key=jr.key(6)), model, reward, prompts, iterations=10)
    save_checkpoint(tmp_path / "state.npz", half, {"step": 10})
    kept, meta = load_checkpoint(tmp_path / "state.npz", ppo.start(model, key=jr.key(0)))
    assert isinstance(kept, PPOState)
    assert meta == {"step": 10}
    rows = []
    end = ppo_update(ppo, kept, model, reward, prompts, iterations=25, report=lambda _, row: rows.append(row))
    assert [row["step"] for row in rows] == list(range(11, 26))
    for mine, other in zip(leaves(end), leaves(found[0.02][2]), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_another_key_gives_another_run(runs):
    model, prompts, reward, _ = runs
    states = [SMALL.step(SMALL.start(model, key=jr.key(k)), model, reward, prompts)[0] for k in (1, 1, 2)]
    same = [all(map(np.array_equal, leaves(states[0]), leaves(other))) for other in states[1:]]
    assert same == [True, False]


WORTH = np.array([4.0, 0.0, 0.3, 1.0, -0.5, 0.6, -1.0, 0.2], np.float32)  # the forbidden token would be worth most


@pytest.mark.thorough
def test_a_bandit_ends_at_the_tilted_reference(key):
    """Responses of one token: the optimum is μ exp(r/β)/Z, and the reported KL is that of the two distributions."""
    model, beta = language_model(key), 0.5
    sampler = Sampler(1, pad=PAD, forbidden=(PAD,))
    ppo = PPO(sampler, beta=beta, learning_rate=2e-2, value_learning_rate=2e-2, rollouts=256, epochs=2, minibatches=2)
    prompts, reward = Prompt(jnp.array([[2]], jnp.int32), jnp.ones((1, 1), bool)), Tally(WORTH)

    @eqx.filter_jit
    def distribution(model):
        return jax.nn.softmax(model(jnp.array([2], jnp.int32))[0, 1:])

    mu = np.asarray(distribution(model), np.float64)
    exact = mu * np.exp(WORTH[1:] / beta)
    exact /= exact.sum()
    divergence = lambda p: np.sum(p * np.log(p / mu))
    rows, distributions = [], [mu]

    def report(state, row):
        rows.append(row)
        distributions.append(np.asarray(distribution(state.policy), np.float64))

    state = ppo_update(ppo, ppo.start(model, key=key), model, reward, prompts, iterations=30, report=report)
    ppo = dataclasses.replace(ppo, learning_rate=2e-3)
    state = ppo_update(ppo, state, model, reward, prompts, iterations=50, report=report)
    np.testing.assert_allclose([row["kl"] for row in rows], [divergence(p) for p in distributions[:-1]], atol=1e-5)
    entropies = [-np.sum(p * np.log(p)) for p in distributions[:-1]]
    np.testing.assert_allclose([row["entropy"] for row in rows], entropies, atol=1e-5)
    distance = lambda p: 0.5 * np.abs(p - exact).sum()
    assert distance(mu) > 0.3
    assert distance(distributions[-1]) < 0.03
    assert abs(divergence(distributions[-1]) - divergence(exact)) < 0.05


# Refusals


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"beta": -0.1}, "beta must be >= 0"),
        ({"learning_rate": 0.0}, "learning rate must be > 0"),
        ({"value_learning_rate": -1.0}, "learning rate must be > 0"),
        ({"rollouts": 0}, "rollouts must be a Python int >= 1"),
        ({"epochs": 0}, "epochs must be"),
        ({"minibatches": 3}, "rollouts must be a multiple of minibatches, got 64 and 3"),
        ({"gae_lambda": 1.5}, "gae_lambda must be in"),
        ({"ratio_clip": 1.0}, "ratio_clip must be in"),
        ({"value_clip": 0.0}, "value_clip must be > 0"),
        ({"clip": -1.0}, "clip must be > 0"),
        ({"at_once": 0}, "at_once must be"),
        ({"sampler": Sampler(3, temperature=0.7)}, "temperature=1.0 and top_p=1.0, got 0.7"),
        ({"sampler": Sampler(3, top_p=0.9)}, "temperature=1.0 and top_p=1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        PPO(**({"sampler": SAMPLER} | settings))


def test_models_of_other_tokens_are_refused(key):
    model = language_model(key, tokens="one")
    state = SMALL.start(model, key=key)
    with pytest.raises(ValueError, match="one tokenizer"):
        SMALL.step(state, model, Tally(WORTH, tokens="another"), some_prompts())
    shape = dataclasses.replace(SHAPE, vocabulary=VOCABULARY + 1)
    with pytest.raises(ValueError, match="got 8 and 9 tokens"):
        SMALL.step(state, LanguageModel(shape, key=key), Tally(WORTH), some_prompts())


def test_the_loop_refuses_no_iterations_and_no_prompts(key):
    model = language_model(key)
    state = SMALL.start(model, key=key)
    with pytest.raises(ValueError, match="iterations must be"):
        ppo_update(SMALL, state, model, one_token(3), some_prompts(), iterations=0)
    with pytest.raises(ValueError, match="at least one, got shape"):
        ppo_update(SMALL, state, model, one_token(3), some_prompts(0), iterations=1)


def test_a_reward_that_is_not_finite_stops_the_loop(runs):
    model, prompts, _, _ = runs
    broken = Tally(jnp.full(VOCABULARY, jnp.nan, jnp.float32))
    with pytest.raises(FloatingPointError, match=r"iteration 1 of PPO: .*reward"):
        ppo_update(SMALL, SMALL.start(model, key=jr.key(0)), model, broken, prompts, iterations=2)


@pytest.mark.thorough
def test_values_start_at_zero(key):
    value = eqx.filter_jit(ValueModel(language_model(key).trunk))
    prompt = jax.tree.map(lambda leaf: leaf[0], some_prompts())
    np.testing.assert_array_equal(value(prompt, jnp.full(4, 3, jnp.int32), jnp.ones(4, bool)), 0)
