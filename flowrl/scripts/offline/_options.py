"""The command line of offline runs: groups of options as one value, read from words or from a run's config.json."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tyro

from flowrl.rl import AbstractAlgorithm, Barycentre, Best, Improve, Policy, PolicyTable, data
from flowrl.scripts._naming import checked
from flowrl.scripts.offline._algorithms import NAMES, Entry, entry
from flowrl.scripts.offline._groups import Data, Evaluation, ProposalOptions, Run, SampleOptions, Training
from flowrl.scripts.offline._vgf import VGFOptions

#: Step sizes among which `--budget auto` chooses, in spreads; the steps are those of --test-steps.
AUTO_STEP_SIZES = (0.1, 0.3, 0.6)
#: Where things are and who works on them is no part of what a run is.
ELSEWHERE = ("out", "resume", "data_dir", "workers", "log")
#: Options of older runs that changed nothing but how they were evaluated.
_GONE = ("band",)
#: How a run is evaluated at the end may change when it goes on.
FREE = ("lanes", "eval_episodes", "eval_seed", "bandit_episodes", "video", "consensus", "push", *_GONE)
_GROUPS = ("data", "training", "learning", "acting", "evaluation", "run")
_ABOUT = """Train {label} on a data set, and evaluate one set of weights under several test budgets, with the controls
that tell what each part adds. (env): the default is the environment's.

