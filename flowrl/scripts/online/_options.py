"""The command line of online runs: groups of options, those that the algorithm of the offline run reads."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import tyro

from flowrl import Budget
from flowrl.rl import (
    VGF,
    AbstractAlgorithm,
    AbstractStage,
    AbstractValueBased,
    Best,
    Improve,
    Plan,
    Policy,
    PolicyTable,
    Softmax,
    Uniform,
)
from flowrl.scripts.offline import (
    CandidateOptions,
    Config as Offline,
    FlowOptions,
    defaults,
    from_flat,
    last_value,
    options_of,
    refuse_below_one,
    trained_learner,
)

#: Environment steps before the first update where experience alone is learned from; the source's number.
WSRL_STARTUP = 5000
_GROUPS = ("source", "learning", "collecting", "evaluation", "run")
_ABOUT = """Go on with an offline run by acting: collect with the transported policy in environments side by side, learn
from data and experience together, and evaluate every L_test on the way and at the end, on the same episodes as the
offline policy. FIRST:LAST means a number that grows evenly over the run, such as 0:3. Options depend on the algorithm
of the offline run."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The offline run that is trained first, in OUT/offline; --offline RUN takes one that is there."""

    env: str = "halfcheetah-medium-local-v0"
    """Environment."""
    offline_steps: int = 10_000
    """Its updates."""
    data_dir: Path | None = None
    """Where generated data are kept; default: the user's cache directory."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """The offline run that this one starts from."""

    offline: Path
    """Directory of a finished run of `flowrl offline`."""
    trust_code: bool = False
    """Run code that the config.json of that run names: an environment of a module, an algorithm of your own."""
    data_dir: Path | None = None
    """Where generated data are kept; default: the user's cache directory."""


@dataclasses.dataclass(frozen=True)
class Learning:
    """What is learned from, and how often."""

    seed: int = 0
    """Seed of the episodes that are collected, and of the offline run if it is trained first."""
    steps: int = 20_000
    """Environment steps, over all lanes."""
    interval: int = 1_000
    """Environment steps between two checkpoints."""
    updates_per_step: float = 1.0
    """Updates per environment step; below 1 with several lanes, such as 0.5 with 2."""
    startup: int | None = None
    """Environment steps before the first update; default: 5000 for wsrl, 0 otherwise."""
    protocol: Literal["prefilled", "rlpd", "wsrl"] = "prefilled"
    """What batches hold. prefilled: data and experience alike; rlpd: half of each; wsrl: experience alone."""
    capacity: int | None = None
    """Rows of experience that are kept; default: all."""
    host_buffer: bool = False
    """Keep data and experience in the host's memory, and bring batches to the device."""

    def algorithm(self, learner: AbstractAlgorithm) -> Callable[[int], AbstractAlgorithm]:
        """Return what learns at each environment step."""
        return lambda step: learner  # noqa: ARG005


@dataclasses.dataclass(frozen=True)
class VGFLearning(Learning):
    """What is learned from, and how often; the reference and the budgets of VGF."""

    reference: Literal["frozen", "live"] | None = None
    """The reference stays that of the data, or learns on from the batches; default: as in the offline run."""
    train_steps: str | None = None
    """L_train, or FIRST:LAST; default: that of the offline run."""
    train_step_size: float | None = None
    """Step size in the TD target; default: that of the offline run."""
    max_displacement: str | None = None
    """Cap on the distance to the reference's sample in every budget, evaluations included, in the budget's unit of
    length, or FIRST:LAST; default: that of the offline run."""

    def algorithm(self, learner: AbstractAlgorithm) -> Callable[[int], AbstractAlgorithm]:
        """Return what learns at each environment step."""
        assert isinstance(learner, VGF)
        steps = None if self.train_steps is None else _growing("train-steps", self.train_steps, self.steps)
        cap = None if self.max_displacement is None else _growing("max-displacement", self.max_displacement, self.steps)
        if self.reference == "frozen" and not learner.frozen_reference:
            raise ValueError("--reference frozen: that of the offline run learns along with its critic.")

        def at(step: int) -> AbstractAlgorithm:
            budget = learner.train_budget
            if steps is not None or self.train_step_size is not None:
                budget = budget.with_steps(budget.steps if steps is None else round(steps(step)), self.train_step_size)
            if cap is not None:
                budget = _capped(budget, cap(step))
            return dataclasses.replace(learner, train_budget=budget)

        return at


@dataclasses.dataclass(frozen=True)
class Collecting:
    """How experience is collected: L_collect is the budget of the collection, apart from those of training and test."""

    lanes: int = 4
    """Environments that collect side by side."""
    collect_steps: str = "0"
    """L_collect, or FIRST:LAST. 0 is selection alone."""
    collect_step_size: float | None = None
    """Step size of the collection; default: that of the offline run's test."""
    exploration: float = 0.0
    """Standard deviation of normal noise on the collected actions, which lie in [-1, 1]."""

    #: What a policy without randomness has.
    collect_candidates: ClassVar[int | None] = 1
    collect_select: ClassVar[Any] = "best"
    selection_temperature: ClassVar[float | None] = None


