"""Budgets chosen without acting, and by acting."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes, bandit

from flowrl import Budget
from flowrl.rl import (
    Agent,
    MeasuredBudget,
    Minimum,
    Policy,
    ReferenceLearner,
    Standardizer,
    Uniform,
    choose_budget,
    fit,
    make_replay,
    measure_budgets,
    select_by_acting,
)
from flowrl.rl.learning import presets

STEPS, SIZES = (1, 4), (0.2, 0.5)
GRID = {"steps": (1,), "step_sizes": (0.1,)}


@pytest.fixture(scope="module")
def trained():
    vgf = presets.default(
        hidden=(32,),
        reference=ReferenceLearner(hidden=(32,), updates=300),
        batch_size=128,
        learning_rate=3e-3,
        improvement=Minimum(),
        selection=Minimum(),
    )
    data = bandit(2000)
    standardizer = Standardizer.fit(data.observations, "none")
    replay = make_replay(data, standardizer, discount=0.0)
    state = fit(vgf, replay, updates=600, interval=300, key=jr.key(0))
    held_out = make_replay(bandit(300, seed=1), standardizer, discount=0.0)
    return vgf, state, standardizer, held_out


def grid(vgf, state, replay, **sizes):
    return measure_budgets(vgf, state, replay, vgf.train_budget, states=200, key=jr.key(1), **sizes)


@pytest.fixture(scope="module")
def measured(trained):
    vgf, state, _, held_out = trained
    return measure_budgets(
        vgf, state, held_out, vgf.train_budget, steps=STEPS, step_sizes=SIZES, states=200, key=jr.key(1)
    )


@pytest.mark.thorough
def test_each_budget_of_the_grid_is_measured_once(measured):
    assert [(m.budget.steps, round(float(m.budget.step_size), 6)) for m in measured][1:] == [
        (1, 0.2),
        (4, 0.2),
        (1, 0.5),
        (4, 0.5),
    ]
    assert measured[0].budget.steps == 0
    zero = measured[0]
    assert (zero.gain, zero.pessimistic_gain, zero.displacement) == (0, 0, 0)
    assert (zero.disagreement, zero.td_error) == (1, 1)
    # Adam moves each coordinate by about its step, and further budgets move further.
    assert 0.15 < measured[1].displacement < 0.25
    assert measured[1].displacement < measured[2].displacement < measured[4].displacement
    # The reward rises all the way to 0.6, the data end near 0.2: small steps gain.
    assert 0 < measured[1].gain < measured[2].gain < measured[4].gain


def test_the_numbers_are_those_of_a_plain_loop(trained, measured):
    vgf, state, _, held_out = trained
    row_key, proposal_key = jr.split(jr.key(1))
    rows = jr.choice(row_key, 300, (200,), replace=False)
    observations = held_out.next_observations[held_out.bootstrap[rows]]
    keys = jr.split(proposal_key, 200)

    @eqx.filter_jit
    def flowed(observation, key):
        start = jnp.stack([vgf.propose(state, observation, k) for k in jr.split(key, 8)])
        end = vgf.improve(state, observation, start, vgf.train_budget.with_steps(4, 0.5)).particles
        return start, end, vgf.values(state, observation, start), vgf.values(state, observation, end)

    gains, lower, stds, unit, moves = [], [], [], [], []
    for observation, key in zip(observations[:200], keys, strict=True):
        start, end, before, after = (np.asarray(x, np.float64) for x in flowed(observation, key))
        i, j = before.min(axis=0).argmax(), after.min(axis=0).argmax()
        gains.append(after[:, j].mean() - before[:, i].mean())
        lower.append(gains[-1] - (after[:, j].std() - before[:, i].std()))
        stds.append((after[:, j].std(), before[:, i].std()))
        unit.append(before.mean(axis=0).std())
        moves.append(((end[j] - start[j]) / np.asarray(state.scale)) ** 2)
    got = measured[-1]
    unit = np.mean(unit)
    assert got.gain == pytest.approx(np.mean(gains) / unit, rel=1e-3)
    assert got.pessimistic_gain == pytest.approx(np.mean(lower) / unit, rel=1e-3)
    assert got.gain_error == pytest.approx(np.std(lower) / unit / np.sqrt(200), rel=1e-3)
    first, second = np.mean(stds, axis=0)
    assert got.disagreement == pytest.approx(first / second, rel=1e-3)
    assert got.displacement == pytest.approx(np.sqrt(np.mean(moves)), rel=1e-3)


def test_the_td_error_follows_what_bootstrapping_would_change(trained):
    """With γ = 0 no budget changes the target; with γ > 0 the target rises with the budget."""
    vgf, state, standardizer, held_out = trained
    same = measure_budgets(
        vgf, state, held_out, vgf.train_budget, steps=(4,), step_sizes=(0.5,), states=200, key=jr.key(1)
    )
    assert same[1].td_error == pytest.approx(1)
    going_on = dataclasses.replace(bandit(300, seed=1), masks=np.ones(300, np.float32))
    replay = make_replay(going_on, standardizer, discount=0.9)
    other = measure_budgets(
        vgf, state, replay, vgf.train_budget, steps=(4,), step_sizes=(0.5,), states=200, key=jr.key(1)
    )
    assert other[1].td_error != pytest.approx(1, abs=0.01)


def budget(steps, size, gain, *, disagreement=1.0, error=0.01, moved=0.5, td_error=1.0):
    return MeasuredBudget(Budget(steps, size), gain, gain, error, disagreement, moved, td_error)


ZERO = budget(0, 0.0, 0.0, moved=0.0)


@pytest.mark.parametrize(
    ("beyond", "limit"),
    [
        ({"disagreement": 1.6}, {"max_disagreement": 2.0}),
        ({"td_error": 1.05}, {"max_td_error": 1.1}),
        ({"moved": 1.5}, {"max_displacement": 2.0}),
    ],
)
def test_the_choice_is_the_largest_pessimistic_gain_within_the_limits(beyond, limit):
    small, large = budget(1, 0.3, 0.2), budget(5, 0.3, 0.9, **beyond)
    chosen = choose_budget((ZERO, small, large))
    assert chosen.budget == small.budget
    assert "1 within all limits" in chosen.reason
    assert f"1 beyond {next(iter(limit))[4:].replace('td', 'TD').replace('_', ' ')}" in chosen.reason
    assert choose_budget((ZERO, small, large), **limit).budget.steps == 5
    assert choose_budget((ZERO, large)).budget.steps == 0


def test_a_gain_within_its_error_is_no_reason_to_move():
    noisy = choose_budget((ZERO, budget(1, 0.3, 0.2, error=0.2)))
    assert noisy.budget.steps == 0
    assert "none of which gains" in noisy.reason


def test_bad_grids_and_bands_are_refused(trained):
    vgf, state, _, held_out = trained
    for changes in ({"steps": ()}, {"steps": (0,)}, {"step_sizes": (-1.0,)}, {"candidates": 0}, {"pessimism": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            measure_budgets(vgf, state, held_out, vgf.train_budget, **{**GRID, "key": jr.key(0), **changes})
    for budget, message in (
        (Budget(1, 0.1, scale=0.2), "leave the budget's scale out"),
        (Budget(2, 0.1, jnp.asarray([0.1, 0.2])), r"temperature must be a number or have shape \(0,\)"),
        (Budget(2, 0.1, tolerance=0.1, check_every=2), r"multiples of the budget's check_every \(2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_budgets(vgf, state, held_out, budget, **GRID, key=jr.key(0))
    for limit in ({"max_td_error": 0.9}, {"max_disagreement": 0.5}, {"max_displacement": 0.0}):
        with pytest.raises(ValueError, match="give measured budgets"):
            choose_budget((ZERO,), **limit)
    with pytest.raises(ValueError, match="give measured budgets"):
        choose_budget(())


@pytest.mark.thorough
def test_halving_finds_the_policy_that_acts_best(trained):
    vgf, state, standardizer, _ = trained
    agent = Agent(vgf, state, standardizer)
    budgets = {"one proposal": None} | {f"L={n}": vgf.train_budget.with_steps(n, 0.5) for n in (1, 2, 4)}
    policies = tuple(
        Policy(name, 4, (*([] if budget is None else [budget]), Uniform())) for name, budget in budgets.items()
    )
    seen = []
    found = select_by_acting(
        agent, policies, ToyLanes(8), episodes=32, metric="return", seed=0, progress=lambda *x: seen.append(x)
    )
    # The toy rewards coming near 0.6; the reference stands at −0.2 and each step goes half a spread toward it.
    assert found.policy.name == "L=4"
    assert sum(found.episodes.values()) == 32
    assert found.episodes == {"one proposal": 4, "L=1": 4, "L=2": 12, "L=4": 12}
    assert found.means["L=4"] > found.means["L=2"]
    assert seen[-1] == (32, 32)


def test_halving_wants_enough_episodes_and_policies(trained):
    vgf, state, standardizer, _ = trained
    agent = Agent(vgf, state, standardizer)
    policies = tuple(Policy(f"{n}", n) for n in (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="5 policies in 3 rounds need 15 episodes or more, got 14"):
        select_by_acting(agent, policies, ToyLanes(8), episodes=14, metric="return", seed=0)
    with pytest.raises(ValueError, match="at least two policies"):
        select_by_acting(agent, policies[:1], ToyLanes(8), episodes=14, metric="return", seed=0)
