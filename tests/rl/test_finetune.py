"""Acting and learning in turn: the order of things, exact resume, and environments that fail."""

import dataclasses
import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from rl.toys import ToyLanes, bandit

from flowrl import Budget
from flowrl.rl import (
    Agent,
    Buffer,
    Collector,
    HostBuffer,
    Plan,
    Policy,
    ReferenceLearner,
    Standardizer,
    StepResult,
    finetune,
    make_replay,
)
from flowrl.rl.data import RewardTransform
from flowrl.rl.learning import baselines, presets
from flowrl.runs import RunDirectory

AS_IS = RewardTransform()
L1 = Policy("L=1", 4, Budget(1, 0.1))


class Line(ToyLanes):
    """The observation is the sum of the actions and the time; ends after six steps, cut off after four by a limit."""

    def __init__(self, size, *, broken=None, at=10**9):
        super().__init__(size)
        self.broken, self.at, self.steps, self.log = broken, at, 0, []
        self.state = {}

    def reset(self, seeds):
        self.log.append(("reset", dict(seeds)))
        for lane, seed in seeds.items():
            self.state[lane] = np.array([seed % 7, 0, 0], np.float32)
        return {lane: self.state[lane].copy() for lane in seeds}

    def start(self, actions):
        self.log.append(("start", {lane: np.array(a) for lane, a in actions.items()}))
        super().start(actions)

    def step(self, actions):
        out = {}
        for lane, action in actions.items():
            self.steps += 1
            self.state[lane] = self.state[lane] + np.array([action[0], action[1], 1], np.float32)
            x, reward = self.state[lane].copy(), float(action.sum())
            if self.steps >= self.at:
                if self.broken == "raises":
                    raise RuntimeError("lane 0, seed 3: OSError: the simulator broke")
                x = x[:2] if self.broken == "size" else np.full(3, np.nan, np.float32) if self.broken == "x" else x
                reward = float("nan") if self.broken == "reward" else reward
            limit = 4 if lane == 0 else 6
            over = self.state[lane][2] >= limit
            out[lane] = StepResult(x, reward, bool(over and limit == 6), bool(over and limit == 4), False)
        return out


def setting(kind=Buffer, protocol="rlpd", algorithm="vgf", live=False, n_step=2, capacity=100):
    data = bandit(60)
    standardizer = Standardizer.fit(data.observations)
    replay = make_replay(data, standardizer, discount=0.9, n_step=n_step)
    if algorithm == "vgf":
        learner = presets.default(hidden=(8,), reference=ReferenceLearner(hidden=(8,), updates=2), batch_size=8)
        state = learner.init(3, 2, key=jr.key(0))
        state, prepared = learner.prepare(state, replay, key=jr.key(1))
        if live:
            learner, state = learner.with_live_reference(state)
        else:
            replay = prepared
    else:
        learner = baselines.make(algorithm, hidden=(8,), batch_size=8)
        state = learner.init(3, 2, key=jr.key(0))
    return learner, state, kind(replay, capacity, protocol), standardizer


def collector(lanes, standardizer, n_step=2, seed=0):
    return Collector(lanes, standardizer, discount=0.9, n_step=n_step, rewards=AS_IS, seed=seed)


