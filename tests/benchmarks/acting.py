"""Ways to act with one set of weights: the flows of a set of candidates beside their controls, over training seeds.

    flowrl offline vgf --env ENV --seed K --eval-episodes 0 --curve-points 0 --out RUNS/ENV/seedK    # for each
    python tests/benchmarks/acting.py play --runs RUNS --out rows.csv
    python tests/benchmarks/acting.py table rows.csv
    python tests/benchmarks/acting.py figure rows.csv figure.png
    python tests/benchmarks/acting.py critics --runs RUNS

Every run under RUNS is played with every way to act on the same episodes. A row holds one way, one run: its score in
each episode. The table compares means of seeds by Student's interval over seeds; it says what another training run may
show, not another episode. A gain is what is above every control in its interval.
"""

import csv
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import tyro
from scipy import stats

from flowrl import Ascent, Budget, Langevin, Metropolis, Optax, Transport
from flowrl.rl import (
    VGF,
    Actions,
    Agent,
    Barycentre,
    Cool,
    EliteMean,
    EliteMedoid,
    Lanes,
    Move,
    Policy,
    RandomDirections,
    Softmax,
    Uniform,
    compare_critics,
    data,
    evaluate,
    make_replay,
)
from flowrl.scripts.offline import load_agent


def ways(agent: Agent) -> tuple[Policy, ...]:
    """List the ways, by name; elite means and colder noise shrink a set without any flow."""
    if not isinstance(agent.algorithm, VGF):
        return tuple(way for way in ways_of_baseline() if _fits(way, agent))
    step = {size: agent.algorithm.train_budget.with_steps(1, size) for size in (0.1, 0.2, 0.3)}
    return (
        Policy("one sample", 1),
        Policy("best-of-8", 8),
        Policy("best-of-32", 32),
        Policy("softmax-of-32", 32, Softmax(0.5)),
        Policy("colder noise, best-of-32", 32, Cool(0.5)),
        Policy("elite mean", 32, EliteMean(8)),
        Policy("elite medoid", 32, EliteMedoid(8)),
        Policy("mean without a critic", 32, EliteMean(32)),
        Policy("random directions 0.3", 8, RandomDirections(step[0.3])),
        Policy("elite mean, random direction 0.1", 32, (EliteMean(8), RandomDirections(step[0.1]))),
        Policy("VGF 0.3", 8, step[0.3]),
        Policy("VGF 0.1", 8, step[0.1]),
        Policy("VGF 0.3 of 32", 32, step[0.3]),
        Policy("consensus 0.25", 32, Barycentre(0.25)),
        Policy("consensus 0.5", 32, Barycentre(0.5)),
        Policy("consensus 0.5 in actions", 32, Barycentre(0.5, Actions())),
        *(
            Policy(f"consensus {temperature}, VGF {size}", 32, (Barycentre(temperature), step[size]))
            for temperature in (0.25, 0.5)
            for size in step
        ),
        Policy("ascent in noise", 8, Move(Transport(Ascent(), Optax()), Budget(3, 0.3))),
        Policy("MALA in noise", 8, (Move(Transport(Langevin(), Metropolis()), Budget(8, 0.1, 0.5)), Uniform())),
    )


def ways_of_baseline() -> tuple[Policy, ...]:
    """List the ways of a baseline, whose steps are in units of the action: its own, and those that VGF acts by."""
    return (
        Policy("one sample", 1),
        Policy("best-of-8", 8),
        Policy("best-of-32", 32),
        Policy("step 0.1", 8, Budget(1, 0.1)),
        Policy("consensus 0.5", 32, Barycentre(0.5)),
        Policy("consensus 0.5, step 0.03", 32, (Barycentre(0.5), Budget(1, 0.03))),
    )


def _fits(way: Policy, agent: Agent) -> bool:
    try:
        way.check(agent.algorithm)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Play:
    """Play every way with every run that has no rows yet."""

    runs: Path
    """Directory of runs ENV/seedK of `flowrl offline vgf`."""
    out: Path = Path("acting.csv")
    """Rows; those that are there are kept."""
    episodes: int = 100
    """Episodes of every way."""
    seeds: tuple[int, ...] = ()
    """Training seeds to play; default: all."""
    envs: tuple[str, ...] = ()
    """Environments to play; default: all."""
    only: tuple[str, ...] = ()
    """Ways to play; default: all."""
    eval_seed: int = 7
    """Seed of the episodes."""
    workers: int = os.cpu_count() or 1
    """Processes for the environments."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Print a table of rows."""

    rows: tyro.conf.Positional[Path]
    """From `play`."""
    baseline: str = "best-of-8"
    """Way that others are compared with, task by task."""
    way: str = "consensus 0.5, VGF 0.1"
    """Way that is compared with all others."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw every way over all tasks, with its interval over seeds."""

    rows: tyro.conf.Positional[Path]
    """From `play`."""
    out: tyro.conf.Positional[Path]
    """The picture."""
    baseline: str = "best-of-8"
    """Way that others are compared with."""


