"""What can be trained: the library's algorithms by name, a task of the paper, or the user's own by its import path.

Each has its own options: VGF those of `VGFOptions`, every other one the plain fields of its dataclass.
"""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import tyro

from flowrl.rl import (
    AbstractAggregate,
    AbstractAlgorithm,
    AbstractCriticModel,
    AbstractReferenceModel,
    AbstractValueBased,
    Denoising,
    FlowMatching,
    Gaussian,
    ReferenceLearner,
    tasks,
)
from flowrl.rl.learning import baselines
from flowrl.rl.learning.baselines import AggregatedValue
from flowrl.scripts.offline._groups import (
    CandidateOptions,
    Data,
    Evaluation,
    FlowOptions,
    ProposalOptions,
    Run,
    SampleOptions,
    Training,
)
from flowrl.scripts.offline._imported import critic_model, imported
from flowrl.scripts.offline._vgf import CRITIC, Aggregate, VGFOptions, aggregate

_MODELS: dict[str, Any] = {"flow": FlowMatching, "gaussian": Gaussian, "denoising": Denoising}
#: Names of options for fields of modules; others are FIELD-NAME.
_NAMES = {
    ("model",): "reference",
    ("model", "steps"): "reference_steps",
    ("reference", "model"): "reference",
    ("reference", "model", "steps"): "reference_steps",
    ("reference", "one_step"): "one_step",
    ("actor_value", "normalise"): "normalise",
}
#: Values of this program for fields that algorithms share; where success is scored batches are half as large.
_USUAL = {"hidden": (256, 256), "batch_size": 256, "learning_rate": 1e-3, "members": 2, "polyak": 0.01}


@dataclasses.dataclass(frozen=True)
class Entry:
    """An algorithm of the command line.

    Attributes:
        label: what tables call it.
        learning: its options, a dataclass whose method `learner(candidates, dense=...)` makes it.
        acting: options of acting.
        data: options of the data.
        training: options of the training.
        evaluation: options of the evaluation.
    """

    label: str
    learning: type
    acting: type[SampleOptions]
    data: type[Data] = Data
    training: type[Training] = Training
    evaluation: type[Evaluation] = Evaluation


#: How the baselines act: those without randomness have one proposal per state, cloning has no critic.
_ACTING: dict[str, type[SampleOptions]] = {
    "bc": SampleOptions,
    "td3_bc": ProposalOptions,
    "rebrac": ProposalOptions,
    "iql": ProposalOptions,
}
NAMES = ("vgf", *baselines.ALGORITHMS)


@functools.cache
def entry(algorithm: str, paper: str | None = None) -> Entry:
    """Look an algorithm up: a name, or MODULE:CLASS. The same name always has the same types of options.

    Raises:
        ValueError: there is none of this name, or the class is not an algorithm.
    """
    if paper is not None:
        return _paper(paper)
    if algorithm == "vgf":
        return Entry("VGF", VGFOptions, FlowOptions)
    if algorithm in baselines.ALGORITHMS:
        acting = _ACTING.get(algorithm, CandidateOptions)
        label = "BC" if algorithm == "bc" else algorithm
        return Entry(label, _own_options(baselines.make(algorithm), acting, _USUAL), acting)
    if ":" not in algorithm:
        near = difflib.get_close_matches(algorithm, NAMES, n=3) or NAMES
        raise ValueError(f"--algorithm {algorithm}: did you mean {', '.join(near)}? Your own is MODULE:CLASS.")
    kind = imported("--algorithm", algorithm, AbstractAlgorithm)
    acting = CandidateOptions if issubclass(kind, AbstractValueBased) else SampleOptions
    return Entry(kind.__name__, _own_options(kind, acting, {}), acting)


def _paper(name: str) -> Entry:
    if name not in tasks.PAPER_TASKS:
        near = difflib.get_close_matches(name, tasks.PAPER_TASKS, n=3) or tasks.PAPER_TASKS
        raise ValueError(f"--paper {name}: there is no such task; did you mean {', '.join(near)}?")
    task = tasks.PAPER_TASKS[name]
    chosen = task.steps if task.steps in (1, 2, 3) else 1
    return Entry(
        label="VGF",
        learning=_own_options(task.algorithm(), FlowOptions, {}, paper=name),
        acting=_fixed(FlowOptions, test_steps=(1, 2, 3), test_step_size=task.step_size, chosen=chosen),
        data=_preset(_fixed(Data, env=task.env, rewards=task.rewards, rows=Data.rows), origin="published"),
        training=_fixed(Training, steps=task.updates, discount=task.discount, n_step=1, chunk=1),
        evaluation=_preset(Evaluation, eval_episodes=task.episodes),
    )


def _preset(group: type, **values: Any) -> type:
    """Return a group with other defaults."""
    fields = [(f.name, f.type, dataclasses.field(default=values[f.name])) for f in _fields(group) if f.name in values]
    return dataclasses.make_dataclass(group.__name__, fields, bases=(group,), frozen=True)


def _fixed(group: type, **values: Any) -> type:
    """Return a group with options that are set and cannot be given."""
    fields = [
        (f.name, Annotated[f.type, tyro.conf.Fixed], dataclasses.field(default=values[f.name]))
        for f in _fields(group)
        if f.name in values
    ]
    return dataclasses.make_dataclass(group.__name__, fields, bases=(group,), frozen=True)


@dataclasses.dataclass(frozen=True)
class _Option:
    """A plain field of an algorithm, or of a module in it, that the command line can give."""

    path: tuple[str, ...]
    hint: Any
    default: Any
    about: str

    @property
    def name(self) -> str:
        return _NAMES.get(self.path, "_".join(self.path))