def leaves(state):
    arrays = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    return [np.asarray(jr.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in arrays]


def go(path=None, resume=False, *, lanes=None, steps=24, plan=None, parts=None, n_step=2, **settings):
    learner, state, buffer, standardizer = parts or setting()
    lanes = lanes or Line(2)
    acting = collector(lanes, standardizer, n_step)
    settings = {"interval": 8, **settings}
    plan = plan or (lambda _: Plan(learner, L1))
    if path is None:
        return finetune(plan, state, buffer, acting, steps=steps, **settings), None
    with RunDirectory(path, {"a": 1}, resume=resume) as run:
        return finetune(plan, state, buffer, acting, steps=steps, run=run, **settings), run


@pytest.mark.thorough
def test_rows_enter_in_order_and_say_how_episodes_ended():
    learner, state, buffer, standardizer = setting()
    lanes = Line(2)
    acting = collector(lanes, standardizer)
    kept, taken = [], []
    for _ in range(6):
        asked = acting.start(Agent(learner, state, standardizer), L1)
        taken.append(asked.actions)
        rows, finished = acting.finish()
        kept.append((None if rows is None else int(rows.count), [(x.length, x.return_) for x in finished]))
    counts = [count for count, _ in kept]
    # n = 2: nothing in the first round; lane 0 is cut off after four steps and then closes two windows at once.
    assert counts == [None, 2, 2, 3, 1, 3]
    assert [len(x) for _, x in kept] == [0, 0, 0, 1, 0, 1]
    (length, total), (other, _) = kept[3][1][0], kept[5][1][0]
    assert (length, other) == (4, 6)
    assert total == pytest.approx(sum(a[0].sum() for a in taken[:4]), rel=1e-5)
    assert acting.steps == 12
    seeds = [list(x) for what, x in lanes.log if what == "reset"]
    assert seeds == [[0, 1], [0], [1]]


@pytest.mark.thorough
def test_discounts_tell_an_end_from_a_cut():
    learner, state, buffer, standardizer = setting()
    acting = collector(Line(2), standardizer)
    for _ in range(6):
        acting.start(Agent(learner, state, standardizer), L1)
        rows, _ = acting.finish()
        if rows is not None:
            buffer = buffer.insert(with_particles(rows))
    ring = buffer.ring()
    discounts = np.round(ring["ring/discounts"], 3)
    assert sorted(discounts) == [0, 0, 0.81, 0.81, 0.81, 0.81, 0.81, 0.81, 0.81, 0.81, 0.9]
    # Both windows that the limit closed bootstrap from the last state, at time 4, not from the one after the reset.
    times = ring["ring/next_observations"] * np.asarray(standardizer.std) + np.asarray(standardizer.mean)
    assert np.round(times[:, 2], 3).tolist() == [2, 2, 3, 3, 4, 4, 4, 5, 2, 6, 6]
    np.testing.assert_allclose(discounts[4:6], [0.81, 0.9])


def with_particles(rows):
    samples = jnp.zeros((rows.actions.shape[0], 8, 2), jnp.float32)
    return eqx.tree_at(lambda r: r.particles, rows, samples, is_leaf=lambda x: x is None)


@pytest.mark.thorough
def test_a_row_is_learned_from_after_the_round_in_which_it_came(monkeypatch):
    """The stated order: act, then step and learn side by side, then insert."""
    seen, order = [], []

    def spy(algorithm, state, buffer, updates, phase="main"):
        seen.append((int(buffer.filled), updates))
        order.append("learn")
        return train(algorithm, state, buffer, updates, phase)

    from flowrl.rl import train
    from flowrl.rl.acting import _finetune

    monkeypatch.setattr(_finetune, "train", spy)

    class Watched(Line):
        def start(self, actions):
            order.append("start")
            super().start(actions)

        def finish(self):
            order.append("finish")
            return super().finish()

    go(lanes=Watched(2), steps=8, updates_per_step=1.5)
    assert seen == [(0, 3), (0, 3), (2, 3), (4, 3)]
    assert order == ["start", "learn", "finish"] * 4


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Buffer, HostBuffer])
@pytest.mark.parametrize("algorithm", ["vgf", "fql"])
def test_a_run_taken_up_again_is_the_run_that_went_on(tmp_path, kind, algorithm):
    def evaluate(state, step):
        return {"score/x": float(step + int(state.step))}

    def options():
        learner, *parts = setting(kind, algorithm=algorithm)
        policy = L1 if algorithm == "vgf" else Policy("one", 1)
        plan = lambda _: Plan(learner, policy, exploration=0.1)  # noqa: E731
        points = {"evaluate": evaluate, "evaluate_at": (0, 24), "startup": 4}
        return {"parts": (learner, *parts), "plan": plan, "lanes": Line(2), **points}

    whole, run = go(tmp_path / "whole", **options())

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.done == 16:
            raise Stop

    with pytest.raises(Stop):
        go(tmp_path / "cut", progress=stop, **options())
    rest, again = go(tmp_path / "cut", resume=True, **options())
    for here, there in zip(leaves(rest), leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)
    assert again.rows == run.rows
    assert [row["step"] for row in run.rows] == [0, 8, 16, 24]
    names = ("checkpoint.npz", "metrics.csv")
    assert all((tmp_path / "cut" / x).read_bytes() == (tmp_path / "whole" / x).read_bytes() for x in names)


@pytest.mark.thorough
def test_a_finished_run_goes_on_for_more_steps_with_a_larger_ring(tmp_path):
    """The ring of each run holds as many rows as the run has steps; that of the shorter one ends full."""

    def run(name, steps, **options):
        learner, *parts = setting(capacity=steps, n_step=1)
        plan = lambda _: Plan(learner, L1, exploration=0.1)  # noqa: E731
        return go(tmp_path / name, steps=steps, parts=(learner, *parts), plan=plan, n_step=1, **options)

    run("cut", 16)
    ended, longer = run("cut", 24, resume=True)
    whole, other = run("whole", 24)
    assert longer.rows == other.rows
    for here, there in zip(leaves(ended), leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)


