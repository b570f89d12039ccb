"""What `offline_rl.py` can be told, what is refused, and what the options mean: the algorithm and the ways to act."""

import ast
import dataclasses
import itertools
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import tyro

from flowrl import SVGD, Budget, Optax, Transport
from flowrl.rl import VGF, AbstractAlgorithm, LowerConfidence, Mean, Minimum, Policy, PolicyTable, data, tasks
from flowrl.rl.learning import baselines, presets

#: Options of VGF alone; an option that nothing would read is refused.
OF_VGF = ("reference_updates", "train_particles", "train_steps", "train_step_size", "band", "temperature", "budget")
#: Step sizes among which `--budget auto` chooses, in spreads; the steps are those of --test-steps.
AUTO_STEP_SIZES = (0.1, 0.3, 0.6)
#: What may be chosen along with a task of the paper, which fixes the rest.
_BESIDE_PAPER = (
    *("paper", "data_dir", "dataset_path", "origin", "out", "resume", "seed", "interval", "particles", "set", "log"),
    *("eval_episodes", "bandit_episodes", "eval_seed", "curve_points", "curve_episodes", "video", "lanes", "workers"),
)
#: Policies without randomness.
DETERMINISTIC = ("td3_bc", "rebrac", "iql")


@dataclasses.dataclass(frozen=True)
class Config:
    """Offline reinforcement learning by Value Gradient Flow and its rivals. (env): the default is the environment's."""

    env: str = "halfcheetah-medium-local-v0"
    """Environment: {halfcheetah,walker2d}-medium[-replay]-local-v0, an OGBench single task such as
    puzzle-3x3-play-singletask-task1-v0, d4rl:NAME, minari:ID, gym:ID with --dataset-path; a wrong name lists near
    ones."""
    algorithm: Literal["vgf", "bc", "td3_bc", "rebrac", "iql", "idql", "diffusion_ql", "flow_ql", "fql"] = "vgf"
    """What is trained. An option that it has no use for is refused."""
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
    aggregate: Literal["mean", "min", "lower"] | None = None
    """How critics become one number in target, improvement and selection: mean, minimum, or mean - std. Default: VGF takes
    the minimum where returns are scored, the mean where success is; its rivals what their papers do."""
    learning_rate: float = 1e-3
    """Adam's rate for the critic."""
    polyak: float = 0.01
    """Rate at which the target network follows."""
    discount: float = 0.99
    """Discount factor."""
    n_step: int = 5
    """Steps of the n-step return. With one step, ten thousand updates are too few for values to reach back far."""
    chunk: int = 1
    """Actions taken at once."""
    set: tuple[str, ...] = ()
    """Other fields of the algorithm as NAME=VALUE, such as alpha=3 expectile=0.9 amortized=particles."""

    particles: int = 8
    """N: candidates a state, in test; best-of-N and every transported policy choose among N."""
    train_particles: int = 4
    """Particles a state in the TD target."""
    budget: Literal["given", "auto"] = "given"
    """auto: critics choose L and the step size on held-out data, for training after a pilot with L_train = 0 (a tenth
    of the updates), for test at the end, as one more policy; the report says why."""
    train_steps: int = 0
    """L_train: steps of the flow in the TD target; each costs a gradient of the critic a particle."""
    train_step_size: float = 0.1
    """Step size in training, in units of the reference's within-state spread."""
    temperature: float | None = None
    """α at which VGF's particles repel each other (SVGD), in the units of the value; default: each ascends alone."""
    test_steps: tuple[int, ...] = (1, 3)
    """All L_test to report (env)."""
    test_step_size: float = 0.3
    """Step size in test, in units of the reference's within-state spread; of the action, for the rivals of VGF."""
    chosen: int = 1
    """The L_test, fixed in advance, that the controls are matched to (env)."""
    band: float = 1.0
    """States that choose their own L stop where the critics disagree by more than this, relative to the reference."""

    eval_episodes: int = 16
    """Episodes of every policy at the end, the same for all; 0 trains without acting."""
    bandit_episodes: int = 0
    """Episodes to spend, before those, on finding the best L_test by acting (sequential halving); 0: none."""
    eval_seed: int = 1
    """Seed of the evaluation's episodes."""
    curve_points: int = 1
    """Evaluations along the way, for the learning curve."""
    curve_episodes: int = 4
    """Episodes of each policy in those."""
    video: int = 0
    """Episodes to draw of the policy that the controls are matched to, as policy.gif (with MUJOCO_GL=egl or osmesa)."""
    log: Literal["tensorboard", "wandb", "trackio"] | None = None
    """Send the metrics to a tracker too; the CSV files are always written."""
    lanes: int = 40
    """Environments stepped in lockstep (env)."""
    workers: int = os.cpu_count() or 1
    """Processes for data and environments."""


