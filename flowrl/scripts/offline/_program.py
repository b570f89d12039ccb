"""Offline reinforcement learning, from data to table.

Makes the data on this machine if they are not there, trains an algorithm (VGF: a reference policy by flow matching,
then a critic by TD on transported particles), and evaluates one set of weights in several ways to act: test budgets,
consensus, and the controls that tell what they add (the reference alone, selection alone, colder noise, the mean noise
of the best, random directions of the same length). Everything goes to `--out`: metrics.csv, results.csv, results.md,
two plots, config.json, a checkpoint.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
import numpy as np
from rich.console import Console

from flowrl import Budget
from flowrl._io import read_json_object
from flowrl.rl import (
    VGF,
    AbstractAlgorithm,
    Agent,
    ChosenBudget,
    Evaluation,
    Lanes,
    Policy,
    Replay,
    Standardizer,
    choose_budget,
    data,
    evaluate,
    fit,
    make_replay,
    measure_budgets,
    record_video,
    report,
    select_by_acting,
    tasks,
)
from flowrl.runs import RunDirectory, Tracker, to_csv
from flowrl.scripts._console import Bars, bar, progress, training_bar
from flowrl.scripts.offline._groups import Data, FlowOptions, Training
from flowrl.scripts.offline._options import AUTO_STEP_SIZES, ELSEWHERE, FREE, Config, arms, budgets, check, is_auto

#: What acting needs of a run beside its options and its checkpoint.
AGENT_FILE = "agent.json"


def main(config: Config) -> None:
    """Run everything that is not done yet."""
    console, started = Console(stderr=True), time.perf_counter()
    check(config)
    if config.paper is not None:
        console.print(_cost(config.paper, config.learner(), config.training.steps))
    with contextlib.ExitStack() as stack:
        identity, resume = _identity(config), config.run.resume
        run = RunDirectory(config.out, identity, resume=resume, free=FREE, grows=("steps",), ends=("results.csv",))
        run = stack.enter_context(run)
        if run.grown:
            fixed = ["the budget that --budget auto chose"] * is_auto(config)
            console.print(extended(run.grown["steps"], config.training.steps, fixed))
        bars = stack.enter_context(progress(console))
        dataset = treated(config.data, load_data(config.data, bar(bars, "data"), config.run.workers))
        same_data(run, dataset.info.to_json() + "\n")
        run.write_software(protocol=protocol(dataset.info))
        program = _Program(config, run, bars, console, dataset, stack)
        state = program.train()
        rows = program.evaluate(state) if program.lanes is not None else []
    if rows:
        policies_from = rows[program.config.acting.baseline].name
        print(f"{program.title}\n\n{report.table(rows, program.unit, policies_from, program.length)}")
        seconds, platform = time.perf_counter() - started, jax.devices()[0].platform
        version = importlib.metadata.version("jax")
        console.print(f"{seconds:.0f} s in all on {platform} (jax {version}); everything is in {config.out}")
    else:
        console.print(f"trained without acting; losses and the checkpoint are in {config.out}")


class _Program:
    """A run whose data are there: its training and its evaluation."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        bars: Bars,
        console: Console,
        dataset: data.OfflineDataset,
        stack: contextlib.ExitStack,
    ):
        self.config, self.run, self.bars, self.console = config, run, bars, console
        self.learner = config.learner()
        self.policies = config.policies(self.learner)
        info = dataset.info
        self.metric: data.Metric = data.metric(config.data.env)
        self.reference, self.unit = info.reference, score_unit(info)
        self.length = length_unit(self.learner)
        self.title = f"{config.data.env}, {info.label} data, {info.rows:,} rows"
        for line in (self.title, *info.notes):
            console.print(line)
        self.standardizer = Standardizer.fit(dataset.train.observations)
        constants = {name: np.asarray(getattr(self.standardizer, name)).tolist() for name in ("mean", "std")}
        constants["action_size"] = dataset.train.actions.shape[1] * config.training.chunk
        run.write(AGENT_FILE, json.dumps(constants) + "\n")
        self.training, *self.validation = replays(config.training, dataset, self.standardizer)
        self.notes: list[str] = []
        self.lanes = None
        if config.evaluation.eval_episodes:
            lanes = Lanes(config.data.env, config.evaluation.lanes, workers=config.run.workers)
            self.lanes = stack.enter_context(lanes)
        self.log = None
        if config.run.log:
            name = f"{config.data.env} {config.algorithm} seed{config.training.seed}"
            self.log = stack.enter_context(Tracker(config.run.log, run.path, _identity(config), name=name)).log

    def train(self) -> Any:
        """Train, or go on training, and return the state at the end."""
        training = self.config.training
        if is_auto(self.config):
            self.learner, reason = self._piloted()
            self.notes.append(f"training budget: {reason}")
        at = (*_curve_steps(training, self.config.evaluation.curve_points), training.steps)
        state = self._fit(self.learner, training.steps, evaluate=self._measure, evaluate_at=at)
        report.plot_learning(self.run.rows, self.unit, self.title, self.run.path / "learning_curve.png")
        return state

    def _fit(self, learner: AbstractAlgorithm, updates: int, **more: Any) -> Any:
        training = self.config.training
        return fit(
            learner,
            self.training,
            updates=updates,
            interval=training.interval,
            key=jr.key(training.seed),
            run=self.run,
            log=self.log,
            progress=training_bar(self.bars),
            **more,
        )

    def _measure(self, state: Any, step: int) -> dict[str, Any]:
        row = report.held_out_losses(self.learner, state, self.validation, step)
        if self.lanes is None or step == self.config.training.steps:  # the end has its own evaluation
            return row
        policies = self.policies
        curve = tuple(p for p in policies if p is policies[0] or p in budgets(policies))
        show = bar(self.bars, f"curve at {step:,} (episodes)")
        episodes = self.config.evaluation.curve_episodes
        measured = evaluate(self._agent(state), curve, self.lanes, episodes=episodes, seed=0, progress=show)
        return report.mean_scores(curve, measured, self.metric, self.reference) | row

    def _agent(self, state: Any) -> Agent:
        return Agent(self.learner, state, self.standardizer, self.config.training.chunk)

    def _piloted(self) -> tuple[VGF, str]:
        """Train a tenth of the way without a flow, and choose the budget of the rest."""
        assert isinstance(self.learner, VGF)
        path, training = self.run.path / "training_budget.json", self.config.training
        if path.exists():  # the choice was made before this run was cut off
            chosen = read_json_object(path)
        else:
            pilot = dataclasses.replace(self.learner, train_budget=self.learner.train_budget.with_steps(0))
            updates = training.interval * max(training.steps // training.interval // 10, 1)
            choice = self._choose(pilot, self._fit(pilot, updates))
            size = float(f"{_step_size(choice.budget):g}")
            chosen = {"steps": int(choice.budget.steps), "step_size": size, "reason": choice.reason}
            self.run.write(path.name, json.dumps(chosen, indent=2) + "\n")
        return with_chosen_budget(self.learner, chosen), chosen["reason"]

    def _choose(self, learner: VGF, state: Any) -> ChosenBudget:
        """Choose L and the step size by what the critics say on held-out data."""
        if not self.validation:
            raise ValueError("--budget auto chooses on held-out data, and these data have none.")
        acting = self.config.acting
        assert isinstance(acting, FlowOptions)
        measured = measure_budgets(
            learner,
            state,
            self.validation[0],
            learner.train_budget,
            steps=acting.test_steps,
            step_sizes=AUTO_STEP_SIZES,
            candidates=acting.particles,
            key=jr.fold_in(jr.key(self.config.training.seed), int(state.step)),  # apart from the keys of the training
        )
        return choose_budget(measured)

    def evaluate(self, state: Any) -> list[report.Row]:
        """Evaluate every way to act on the same episodes, and write what they showed."""
        begun, run, options = time.perf_counter(), self.run, self.config.evaluation
        assert self.lanes is not None
        agent, policies = self._agent(state), self.policies
        if is_auto(self.config):
            policies = (*policies, self._chosen_policy(state))
        self._select_by_acting(agent, policies)
        measured = evaluate(
            agent,
            policies,
            self.lanes,
            episodes=options.eval_episodes,
            seed=options.eval_seed,
            progress=bar(self.bars, "evaluation (episodes)"),
        )
        self.notes += played_again(measured)
        for note in self.notes:
            self.console.print(note)
        baseline = policies[self.config.acting.baseline].name
        rows = report.summarise(policies, measured, self.metric, baseline=baseline, reference=self.reference)
        run.write("results.md", "\n\n".join([self.title, *self.notes, report.markdown(rows, self.unit, self.length)]))
        report.plot_budget(rows, policies, self.unit, self.title, run.path / "budget_curve.png")
        seconds = time.perf_counter() - begun
        run.append_timing(phase="evaluation", step=self.config.training.steps, seconds=seconds, updates_per_second=0.0)
        if options.video:
            chosen = getattr(self.config.acting, "chosen", 0)
            shown = next((p for p in policies if p.steps == chosen), policies[-1])
            path = run.path / "policy.gif"
            record_video(agent, shown, self.config.data.env, path, episodes=options.video, seed=options.eval_seed)
        # Last: where it is, everything is.
        run.write("results.csv", to_csv(report.episode_rows(policies, measured)))
        return rows

    def _chosen_policy(self, state: Any) -> Policy:
        assert isinstance(self.learner, VGF)
        choice = self._choose(self.learner, state)
        self.notes.append(f"test budget: {choice.reason}")
        steps = int(choice.budget.steps)
        name = f"VGF, chosen L={steps}, step {_step_size(choice.budget) if steps else 0:g}"
        return Policy(name, self.policies[0].candidates, choice.budget)

    def _select_by_acting(self, agent: Agent, policies: tuple[Policy, ...]) -> None:
        episodes = getattr(self.config.acting, "bandit_episodes", 0)
        if not episodes or self.lanes is None:
            return
        found = select_by_acting(
            agent,
            arms(policies),
            self.lanes,
            episodes=episodes,
            metric=self.metric,
            seed=self.config.evaluation.eval_seed + 1,  # none of the episodes that are reported
            progress=bar(self.bars, "choosing by acting (episodes)"),
        )
        spent = sum(found.episodes.values())
        self.notes.append(f"by acting, {spent} other episodes: {found.policy.name}")


def load_data(options: Data, progress: Callable[[int, int], None], workers: int) -> data.OfflineDataset:
    """Make or read the data of a run, with the environment's own rewards."""
    return data.load(
        options.env,
        options.data_dir,
        origin=options.origin,
        rows=options.rows,
        val_rows=max(options.rows // 10, 1),
        workers=workers,
        progress=progress,
        dataset_path=options.dataset_path,
    )


def treated(options: Data, dataset: data.OfflineDataset) -> data.OfflineDataset:
    """Treat rewards and observations as the options say."""
    # Dense rewards are brought to unit scale; 0/-1 rewards already are.
    automatic = "unit_std" if data.metric(options.env) == "return" else "none"
    rewards = automatic if options.rewards == "auto" else options.rewards
    return data.apply_protocol(dataset, rewards=rewards)


def replays(options: Training, dataset: data.OfflineDataset, standardizer: Standardizer) -> list[Replay]:
    """Bring the splits to the device."""
    return [
        make_replay(split, standardizer, discount=options.discount, n_step=options.n_step, chunk=options.chunk)
        for split in (dataset.train, dataset.validation)
        if split is not None
    ]


def score_unit(info: data.DataInfo) -> str:
    """Name the unit of scores."""
    return "success, %" if info.metric == "success" else "return" if info.reference is None else "normalised score"


def length_unit(learner: AbstractAlgorithm) -> str:
    """Name the unit of displacements: that of a budget."""
    return "spreads" if isinstance(learner, VGF) and learner.relative else "units of the action"


def with_chosen_budget(learner: VGF, chosen: dict[str, Any]) -> VGF:
    """Train by the budget that `--budget auto` chose, as training_budget.json has it."""
    budget = learner.train_budget.with_steps(chosen["steps"], chosen["step_size"])
    return dataclasses.replace(learner, train_budget=budget)


def protocol(info: data.DataInfo, kind: str = "offline-1") -> str:
    """Name what a score means: raise the number when that changes: which checkpoint, which episodes, which score."""
    rewards = info.reward_transform.protocol
    return f"{kind}/last-checkpoint/paired-episodes/rewards-{rewards}/observations-standard"


def extended(before: int, steps: int, otherwise: list[str]) -> str:
    """Return what a longer run shares with one of that length from the start."""
    text = f"extended from {before:,} to {steps:,} steps; its curve keeps the points of the shorter run"
    if not otherwise:
        return f"{text}, and it ends as a run of that length from the start"
    return f"{text}. A run of that length from the start ends otherwise: {', '.join(otherwise)} followed the old one"


def same_data(run: RunDirectory, description: str) -> None:
    """Write down which data these are; a run does not go on with others."""
    path = run.path / "data.json"
    if run.checkpoint.exists() and path.exists():
        there, here = (str(x.get("sha256")) for x in (read_json_object(path), json.loads(description)))
        if there != here:
            raise ValueError(f"cannot resume {run.path} on other data: checksum {there[:12]} there, {here[:12]} here.")
    run.write("data.json", description)


def played_again(measured: Evaluation) -> list[str]:
    """Return how many episodes lost their environment on the way; all of them count."""
    again = int((measured.attempts > 1).sum())
    counting = measured.attempts.size
    return [f"{again} episodes were played again after environments were lost; all {counting} count"] if again else []


def _identity(config: Config) -> dict[str, Any]:
    """Return what determines a run."""
    return {name: value for name, value in config.flat().items() if name not in ELSEWHERE}


def _cost(name: str, learner: AbstractAlgorithm, updates: int) -> str:
    """Return what a task of the paper costs, before its data are downloaded."""
    assert isinstance(learner, VGF)
    work = tasks.flops_per_update(learner, *tasks.PAPER_TASKS[name].sizes) * updates
    return (
        f"{work:.2g} floating-point operations of matrix products: {work / 3e13 / 3600:.1f} hours at "
        "a sustained 30 TFLOP/s (a guess for one large GPU, not measured)"
    )


def _curve_steps(training: Training, points: int) -> tuple[int, ...]:
    """Spread the evaluations evenly over the intervals, the last one excluded: the end has its own evaluation."""
    intervals = training.steps // training.interval
    points = min(points, intervals - 1)
    return tuple(sorted({training.interval * (intervals * (i + 1) // (points + 1)) for i in range(points)}))


def _step_size(budget: Budget) -> float:
    assert budget.step_size is not None  # a chosen budget has one
    return float(budget.step_size)
