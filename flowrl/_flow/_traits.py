"""What a flow asks of the other parts."""

import dataclasses
from typing import Literal, get_args

from flowrl._target import check_knowledge

TemperatureNeed = Literal["none", "any", "positive"]


@dataclasses.dataclass(frozen=True)
class Traits:
    """What a flow asks of the other parts: its row of the compatibility table.

    Attributes:
        needs: what the target must know: its "gradient", its "value", its "samples", or another word of its `knows`.
        temperature: "none" if the flow has no temperature, "any" for α >= 0, "positive" if it divides by α.
        entropic: the flow samples a distribution, so mapped coordinates gain the Jacobian; else it maximises.
        energy_needs: what the target must know for `energy`; None if the flow has no energy.
        random: `velocity` uses the view's `flow_key`.
        diffuses: the flow is an `AbstractStochasticFlow` with noise.
        additive: that noise is the white noise times numbers that do not depend on the particles.
        jumps: the flow is an `AbstractJumpFlow` with jumps.
        weighs: its sums over the set know the weights of the particles (`TargetView.mass`), or it has no such sums.
        unit_time: its law is that of the target at time 1, so the steps of a budget must sum to 1.
        unmapped: its equations hold in the coordinates of the target alone, so domains that map are refused.

    Raises:
        ValueError: a word is not one of those above.
    """

    needs: frozenset[str] = frozenset({"gradient"})
    temperature: TemperatureNeed = "any"
    entropic: bool = True
    energy_needs: frozenset[str] | None = None
    random: bool = False
    diffuses: bool = False
    additive: bool = False
    jumps: bool = False
    weighs: bool = False
    unit_time: bool = False
    unmapped: bool = False

    def __post_init__(self):
        check_knowledge("Traits.needs", self.needs)
        check_knowledge("Traits.energy_needs", self.energy_needs or ())
        allowed = get_args(TemperatureNeed)
        if self.temperature not in allowed:
            raise ValueError(
                f"Traits.temperature is {self.temperature!r}; expected one of {', '.join(map(repr, allowed))}."
            )

    @property
    def stochastic(self) -> bool:
        """Whether the flow needs a key."""
        return self.random or self.diffuses or self.jumps