@dataclasses.dataclass(frozen=True)
class CollectingAmong(Collecting):
    """How experience is collected: L_collect is the budget of the collection, apart from those of training and test."""

    collect_candidates: int | None = 1  # pyright: ignore[reportIncompatibleVariableOverride]
    """Candidates per state; default for VGF: N of the offline run."""
    collect_select: Literal["best", "softmax", "uniform"] = "best"  # pyright: ignore[reportIncompatibleVariableOverride]
    """How one of them is chosen."""
    selection_temperature: float | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Of softmax, in standard deviations of the candidates' values."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Which episodes are played."""

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


@dataclasses.dataclass(frozen=True)
class Run:
    """Where the run is kept, and who works on it."""

    out: Path = Path("runs/online_finetune")
    """Directory of the run."""
    resume: bool = False
    """Go on with the run in --out; what determines it must be the same."""
    log: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Send the metrics to a tracker too; the CSV files are always written."""
    workers: int = 1
    """Processes of the environments that collect, and of those of the evaluation."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All options of a run.

    Attributes:
        algorithm: that of the offline run.
        source: the offline run.
        learning: what is learned from.
        collecting: how experience is collected.
        evaluation: episodes.
        run: where the run is kept.
    """

    algorithm: str
    source: Source | FinishedRun
    learning: Learning
    collecting: Collecting
    evaluation: Evaluation
    run: Run

    @property
    def out(self) -> Path:
        """Directory of the run."""
        return self.run.out

    def flat(self) -> dict[str, Any]:
        """Return the options that determine the run, as config.json has them."""
        groups = (dataclasses.asdict(x) for x in (self.learning, self.collecting, self.evaluation))
        return {name: value for group in groups for name, value in group.items()}


def groups(algorithm: str, *, finished: bool = False) -> dict[str, type]:
    """Return the groups of options that an algorithm reads."""
    vgf, acting = algorithm == "vgf", type(defaults(algorithm).acting)
    return {
        "source": FinishedRun if finished else Source,
        "learning": VGFLearning if vgf else Learning,
        "collecting": CollectingAmong if issubclass(acting, CandidateOptions) else Collecting,
        "evaluation": Evaluation,
        "run": Run,
    }


def make_config(algorithm: str = "vgf", **options: Any) -> Config:
    """Make the options of a run by name, with the defaults of an algorithm for the rest."""
    if algorithm == "vgf":  # collects with one step among the N of the offline run
        options = {"collect_steps": "1", "collect_candidates": None} | options
    made = {}
    for name, kind in groups(algorithm, finished="offline" in options).items():
        mine = {k: options.pop(k) for k in [f.name for f in dataclasses.fields(kind)] if k in options}
        made[name] = kind(**mine)
    if options:
        raise ValueError(f"{algorithm} has no options {', '.join(sorted(options))}.")
    return Config(algorithm, **made)


def parse(words: Sequence[str]) -> Config:
    """Read the command line; the algorithm of the offline run decides which options there are."""
    words = list(words)
    source, named = last_value(words, "--offline"), last_value(words, "--algorithm", take=True)
    if source is not None and named is not None:
        raise ValueError("--offline, a run that is there, has its algorithm; leave --algorithm out.")
    algorithm = named or "vgf"
    path = Path(source or "") / "config.json"
    if source is not None and path.exists():  # read_offline says what is wrong with others
        trusted = any(word.replace("_", "-") == "--trust-code" for word in words)
        algorithm = options_of(path, trusted=trusted).get("algorithm", algorithm)
    usual = make_config(algorithm, **({} if source is None else {"offline": Path(source)}))
    fields = [(name, type(getattr(usual, name)), dataclasses.field(default=getattr(usual, name))) for name in _GROUPS]
    read = tyro.cli(
        dataclasses.make_dataclass("Options", fields, frozen=True),
        args=words,
        prog="flowrl online",
        description=_ABOUT,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return Config(algorithm, *(getattr(read, name) for name in _GROUPS))


def startup(config: Config) -> int:
    """Return the environment steps before the first update."""
    learning = config.learning
    return WSRL_STARTUP * (learning.protocol == "wsrl") if learning.startup is None else learning.startup


def first_run(config: Config) -> Offline:
    """Return the options of the offline run that is trained where none is given."""
    assert isinstance(config.source, Source)
    return defaults(config.algorithm, env=config.source.env).changed(
        steps=config.source.offline_steps,
        chunk=1,  # experience is collected one action at a time
        seed=config.learning.seed,
        data_dir=config.source.data_dir,
        workers=config.run.workers,
        eval_episodes=0,
        curve_points=0,
        out=config.out / "offline",
    )


def read_offline(source: Path, config: Config) -> Offline:
    """Read the options of an offline run."""
    path = source / "config.json"
    if not path.exists() or not (source / "checkpoint.npz").exists():
        raise FileNotFoundError(f"{source} is not a run of `flowrl offline`: it needs config.json and checkpoint.npz.")
    # A run that this command has trained itself was named by the user's own words.
    trusted = not isinstance(config.source, FinishedRun) or config.source.trust_code
    offline = from_flat(options_of(path, trusted=trusted), path)
    offline = offline.changed(data_dir=config.source.data_dir, workers=config.run.workers)
    if offline.training.chunk > 1:
        raise ValueError(
            f"{source} acts in chunks of {offline.training.chunk}; experience is collected one action at a time."
        )
    return offline


def offline_learner(offline: Offline, source: Path) -> AbstractValueBased:
    """Return the algorithm of an offline run, which must have a critic."""
    learner = trained_learner(offline, source)
    if not isinstance(learner, AbstractValueBased):
        raise ValueError(f"{offline.algorithm} has no critic to learn with; start from another algorithm.")
    return learner


def shown(offline: Offline, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
    """List the ways to act that are evaluated: every L_test for VGF, a baseline's own proposals and their selection."""
    policies, acting = offline.policies(learner), offline.acting
    if isinstance(acting, FlowOptions):
        return tuple(
            p
            for p in policies
            if p.candidates == acting.particles and all(isinstance(stage, Improve | Best) for stage in p.stages)
        )
    return tuple(p for p in policies if not p.steps)


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is trained."""
    learning, lanes, evaluation = config.learning, config.collecting.lanes, config.evaluation
    options = config.flat() | dataclasses.asdict(config.source) | dataclasses.asdict(config.run)
    counts = ("steps", "interval", "lanes", "eval_every", "curve_episodes", "eval_episodes", "eval_lanes", "workers")
    refuse_below_one(options, (*counts, "offline_steps", "capacity", "collect_candidates"))
    if learning.interval % lanes or learning.steps % learning.interval or evaluation.eval_every % learning.interval:
        raise ValueError("--interval must be a multiple of --lanes, --steps and --eval-every multiples of --interval.")
    updates = learning.updates_per_step * lanes
    if not (1 <= updates < math.inf and updates == round(updates)):
        raise ValueError(f"--updates-per-step times --lanes must be a whole number >= 1, got {updates}.")
    if startup(config) >= learning.steps:
        raise ValueError(f"--startup {startup(config)} leaves nothing of --steps {learning.steps} to learn in.")
    if learning.seed < 0 or evaluation.eval_seed < 0 or (learning.startup or 0) < 0:
        raise ValueError("--seed, --eval-seed and --startup must be >= 0.")
    if not 0 <= config.collecting.exploration < math.inf:
        raise ValueError(f"--exploration must be >= 0, got {config.collecting.exploration}.")


def planned(config: Config, offline: Offline, learner: AbstractAlgorithm) -> Callable[[int], Plan]:
    """Turn options into what is done at each environment step.

    Raises:
        ValueError: a number out of range.
    """
    collecting, total, acting = config.collecting, config.learning.steps, offline.acting
    collect = _growing("collect-steps", collecting.collect_steps, total)
    algorithm = config.learning.algorithm(learner)
    if collecting.collect_step_size is not None and not max(collect(0), collect(total)):
        raise ValueError("--collect-step-size has no use where --collect-steps is 0; leave out what would be ignored.")
    size = collecting.collect_step_size
    assert isinstance(acting, CandidateOptions) or collecting.collect_candidates == 1
    candidates = collecting.collect_candidates or getattr(acting, "particles", 1)
    choice = _choice(collecting)

    def plan(step: int) -> Plan:
        steps, now = round(collect(step)), algorithm(step)
        budget = ()
        if steps:
            usual = acting.budget(now, steps)  # pyright: ignore[reportAttributeAccessIssue]
            budget = (usual if size is None else usual.with_steps(steps, size),)
        policy = Policy(f"collection, L={steps}", candidates, (*budget, *choice))
        return Plan(now, policy, collecting.exploration)

    for step in (0, total):
        PolicyTable((plan(step).policy,), collecting.lanes)
    return plan


def _choice(collecting: Collecting) -> tuple[AbstractStage, ...]:
    """Return how one of the collected candidates is chosen; the best, if nothing else is asked for."""
    kind, temperature = collecting.collect_select, collecting.selection_temperature
    if (temperature is not None) != (kind == "softmax"):
        raise ValueError("--selection-temperature must be > 0 with --collect-select softmax, else left out.")
    return {"best": (), "uniform": (Uniform(),)}[kind] if temperature is None else (Softmax(temperature),)


def _capped(budget: Budget, cap: float) -> Budget:
    """Return the budget with another cap; a new cap compiles nothing again."""
    return eqx.tree_at(lambda b: b.max_displacement, budget, jnp.asarray(cap, jnp.float32), is_leaf=lambda x: x is None)


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