def defaults(env: str) -> Config:
    """Give the defaults for an environment: sparse tasks (success) and dense rewards (return) want different ones."""
    if data.metric(env) == "return":
        return Config(env=env)
    return Config(env=env, batch_size=128, test_steps=(1, 3, 5), chosen=5, lanes=20)


def check(config: Config) -> None:
    """Refuse numbers that make no sense, before anything is generated."""
    positive = ("steps", "reference_updates", "interval", "rows", "batch_size", "members", "n_step", "particles")
    refuse_below_one(config, (*positive, "train_particles", "curve_episodes", "lanes", "workers", "chunk"))
    for name in ("steps", "reference_updates"):
        if getattr(config, name) % config.interval:
            raise ValueError(f"--{name.replace('_', '-')} must be a multiple of --interval ({config.interval}).")
    if min(config.test_steps, default=0) < 1 or len(set(config.test_steps)) < len(config.test_steps):
        raise ValueError(f"--test-steps must be different numbers >= 1 (0 is best-of-N), got {config.test_steps}.")
    if config.chunk > 1 and config.n_step not in (1, config.chunk):
        raise ValueError(f"--chunk {config.chunk} sets the steps of the return itself: give --n-step 1.")
    if config.chosen not in config.test_steps:
        raise ValueError(f"--chosen {config.chosen} must be one of --test-steps {config.test_steps}.")
    if min(config.eval_seed, config.seed, config.curve_points, config.eval_episodes, config.video) < 0:
        raise ValueError("--seed, --eval-seed, --eval-episodes, --curve-points and --video must be >= 0.")
    if config.bandit_episodes < 0 or (config.bandit_episodes and not config.eval_episodes):
        raise ValueError("--bandit-episodes must be >= 0, and needs --eval-episodes 1 or more.")
    if config.video and not config.eval_episodes:
        raise ValueError("--video needs an environment to act in: give --eval-episodes 1 or more.")
    if not 0 <= config.discount <= 1:
        raise ValueError(f"--discount must be in [0, 1], got {config.discount}.")
    if not config.hidden or min(config.hidden) < 1:
        raise ValueError(f"--hidden must be widths >= 1, got {config.hidden}.")
    if config.paper is not None and (config.paper not in tasks.PAPER_TASKS or config.algorithm != "vgf"):
        raise ValueError(f"--paper must be one of {', '.join(tasks.PAPER_TASKS)}, with --algorithm vgf.")
    if config.budget == "auto" and config.steps // config.interval < 2:
        raise ValueError("--budget auto needs two intervals or more: one for the pilot, one to train by its choice.")
    _refuse_unread(config)
    config = at_full_size(config)
    if config.env.startswith("d4rl:antmaze") and config.eval_episodes:
        raise ValueError(
            f"{config.env}: D4RL's mazes have no environment here to act in. Give --eval-episodes 0 to train, with "
            "losses on held-out data."
        )
    # These say themselves what is wrong with the rest: step sizes, rates, too few lanes for the policies.
    algorithm(config)
    policies = test_policies(config)
    PolicyTable(policies, config.lanes)
    arms = len(budgets(policies)) + (config.budget == "auto")
    least = arms * math.ceil(math.log2(max(arms, 2)))
    if 0 < config.bandit_episodes < least:
        raise ValueError(f"--bandit-episodes must be 0, or {least} for {arms} budgets, got {config.bandit_episodes}.")


def _refuse_unread(config: Config) -> None:
    """Refuse options that were changed and that nothing would read."""
    usual = defaults(config.env)
    if config.paper is not None:
        what, unread = f"--paper {config.paper}", {f.name for f in dataclasses.fields(Config)} - set(_BESIDE_PAPER)
        usual = Config()
    elif config.algorithm != "vgf":
        what, unread = f"--algorithm {config.algorithm}", set(OF_VGF)
        if config.algorithm == "bc":
            unread |= {
                "particles",
                "members",
                "polyak",
                "aggregate",
                "test_steps",
                "test_step_size",
                "chosen",
                "bandit_episodes",
            }
        if config.algorithm in DETERMINISTIC:
            unread |= {"particles"}
    elif config.budget == "auto":
        what, unread = "--budget auto", {"train_steps", "train_step_size"}
    else:
        return
    refuse_changed(config, usual, sorted(unread), what)


