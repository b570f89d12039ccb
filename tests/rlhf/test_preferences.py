"""Learning from texts and preferences: losses against formulas in NumPy, what is learned, and runs that go on."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from tiny_texts import END, PAD, V, language_model, part, reward_ensemble, reward_model, words

from flowrl.rlhf import (
    DPO,
    BradleyTerry,
    Fit,
    Pairs,
    Prompt,
    ReferencePairs,
    Texts,
    fit,
    log_probs,
    pack_pairs,
    pack_prompts,
    pack_texts,
    pair_log_probs,
    preference_accuracy,
    sft_loss,
    with_reference,
)
from flowrl.rlhf.data import AbstractTokenizer, Preference, WordTokenizer

P, T = 2, 5


def _close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def _texts(seed, rows, shortest=1):
    """Prompts padded on the left, responses on the right."""
    rng = np.random.default_rng(seed)
    prompt_mask = np.arange(P) >= rng.integers(0, P, rows)[:, None]
    mask = np.arange(T) < rng.integers(shortest, T + 1, rows)[:, None]
    prompt = np.where(prompt_mask, words(seed, rows, P), PAD).astype(np.int32)
    tokens = np.where(mask, words(seed + 1, rows, T), PAD).astype(np.int32)
    return Texts(Prompt(jnp.asarray(prompt), jnp.asarray(prompt_mask)), jnp.asarray(tokens), jnp.asarray(mask))


def _pairs(rows=6, seed=0):
    chosen, rejected = _texts(seed, rows), _texts(seed + 7, rows)
    return Pairs(chosen.prompt, chosen.tokens, chosen.mask, rejected.tokens, rejected.mask)


def _softplus(x):
    return np.log1p(np.exp(x))


# fit


class Point(eqx.Module):
    weight: jax.Array
    bias: jax.Array


def _point():
    return Point(jnp.zeros((2, 2), jnp.float32), jnp.zeros(2, jnp.float32))


def _noisy(model, batch, key):
    """The squared distance of a point to rows, with noise from the key."""
    noise = jnp.zeros((), jnp.float32) if key is None else jr.normal(key, (), jnp.float32)
    return jnp.mean((model.weight[None] - batch) ** 2) + noise * jnp.sum(model.weight) * 0.1 + jnp.sum(model.bias**2)


def _rows(mean, count=32):
    return (mean + 0.1 * np.random.default_rng(0).normal(size=(count, 2, 2))).astype(np.float32)


@pytest.mark.thorough
def test_fine_tuning_comes_near_the_entropy():
    # After each of two prompts, two texts: all that cannot be known is one bit a text.
    text = np.asarray([[4, 9, 9, 6, END], [5, 8, 3, 6, END], [6, 9, 3, 3, END], [7, 8, 8, 4, END]], np.int32)
    prompt = Prompt(jnp.asarray([[3], [3], [9], [9]], jnp.int32), jnp.ones((4, 1), bool))
    batch = Texts(prompt, jnp.asarray(text), jnp.ones((4, T), bool))
    start = language_model(width=16, size=0.1)
    plan = Fit(150, 16, 0.01, interval=75)
    losses = []
    model = fit(sft_loss, plan, plan.start(start, key=jr.key(1)), batch, report=lambda _, n: losses.append(n["loss"]))
    bound, loss = float(np.log(2)) / T, eqx.filter_jit(sft_loss)
    assert loss(start, batch, None) > 2  # of log V = 2.5
    assert bound - 1e-6 <= loss(model, batch, None) < bound + 0.03
    assert len(losses) == 2
    assert losses[0] > losses[1]


def test_the_loss_of_texts_is_the_mean_over_tokens():
    model, batch = language_model(), _texts(0, 3)
    each = eqx.filter_jit(jax.vmap(lambda p, t, m: log_probs(model, p, t, m)))(batch.prompt, batch.tokens, batch.mask)
    mask = np.asarray(batch.mask)
    assert mask.sum(axis=1).min() < mask.sum(axis=1).max()
    run = eqx.filter_jit(sft_loss)
    _close(run(model, batch, None), -np.asarray(each)[mask].mean())
    nothing = eqx.tree_at(lambda b: b.mask, batch, jnp.asarray(~mask & mask))
    assert float(run(model, nothing, None)) == 0


def test_early_stopping_keeps_the_best_model():
    plan = Fit(400, 8, 0.02, 0.0, interval=5, patience=3)
    kept = []
    report = lambda state, numbers: kept.append((state, numbers))
    rows, held_out = _rows(1.0), _rows(0.3, 16)
    best = fit(_noisy, plan, plan.start(_point(), key=jr.key(0)), rows, held_out, report=report)
    seen = [numbers["validation"] for _, numbers in kept]
    lowest = int(np.argmin(seen))
    assert 0 < lowest < len(seen) - 1
    assert len(seen) == lowest + 4
    assert [numbers["step"] for _, numbers in kept] == list(range(5, 5 * len(seen) + 1, 5))
    assert eqx.tree_equal(best, kept[lowest][0].model)
    assert not eqx.tree_equal(best, kept[-1][0].model)
    _close(np.mean((np.asarray(best.weight) - held_out) ** 2) + np.sum(np.asarray(best.bias) ** 2), min(seen))
    _close(kept[-1][0].lowest, min(seen), atol=0)
    # Without patience the last model is kept, whatever validation says.
    plan, states = Fit(100, 8, 0.02, 0.0, interval=50), []
    last = fit(_noisy, plan, plan.start(_point(), key=jr.key(0)), rows, held_out, report=lambda s, _: states.append(s))
    assert eqx.tree_equal(last, states[-1].model)
    assert float(jnp.mean(last.weight)) > 0.6


def test_a_run_that_is_resumed_gives_the_same_bits():
    plan, states = Fit(55, 8, 0.05, interval=10, patience=9), []
    rows, held_out = _rows(1.0), _rows(1.0, 16)
    start = plan.start(_point(), key=jr.key(2))
    whole = fit(_noisy, plan, start, rows, held_out, report=lambda s, _: states.append(s))
    assert [int(s.step) for s in states] == [10, 20, 30, 40, 50, 55]
    again = []
    resumed = fit(_noisy, plan, states[2], rows, held_out, report=lambda s, _: again.append(s))
    assert len(again) == 3
    assert all(map(eqx.tree_equal, states[3:], again))
    assert eqx.tree_equal(whole, resumed)
    assert fit(_noisy, plan, states[-1], rows, held_out) is states[-1].best
    other = fit(_noisy, plan, plan.start(_point(), key=jr.key(3)), rows, held_out)
    assert not eqx.tree_equal(whole, other)


def test_intervals_are_only_reports():
    rows, means = jnp.asarray(_rows(1.0)), []
    drawn = lambda model, batch, key: jnp.mean(batch) + 0 * jnp.sum(model.weight)  # noqa: ARG005
    one = Fit(4, 8, interval=1)
    fit(drawn, one, one.start(_point(), key=jr.key(0)), rows, report=lambda _, numbers: means.append(numbers["loss"]))
    four = Fit(4, 8, interval=4)
    fit(drawn, four, four.start(_point(), key=jr.key(0)), rows, report=lambda _, numbers: means.append(numbers["loss"]))
    assert len(set(means[:4])) == 4  # new rows for every update
    _close(np.mean(means[:4]), means[4])
    # The optimiser goes on where it was.
    plans = [Fit(30, 8, 0.05, interval=interval) for interval in (10, 30)]
    often, once = (fit(_noisy, plan, plan.start(_point(), key=jr.key(0)), rows) for plan in plans)
    _close(often.weight, once.weight)
    assert np.min(np.abs(often.weight)) > 0.1


def test_only_matrices_decay():
    plan, model = Fit(3, 2, 0.1, 0.5, interval=3), language_model(query_key_norm=True, tied=False)
    nothing = lambda model, batch, key: 0.0 * jnp.sum(model.head.weight) * jnp.sum(batch)  # noqa: ARG005
    after = fit(nothing, plan, plan.start(model, key=jr.key(0)), jnp.ones((4, 1), jnp.float32))
    before, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    for (path, old), new in zip(before, jax.tree.leaves(eqx.filter(after, eqx.is_array)), strict=True):
        name = jax.tree_util.keystr(path)
        if "weight" in name or "embedding" in name:
            shrunk = np.asarray(new) / np.asarray(old)
            assert shrunk.max() < 1, name
            _close(shrunk, shrunk.flat[0])
        else:
            np.testing.assert_array_equal(new, old, err_msg=name)


def test_what_is_not_finite_ends_a_run():
    rows = _rows(1.0)
    rows[5] = np.inf
    plan = Fit(40, 8, 0.02, interval=20)
    with pytest.raises(FloatingPointError, match="the loss is (inf|nan) within the 20 updates before step 20; lower"):
        fit(_noisy, plan, plan.start(_point(), key=jr.key(0)), rows)
    with pytest.raises(FloatingPointError, match="the validation loss is (inf|nan) at step 20"):
        fit(_noisy, plan, plan.start(_point(), key=jr.key(0)), _rows(1.0), rows)


def test_runs_that_cannot_be_are_refused():
    plan, patient = Fit(4, 2), Fit(4, 2, patience=1)
    start = plan.start(_point(), key=jr.key(0))
    with pytest.raises(ValueError, match="patience stops on a validation loss"):
        fit(_noisy, patient, start, _rows(0.0))
    with pytest.raises(ValueError, match=r"at least one row, got sizes \[0\]"):
        fit(_noisy, plan, start, np.zeros((0, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"common leading axis of at least one row, got sizes \[2, 3\]"):
        fit(_noisy, plan, start, (np.zeros((2, 2), np.float32), np.zeros((3, 2), np.float32)))
    for name, fields in (
        ("steps", {"steps": 0}),
        ("batch_size", {"steps": 1, "batch_size": 0}),
        ("interval", {"steps": 1, "interval": 0}),
        ("patience", {"steps": 1, "patience": 0}),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a Python int >= 1, got 0"):
            Fit(**fields)


# Reward models


_rewards = eqx.filter_jit(lambda model, tokens, mask: jax.vmap(model.of_tokens)(tokens, mask))


def _reward_of(model, pairs, side):
    tokens, mask = (getattr(pairs, name) for name in (side, f"{side}_mask"))
    whole = np.concatenate([pairs.prompt.tokens, tokens], axis=1)
    seen = np.concatenate([pairs.prompt.mask, mask], axis=1)
    return np.asarray(_rewards(model, jnp.asarray(whole), jnp.asarray(seen)), np.float64)


@pytest.mark.thorough
def test_bradley_terry_is_its_formula():
    model, ensemble, pairs = reward_model(), reward_ensemble(count=2), _pairs()
    loss = eqx.filter_jit(lambda loss, model, key: loss(model, pairs, key))
    margins = _reward_of(model, pairs, "chosen") - _reward_of(model, pairs, "rejected")
    assert margins.min() < 0 < margins.max()
    _close(loss(BradleyTerry(), model, None), _softplus(-margins).mean())
    _close(preference_accuracy(model, pairs, at_once=3), (margins > 0).mean(), atol=1e-7)
    embedding = ensemble.embedding
    each = []
    for i in range(2):
        member = part(ensemble.members, i)
        member = eqx.tree_at(lambda m: m.trunk.embedding, member, embedding)
        each.append(_reward_of(member, pairs, "chosen") - _reward_of(member, pairs, "rejected"))
    _close(loss(BradleyTerry(), ensemble, None), _softplus(-np.stack(each)).mean())
    _close(preference_accuracy(ensemble, pairs), (np.mean(each, axis=0) > 0).mean(), atol=1e-7)


@pytest.mark.thorough
def test_dropout_hides_words():
    model, pairs = reward_model(pooling="mean"), _pairs()
    loss = eqx.filter_jit(lambda loss, pairs, key: loss(model, pairs, key))
    plain = loss(BradleyTerry(), pairs, None)
    # No key and no share: nothing is hidden.
    _close(loss(BradleyTerry(0.5), pairs, None), plain)
    _close(loss(BradleyTerry(), pairs, jr.key(0)), plain)
    draws = [float(loss(BradleyTerry(0.5), pairs, jr.key(i))) for i in range(4)]
    assert len(set(draws)) == 4
    assert float(loss(BradleyTerry(0.5), pairs, jr.key(0))) == draws[0]
    # Of a text of which nothing is seen, the mean is that of no words, and all rewards are alike.
    _close(loss(BradleyTerry(1 - 1e-7), pairs, jr.key(0)), np.log(2))
    # It hides, and never shows: what is padding has no say.
    fill = lambda tokens, mask: jnp.asarray(np.where(mask, tokens, 9))
    garbage = Pairs(
        Prompt(fill(pairs.prompt.tokens, pairs.prompt.mask), pairs.prompt.mask),
        fill(pairs.chosen, pairs.chosen_mask),
        pairs.chosen_mask,
        fill(pairs.rejected, pairs.rejected_mask),
        pairs.rejected_mask,
    )
    assert not np.array_equal(garbage.chosen, pairs.chosen)
    _close(loss(BradleyTerry(0.5), garbage, jr.key(0)), draws[0])


@pytest.mark.thorough
def test_members_of_an_ensemble_hide_words_of_their_own():
    pairs = _pairs()
    members = reward_ensemble(count=2, pooling="mean")
    same = jax.tree.map(lambda leaf: jnp.asarray(np.broadcast_to(leaf[:1], leaf.shape)), members.members)
    twins = eqx.tree_at(lambda e: e.members, members, same)

    @eqx.filter_jit
    def gradients(twins, key):
        gradient = eqx.filter_grad(lambda model: BradleyTerry(0.3)(model, pairs, key))(twins)
        return gradient.members.score.weight

    alone, together = gradients(twins, None), gradients(twins, jr.key(0))
    _close(alone[0], alone[1])
    assert np.max(np.abs(together[0] - together[1])) > 1e-3


@pytest.mark.thorough
def test_a_planted_preference_is_learned():
    def planted(rows, seed):
        """The text with more of token 7 and less of token 5."""
        pairs = _pairs(rows, seed)
        worth = np.zeros(V)
        worth[[7, 5]] = 1, -1
        sums = [np.sum(worth[np.asarray(t)] * m, axis=1) for t, m in _sides(pairs)]
        apart, better = sums[0] != sums[1], (sums[0] > sums[1])[:, None]
        (a, am), (b, bm) = _sides(pairs)
        pick = lambda x, y: jnp.asarray(np.where(better, x, y)[apart])
        prompt = part(pairs.prompt, apart)
        return Pairs(prompt, pick(a, b), pick(am, bm), pick(b, a), pick(bm, am))

    train, held_out = planted(400, 0), planted(200, 100)
    start = reward_ensemble(count=2, size=0.1, fields={"causal": False})
    assert preference_accuracy(start, held_out) < 0.8
    plan = Fit(120, 32, 0.01, interval=120)
    model = fit(BradleyTerry(0.1), plan, plan.start(start, key=jr.key(1)), train)
    assert preference_accuracy(model, held_out) > 0.95


def _sides(pairs):
    return (np.asarray(pairs.chosen), np.asarray(pairs.chosen_mask)), (
        np.asarray(pairs.rejected),
        np.asarray(pairs.rejected_mask),
    )


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_refused(dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got"):
        BradleyTerry(dropout)


# Direct preference optimisation


@pytest.mark.thorough
def test_direct_preference_optimisation_is_its_formula():
    reference, policy, pairs = language_model(0), language_model(1), _pairs()
    rows = with_reference(reference, pairs, at_once=3)
    read = eqx.filter_jit(lambda model: pair_log_probs(model, pairs))
    (chosen, rejected), (mine, other) = read(reference), read(policy)
    _close(rows.chosen, chosen)
    _close(rows.rejected, rejected)
    texts = jax.vmap(lambda p, t, m: log_probs(policy, p, t, m))
    _close(other, eqx.filter_jit(texts)(pairs.prompt, pairs.rejected, pairs.rejected_mask).sum(axis=1))
    loss = eqx.filter_jit(lambda beta, model, rows: DPO(beta)(model, rows, None))
    _close(loss(0.3, reference, rows), np.log(2))
    for beta in (0.1, 2.0):
        margin = (np.asarray(mine) - chosen) - (np.asarray(other) - rejected)
        _close(loss(beta, policy, rows), _softplus(-beta * margin).mean(), atol=1e-4)


@pytest.mark.thorough
def test_direct_preference_optimisation_prefers_what_was_chosen():
    reference = language_model(3, size=0.3)
    rows = with_reference(reference, _pairs(8))
    plan = Fit(60, 8, 0.02, interval=60)
    model = fit(DPO(0.5), plan, plan.start(reference, key=jr.key(0)), rows)
    chosen, rejected = eqx.filter_jit(pair_log_probs)(model, rows.pairs)
    gain, loss = np.asarray(chosen) - rows.chosen, np.asarray(rejected) - rows.rejected
    assert np.all(gain > loss + 1)
    assert np.mean(gain) > 0.1
    assert isinstance(rows, ReferencePairs)


# Packing

WORDS = WordTokenizer(["a", "b", "c"])  # 3, 4, 5


class Bare(AbstractTokenizer):
    """Letters, and neither padding nor an end."""

    tokens = ("a", "b", "c")
    pad = None
    end = None

    def encode(self, text):
        return ["abc".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abc"[i] for i in ids)


def test_prompts_are_padded_on_the_left_and_keep_their_end():
    prompt = pack_prompts(WORDS, ["a b", "a b c a b", "c"], 3)
    np.testing.assert_array_equal(prompt.tokens, [[0, 3, 4], [5, 3, 4], [0, 0, 5]])
    np.testing.assert_array_equal(prompt.mask, np.asarray([[0, 1, 1], [1, 1, 1], [0, 0, 1]], bool))
    assert prompt.tokens.dtype == jnp.int32
    with pytest.raises(ValueError, match=r"prompt 1 \(' '\) has no token"):
        pack_prompts(WORDS, ["a", " "], 3)
    with pytest.raises(ValueError, match="length must be a Python int >= 1"):
        pack_prompts(WORDS, ["a"], 0)


def test_responses_end_if_they_fit():
    texts = pack_texts(WORDS, ["a"] * 4, ["b c", "b c a", "b c a b", ""], 2, 3)
    np.testing.assert_array_equal(texts.tokens, [[4, 5, 2], [4, 5, 3], [4, 5, 3], [2, 0, 0]])
    np.testing.assert_array_equal(texts.mask, texts.tokens != 0)
    np.testing.assert_array_equal(texts.prompt.tokens, [[0, 3]] * 4)
    bare = pack_texts(Bare(), ["c"], ["b"], 2, 3)
    np.testing.assert_array_equal(bare.tokens, [[1, 0, 0]])
    np.testing.assert_array_equal(bare.mask, [[True, False, False]])
    np.testing.assert_array_equal(bare.prompt.mask, [[False, True]])
    with pytest.raises(ValueError, match="got 1 responses to 2 prompts"):
        pack_texts(WORDS, ["a", "b"], ["c"], 2, 3)
    with pytest.raises(ValueError, match="length must be a Python int >= 1"):
        pack_texts(WORDS, ["a"], ["c"], 2, 0)


def test_pairs_are_packed_side_by_side():
    preferences = [Preference("a b", " b", " c c"), Preference("c", " a b c", " b")]
    pairs = pack_pairs(WORDS, preferences, 1, 3)
    np.testing.assert_array_equal(pairs.prompt.tokens, [[4], [5]])
    np.testing.assert_array_equal(pairs.chosen, [[4, 2, 0], [3, 4, 5]])
    np.testing.assert_array_equal(pairs.rejected, [[5, 5, 2], [4, 2, 0]])
    np.testing.assert_array_equal(pairs.chosen_mask, pairs.chosen != 0)
    np.testing.assert_array_equal(pairs.rejected_mask, pairs.rejected != 0)
    with pytest.raises(ValueError, match="prompt 0 .* has no token"):
        pack_pairs(WORDS, [Preference("", "a", "b")], 1, 3)
    fine = Preference("a", "a b c a", "a b c b")
    pack_pairs(WORDS, [fine], 1, 4)
    with pytest.raises(ValueError, match="pair 1 has two responses that are the same within 3 tokens"):
        pack_pairs(WORDS, [Preference("a", "b", "a"), fine], 1, 3)
    with pytest.raises(ValueError, match="pair 0 has a response without any token"):
        pack_pairs(WORDS, [Preference("a", "b", "")], 1, 3)
