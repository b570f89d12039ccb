"""What `online_finetune.py` can be told, what is refused, and what the options mean."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from flowrl import Budget
from flowrl.rl import VGF, AbstractAlgorithm, Plan, Policy, PolicyTable
from flowrl.scripts.offline._options import (
    DETERMINISTIC,
    Config as Offline,
    algorithm,
    defaults,
    refuse_below_one,
    refuse_changed,
    test_policies,
    with_chosen_budget,
)

#: Options that nothing but VGF reads.
_OF_VGF = ("reference", "train_steps", "train_step_size", "max_displacement")
#: Environment steps before the first update where experience alone is learned from; the source's number.
WSRL_STARTUP = 5000


@dataclasses.dataclass(frozen=True)
class Config:
    """Finetuning by acting. FIRST:LAST means a number that grows evenly over the run, such as 0:3."""

    offline: Path | None = None
    """Directory of a finished run of offline_rl.py; without one, one is trained first, in OUT/offline."""
    env: str = "halfcheetah-medium-local-v0"
    """Environment of the run that is trained first."""
    algorithm: Literal["vgf", "rebrac", "td3_bc", "iql", "idql", "fql", "flow_ql", "diffusion_ql"] = "vgf"
    """Algorithm of the run that is trained first."""
    offline_steps: int = 10_000
    """Its updates."""
    data_dir: Path | None = None
    """Where generated data are kept; default: the user's cache directory."""
    out: Path = Path("runs/online_finetune")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines it must be the same."""
    seed: int = 0
    """Seed of the episodes that are collected, and of the offline run if it is trained first."""

    steps: int = 20_000
    """Environment steps, over all lanes."""
    interval: int = 1_000
    """Environment steps between two checkpoints."""
    lanes: int = 4
    """Environments that collect side by side."""
    updates_per_step: float = 1.0
    """Updates for every environment step; below 1 with several lanes, such as 0.5 with 2."""
    startup: int | None = None
    """Environment steps before the first update; default: 5000 for wsrl, 0 otherwise."""
    protocol: Literal["prefilled", "rlpd", "wsrl"] = "prefilled"
    """What batches hold. prefilled: data and experience alike; rlpd: half of each; wsrl: experience alone."""
    capacity: int | None = None
    """Rows of experience that are kept; default: all."""
    host_buffer: bool = False
    """Keep data and experience in the host's memory, and bring batches to the device."""
    reference: Literal["frozen", "live"] | None = None
    """VGF: the reference stays that of the data, or learns on from the batches; default: as in the offline run."""

    collect_steps: str | None = None
    """L_collect, or FIRST:LAST; default: 1 for VGF, 0 for its rivals. 0 is best-of-N."""
    collect_step_size: float | None = None
    """Step size of the collection; default: that of the offline run's test."""
    collect_candidates: int | None = None
    """Candidates a state; default: N of the offline run for VGF, 1 for its rivals."""
    collect_select: Literal["best", "softmax", "uniform"] = "best"
    """How one of them is chosen."""
    selection_temperature: float | None = None
    """Of softmax, in the units of the value."""
    exploration: float = 0.0
    """Standard deviation of normal noise on the collected actions, which lie in [-1, 1]."""
    train_steps: str | None = None
    """VGF: L_train, or FIRST:LAST; default: that of the offline run."""
    train_step_size: float | None = None
    """VGF: step size in the TD target; default: that of the offline run."""
    max_displacement: str | None = None
    """VGF: cap on the distance to the reference's sample in every budget, evaluations included, in the budget's unit
    of length, or FIRST:LAST; default: that of the offline run."""

    eval_every: int = 5_000
    """Environment steps between two points of the curve."""
    curve_episodes: int = 10
    """Episodes of each policy there."""
    eval_episodes: int = 50
    """Episodes of each policy at the end, of the offline agent and of this one."""
    eval_seed: int = 1
    """Seed of those episodes."""
    eval_lanes: int = 20
    """Environments stepped in lockstep in an evaluation."""
    workers: int = 1
    """Processes of the environments that collect, and of those of the evaluation."""
    log: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Send the metrics to a tracker too; the CSV files are always written."""


def startup(config: Config) -> int:
    """Give the environment steps before the first update."""
    return WSRL_STARTUP * (config.protocol == "wsrl") if config.startup is None else config.startup


def first_run(config: Config) -> Offline:
    """Give the options of the offline run that is trained where none is given."""
    return dataclasses.replace(
        defaults(config.env),
        env=config.env,
        algorithm=config.algorithm,
        steps=config.offline_steps,
        seed=config.seed,
        data_dir=config.data_dir,
        workers=config.workers,
        eval_episodes=0,
        curve_points=0,
        out=config.out / "offline",
    )


def read_offline(source: Path, config: Config) -> Offline:
    """Read the options of an offline run."""
    path = source / "config.json"
    if not path.exists() or not (source / "checkpoint.npz").exists():
        raise FileNotFoundError(f"{source} is no run of offline_rl.py: it needs config.json and checkpoint.npz.")
    there = json.loads(path.read_text())
    known = {field.name: field.type for field in dataclasses.fields(Offline)}
    if not there.keys() <= known.keys():
        raise ValueError(f"{path} is of another version: unknown {', '.join(sorted(there.keys() - known.keys()))}.")
    values = {name: _typed(value, known[name]) for name, value in there.items()}
    offline = dataclasses.replace(Offline(), **values, data_dir=config.data_dir, workers=config.workers)
    if offline.algorithm == "bc":
        raise ValueError("bc has no critic to learn with; start from another algorithm.")
    if offline.chunk > 1:
        raise ValueError(f"{source} acts in chunks of {offline.chunk}; experience is collected one action at a time.")
    return offline


def _typed(value: Any, kind: Any) -> Any:
    """Turn a JSON value back into what the option holds."""
    if value is None:
        return None
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return Path(value) if Path in kinds else tuple(value) if isinstance(value, list) else value


def offline_learner(offline: Offline, source: Path) -> AbstractAlgorithm:
    """Give the algorithm of an offline run, with the training budget that it chose if it did."""
    learner = algorithm(offline)
    if offline.budget == "auto":
        assert isinstance(learner, VGF)
        learner = with_chosen_budget(learner, json.loads((source / "training_budget.json").read_text()))
    return learner


def shown(offline: Offline) -> tuple[Policy, ...]:
    """List the ways to act that are evaluated: every L_test for VGF, a rival's own proposals and their selection."""
    policies = test_policies(offline)
    if offline.algorithm == "vgf":
        return tuple(
            p
            for p in policies
            if p.candidates == offline.particles and p.select == "best" and not p.random_directions and p.band is None
        )
    return tuple(p for p in policies if not p.steps)


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is trained."""
    counts = ("steps", "interval", "lanes", "eval_every", "curve_episodes", "eval_episodes", "eval_lanes", "workers")
    refuse_below_one(config, (*counts, "offline_steps", "capacity", "collect_candidates"))
    if config.interval % config.lanes or config.steps % config.interval or config.eval_every % config.interval:
        raise ValueError("--interval must be a multiple of --lanes, --steps and --eval-every multiples of --interval.")
    updates = config.updates_per_step * config.lanes
    if not (updates >= 1 and updates == round(updates)):
        raise ValueError(f"--updates-per-step times --lanes must be a whole number >= 1, got {updates}.")
    if startup(config) >= config.steps:
        raise ValueError(f"--startup {startup(config)} leaves nothing of --steps {config.steps} to learn in.")
    if config.seed < 0 or config.eval_seed < 0 or (config.startup or 0) < 0:
        raise ValueError("--seed, --eval-seed and --startup must be >= 0.")
    if not 0 <= config.exploration < math.inf:
        raise ValueError(f"--exploration must be >= 0, got {config.exploration}.")
    if config.offline is not None:
        refuse_changed(config, Config(), ("env", "algorithm", "offline_steps"), "--offline, a run that is there,")


def planned(config: Config, offline: Offline, learner: AbstractAlgorithm) -> Callable[[int], Plan]:
    """Turn options into what is done at each environment step.

    Raises:
        ValueError: an option that this algorithm has no use for, or a number out of range.
    """
    ours = isinstance(learner, VGF)
    if not ours:
        refuse_changed(config, Config(), _OF_VGF, offline.algorithm)
    collect = _growing("collect-steps", config.collect_steps or ("1" if ours else "0"), config.steps)
    train = None if config.train_steps is None else _growing("train-steps", config.train_steps, config.steps)
    cap = _growing("max-displacement", config.max_displacement, config.steps) if config.max_displacement else None
    size = offline.test_step_size if config.collect_step_size is None else config.collect_step_size
    candidates = config.collect_candidates or (offline.particles if ours else 1)
    if config.collect_step_size is not None and not max(collect(0), collect(config.steps)):
        raise ValueError("--collect-step-size has no use where --collect-steps is 0; leave out what would be ignored.")
    if ours and config.reference == "frozen" and not learner.frozen_reference:
        raise ValueError("--reference frozen: that of the offline run learns along with its critic.")
    if offline.algorithm in DETERMINISTIC and candidates > 1:
        raise ValueError(f"{offline.algorithm} has one proposal a state; leave --collect-candidates out.")

    def plan(step: int) -> Plan:
        steps = round(collect(step))
        policy = Policy(
            f"collection, L={steps}",
            candidates,
            steps,
            size if steps else 0.0,
            config.collect_select,
            config.selection_temperature,
        )
        if not isinstance(learner, VGF):
            return Plan(learner, policy, config.exploration)
        budget = _changed(
            learner.train_budget,
            steps=None if train is None else round(train(step)),
            step_size=config.train_step_size,
            max_displacement=None if cap is None else cap(step),
        )
        return Plan(dataclasses.replace(learner, train_budget=budget), policy, config.exploration)

    for step in (0, config.steps):
        PolicyTable((plan(step).policy,), config.lanes)
    return plan


def _changed(budget: Budget, **changes: Any) -> Budget:
    """Give a budget with what is not None changed."""
    names = ("steps", "step_size", "temperature", "max_displacement", "scale", "tolerance", "max_mmd", "mmd_sigma")
    values = {name: getattr(budget, name) for name in (*names, "check_every")}
    return Budget(**(values | {name: x for name, x in changes.items() if x is not None}))


def _growing(name: str, text: str, total: int) -> Callable[[int], float]:
    """Read FIRST or FIRST:LAST."""
    first, colon, last = text.partition(":")
    try:
        low, high = float(first), float(last if colon else first)
    except ValueError as error:
        raise ValueError(f"--{name} {text}: give a number, or FIRST:LAST such as 0:3.") from error
    if not (0 <= low < math.inf and 0 <= high < math.inf):
        raise ValueError(f"--{name} {text}: numbers must be >= 0.")
    if name.endswith("steps") and (low != round(low) or high != round(high)):
        raise ValueError(f"--{name} {text}: steps are whole numbers.")
    return lambda step: low + (high - low) * min(step / total, 1.0)