def refuse_below_one(config: Any, names: Iterable[str]) -> None:
    """Refuse counts below 1; an option that is None is left out."""
    for name in names:
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(config, name)}.")


def refuse_changed(config: Any, usual: Any, names: Iterable[str], what: str) -> None:
    """Refuse options that differ from the usual ones, because `what` would not read them."""
    changed = [name for name in names if getattr(config, name) != getattr(usual, name)]
    if changed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
        raise ValueError(f"{what} has no use for {options}; leave out what would be ignored.")


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
        return _with_fields(tasks.PAPER_TASKS[config.paper].algorithm(), config)
    aggregates = {"mean": Mean(), "min": Minimum(), "lower": LowerConfidence(1.0)}
    common = {
        "hidden": config.hidden,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "members": config.members,
        "polyak": config.polyak,
    }
    if config.algorithm != "vgf":
        learner = baselines.make(config.algorithm, **common)
        if config.aggregate is not None:
            roles = {"target", "improvement", "selection"} & {f.name for f in dataclasses.fields(learner)}
            learner = dataclasses.replace(learner, **dict.fromkeys(roles, aggregates[config.aggregate]))
        return _with_fields(learner, config)
    dense = data.metric(config.env) == "return"
    aggregate = aggregates[config.aggregate or ("min" if dense else "mean")]
    if config.temperature is not None:
        common["transport"] = Transport(SVGD(), Optax(), presets.default().transport.domain)
        common["train_budget"] = Budget(config.train_steps, config.train_step_size, config.temperature)
    learner = presets.default(
        config.train_steps,
        config.train_step_size,
        particles=config.train_particles,
        samples=max(config.particles, config.train_particles),
        target=aggregate,
        improvement=aggregate,
        selection=aggregate,
        reference_updates=config.reference_updates,
        reference_hidden=config.hidden,
        **common,
    )
    return _with_fields(learner, config)


# --8<-- [end:algorithm]


def with_chosen_budget(learner: VGF, chosen: dict[str, Any]) -> VGF:
    """Train by the budget that `--budget auto` chose, as training_budget.json has it."""
    budget = Budget(chosen["steps"], chosen["step_size"], learner.train_budget.temperature)
    return dataclasses.replace(learner, train_budget=budget)


def _with_fields(learner: AbstractAlgorithm, config: Config) -> AbstractAlgorithm:
    """Set the fields given by --set."""
    kind = type(learner).__name__
    # Parts that are modules have options of their own.
    settable = {
        field.name
        for field in dataclasses.fields(learner)
        if isinstance(getattr(learner, field.name), bool | int | float | str | tuple | None)
    }
    values = {}
    for setting in config.set:
        name, equals, text = setting.partition("=")
        if not equals or name not in settable:
            raise ValueError(f"--set {setting}: give NAME=VALUE with a field of {kind}: {', '.join(sorted(settable))}.")
        if config.paper is None and name in {field.name for field in dataclasses.fields(config)}:
            raise ValueError(f"--set {setting}: give --{name.replace('_', '-')} itself.")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    try:
        return dataclasses.replace(learner, **values)
    except TypeError as error:
        raise ValueError(f"--set {' '.join(config.set)}: {kind} refuses these values ({error}).") from error


def test_policies(config: Config) -> tuple[Policy, ...]:
    """List the ways to act, decided before anything is evaluated."""
    n, size, chosen = config.particles, config.test_step_size, config.chosen
    if config.algorithm == "bc":
        return (Policy("BC (one sample)", 1),)
    if config.algorithm in DETERMINISTIC:  # one proposal is all there is
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
        Policy(f"random directions, same length as L={chosen}, best", n, chosen, size, random_directions=True),
        Policy(f"best-of-{4 * n}", 4 * n),
    )


def budgets(policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """Give those that differ in nothing but their test budget: N candidates, the best of them."""
    return tuple(
        p for p in policies if p.candidates == policies[0].candidates and p.select == "best" and not p.random_directions
    )


def at_full_size(config: Config) -> Config:
    """Take the data and the numbers of a task of the paper, if one is named."""
    if config.paper is None:
        return config
    task = tasks.PAPER_TASKS[config.paper]
    return dataclasses.replace(
        config,
        env=task.env,
        origin=config.origin or "published",
        rewards=task.rewards,
        steps=task.updates,
        discount=task.discount,
        eval_episodes=task.episodes if config.eval_episodes == Config.eval_episodes else config.eval_episodes,
        n_step=1,
        test_steps=(1, 2, 3),
        test_step_size=task.step_size,
        chosen=task.steps if task.steps in (1, 2, 3) else 1,
    )