@dataclasses.dataclass(frozen=True)
class Critics:
    """Print what the critics of all seeds say of the ways of the first, on held-out data."""

    runs: Path
    """Directory of runs ENV/seedK of `flowrl offline vgf`."""
    seeds: tuple[int, ...] = (10, 11, 12, 13, 14)
    """Training seeds."""
    only: tuple[str, ...] = (
        "best-of-8",
        "best-of-32",
        "VGF 0.3",
        "elite mean",
        "consensus 0.5",
        "consensus 0.5, VGF 0.1",
    )
    """Ways."""


def critics(options: Critics) -> None:
    """Print a row for each task and way."""
    print("| task | way | rank: members | cosine: members | rank: seeds | cosine: seeds | gain | gain by other seeds |")
    print("|---" * 8 + "|")
    for folder in sorted(options.runs.iterdir()):
        runs = [folder / f"seed{seed}" for seed in options.seeds if (folder / f"seed{seed}" / "agent.json").exists()]
        if len(runs) < 2:
            continue
        agents = tuple(load_agent(run) for run in runs)
        held_out = data.load(folder.name, rows=100_000, val_rows=10_000).validation
        assert held_out is not None
        chunk = agents[0].chunk
        replay = make_replay(held_out, agents[0].standardizer, discount=0.99, chunk=chunk)
        for way in (way for way in ways(agents[0]) if way.name in options.only):
            found = compare_critics(agents, way, replay, key=jr.key(0))
            numbers = " | ".join(f"{x:.2f}" for x in dataclasses.astuple(found))
            print(
                f"| {folder.name}{f', chunks of {chunk}' if chunk > 1 else ''} | {way.name} | {numbers} |", flush=True
            )