def same_run(path, other):
    """The files of two runs that must not differ."""
    return all((path / x).read_bytes() == (other / x).read_bytes() for x in ("checkpoint.npz", "metrics.csv"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("raises", "the simulator broke"),
        ("reward", "episode 1, step 5: the environment gave the reward nan"),
        ("size", r"shape \(2,\), the data have \(3,\)"),
        ("x", "an observation that is not finite"),
    ],
)
def test_an_environment_that_fails_loses_nothing(tmp_path, broken, message):
    """It stops the run in the middle of an interval; taken up again, it is the run in which nothing failed."""

    def once(path, **settings):
        learner, *parts = setting()
        # Several steps of several updates: an action that was chosen again would be another one.
        plan = lambda _: Plan(learner, Policy("L=3", 4, Budget(3, 0.3)))  # noqa: E731
        go(tmp_path / path, interval=24, updates_per_step=4, plan=plan, parts=(learner, *parts), **settings)

    once("whole")
    with pytest.raises(RuntimeError, match=message):
        once("run", lanes=Line(2, broken=broken, at=12))
    assert (tmp_path / "run" / "checkpoint.npz").exists()
    once("run", resume=True)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_an_evaluation_that_fails_loses_nothing(tmp_path):
    def fails(*_):
        raise RuntimeError("the evaluation broke")

    def works(state, step):
        return {"score/x": float(step + int(state.step))}

    points = {"evaluate_at": (24,), "interval": 24}
    go(tmp_path / "whole", evaluate=works, **points)
    with pytest.raises(RuntimeError, match="the evaluation broke"):
        go(tmp_path / "run", evaluate=fails, **points)
    go(tmp_path / "run", resume=True, evaluate=works, **points)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_a_first_reset_that_fails_leaves_a_checkpoint(tmp_path):
    class Unborn(Line):
        def reset(self, seeds):
            raise RuntimeError(f"no such map, seed {seeds[0]}")

    with pytest.raises(RuntimeError, match="no such map"):
        go(tmp_path / "run", lanes=Unborn(2))
    go(tmp_path / "whole")
    go(tmp_path / "run", resume=True)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_checkpoints_compile_nothing(tmp_path):
    """Every interval holds more rows; their number must not become a program's shape."""
    compiled, points = [], []

    def count(name, *_, **__):
        compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        go(tmp_path / "run", steps=64, progress=lambda _: points.append(len(compiled)))
        before = len(compiled)
        jax.jit(lambda x: x * 1.2345)(jnp.ones(3, jnp.float32))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert len(compiled) > before, "compilations are not counted any more"
    # The first episodes' ends bring the larger padding; after that nothing is new.
    assert points[3:] == [points[3]] * (len(points) - 3)


def test_an_environment_that_its_seed_does_not_determine_cannot_be_taken_up_again(tmp_path):
    class Drifting(Line):
        drift = 0.0

        def step(self, actions):
            out = super().step(actions)
            return {lane: step._replace(observation=step.observation + self.drift) for lane, step in out.items()}

    lanes = Drifting(2)
    go(tmp_path / "run", lanes=lanes, steps=8)
    lanes = Drifting(2)
    lanes.drift = np.float32(0.01)
    with pytest.raises(ValueError, match="lane 1 did not come back to where it was after 4 steps"):
        go(tmp_path / "run", resume=True, lanes=lanes)


def test_nothing_is_learned_before_startup_is_over():
    state, _ = go(steps=24, startup=16)
    assert int(state.step) == 8


def test_a_reference_can_learn_on():
    learner, state, buffer, standardizer = setting(live=True)
    before = leaves(state.reference)
    unit = np.asarray(setting()[1].scale)
    after, _ = go(parts=(learner, state, buffer, standardizer), steps=8)
    assert any((a != b).any() for a, b in zip(leaves(after.reference), before, strict=True))
    np.testing.assert_array_equal(after.scale, unit)
    assert not buffer.samples


def test_a_frozen_reference_is_sampled_where_new_rows_lead():
    learner, state, buffer, standardizer = setting(HostBuffer)
    reference = leaves(state.reference)
    acting = collector(Line(2), standardizer)
    after = finetune(lambda _: Plan(learner, L1), state, buffer, acting, steps=8, interval=8)
    for a, b in zip(leaves(after.reference), reference, strict=True):
        np.testing.assert_array_equal(a, b)
    samples = buffer.ring()["ring/particles"]
    assert samples.shape == (7, 8, 2)
    assert len(np.unique(samples.reshape(-1, 2), axis=0)) > 24
    assert np.abs(samples).max() <= 1