ALGORITHM is {names}, or MODULE:CLASS of your own (derived from flowrl.rl.AbstractAlgorithm); each has its own options:
`flowrl offline iql --help`. --paper cube-double is a task of the paper at full size."""


@dataclasses.dataclass(frozen=True)
class Config:
    """All options of a run.

    Attributes:
        algorithm: its name, or MODULE:CLASS.
        data: what is learned from.
        training: how long, and on which returns.
        learning: the algorithm's own options.
        acting: ways to act.
        evaluation: episodes.
        run: where the run is kept.
    """

    algorithm: str
    data: Data
    training: Training
    learning: Any
    acting: SampleOptions
    evaluation: Evaluation
    run: Run

    @property
    def out(self) -> Path:
        """Directory of the run."""
        return self.run.out

    @property
    def paper(self) -> str | None:
        """Task of the paper."""
        return getattr(self.learning, "paper", None)

    @property
    def label(self) -> str:
        """What tables call the algorithm."""
        return entry(self.algorithm, self.paper).label

    def learner(self) -> AbstractAlgorithm:
        """Make the algorithm."""
        dense = data.metric(self.data.env) == "return"
        return self.learning.learner(getattr(self.acting, "particles", 1), dense=dense)

    def policies(self, learner: AbstractAlgorithm) -> tuple[Policy, ...]:
        """List the ways to act."""
        return self.acting.policies(self.label, learner)

    def flat(self) -> dict[str, Any]:
        """Return all options by name, as config.json has them."""
        groups = (dataclasses.asdict(group) for _, group in self._groups())
        options = {"algorithm": self.algorithm, **{k: v for group in groups for k, v in group.items()}}
        return json.loads(json.dumps(options, default=str))

    def changed(self, **options: Any) -> "Config":
        """Return the same with other values of some options, by name."""
        groups = {}
        for name, group in self._groups():
            mine = {k: options.pop(k) for k in [f.name for f in dataclasses.fields(group)] if k in options}
            groups[name] = dataclasses.replace(group, **mine)
        if options:
            raise ValueError(f"{self.algorithm} has no options {', '.join(sorted(options))}.")
        return dataclasses.replace(self, **groups)

    def _groups(self) -> list[tuple[str, Any]]:
        """Return the groups with their names; one whose required options are still to be read is none yet."""
        groups = [(name, getattr(self, name)) for name in _GROUPS]
        return [(name, group) for name, group in groups if dataclasses.is_dataclass(group)]


def defaults(algorithm: str = "vgf", *, env: str = Data.env, paper: str | None = None) -> Config:
    """Return the options that are not given: sparse tasks (success) and dense rewards (return) want different ones."""
    return _defaults(algorithm, entry(algorithm, paper), env)


def _defaults(algorithm: str, found: Entry, env: str) -> Config:
    # Required options of a user's own algorithm have no default; tyro asks for them.
    learning: Any = tyro.MISSING_NONPROP if _required(found.learning) else found.learning()
    usual = Config(algorithm, found.data(), found.training(), learning, found.acting(), found.evaluation(), Run())
    if hasattr(learning, "paper"):
        return usual
    usual = usual.changed(env=env)
    if data.metric(env) == "return":
        return usual
    sparse = {"batch_size": 128, "test_steps": (1, 3, 5), "chosen": 5, "lanes": 20, "chunk": 5}
    known = usual.flat()
    if algorithm not in NAMES:  # a batch is as large as the user's own algorithm has it
        del sparse["batch_size"]
    return usual.changed(**{name: value for name, value in sparse.items() if name in known})


def _required(options: type) -> bool:
    return any(
        f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        for f in dataclasses.fields(options)  # pyright: ignore[reportArgumentType]
    )


def parse(words: Sequence[str]) -> Config:
    """Read the command line: the algorithm decides which options there are, the environment their defaults."""
    words = list(words)
    named = words.pop(0) if words and not words[0].startswith("-") else None
    given = last_value(words, "--algorithm", take=True)
    algorithm, paper = given or named or "vgf", last_value(words, "--paper")
    if given and named and given != named:
        raise ValueError(f"both {named} and --algorithm {given} are given; leave one out.")
    if paper is not None and algorithm != "vgf":
        raise ValueError(f"--paper {paper} is trained by vgf; leave {algorithm} out.")
    found = entry(algorithm, paper)
    usual = _defaults(algorithm, found, last_value(words, "--env") or Data.env)
    fields = [(name, type(getattr(usual, name)), getattr(usual, name)) for name in _GROUPS if name != "learning"]
    fields.insert(2, ("learning", found.learning, usual.learning))
    groups = dataclasses.make_dataclass(
        "Options", [(name, kind, dataclasses.field(default=default)) for name, kind, default in fields], frozen=True
    )
    read = tyro.cli(
        groups,
        args=words,
        prog=f"flowrl offline {algorithm}",
        description=_ABOUT.format(label=found.label, names=", ".join(NAMES)),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.SuppressFixed),
    )
    return Config(algorithm, *(getattr(read, name) for name in _GROUPS))


def last_value(words: list[str], option: str, *, take: bool = False) -> str | None:
    """Look up the last value that is given to an option, and take the option out of the words if asked to."""
    value, kept, given = None, [], iter(words)
    for word in given:
        name, equals, joined = word.partition("=")
        if name == option:
            value = joined if equals else next(given, None)
        else:
            kept.append(word)
    if take:
        words[:] = kept
    return value


def from_flat(options: dict[str, Any], source: Path) -> Config:
    """Read the options of a run from its config.json.

    Raises:
        ValueError: it has options that this version does not know.
    """
    usual = defaults(options["algorithm"], paper=options.get("paper"))
    kinds = {f.name: f.type for name in _GROUPS for f in dataclasses.fields(getattr(usual, name))}
    unknown = sorted(options.keys() - kinds.keys() - {"algorithm", *_GONE})
    if unknown:
        raise ValueError(f"{source} is of another version: unknown {', '.join(unknown)}.")
    return usual.changed(**{name: _typed(options[name], kind) for name, kind in kinds.items() if name in options})


def _typed(value: Any, kind: Any) -> Any:
    """Turn a JSON value back into what the option holds."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is not None and Path in kinds:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is generated, by the names of their options."""
    checked(_check, config, defaults(config.algorithm, env=config.data.env, paper=config.paper))