def play(options: Play) -> None:
    """Append rows to the file."""
    known = list(csv.DictReader(options.out.open())) if options.out.exists() else []
    there = {(row["env"], row["seed"], row["way"]) for row in known}
    for path in sorted(options.runs.glob("*/seed*"), key=lambda p: (int(p.name.removeprefix("seed")), p.parent.name)):
        env, seed = path.parent.name, path.name.removeprefix("seed")
        if options.seeds and int(seed) not in options.seeds or options.envs and env not in options.envs:
            continue
        try:
            agent = load_agent(path)
        except (FileNotFoundError, ValueError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        mine = [p for p in ways(agent) if not options.only or p.name in options.only]
        mine = tuple(p for p in mine if (env, seed, p.name) not in there)
        if not mine:
            continue
        begun = time.perf_counter()
        with Lanes(env, 120 if data.metric(env) == "return" else 40, workers=options.workers) as lanes:
            measured = evaluate(agent, mine, lanes, episodes=options.episodes, seed=options.eval_seed)
        seconds = time.perf_counter() - begun
        print(f"{path}: {len(mine)} ways, {seconds:.0f} s", file=sys.stderr)
        protocol = {
            "data_sha256": json.loads((path / "data.json").read_text())["sha256"][:12],
            "chunk": agent.chunk,
            "updates": int(agent.state.step),
            "episodes": options.episodes,
            "eval_seed": options.eval_seed,
        }
        rows = [
            {"env": env, "seed": seed, "way": policy.name, **protocol, "scores": " ".join(f"{x:.6g}" for x in score)}
            for policy, score in zip(mine, measured.scores(data.metric(env)), strict=True)
        ]
        fresh = not options.out.exists()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            if fresh:
                writer.writeheader()
            writer.writerows(rows)


Scores = dict[str, dict[str, np.ndarray]]  # of a task: by way, by seed


def _read(path: Path) -> dict[str, Scores]:
    """Read the scores of all tasks."""
    found: dict[str, Scores] = {}
    for row in csv.DictReader(path.open()):
        scores = np.array([float(x) for x in row["scores"].split()])
        task = row["env"] + (f", chunks of {row['chunk']}" if int(row["chunk"]) > 1 else "")
        found.setdefault(task, {}).setdefault(row["way"], {})[row["seed"]] = scores
    return found


def figure(options: Figure) -> None:
    """Draw every way over all tasks."""
    tasks = list(_read(options.rows).values())
    ways = [way for way in tasks[0] if way not in ("one sample", options.baseline)]
    shares = {way: _shares(tasks, options.baseline, way, options.baseline) for way in ways}
    ways = sorted((way for way in ways if shares[way]), key=lambda way: float(np.mean(shares[way])))
    drawing, axis = plt.subplots(figsize=(7, 0.32 * len(ways) + 1.2), layout="constrained")
    for height, way in enumerate(ways):
        low, high, _ = _interval(shares[way])
        sure = low > 0 or high < 0
        axis.plot([low, high], [height, height], color="C0" if sure else "0.6", linewidth=2)
        axis.plot(np.mean(shares[way]), height, "o", color="C0" if sure else "0.6")
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.set_yticks(range(len(ways)), ways, fontsize=11)
    axis.set_xlabel(f"above {options.baseline}, % of its mean, over {len(tasks)} tasks", fontsize=11)
    axis.grid(axis="x", alpha=0.3)
    drawing.savefig(options.out, dpi=110)


def table(options: Table) -> None:
    """Print one way beside every other over all tasks, and then all ways for each task."""
    found = _read(options.rows)
    print(f"| `{options.way}` minus, 95 % over seeds | " + " | ".join(found) + f" | mean, % of {options.baseline} |")
    print("|---" * (len(found) + 2) + "|")
    for other in dict.fromkeys(way for here in found.values() for way in here if way != options.way):
        cells = [_difference(here, options.way, other)[0] for here in found.values()]
        shares = _shares(list(found.values()), options.baseline, options.way, other)
        print(f"| {other} | " + " | ".join([*cells, _text(shares, ".1f") if shares else ""]) + " |")
    for task, here in found.items():
        seeds = sorted(here[options.baseline], key=int)
        episodes = next(iter(here[options.baseline].values())).size
        print(f"\n### {task}\n\nTraining seeds {', '.join(seeds)}; {episodes} episodes of each.\n")
        print(f"| way | mean | by seed | minus {options.baseline}, 95 % over seeds | over episodes |")
        print("|---|---|---|---|---|")
        for way, by_seed in here.items():
            difference, within = _difference(here, way, options.baseline)
            means = ", ".join(f"{by_seed[s].mean():.0f}" for s in sorted(by_seed, key=int))
            print(f"| {way} | {np.mean(list(by_seed.values())):.0f} | {means} | {difference} | {within} |")


def _shares(tasks: list[Scores], baseline: str, way: str, other: str) -> list[np.ndarray]:
    """Return how far a way is above another in percent of the baseline's mean, over tasks, for each seed of all."""
    seeds = sorted(set.intersection(*(set(here.get(other, {})) & set(here.get(way, {})) for here in tasks)))
    units = [np.mean(list(here[baseline].values())) / 100 for here in tasks]
    apart = [
        np.mean([(here[way][seed] - here[other][seed]).mean() / unit for here, unit in zip(tasks, units, strict=True)])
        for seed in seeds
    ]
    return [np.full(2, x) for x in apart]


def _difference(here: dict[str, dict[str, np.ndarray]], way: str, other: str) -> tuple[str, str]:
    """Return the paired difference of two ways with Student's interval over seeds, and the half width over episodes."""
    if other not in here or way not in here or way == other:
        return "", ""
    apart = [here[way][seed] - here[other][seed] for seed in sorted(here[way].keys() & here[other].keys())]
    return _text(apart, ".0f"), f"± {_interval(apart)[2]:.0f}"


def _text(apart: list[np.ndarray], digits: str) -> str:
    """Write a mean over seeds with its interval, in bold where that leaves out 0."""
    low, high, _ = _interval(apart)
    sure = "**" if low > 0 or high < 0 else ""
    return f"{sure}{np.mean([x.mean() for x in apart]):+{digits}}{sure} [{low:+{digits}}, {high:+{digits}}]"


def _interval(apart: list[np.ndarray]) -> tuple[float, float, float]:
    """Return Student's interval over seeds, and the half width over episodes within them."""
    within = 1.96 * float(np.sqrt(np.mean([x.var(ddof=1) for x in apart]) / sum(x.size for x in apart)))
    means = np.array([x.mean() for x in apart])
    if means.size < 2:
        return -np.inf, np.inf, within
    half = stats.t.ppf(0.975, means.size - 1) * means.std(ddof=1) / np.sqrt(means.size)
    return float(means.mean() - half), float(means.mean() + half), within


if __name__ == "__main__":
    chosen = tyro.cli(
        Annotated[Play, tyro.conf.subcommand("play")]
        | Annotated[Table, tyro.conf.subcommand("table")]
        | Annotated[Figure, tyro.conf.subcommand("figure")]
        | Annotated[Critics, tyro.conf.subcommand("critics")],
        description=__doc__,
    )
    {Play: play, Table: table, Figure: figure, Critics: critics}[type(chosen)](chosen)