@pytest.mark.thorough
def test_caps_and_step_sizes_that_grow_compile_nothing_again():
    learner, state, buffer, standardizer = setting()
    caps = iter(np.linspace(0.1, 1.0, 12))

    def plan(step):
        budget = Budget(1, 0.1 + 0.001 * step, max_displacement=float(next(caps)))
        collecting = dataclasses.replace(L1, stages=budget.with_steps(1, 0.1 + step))
        return Plan(dataclasses.replace(learner, train_budget=budget), collecting)

    from flowrl.rl.acting import _collect
    from flowrl.rl.learning import _train

    before = (_collect._explore._cached._cache_size(), _train._interval._cached._cache_size())
    go(parts=(learner, state, buffer, standardizer), plan=plan, steps=24)
    after = (_collect._explore._cached._cache_size(), _train._interval._cached._cache_size())
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


def test_collected_actions_depend_on_episode_and_time_alone():
    learner, state, _, standardizer = setting()
    agent = Agent(learner, state, standardizer)
    one, two = collector(Line(2), standardizer), collector(Line(2), standardizer)
    other = collector(Line(2), standardizer, seed=1)
    a, b, c = (x.start(agent, L1, 0.3).actions for x in (one, two, other))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    plain = collector(Line(2), standardizer).start(agent, L1).actions
    assert (np.abs(a - plain) > 1e-3).any()
    assert np.abs(a).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates_per_step": 0.25}, "whole number >= 1"),
        ({"interval": 7}, "positive multiple of interval"),
        ({"evaluate_at": (3,)}, "evaluate_at must be multiples"),
        ({"startup": -1}, "startup must be a Python int >= 0"),
        ({"startup": 24}, "leaves nothing of 24 steps"),
        ({"parts": setting(capacity=3)}, "a ring of 3 rows is too small: one step of 2 environments may give 4"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        go(**settings)


def test_diverged_networks_stop_the_run(tmp_path):
    learner, state, buffer, standardizer = setting()
    broken = jax.tree.map(lambda x: x * np.float32("nan") if eqx.is_inexact_array(x) else x, state.critic.network)
    state = eqx.tree_at(lambda s: s.critic.network, state, broken)
    with pytest.raises(FloatingPointError, match="diverged"):
        go(tmp_path / "run", parts=(learner, state, buffer, standardizer))
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("broken", [None, "raises"])
def test_networks_that_the_last_update_ruined_are_not_saved(tmp_path, monkeypatch, broken):
    """Every metric is finite: the loss of an update is that of the parameters before its step."""
    from flowrl.rl.acting import _finetune

    original, calls = _finetune.train, []

    def ruining(*arguments):
        state, metrics = original(*arguments)
        calls.append(1)
        where = lambda s: jax.tree.leaves(s.critic.network)[0]  # noqa: E731
        if len(calls) == 6:
            state = eqx.tree_at(where, state, replace_fn=lambda w: w.at[0].set(np.inf))
        return state, metrics

    monkeypatch.setattr(_finetune, "train", ruining)
    # With an environment that breaks in the same round, or without.
    lanes, interval = (Line(2, broken=broken, at=11), 8) if broken else (Line(2), 4)
    with pytest.raises(FloatingPointError, match=r"state\.critic\.network\..* is not finite"):
        go(tmp_path / "run", lanes=lanes, interval=interval)
    with RunDirectory(tmp_path / "run", {"a": 1}, resume=True) as run:
        state = run.load(setting()[1])
    assert int(state.step) == 8
    assert all(np.isfinite(x).all() for x in leaves(state))


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("where", ["round", "evaluation"])
def test_ctrl_c_loses_no_round(tmp_path, monkeypatch, where):
    """It comes in the middle of an interval, or in the evaluation after it; taken up again, it is the same run."""
    from flowrl.rl.acting import _finetune

    original, calls = _finetune.train, []

    def interrupted(*arguments):
        calls.append(1)
        out = original(*arguments)
        if len(calls) == 4 and where == "round":
            os.kill(os.getpid(), signal.SIGINT)
        return out

    def evaluate(state, step):
        if where == "evaluation" and len(calls) == 6:
            calls.append(0)
            os.kill(os.getpid(), signal.SIGINT)
        return {"score/x": float(step + int(state.step))}

    points = {"evaluate": evaluate, "evaluate_at": (12,), "interval": 12}
    go(tmp_path / "whole", **points)
    calls.clear()
    monkeypatch.setattr(_finetune, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", **points)
    rounds = 4 if where == "round" else 6
    with RunDirectory(tmp_path / "run", {"a": 1}, resume=True) as run:
        assert int(run.load(setting()[1]).step) == 2 * rounds
        assert run.rows == []
        assert len(run.arrays["tally/steps"]) == rounds
    go(tmp_path / "run", resume=True, **points)
    assert len(calls) == 12 + (where == "evaluation")  # no round was played twice
    assert same_run(tmp_path / "run", tmp_path / "whole")