def _own_options(
    algorithm: AbstractAlgorithm[Any] | type[AbstractAlgorithm[Any]],
    acting: type[SampleOptions],
    usual: Mapping[str, Any],
    *,
    paper: str | None = None,
) -> type:
    """Make the options of an algorithm from the plain fields of its class, with the defaults of an instance.

    A field that has the name of an option of the program, such as `particles`, becomes --train-NAME. If it aggregates
    critics, --aggregate sets all its aggregates at once.
    """
    kind = algorithm if isinstance(algorithm, type) else type(algorithm)
    taken = {f.name for group in (Data, Training, acting, Evaluation, Run) for f in _fields(group)} | {"algorithm"}
    found = {f"train_{o.name}" if o.name in taken else o.name: o for o in _options(kind, algorithm)}
    made = [(name, o.hint, o.about, usual.get(o.name, o.default)) for name, o in found.items()]
    # Of VGF, the aggregate over particles is no question of how far critics are trusted.
    aggregates = [name for name, value in _values(kind, algorithm).items() if isinstance(value, AbstractAggregate)]
    roles = [name for name in aggregates if name != "particle_aggregate"]
    if roles:
        text = f"How critics become one number ({', '.join(roles)}): mean, minimum, or mean - std; default: its own."
        made.append(("aggregate", Aggregate | None, text, None))
    has_critic = any(isinstance(value, AbstractCriticModel) for value in _values(kind, algorithm).values())
    if has_critic:
        made.append(("critic", str, CRITIC, "scalar"))
    if paper is not None:
        made.append(("paper", str, "The task, at full size. Needs a GPU; its cost is printed.", paper))

    def learner(self: Any, candidates: int, *, dense: bool) -> AbstractAlgorithm[Any]:
        del candidates, dense
        given = {option.path: getattr(self, name) for name, option in found.items()}
        if roles and self.aggregate is not None:
            given |= {(role,): aggregate(self.aggregate, getattr(self, "members", 2)) for role in roles}
        if has_critic:
            given |= {("critic",): critic_model(self.critic)}
        return _with(algorithm, given)

    fields = [
        (name, Annotated[hint, tyro.conf.arg(help=about)], dataclasses.field(default=default, kw_only=True))
        for name, hint, about, default in made
    ]
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True, namespace={"learner": learner})


def _options(kind: type, value: Any, path: tuple[str, ...] = ()) -> Iterator[_Option]:
    """List what a command line can give of an algorithm (a class where it is not made yet), and of modules in it."""
    about, hints = _explained(kind), _hints(kind)
    for name, default in _values(kind, value).items():
        here = (*path, name)
        if isinstance(default, AbstractReferenceModel):
            model = next(key for key, made in _MODELS.items() if isinstance(default, made))
            yield _Option((*path, "model"), Literal["flow", "gaussian", "denoising"], model, "Generative model.")
            steps = getattr(default, "steps", FlowMatching().steps)
            yield _Option((*path, "model", "steps"), int, steps, "Its steps per sample (a Gaussian has none).")
        elif _plain(hints[name]):
            yield _Option(here, hints[name], default, about.get(name, ""))
        elif isinstance(default, ReferenceLearner | AggregatedValue):
            yield from _options(type(default), default, here)
        elif default is dataclasses.MISSING:
            raise ValueError(f"{kind.__name__}: the field {name} cannot be given here; it needs a default.")


def _values(kind: type, value: Any) -> dict[str, Any]:
    """Return the fields with their values, or with their defaults where `value` is the class itself."""
    if not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in _fields(kind) if f.init}
    factories = {f.name: f.default_factory for f in _fields(kind) if f.default_factory is not dataclasses.MISSING}
    return {f.name: factories[f.name]() if f.name in factories else f.default for f in _fields(kind) if f.init}


def _with(value: Any, given: Mapping[tuple[str, ...], Any]) -> Any:
    """Make a module with the given fields; those of a class that are not given keep their defaults."""
    kind = value if isinstance(value, type) else type(value)
    mine = {path[0]: new for path, new in given.items() if len(path) == 1}
    for name, old in _values(kind, value).items():
        inside = {path[1:]: new for path, new in given.items() if path[0] == name and len(path) > 1}
        if isinstance(old, AbstractReferenceModel):
            made, steps = _MODELS[given[("model",)]], given[("model", "steps")]
            if made is Gaussian and steps != getattr(old, "steps", FlowMatching().steps):
                raise ValueError(
                    "--reference-steps are of a model with steps, and a Gaussian has none; leave them out."
                )
            mine[name] = made(*([] if made is Gaussian else [steps]))
        elif inside:
            mine[name] = _with(old, inside)
    return kind(**mine) if isinstance(value, type) else dataclasses.replace(value, **mine)


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def _hints(kind: type) -> dict[str, Any]:
    """Return the types of fields; one that cannot be resolved is not a plain one."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):
        return {field.name: field.type for field in _fields(kind)}


def _plain(hint: Any) -> bool:
    """Check whether a command line can give a value of this type."""
    if hint in (bool, int, float, str, type(None), Ellipsis) or typing.get_origin(hint) is Literal:
        return True
    composed = typing.get_origin(hint) in (typing.Union, types.UnionType, tuple)
    return composed and all(_plain(part) for part in typing.get_args(hint))


def _explained(kind: type) -> dict[str, str]:
    """Read what docstrings say of fields under `Attributes:`."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", attributes)[0]
        for name, text in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            words = re.sub(r"\s+", " ", text)
            found[name] = words[0].upper() + words[1:] if words[:1].isascii() else words
    return found
