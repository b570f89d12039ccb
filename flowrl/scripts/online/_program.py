"""From offline to online: a policy trained on data goes on learning by acting.

Takes up a run of `offline_rl.py` (or trains one first), collects with the transported policy in environments side by
side, learns from data and experience together, and evaluates every L_test on the way and at the end, on the same
episodes as the offline policy. Everything goes to `--out`; a run that was stopped goes on by `--resume`.

    python examples/online_finetune.py --offline runs/offline_rl --out runs/online
    python examples/online_finetune.py --help
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import tyro
from rich.console import Console

from flowrl.rl import (
    VGF,
    AbstractPretrained,
    Agent,
    Buffer,
    Collector,
    Evaluation,
    HostBuffer,
    Lanes,
    Standardizer,
    Tracker,
    check_rows_agree,
    data,
    evaluate,
    finetune,
    report,
)
from flowrl.runs import RunDirectory, load_checkpoint, to_csv
from flowrl.scripts._console import bar, end_well, online_bar, progress, table
from flowrl.scripts.offline import _program as offline_rl
from flowrl.scripts.offline._options import algorithm
from flowrl.scripts.online._options import (
    Config,
    check,
    first_run,
    offline_learner,
    planned,
    read_offline,
    shown,
    startup,
)


def main(config: Config) -> list[report.Row]:
    """Run the whole experiment."""
    console, started = Console(stderr=True), time.perf_counter()
    check(config)
    if config.offline is None:
        planned(config, first_run(config), algorithm(first_run(config)))  # before anything is trained
    source = config.offline or _trained_first(config)
    offline = read_offline(source, config)
    learner, policies, metric = offline_learner(offline, source), shown(offline), data.metric(offline.env)
    planned(config, offline, learner)  # refuses what makes no sense, before the data are there

    elsewhere = ("offline", "env", "algorithm", "offline_steps", "out", "resume", "data_dir", "workers", "log")
    identity = {k: v for k, v in dataclasses.asdict(config).items() if k not in elsewhere}
    identity["offline_sha256"] = hashlib.sha256((source / "checkpoint.npz").read_bytes()).hexdigest()
    free = ("eval_episodes", "eval_seed", "eval_lanes")
    # A run that was stopped while the offline one was trained has not begun itself.
    resume = config.resume and (config.offline is not None or (config.out / "config.json").exists())
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(RunDirectory(config.out, identity, resume=resume, free=free))
        bars = stack.enter_context(progress(console))
        collecting = stack.enter_context(Lanes(offline.env, config.lanes, workers=config.workers))
        evaluating = stack.enter_context(Lanes(offline.env, config.eval_lanes, workers=config.workers))
        raw = offline_rl.load_data(offline, bar(bars, "data"))
        dataset = offline_rl.treated(offline, raw)
        _same_as_offline(source, dataset)
        offline_rl.same_data(run, dataset.info.to_json() + "\n")
        run.write("offline.json", (source / "config.json").read_text())
        run.write_software(protocol=offline_rl.protocol(dataset.info, f"online-1/{config.protocol}"))

        standardizer = Standardizer.fit(dataset.train.observations)
        # A data set that does not fit on the device is prepared on the host.
        place = jax.devices("cpu")[0] if config.host_buffer else None
        with jax.default_device(place):
            replay = offline_rl.replays(offline, dataset, standardizer)[0]
        treatment = {"discount": offline.discount, "n_step": offline.n_step, "rewards": dataset.info.reward_transform}
        check_rows_agree(raw.train, replay, standardizer, **treatment)
        # The keys of the offline run: its reference's samples, and so its unit of length, are the same again.
        init_key, prepare_key = jr.split(jr.key(offline.seed))
        template = learner.init(replay.observations.shape[1], replay.actions.shape[1], key=init_key)
        # Twice: training gives the first one's arrays away.
        (state, _), (kept, _) = (load_checkpoint(source / "checkpoint.npz", template) for _ in range(2))
        if int(state.step) != offline.steps:
            raise ValueError(f"{source} has made {int(state.step)} of {offline.steps} updates; finish it first.")
        before = Agent(learner, kept, standardizer)
        # Randomness of its own, other than that of the offline run and of other seeds.
        state = dataclasses.replace(state, key=jr.fold_in(state.key, config.seed))
        if config.reference == "live" and isinstance(learner, VGF):
            if learner.frozen_reference:
                learner, state = learner.with_live_reference(state)
        elif isinstance(learner, AbstractPretrained):
            with jax.default_device(place):
                state, replay = learner.prepare(state, replay, key=prepare_key)
        kind = HostBuffer if config.host_buffer else Buffer
        buffer = kind(replay, config.capacity or config.steps, config.protocol)
        info = dataset.info
        del replay, raw, dataset
        plan = planned(config, offline, learner)
        title = f"{offline.env}, {offline.algorithm} from {info.rows:,} rows, then {config.steps:,} steps"
        console.print(title)

        reference = info.reference
        unit = offline_rl.score_unit(info)

        def acted(agent: Agent, episodes: int, seed: int, name: str) -> Evaluation:
            show = bar(bars, f"{name} (episodes)")
            return evaluate(agent, policies, evaluating, episodes=episodes, seed=seed, progress=show)

        def agent_at(step: int, state: Any) -> Agent:  # a cap holds in evaluations too
            return Agent(plan(step).algorithm, state, standardizer)

        def measure(state: Any, step: int) -> dict[str, Any]:
            measured = acted(agent_at(step, state), config.curve_episodes, 0, f"curve at {step:,}")
            means = measured.scores(metric, reference).mean(axis=1)
            return {f"score/{p.name}": float(x) for p, x in zip(policies, means, strict=True)}

        name = f"{offline.env} {offline.algorithm} online seed{config.seed}"
        tracker = stack.enter_context(Tracker(config.log, run.path, identity, name=name)) if config.log else None
        state = finetune(
            plan,
            state,
            buffer,
            Collector(collecting, standardizer, **treatment, seed=config.seed),
            steps=config.steps,
            interval=config.interval,
            updates_per_step=config.updates_per_step,
            startup=startup(config),
            run=run,
            evaluate=measure,
            evaluate_at=(*range(0, config.steps, config.eval_every), config.steps),
            progress=online_bar(bars),
            log=tracker.log if tracker else None,
        )
        path = run.path / "curve.png"
        report.plot_learning(run.rows, unit, title, path, phase="online", time="environment steps")
        console.print(_where_time_went(run.path / "timing.csv"))
        agents = {"offline": before, "online": agent_at(config.steps, state)}
        measured = [
            acted(agent, config.eval_episodes, config.eval_seed, f"{name} policy") for name, agent in agents.items()
        ]
        named = tuple(dataclasses.replace(p, name=f"{name}: {p.name}") for name in agents for p in policies)
        both = Evaluation(*(np.concatenate(x) for x in zip(*measured, strict=True)))
        baseline = named[0].name
        rows = report.summarise(named, both, metric, baseline=baseline, reference=reference)
        length = offline_rl.length_unit(offline)
        text = "\n\n".join([title, *offline_rl.played_again(both), report.markdown(rows, unit, length)])
        run.write("results.md", text)
        # Last: where it is, everything is.
        run.write("results.csv", to_csv(offline_rl.episodes(named, both)))
    Console().print(table(rows, unit, title, baseline, length))
    console.print(f"{time.perf_counter() - started:.0f} s in all; everything is in {config.out}")
    return rows


def _trained_first(config: Config) -> Path:
    """Train the offline run that this one starts from, unless it is there."""
    first = first_run(config)
    there = (first.out / "checkpoint.npz").exists()
    offline_rl.main(dataclasses.replace(first, resume=there))
    return first.out


def _same_as_offline(source: Path, dataset: data.OfflineDataset) -> None:
    """Refuse to go on with other data than the offline run had, or to treat its rewards in another way."""
    there = json.loads((source / "data.json").read_text())
    here = json.loads(dataset.info.to_json())
    for name in ("sha256", "reward_transform", "observation_protocol"):
        if there[name] != here[name]:
            raise ValueError(f"{name} of the data differs: {there[name]} in {source}, {here[name]} here.")


def _where_time_went(path: Path) -> str:
    """Sum up the timing of a run."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    steps, seconds = (sum(float(row[name]) for row in rows) for name in ("steps", "seconds"))
    updates = sum(float(row["updates"]) for row in rows)
    parts = {name: sum(float(row[name]) for row in rows) / seconds for name in list(rows[0])[5:]}
    working = seconds * (1 - parts["seconds_evaluating"])
    named = {name.removeprefix("seconds_").replace("_", " "): share for name, share in parts.items()}
    shares = ", ".join(f"{name} {share:.0%}" for name, share in named.items())
    rates = f"{steps / working:.0f} environment steps/s and {updates / working:.0f} updates/s between evaluations"
    return f"{rates}; {shares}"


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    end_well(lambda: main(config), config.out)
