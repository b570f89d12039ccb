"""From offline to online: a policy trained on data goes on learning by acting.

Takes up a run of `flowrl offline` (or trains one first), collects with the transported policy in environments side by
side, learns from data and experience together, and evaluates every L_test on the way and at the end, on the same
episodes as the offline policy. Everything goes to `--out`; a run that was stopped goes on by `--resume`.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
from rich.console import Console

from flowrl._io import read_json_object, read_table
from flowrl.rl import (
    VGF,
    AbstractAlgorithm,
    AbstractPretrained,
    Agent,
    Buffer,
    Collector,
    Evaluation,
    HostBuffer,
    Lanes,
    Policy,
    Replay,
    Standardizer,
    check_rows_agree,
    data,
    evaluate,
    finetune,
    report,
)
from flowrl.runs import RunDirectory, Tracker, load_checkpoint, to_csv
from flowrl.scripts._console import bar, online_bar, progress
from flowrl.scripts._naming import checked
from flowrl.scripts.offline import (
    Config as Offline,
    extended,
    length_unit,
    load_data,
    main as train_offline,
    played_again,
    protocol,
    replays,
    same_data,
    score_unit,
    treated,
)
from flowrl.scripts.online._options import (
    Config,
    FinishedRun,
    VGFLearning,
    check,
    first_run,
    make_config,
    offline_learner,
    planned,
    read_offline,
    shown,
    startup,
)


def main(config: Config) -> None:
    """Run everything that is not done yet."""
    console, started = Console(stderr=True), time.perf_counter()
    check(config)
    source = config.source.offline if isinstance(config.source, FinishedRun) else _trained_first(config)
    offline = read_offline(source, config)
    learner, metric = offline_learner(offline, source), data.metric(offline.data.env)
    check_plan(config, offline, learner)  # before the data are there

    identity = config.flat()
    identity["offline_sha256"] = hashlib.sha256((source / "checkpoint.npz").read_bytes()).hexdigest()
    free = ("eval_episodes", "eval_seed", "eval_lanes")
    # A run that was stopped while the offline one was trained has not begun itself.
    begun = isinstance(config.source, FinishedRun) or (config.out / "config.json").exists()
    with contextlib.ExitStack() as stack:
        resume = config.run.resume and begun
        growth: Any = {"grows": ("steps",), "ends": ("results.csv",)}
        run = stack.enter_context(RunDirectory(config.out, identity, resume=resume, free=free, **growth))
        if run.grown:
            scheduled = ("collect_steps", "train_steps", "max_displacement")
            ramps = [f"--{name.replace('_', '-')}" for name in scheduled if ":" in str(identity.get(name))]
            console.print(extended(run.grown["steps"], config.learning.steps, ramps))
        bars = stack.enter_context(progress(console))
        env, workers = offline.data.env, config.run.workers
        collecting = stack.enter_context(Lanes(env, config.collecting.lanes, workers=workers))
        evaluating = stack.enter_context(Lanes(env, config.evaluation.eval_lanes, workers=workers))
        raw = load_data(offline.data, bar(bars, "data"), workers)
        dataset = treated(offline.data, raw)
        _same_as_offline(source, dataset)
        same_data(run, dataset.info.to_json() + "\n")
        run.write("offline.json", (source / "config.json").read_text())
        run.write_software(protocol=protocol(dataset.info, f"online-1/{config.learning.protocol}"))

        standardizer = Standardizer.fit(dataset.train.observations)
        # A data set that does not fit on the device is prepared on the host.
        place = jax.devices("cpu")[0] if config.learning.host_buffer else None
        with jax.default_device(place):
            replay = replays(offline.training, dataset, standardizer)[0]
        training = offline.training
        treatment = {"discount": training.discount, "n_step": training.n_step, "rewards": dataset.info.reward_transform}
        check_rows_agree(raw.train, replay, standardizer, **treatment)
        before, learner, state, replay = _taken_up(config, offline, learner, source, replay, place)
        kind = HostBuffer if config.learning.host_buffer else Buffer
        buffer = kind(replay, config.learning.capacity or config.learning.steps, config.learning.protocol)
        info = dataset.info
        del replay, raw, dataset
        plan = planned(config, offline, learner)
        title = f"{env}, {offline.algorithm} from {info.rows:,} rows, then {config.learning.steps:,} steps"
        console.print(title)
        unit, length = score_unit(info), length_unit(learner)

        def acted(
            learner: AbstractAlgorithm, state: Any, episodes: int, seed: int, name: str
        ) -> tuple[tuple[Policy, ...], Evaluation]:
            policies = shown(offline, learner)
            agent, show = Agent(learner, state, standardizer), bar(bars, f"{name} (episodes)")
            return policies, evaluate(agent, policies, evaluating, episodes=episodes, seed=seed, progress=show)

        def measure(state: Any, step: int) -> dict[str, Any]:
            now = plan(step).algorithm  # a cap holds in evaluations too
            policies, measured = acted(now, state, config.evaluation.curve_episodes, 0, f"curve at {step:,}")
            return report.mean_scores(policies, measured, metric, info.reference)

        log = None
        if config.run.log:
            name = f"{env} {offline.algorithm} online seed{config.learning.seed}"
            log = stack.enter_context(Tracker(config.run.log, run.path, identity, name=name)).log
        state = finetune(
            plan,
            state,
            buffer,
            Collector(collecting, standardizer, **treatment, seed=config.learning.seed),
            steps=config.learning.steps,
            interval=config.learning.interval,
            updates_per_step=config.learning.updates_per_step,
            startup=startup(config),
            run=run,
            evaluate=measure,
            evaluate_at=(*range(0, config.learning.steps, config.evaluation.eval_every), config.learning.steps),
            progress=online_bar(bars),
            log=log,
        )
        path = run.path / "curve.png"
        report.plot_learning(run.rows, unit, title, path, phase="online", time="environment steps")
        console.print(_where_time_went(run.path / "timing.csv"))
        agents = {"offline": before, "online": (plan(config.learning.steps).algorithm, state)}
        episodes, seed = config.evaluation.eval_episodes, config.evaluation.eval_seed
        named, measured = [], []
        for name, (algorithm, weights) in agents.items():
            policies, found = acted(algorithm, weights, episodes, seed, f"{name} policy")
            named += [dataclasses.replace(p, name=f"{name}: {p.name}") for p in policies]
            measured.append(found)
        both = Evaluation(*(np.concatenate(x) for x in zip(*measured, strict=True)))
        rows = report.summarise(tuple(named), both, metric, baseline=named[0].name, reference=info.reference)
        notes = played_again(both)
        run.write("results.md", "\n\n".join([title, *notes, report.markdown(rows, unit, length)]))
        # Last: where it is, everything is.
        run.write("results.csv", to_csv(report.episode_rows(tuple(named), both)))
    print(f"{title}\n\n{report.table(rows, unit, rows[0].name, length)}")
    console.print(f"{time.perf_counter() - started:.0f} s in all; everything is in {config.out}")


def check_plan(config: Config, offline: Offline, learner: AbstractAlgorithm) -> None:
    """Refuse what makes no sense of what is done at each environment step, by the names of the options."""
    usual = dataclasses.replace(make_config(config.algorithm), source=config.source)
    checked(lambda options: planned(options, offline, learner), config, usual)


def _taken_up(
    config: Config, offline: Offline, learner: AbstractAlgorithm, source: Path, replay: Replay, place: Any
) -> tuple[tuple[AbstractAlgorithm, Any], AbstractAlgorithm, Any, Replay]:
    """Load the offline run: its agent as it is, and the algorithm, state and data that go on."""
    # The keys of the offline run: its reference's samples, and so its unit of length, are the same again.
    init_key, prepare_key = jr.split(jr.key(offline.training.seed))
    template = learner.init(replay.observations.shape[1], replay.actions.shape[1], key=init_key)
    # Twice: training gives the first one's arrays away.
    (state, _), (kept, _) = (load_checkpoint(source / "checkpoint.npz", template) for _ in range(2))
    if int(state.step) != offline.training.steps:
        raise ValueError(f"{source} has made {int(state.step)} of {offline.training.steps} updates; finish it first.")
    before = learner, kept
    # Randomness of its own, other than that of the offline run and of other seeds.
    state = dataclasses.replace(state, key=jr.fold_in(state.key, config.learning.seed))
    if isinstance(config.learning, VGFLearning) and config.learning.reference == "live":
        assert isinstance(learner, VGF)
        if learner.frozen_reference:
            learner, state = learner.with_live_reference(state)
    elif isinstance(learner, AbstractPretrained):
        with jax.default_device(place):
            state, replay = learner.prepare(state, replay, key=prepare_key)
    return before, learner, state, replay


def _trained_first(config: Config) -> Path:
    """Train the offline run that this one starts from, unless it is there."""
    first = first_run(config)
    check_plan(config, first, first.learner())  # before anything is trained
    there = (first.out / "checkpoint.npz").exists()
    train_offline(first.changed(resume=there))
    return first.out


def _same_as_offline(source: Path, dataset: data.OfflineDataset) -> None:
    """Refuse to go on with other data than the offline run had, or to treat its rewards in another way."""
    there = read_json_object(source / "data.json")
    here = json.loads(dataset.info.to_json())
    for name in ("sha256", "reward_transform"):
        if there.get(name) != here[name]:
            raise ValueError(f"{name} of the data differs: {there.get(name)} in {source}, {here[name]} here.")


def _where_time_went(path: Path) -> str:
    """Sum up the timing of a run."""
    rows = read_table(path, numbers=("steps", "seconds", "updates"))
    steps, seconds = (sum(float(row[name]) for row in rows) for name in ("steps", "seconds"))
    updates = sum(float(row["updates"]) for row in rows)
    names = [name for name in rows[0] if name.startswith("seconds_")]
    parts = {name: sum(float(row[name]) for row in rows) / seconds for name in names}
    working = seconds * (1 - parts["seconds_evaluating"])
    named = {name.removeprefix("seconds_").replace("_", " "): share for name, share in parts.items()}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in named.items())
    rates = f"{steps / working:.0f} environment steps/s and {updates / working:.0f} updates/s between evaluations"
    return f"{rates}; {shares}"
