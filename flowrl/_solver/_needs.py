"""What a solver asks of the other parts."""

import dataclasses
from typing import Literal, get_args

from flowrl._flow import AbstractFlow
from flowrl._target import check_knowledge

Noise = Literal["none", "additive", "any"]
_CHOSEN = frozenset({"step_size"})


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a solver asks of the other parts: its row of the compatibility table, as `Traits` are a flow's.

    Attributes:
        target: what the target must know beyond what the flow asks.
        flows: the flows it takes; all by default.
        energy: it takes only flows with an energy.
        noise: which diffusions it can integrate: "none", those whose noise is "additive", or "any".
        jumps: it can step flows with jumps.
        unit_time: it follows a flow in the flow's own time, so that one in unit time ends at its target.
        restriction: it can use domains that bring particles back after each step.
        random: it draws, so transport asks for a key.
        exact: it is right for a target that it can evaluate, so one that draws a minibatch at each step is refused.
        adapts: numbers of the budget that it adapts: one given is where it begins, and None lets it begin by itself.
        chooses: numbers of the budget that it chooses alone, and that must be None.
        caps: it keeps `max_displacement` and `max_mmd`.
        rests: its particles can come to rest, so `tolerance` has a meaning.
        weighs: its particles get weights.
        stays: its steps end in the domain and within the cap, so that particles are not brought back once more.

    Raises:
        ValueError: a word is not one of those above.
    """

    target: frozenset[str] = frozenset()
    flows: tuple[type[AbstractFlow], ...] = (AbstractFlow,)
    energy: bool = False
    noise: Noise = "none"
    jumps: bool = False
    unit_time: bool = False
    restriction: bool = True
    random: bool = False
    exact: bool = False
    adapts: frozenset[str] = frozenset()
    chooses: frozenset[str] = frozenset()
    caps: bool = True
    rests: bool = True
    weighs: bool = False
    stays: bool = False

    def __post_init__(self):
        check_knowledge("Needs.target", self.target)
        if self.noise not in get_args(Noise):
            raise ValueError(f"Needs.noise is {self.noise!r}; expected one of {', '.join(map(repr, get_args(Noise)))}.")
        unknown = sorted((self.adapts | self.chooses) - _CHOSEN)
        if unknown:
            raise ValueError(f"a solver can adapt or choose the step_size of a budget, not its {', '.join(unknown)}.")
