"""Named settings of `flowrl.rl.VGF`. A variant is another value, never another copy of the loop."""

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import optax

from flowrl._budget import Budget
from flowrl._domain import Box
from flowrl._flow import SVGD, Ascent
from flowrl._renamed import old_names as _old_names
from flowrl._solver import Euler, Optax
from flowrl._transport import Transport
from flowrl.rl.data.schema import Metric
from flowrl.rl.learning._algorithm import AbstractAlgorithm
from flowrl.rl.learning._authors_svgd import AuthorsSVGD
from flowrl.rl.learning._reference_learner import ReferenceLearner
from flowrl.rl.learning._vgf import VGF
from flowrl.rl.networks import FlowMatching, Mean, Minimum

_A = TypeVar("_A", bound=AbstractAlgorithm)

# Made once: another optimiser object would compile again. Plain Adam, as the authors have it.
_ADAM = optax.adam(1.0)
_CLIPPED_ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.0))
_AUTHORS_REFERENCE = ReferenceLearner(FlowMatching(10), hidden=(512, 512, 512, 512), learning_rate=3e-4)


def default(steps: int = 0, step_size: float = 0.1, **changes: object) -> VGF:
    """Return the setting of the examples: independent ascent by Adam, in units of the reference's spread.

    The reference is trained first and frozen, its samples are cached.

    Args:
        steps: L_train.
        step_size: ε of training, in units of the spread.
        changes: other fields of `VGF`.
    """
    particles = changes.get("particles")
    samples = {"samples": max(8, particles) if isinstance(particles, int) else 8}  # VGF says what is wrong with others
    return _changed(
        VGF(transport=Transport(Ascent(), Optax(), _actions()), train_budget=Budget(steps, step_size)),
        samples | changes,
    )


def small(metric: Metric, updates: int = 10_000, **changes: object) -> VGF:
    """Return what `flowrl offline` trains: `default` at a size for two cores and minutes, no flow in training.

    Where returns are scored a pessimistic ensemble pays; success lies between 0 and 1 and is overestimated less.

    Args:
        metric: how policies are scored, as `data.metric` says.
        updates: of the critic; the reference has four fifths of them.
        changes: other fields of `VGF`.
    """
    sparse = metric == "success"
    ensemble = Mean() if sparse else Minimum()
    fields: dict[str, object] = {
        "reference": ReferenceLearner(updates=max(updates * 4 // 5, 1)),
        "particles": 4,
        **dict.fromkeys(("target", "improvement", "selection"), ensemble),
        "batch_size": 128 if sparse else 256,
        "learning_rate": 1e-3,
        "polyak": 0.01,
    }
    return default(**(fields | changes))  # pyright: ignore[reportArgumentType]


def paper(steps: int = 1, step_size: float = 0.1, **changes: object) -> VGF:
    """Return the form of the paper's text: α → 0, plain Euler steps of the kernelised flow, N = 5, absolute steps.

    Args:
        steps: L_train; the paper tunes it per task.
        step_size: ε, in the units of the action squared over those of the value.
        changes: other fields of `VGF`.

    ??? cite "Source"
        Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026.
    """
    vgf = VGF(
        transport=Transport(SVGD(), Euler(), _actions()),
        train_budget=Budget(steps, step_size, 0.0),
        relative=False,
        particles=5,
    )
    return _changed(vgf, changes)


def authors(
    steps: int = 1,
    step_size: float = 0.1,
    temperature: float = 1.0,
    *,
    through_bandwidth: bool = True,
    **changes: object,
) -> VGF:
    """Return the setting of the authors' code: Adam on N = 10 particles, a reference that learns along with the critic.

    One update agrees with theirs in losses and particles to float32 rounding (tests/rl/test_parity.py). One thing is
    not copied: their target network follows the critic of the previous update, ours the new one.

    Args:
        steps: L_train.
        step_size: learning rate of the particles' Adam, in the units of the action.
        temperature: α.
        through_bandwidth: differentiate the repulsion through the median, as their code does.
        changes: other fields of `VGF`.

    ??? cite "Source"
        github.com/ryanxhr/vgf at 3ec8f9b, defaults of its offline scripts.
    """
    vgf = VGF(
        transport=Transport(AuthorsSVGD(through_bandwidth), Optax(_ADAM), _actions()),
        train_budget=Budget(steps, step_size, temperature),
        relative=False,
        particles=10,
        target=Minimum(),
        improvement=Mean(),
        selection=Minimum(),
        frozen_reference=False,
        hidden=(512, 512, 512, 512),
        reference=_AUTHORS_REFERENCE,
    )
    return _changed(vgf, changes)


def amortized(steps: int = 5, step_size: float = 0.1, **changes: object) -> VGF:
    """Return the amortized variant of the authors' code: N = 5 particles follow a network f(s, a) fitted to ∇_a Q.

    f is fitted at the actions of the data, and there is no kernel: particles move apart from each other, by Adam. One
    thing is not copied: they clip the norm of f over the particles of all states of the batch together, which couples
    the states; here it is clipped over those of one state.

    Args:
        steps: L_train.
        step_size: learning rate of the particles' Adam, in the units of the action.
        changes: other fields of `VGF`, such as `amortized="particles"` to fit f where it is used.

    ??? cite "Source"
        Xu et al., *Reinforcement Learning via Value Gradient Flow*, ICLR 2026, algorithm 1 (the optional network);
        github.com/ryanxhr/vgf at 3ec8f9b, agents/a_vgf.py.
    """
    vgf = VGF(
        transport=Transport(Ascent(), Optax(_CLIPPED_ADAM), _actions()),
        train_budget=Budget(steps, step_size),
        relative=False,
        particles=5,
        target=Minimum(),
        selection=Minimum(),
        amortized="data",
        frozen_reference=False,
        hidden=(512, 512, 512, 512),
        reference=_AUTHORS_REFERENCE,
    )
    return _changed(vgf, changes)


def derived(kind: type[_A], algorithm: AbstractAlgorithm, **changes: object) -> _A:
    """Return the fields of an algorithm as a class of your own that is derived from its class.

    So a variant that overrides an update starts from a preset, or a baseline, without a copy of its fields:
    `derived(MyVGF, presets.default(1, 0.1), my_rate=0.3)`.

    Args:
        kind: derived from the class of `algorithm`; it may have more fields.
        algorithm: a preset, a baseline.
        changes: other values of fields, and those that the class has added.

    Raises:
        TypeError: the class is not derived from that of the algorithm, or has no such fields.
    """
    base = type(algorithm)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise TypeError(f"kind must be a class derived from {base.__name__}, got {kind!r}.")
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    unknown = set(changes) - set(known)
    if unknown:
        raise TypeError(f"{kind.__name__} has no fields {sorted(unknown)}; it has {known}.")
    fields = {field.name: getattr(algorithm, field.name) for field in dataclasses.fields(algorithm) if field.init}
    return kind(**fields | changes)  # pyright: ignore[reportArgumentType]


def _changed(vgf: VGF, changes: dict[str, object]) -> VGF:
    unknown = set(changes) - {field.name for field in dataclasses.fields(vgf)}
    if unknown:
        raise TypeError(f"VGF has no fields {sorted(unknown)}; it has {[f.name for f in dataclasses.fields(vgf)]}.")
    return dataclasses.replace(vgf, **changes)


def _actions() -> Box:
    """Return the box of standardised actions; a function, so that importing this module makes no array."""
    return Box(-1.0, 1.0)


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rl.presets")
