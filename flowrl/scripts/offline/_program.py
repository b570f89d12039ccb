"""Offline reinforcement learning by Value Gradient Flow, from data to table.

Makes the data on this machine if they are not there, learns a reference policy by flow matching and a critic by TD on
transported particles, and evaluates one set of weights under several test budgets, with the controls that tell what the
flow adds: the reference alone, selection alone (best-of-N, best-of-4N), the flow alone, and random directions of the
same length. Everything goes to `--out`: metrics.csv, results.csv, results.md, two plots, config.json, a checkpoint.

    python examples/offline_rl.py --help
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
from rich.console import Console

from flowrl import Budget
from flowrl.rl import (
    AbstractAlgorithm,
    AbstractPretrained,
    Agent,
    ChosenBudget,
    Evaluation,
    Lanes,
    Policy,
    Replay,
    Standardizer,
    Tracker,
    choose_budget,
    data,
    evaluate,
    fit,
    held_out,
    make_replay,
    measure_budgets,
    record_video,
    report,
    select_by_acting,
    tasks,
)
from flowrl.runs import RunDirectory, to_csv
from flowrl.scripts._console import bar, end_well, progress, table, training_bar
from flowrl.scripts.offline._options import (
    AUTO_STEP_SIZES,
    Config,
    algorithm,
    at_full_size,
    budgets,
    check,
    parse,
    test_policies,
    with_chosen_budget,
)


def main(config: Config) -> list[report.Row]:
    """Run the whole experiment."""
    console = Console(stderr=True)
    started = time.perf_counter()
    check(config)
    config = at_full_size(config)
    learner, policies, metric = algorithm(config), test_policies(config), data.metric(config.env)
    if config.paper is not None:
        console.print(_cost(config.paper, learner, config.steps))
    # Where things are and who works on them is no part of what a run is; how it is evaluated at the end may change.
    elsewhere = ("out", "resume", "data_dir", "workers", "log")
    free = ("lanes", "eval_episodes", "eval_seed", "bandit_episodes", "video")
    options = {k: v for k, v in dataclasses.asdict(config).items() if k not in elsewhere}
    identity = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}

    with RunDirectory(config.out, identity, resume=config.resume, free=free) as run, progress(console) as bars:
        dataset = treated(config, load_data(config, bar(bars, "data")))
        same_data(run, dataset.info.to_json() + "\n")
        run.write_software(protocol=protocol(dataset.info))
        title = f"{config.env}, {dataset.info.label} data, {dataset.info.rows:,} rows"
        console.print(title)
        for note in dataset.info.notes:
            console.print(note)
        reference = dataset.info.reference
        unit = score_unit(dataset.info)
        acting = Lanes(config.env, config.lanes, workers=config.workers) if config.eval_episodes else None
        with acting or contextlib.nullcontext(), contextlib.ExitStack() as stack:
            standardizer = Standardizer.fit(dataset.train.observations)
            training, *validation = replays(config, dataset, standardizer)
            curve = tuple(p for p in policies if p.candidates == policies[0].candidates and not p.random_directions)

            def measure(state: Any, step: int) -> dict[str, Any]:
                row = _held_out(learner, state, validation, step)
                if acting is None or step == config.steps:  # the end has its own evaluation
                    return row
                show = bar(bars, f"curve at {step:,} (episodes)")
                agent = Agent(learner, state, standardizer, config.chunk)
                measured = evaluate(agent, curve, acting, episodes=config.curve_episodes, seed=0, progress=show)
                means = measured.scores(metric, reference).mean(axis=1)
                return {f"score/{p.name}": float(x) for p, x in zip(curve, means, strict=True)} | row

            name = f"{config.env} {config.algorithm} seed{config.seed}"
            tracker = Tracker(config.log, run.path, identity, name=name) if config.log else None
            log = stack.enter_context(tracker).log if tracker else None
            settings = {"interval": config.interval, "key": jr.key(config.seed), "run": run, "log": log}
            notes = []
            if config.budget == "auto":
                learner, reason = _piloted(config, learner, training, validation, settings, training_bar(bars))
                notes.append(f"training budget: {reason}")
            state = fit(
                learner,
                training,
                updates=config.steps,
                **settings,
                evaluate=measure,
                evaluate_at=(*_curve_steps(config), config.steps),
                progress=training_bar(bars),
            )
            report.plot_learning(run.rows, unit, title, run.path / "learning_curve.png")
            if acting is None:
                console.print(f"trained without acting; losses and the checkpoint are in {config.out}")
                return []
            trained = time.perf_counter()
            if config.budget == "auto":
                choice = _budget(config, learner, state, validation)
                notes.append(f"test budget: {choice.reason}")
                name = f"VGF, chosen L={choice.steps}, step {choice.step_size:g}"
                policies = (*policies, Policy(name, config.particles, choice.steps, choice.step_size))
            agent = Agent(learner, state, standardizer, config.chunk)
            if config.bandit_episodes:
                found = select_by_acting(
                    agent,
                    budgets(policies),
                    acting,
                    episodes=config.bandit_episodes,
                    metric=metric,
                    seed=config.eval_seed + 1,  # none of the episodes that are reported
                    progress=bar(bars, "choosing by acting (episodes)"),
                )
                spent = sum(found.episodes.values())
                notes.append(f"by acting, {spent} other episodes: {found.policy.name}")
            show = bar(bars, "evaluation (episodes)")
            measured = evaluate(
                agent, policies, acting, episodes=config.eval_episodes, seed=config.eval_seed, progress=show
            )
            notes += played_again(measured)
            for note in notes:
                console.print(note)
        baseline = policies[min(1, len(policies) - 1)].name if config.algorithm == "vgf" else policies[0].name
        rows = report.summarise(policies, measured, metric, baseline=baseline, reference=reference)
        length = length_unit(config)
        text = "\n\n".join([title, *notes, report.markdown(rows, unit, length)])
        run.write("results.md", text)
        report.plot_budget(rows, policies, unit, title, run.path / "budget_curve.png")
        run.append_timing(
            phase="evaluation", step=config.steps, seconds=time.perf_counter() - trained, updates_per_second=0.0
        )
        if config.video:
            shown = next((p for p in policies if p.steps == config.chosen), policies[-1])
            seed, path = config.eval_seed, run.path / "policy.gif"
            record_video(agent, shown, config.env, path, episodes=config.video, seed=seed)
        # Last: where it is, everything is.
        run.write("results.csv", to_csv(episodes(policies, measured)))
    Console().print(table(rows, unit, title, baseline, length))
    seconds, platform = time.perf_counter() - started, jax.devices()[0].platform
    version = importlib.metadata.version("jax")
    console.print(f"{seconds:.0f} s in all on {platform} (jax {version}); everything is in {config.out}")
    return rows


def load_data(config: Config, progress: Any) -> data.OfflineDataset:
    """Make or read the data of a run, with the environment's own rewards."""
    return data.load(
        config.env,
        config.data_dir,
        origin=config.origin,
        rows=config.rows,
        val_rows=max(config.rows // 10, 1),
        workers=config.workers,
        progress=progress,
        dataset_path=config.dataset_path,
    )


def treated(config: Config, dataset: data.OfflineDataset) -> data.OfflineDataset:
    """Treat rewards and observations as the options say."""
    # Dense rewards are brought to unit scale; 0/-1 rewards already are.
    automatic = "unit_std" if data.metric(config.env) == "return" else "none"
    rewards = automatic if config.rewards == "auto" else config.rewards
    return data.apply_protocol(dataset, rewards=rewards, observations="standard")


def replays(config: Config, dataset: data.OfflineDataset, standardizer: Standardizer) -> list[Replay]:
    """Bring the splits to the device."""
    return [
        make_replay(split, standardizer, discount=config.discount, n_step=config.n_step, chunk=config.chunk)
        for split in (dataset.train, dataset.validation)
        if split is not None
    ]


def score_unit(info: data.DataInfo) -> str:
    """Say what scores are in."""
    return "success, %" if info.metric == "success" else "return" if info.reference is None else "normalised score"


def length_unit(config: Config) -> str:
    """Say what displacements are in: budgets of rivals and of the paper's tasks are in units of the action."""
    return "spreads" if config.algorithm == "vgf" and config.paper is None else "units of the action"


def _cost(name: str, learner: AbstractAlgorithm, updates: int) -> str:
    """Say what a task of the paper costs, before its data are downloaded."""
    task = tasks.PAPER_TASKS[name]
    work = tasks.flops_per_update(learner, *task.sizes) * updates  # pyright: ignore[reportArgumentType]
    return (
        f"{work:.2g} floating-point operations of matrix products: {work / 3e13 / 3600:.1f} hours at "
        "a sustained 30 TFLOP/s (a guess for one large GPU, not measured)"
    )


def protocol(info: data.DataInfo, kind: str = "offline-1") -> str:
    """Name what a score means: raise the number when that changes: which checkpoint, which episodes, which score."""
    rewards = info.reward_transform.protocol
    return f"{kind}/last-checkpoint/paired-episodes/rewards-{rewards}/observations-standard"


def _budget(config: Config, learner: Any, state: Any, validation: list[Replay]) -> ChosenBudget:
    """Choose L and the step size by what the critics say on held-out data."""
    if not validation:
        raise ValueError("--budget auto chooses on held-out data, and these data have none.")
    grid = {"steps": config.test_steps, "step_sizes": AUTO_STEP_SIZES, "candidates": config.particles}
    key = jr.fold_in(jr.key(config.seed), int(state.step))  # apart from the keys of the training
    measured = measure_budgets(learner, state, validation[0], **grid, key=key)
    return choose_budget(measured)


def _piloted(
    config: Config, learner: Any, training: Replay, validation: list[Replay], settings: dict[str, Any], show: Any
) -> tuple[AbstractAlgorithm, str]:
    """Train a tenth of the way without a flow, and choose the budget of the rest."""
    path = settings["run"].path / "training_budget.json"
    if path.exists():  # the choice was made before this run was cut off
        chosen = json.loads(path.read_text())
    else:
        pilot = dataclasses.replace(learner, train_budget=Budget(0, 0.1, learner.train_budget.temperature))
        updates = config.interval * max(config.steps // config.interval // 10, 1)
        state = fit(pilot, training, updates=updates, **settings, progress=show)
        choice = _budget(config, pilot, state, validation)
        chosen = {"steps": choice.steps, "step_size": choice.step_size or 0.1, "reason": choice.reason}
        settings["run"].write(path.name, json.dumps(chosen, indent=2) + "\n")
    return with_chosen_budget(learner, chosen), chosen["reason"]


def _held_out(learner: AbstractAlgorithm, state: Any, validation: list[Replay], step: int) -> dict[str, float]:
    """Measure the losses on data that are not trained on."""
    row = {}
    for replay in validation:
        (reference_key, cache_key, key), losses = jr.split(jr.key(step), 3), {}
        if isinstance(learner, AbstractPretrained) and learner.pretraining:
            losses = held_out(learner, state, replay, reference_key, phase="reference")
            _, replay = learner.prepare(state, replay, key=cache_key)  # the unit of length stays that of training
        losses |= held_out(learner, state, replay, key)
        row |= {f"held_out/{name}": float(x) for name, x in losses.items() if name.endswith("loss")}
    return row


def same_data(run: RunDirectory, description: str) -> None:
    """Write down which data these are; a run does not go on with others."""
    path = run.path / "data.json"
    if run.checkpoint.exists() and path.exists():
        there, here = (json.loads(text)["sha256"] for text in (path.read_text(), description))
        if there != here:
            raise ValueError(f"cannot resume {run.path} on other data: checksum {there[:12]} there, {here[:12]} here.")
    run.write("data.json", description)


def _curve_steps(config: Config) -> tuple[int, ...]:
    """Spread the evaluations evenly over the intervals, the last one excluded: the end has its own evaluation."""
    intervals = config.steps // config.interval
    points = min(config.curve_points, intervals - 1)
    return tuple(sorted({config.interval * (intervals * (i + 1) // (points + 1)) for i in range(points)}))


def played_again(measured: Evaluation) -> list[str]:
    """Say how many episodes lost their environment on the way; all of them count."""
    again = int((measured.attempts > 1).sum())
    counting = measured.attempts.size
    return [f"{again} episodes were played again after environments were lost; all {counting} count"] if again else []


def episodes(policies: tuple[Policy, ...], measured: Evaluation) -> list[dict[str, Any]]:
    """Give a row for every episode."""
    return [
        {
            "policy": policy.name,
            "episode": e,
            "return": float(measured.returns[p, e]),
            "success": int(measured.successes[p, e]),
            "length": int(measured.lengths[p, e]),
            "displacement": float(measured.displacements[p, e]),
            "steps": float(measured.steps[p, e]),
        }
        for p, policy in enumerate(policies)
        for e in range(measured.returns.shape[1])
    ]


if __name__ == "__main__":
    try:
        config = parse(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"ValueError: {error}")
    end_well(lambda: main(config), config.out)