def _check(config: Config) -> None:
    options = config.flat()
    positive = ("steps", "reference_updates", "interval", "rows", "batch_size", "members", "n_step", "particles")
    refuse_below_one(options, (*positive, "train_particles", "curve_episodes", "lanes", "workers", "chunk"))
    training, evaluation = config.training, config.evaluation
    for name in ("steps", "reference_updates"):
        if options.get(name, 0) % training.interval:
            raise ValueError(f"--{name.replace('_', '-')} must be a multiple of --interval ({training.interval}).")
    if training.chunk > 1 and training.n_step not in (1, training.chunk):
        raise ValueError(
            f"--chunk {training.chunk} sets the steps of the return itself: leave --n-step out, or give --chunk 1."
        )
    if (
        min(evaluation.eval_seed, training.seed, evaluation.curve_points, evaluation.eval_episodes, evaluation.video)
        < 0
    ):
        raise ValueError("--seed, --eval-seed, --eval-episodes, --curve-points and --video must be >= 0.")
    if evaluation.video and not evaluation.eval_episodes:
        raise ValueError("--video needs an environment to act in: give --eval-episodes 1 or more.")
    if not 0 <= training.discount <= 1:
        raise ValueError(f"--discount must be in [0, 1], got {training.discount}.")
    if "hidden" in options and (not options["hidden"] or min(options["hidden"]) < 1):
        raise ValueError(f"--hidden must be widths >= 1, got {config.learning.hidden}.")
    if config.data.env.startswith("d4rl:antmaze") and evaluation.eval_episodes:
        raise ValueError(
            f"{config.data.env}: D4RL's mazes have no environment here to act in. Give --eval-episodes 0 to train, "
            "with losses on held-out data."
        )
    acting, auto = config.acting, is_auto(config)
    if isinstance(acting, ProposalOptions):
        _check_acting(acting, evaluation)
    if auto and (config.learning.train_steps, config.learning.train_step_size) != (
        VGFOptions.train_steps,
        VGFOptions.train_step_size,
    ):
        raise ValueError("--budget auto has no use for --train-steps and --train-step-size: it chooses them.")
    if auto and training.steps // training.interval < 2:
        raise ValueError("--budget auto needs two intervals or more: one for the pilot, one to train by its choice.")
    # These say themselves what is wrong with the rest: step sizes, rates, too few lanes for the policies.
    policies = config.policies(config.learner())
    PolicyTable(policies, evaluation.lanes)
    count = len(arms(policies)) + auto
    least, spent = count * math.ceil(math.log2(max(count, 2))), getattr(acting, "bandit_episodes", 0)
    if 0 < spent < least:
        raise ValueError(f"--bandit-episodes must be 0, or {least} for {count} ways to act, got {spent}.")


def _check_acting(acting: ProposalOptions, evaluation: Evaluation) -> None:
    steps = acting.test_steps
    if min(steps, default=0) < 1 or len(set(steps)) < len(steps):
        raise ValueError(f"--test-steps must be different numbers >= 1 (0 is best-of-N), got {steps}.")
    if acting.chosen not in steps:
        raise ValueError(f"--chosen {acting.chosen} must be one of --test-steps {steps}.")
    if acting.bandit_episodes < 0 or (acting.bandit_episodes and not evaluation.eval_episodes):
        raise ValueError("--bandit-episodes must be >= 0, and needs --eval-episodes 1 or more.")


def is_auto(config: Config) -> bool:
    """Check whether the budget chooses itself."""
    return isinstance(config.learning, VGFOptions) and config.learning.budget == "auto"


def refuse_below_one(options: dict[str, Any], names: Iterable[str]) -> None:
    """Refuse counts below 1; an option that is missing or None is left out."""
    for name in names:
        if options.get(name) is not None and options[name] < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {options[name]}.")


def arms(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Return the ways to act among which is chosen by acting: the budgets, and consensus; controls are none."""
    merged = (p for p in policies if any(isinstance(stage, Barycentre) for stage in p.stages))
    return (*budgets(policies), *merged)


def budgets(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Return the ways to act among which is chosen: every test budget of N candidates."""
    return tuple(
        p
        for p in policies
        if p.candidates == policies[0].candidates and all(isinstance(stage, Improve | Best) for stage in p.stages)
    )
