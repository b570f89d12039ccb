"""Offline reinforcement learning by Value Gradient Flow, from data to table.

Makes the data on this machine if they are not there, learns a reference policy by flow matching and a critic by TD on
transported particles, and evaluates one set of weights under several test budgets, with the controls that tell what the
flow adds: the reference alone, selection alone (best-of-N, best-of-4N), the flow alone, and random directions of the
same length. Everything goes to `--out`: metrics.csv, results.csv, results.md, two plots, config.json, a checkpoint.

    python examples/offline_rl.py --help
"""

import dataclasses
import importlib.metadata
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.random as jr
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from flowrl.rl import (
    AbstractAlgorithm,
    AbstractPretrained,
    Agent,
    Lanes,
    LowerConfidence,
    Mean,
    Minimum,
    Policy,
    PolicyTable,
    RunDirectory,
    Standardizer,
    baselines,
    data,
    evaluate,
    fit,
    held_out,
    make_replay,
    presets,
    record_video,
    report,
    tasks,
    to_csv,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Offline reinforcement learning by Value Gradient Flow and its rivals. (env): the default is the environment's."""

    env: str = "halfcheetah-medium-local-v0"
    """Environment: {halfcheetah,walker2d}-medium[-replay]-local-v0, an OGBench single task such as
    puzzle-3x3-play-singletask-task1-v0, d4rl:NAME, minari:ID, gym:ID with --dataset-path; a wrong name lists near
    ones."""
    algorithm: Literal["vgf", "bc", "td3_bc", "rebrac", "iql", "idql", "diffusion_ql", "flow_ql", "fql"] = "vgf"
    """What is trained. Options on the reference, the aggregate, the band and training particles are VGF's."""
    paper: str | None = None
    """A task of the paper at full size, such as cube-double: sets the environment, the published data and what is
    trained, over the other options. Needs a GPU; its cost is printed."""
    origin: Literal["local", "published"] | None = None
    """Generate the data here, or download what the benchmark's authors made; default: generate where possible."""
    data_dir: Path | None = None
    """Where generated data are kept; default: the user's cache directory."""
    dataset_path: Path | None = None
    """A data file to use instead: npz in the layout of the environment's family, D4RL's HDF5, or your own arrays."""
    rewards: Literal["auto", "none", "unit_std", "d4rl_locomotion", "antmaze"] = "auto"
    """Reward protocol; auto: unit_std where returns are scored, none where success is."""
    rows: int = 100_000
    """Rows of generated training data."""
    out: Path = Path("runs/offline_rl")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines training must be the same."""
    seed: int = 0
    """Seed of the networks and of all sampling in training."""

    steps: int = 10_000
    """Updates of the critic."""
    reference_updates: int = 8_000
    """Updates of the reference policy, before the critic."""
    interval: int = 1_000
    """Updates in one compiled call; a checkpoint follows each."""
    batch_size: int = 256
    """Transitions an update (env)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    members: int = 2
    """Critics in the ensemble."""
    aggregate: Literal["mean", "min", "lower"] = "min"
    """How VGF's critics become one number in target, drive and selection: mean, minimum, or mean - std (env)."""
    learning_rate: float = 3e-4
    """Adam's rate for the critic (env)."""
    polyak: float = 0.005
    """Rate at which the target network follows (env)."""
    discount: float = 0.99
    """Discount factor."""
    n_step: int = 1
    """Steps of the n-step return (env)."""
    chunk: int = 1
    """Actions taken at once."""

    particles: int = 8
    """N: candidates a state, in test; best-of-N and every transported policy choose among N."""
    train_particles: int = 4
    """Particles a state in the TD target."""
    train_steps: int = 1
    """L_train: steps of the flow in the TD target (env)."""
    train_step_size: float = 0.1
    """Step size in training, in units of the reference's within-state spread."""
    test_steps: tuple[int, ...] = (1, 3)
    """All L_test to report (env)."""
    test_step_size: float = 0.3
    """Step size in test, in units of the reference's within-state spread; of the action, for the rivals of VGF."""
    chosen: int = 1
    """The L_test, fixed in advance, that the controls are matched to (env)."""
    band: float = 1.0
    """States that choose their own L stop where the critics disagree by more than this, relative to the reference."""

    eval_episodes: int = 16
    """Episodes of every policy at the end, the same for all."""
    eval_seed: int = 1
    """Seed of the evaluation's episodes."""
    curve_points: int = 1
    """Evaluations along the way, for the learning curve."""
    curve_episodes: int = 4
    """Episodes of each policy in those."""
    video: int = 0
    """Episodes to draw of the policy that the controls are matched to, as policy.gif (with MUJOCO_GL=egl or osmesa)."""
    lanes: int = 40
    """Environments stepped in lockstep (env)."""
    workers: int = os.cpu_count() or 1
    """Processes for data and environments."""


def defaults(env: str) -> Config:
    """Give the defaults for an environment: sparse tasks (success) and dense rewards (return) want different ones."""
    if data.metric(env) == "return":
        return Config(env=env)
    return Config(
        env=env,
        batch_size=128,
        aggregate="mean",
        learning_rate=1e-3,
        polyak=0.01,
        n_step=5,
        train_steps=0,
        test_steps=(1, 3, 5),
        chosen=5,
        lanes=20,
    )


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is generated."""
    positive = ("steps", "reference_updates", "interval", "rows", "batch_size", "members", "n_step", "particles")
    for name in (*positive, "train_particles", "eval_episodes", "curve_episodes", "lanes", "workers", "chunk"):
        if getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}.")
    for name in ("steps", "reference_updates"):
        if getattr(config, name) % config.interval:
            raise ValueError(f"--{name.replace('_', '-')} must be a multiple of --interval ({config.interval}).")
    if min(config.test_steps, default=0) < 1 or len(set(config.test_steps)) < len(config.test_steps):
        raise ValueError(f"--test-steps must be different numbers >= 1 (0 is best-of-N), got {config.test_steps}.")
    if config.chunk > 1 and config.algorithm == "rebrac":
        raise ValueError("--chunk: the penalty of rebrac needs the next action of the data, which chunks do not keep.")
    if config.chunk > 1 and config.n_step not in (1, config.chunk):
        raise ValueError(f"--chunk {config.chunk} sets the steps of the return itself: give --n-step 1.")
    if config.paper is not None and config.paper.startswith("antmaze") and "navigate" not in config.paper:
        raise ValueError(f"--paper {config.paper}: D4RL's mazes have no environment here to act in (docs, your data).")
    if config.chosen not in config.test_steps:
        raise ValueError(f"--chosen {config.chosen} must be one of --test-steps {config.test_steps}.")
    if min(config.eval_seed, config.seed, config.curve_points) < 0:
        raise ValueError("--seed, --eval-seed and --curve-points must be >= 0.")
    if not 0 <= config.discount <= 1:
        raise ValueError(f"--discount must be in [0, 1], got {config.discount}.")
    if config.paper is not None and (config.paper not in tasks.PAPER_TASKS or config.algorithm != "vgf"):
        raise ValueError(f"--paper must be one of {', '.join(tasks.PAPER_TASKS)}, with --algorithm vgf.")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"--hidden must be widths >= 1, got {config.hidden}.")
    # These say themselves what is wrong with the rest: step sizes, rates, too few lanes for the policies.
    algorithm(config)
    PolicyTable(test_policies(config), config.lanes)


def parse(arguments: list[str]) -> Config:
    """Read the command line; the environment decides the defaults of the rest."""
    env = Config.env
    for word, following in itertools.pairwise([*arguments, ""]):
        name, equals, joined = word.partition("=")
        if name == "--env":
            env = joined if equals else following
    return tyro.cli(Config, args=arguments, default=defaults(env))


# --8<-- [start:algorithm]
def algorithm(config: Config) -> AbstractAlgorithm:
    """Turn options into the algorithm."""
    if config.paper is not None:
        return tasks.PAPER_TASKS[config.paper].algorithm()
    aggregate = {"mean": Mean(), "min": Minimum(), "lower": LowerConfidence(1.0)}[config.aggregate]
    if config.algorithm != "vgf":
        return baselines.make(
            config.algorithm,
            hidden=config.hidden,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            members=config.members,
            polyak=config.polyak,
        )
    return presets.default(
        config.train_steps,
        config.train_step_size,
        particles=config.train_particles,
        samples=max(config.particles, config.train_particles),
        target=aggregate,
        drive=aggregate,
        selection=aggregate,
        polyak=config.polyak,
        learning_rate=config.learning_rate,
        reference_updates=config.reference_updates,
        batch_size=config.batch_size,
        hidden=config.hidden,
        reference_hidden=config.hidden,
        members=config.members,
    )


# --8<-- [end:algorithm]


def test_policies(config: Config) -> tuple[Policy, ...]:
    """List the ways to act, decided before anything is evaluated."""
    n, size, chosen = config.particles, config.test_step_size, config.chosen
    if config.algorithm == "bc":
        return (Policy("BC (one sample)", 1),)
    if config.algorithm in ("td3_bc", "rebrac", "iql"):  # policies without randomness: one proposal is all there is
        flows = (Policy(f"{config.algorithm}, transported L={steps}", 1, steps, size) for steps in config.test_steps)
        return (Policy(config.algorithm, 1), *flows)
    if config.algorithm != "vgf":
        flows = (Policy(f"{config.algorithm}, transported L={steps}", n, steps, size) for steps in config.test_steps)
        return (Policy(f"{config.algorithm} (one proposal)", n, select="uniform"), Policy(f"best-of-{n}", n), *flows)
    own = ()
    if config.members > 1 and max(config.test_steps) > 1:
        most = max(config.test_steps)
        own = (Policy(f"VGF, each state its own L <= {most}", n, most, size, band=config.band),)
    return (
        Policy("BC (one random particle)", n, select="uniform"),
        Policy(f"best-of-{n} (L=0)", n),
        *(Policy(f"VGF L={steps}", n, steps, size) for steps in config.test_steps),
        *own,
        Policy(f"one random transported particle, L={chosen}", n, chosen, size, select="uniform"),
        Policy(f"random directions, same length as L={chosen}, best", n, chosen, size, noise=True),
        Policy(f"best-of-{4 * n}", 4 * n),
    )


def at_full_size(config: Config, task: tasks.PaperTask) -> Config:
    """Take the data and the numbers of a task of the paper."""
    return dataclasses.replace(
        config,
        env=task.env,
        origin=config.origin or "published",
        rewards=task.rewards,
        steps=task.updates,
        discount=task.discount,
        eval_episodes=task.episodes,
        n_step=1,
        test_steps=(1, 2, 3),
        test_step_size=task.step_size,
        chosen=task.steps if task.steps in (1, 2, 3) else 1,
    )


def main(config: Config) -> list[report.Row]:
    """Run the whole experiment."""
    console = Console(stderr=True)
    started = time.perf_counter()
    check(config)
    learner = algorithm(config)
    task = tasks.PAPER_TASKS.get(config.paper or "")
    if task is not None:
        config = at_full_size(config, task)
    metric = data.metric(config.env)
    unit = "success, %" if metric == "success" else "return"
    policies = test_policies(config)
    # Where things are and who works on them is no part of what a run is; how it is evaluated at the end may change.
    elsewhere, free = ("out", "resume", "data_dir", "workers"), ("lanes", "eval_episodes", "eval_seed", "video")
    options = {k: v for k, v in dataclasses.asdict(config).items() if k not in elsewhere}
    identity = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}

    with RunDirectory(config.out, identity, resume=config.resume, free=free) as run, _progress(console) as bars:
        dataset = data.load(
            config.env,
            config.data_dir,
            origin=config.origin,
            rows=config.rows,
            val_rows=max(config.rows // 10, 1),
            workers=config.workers,
            progress=_bar(bars, "data"),
            dataset_path=config.dataset_path,
        )
        # Dense rewards are brought to unit scale; 0/-1 rewards already are.
        automatic = "unit_std" if metric == "return" else "none"
        dataset = data.apply_protocol(
            dataset, rewards=automatic if config.rewards == "auto" else config.rewards, observations="standard"
        )
        _same_data(run, dataset.info.to_json() + "\n")
        title = f"{config.env}, {dataset.info.label} data, {dataset.info.rows:,} rows"
        console.print(title)
        for note in dataset.info.notes:
            console.print(note)
        if task is not None:
            sizes = (dataset.train.observations.shape[1], dataset.train.actions.shape[1])
            work = tasks.flops_per_update(task.algorithm(), *sizes) * config.steps
            console.print(
                f"{work:.2g} floating-point operations of matrix products: {work / 3e13 / 3600:.1f} hours at "
                "a sustained 30 TFLOP/s (a guess for one large GPU, not measured)"
            )
        with Lanes(config.env, config.lanes, workers=config.workers) as lanes:
            standardizer = Standardizer.fit(dataset.train.observations)
            replays = [
                make_replay(split, standardizer, discount=config.discount, n_step=config.n_step, chunk=config.chunk)
                for split in (dataset.train, dataset.validation)
                if split is not None
            ]
            curve = tuple(p for p in policies if p.candidates == policies[0].candidates and not p.noise)

            def evaluate_curve(state: Any, step: int) -> dict[str, Any]:
                show = _bar(bars, f"curve at {step:,} (episodes)")
                agent = Agent(learner, state, standardizer, config.chunk)
                measured = evaluate(agent, curve, lanes, episodes=config.curve_episodes, seed=0, progress=show)
                means = report.scores(measured, metric).mean(axis=1)
                row = {f"score/{p.name}": float(x) for p, x in zip(curve, means, strict=True)}
                for replay in replays[1:]:
                    key, losses = jr.key(step), {}
                    if isinstance(learner, AbstractPretrained) and learner.pretraining:
                        losses = held_out(learner, state, replay, key, phase="reference")
                        _, replay = learner.prepare(state, replay, key=key)  # the unit of length stays that of training
                    losses |= held_out(learner, state, replay, key)
                    row |= {f"held_out/{name}": float(x) for name, x in losses.items() if name.endswith("loss")}
                return row

            state = fit(
                learner,
                replays[0],
                updates=config.steps,
                interval=config.interval,
                key=jr.key(config.seed),
                run=run,
                evaluate=evaluate_curve,
                evaluate_at=_curve_steps(config),
                progress=_training_bar(bars),
            )
            trained = time.perf_counter()
            measured = evaluate(
                Agent(learner, state, standardizer, config.chunk),
                policies,
                lanes,
                episodes=config.eval_episodes,
                seed=config.eval_seed,
                progress=_bar(bars, "evaluation (episodes)"),
            )
        baseline = policies[min(1, len(policies) - 1)].name if config.algorithm == "vgf" else policies[0].name
        rows = report.summarise(policies, measured, metric, baseline=baseline)
        run.write("results.csv", to_csv(_episodes(policies, measured)))
        run.write("results.md", f"{title}\n\n{report.markdown(rows, unit)}")
        report.plot_budget(rows, policies, unit, title, run.path / "budget_curve.png")
        report.plot_learning(run.rows, unit, title, run.path / "learning_curve.png")
        run.append_timing(
            phase="evaluation", step=config.steps, seconds=time.perf_counter() - trained, updates_per_second=0.0
        )
        if config.video:
            shown = next((p for p in policies if p.steps == config.chosen), policies[-1])
            agent = Agent(learner, state, standardizer, config.chunk)
            seed, path = config.eval_seed, run.path / "policy.gif"
            record_video(agent, shown, config.env, path, episodes=config.video, seed=seed)
    _print_table(rows, unit, title, baseline)
    seconds, platform = time.perf_counter() - started, jax.devices()[0].platform
    version = importlib.metadata.version("jax")
    console.print(f"{seconds:.0f} s in all on {platform} (jax {version}); everything is in {config.out}")
    return rows


def _same_data(run: RunDirectory, description: str) -> None:
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


def _episodes(policies: tuple[Policy, ...], measured: Any) -> list[dict[str, Any]]:
    return [
        {
            "policy": policy.name,
            "episode": e,
            "return": float(measured.returns[p, e]),
            "success": int(measured.successes[p, e]),
            "length": int(measured.lengths[p, e]),
            "displacement": float(measured.displacements[p, e]),
        }
        for p, policy in enumerate(policies)
        for e in range(measured.returns.shape[1])
    ]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<36}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[rate]}"), console=console)


def _bar(bars: Progress, name: str) -> Callable[[int, int], None]:
    """Make a progress callback that opens its bar at the first call."""
    tasks: list[Any] = []

    def show(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bars.add_task(name, total=total, rate=""))
        bars.update(tasks[0], completed=done)

    return show


def _training_bar(bars: Progress) -> Callable[[Any], None]:
    tasks: dict[str, Any] = {}

    def show(progress: Any) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bars.add_task(f"{progress.phase} (updates)", total=progress.total, rate="")
        bars.update(tasks[progress.phase], completed=progress.done, rate=f"{progress.rate:.0f} updates/s")

    return show


def _print_table(rows: list[report.Row], unit: str, title: str, baseline: str) -> None:
    table = Table(title=title)
    for heading in ("policy", unit, "95 % interval", f"minus {baseline}, paired", "moved (RMS, spreads)"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.score:.1f}",
            f"[{row.low:.1f}, {row.high:.1f}]",
            f"{row.difference:+.1f} [{row.difference_low:+.1f}, {row.difference_high:+.1f}]",
            f"{row.displacement:.3f}",
        )
    Console().print(table)


if __name__ == "__main__":
    try:
        main(parse(sys.argv[1:]))
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
