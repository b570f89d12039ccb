"""Options of VGF, and the algorithm that they make; tasks of the paper, whose options are those of their algorithm."""

import dataclasses
from typing import Literal

from flowrl import SVGD, Budget, Optax, Transport
from flowrl.rl import (
    VGF,
    AbstractAggregate,
    FlowMatching,
    Gaussian,
    LowerConfidence,
    Maximum,
    Mean,
    Minimum,
    ReferenceLearner,
)
from flowrl.rl.learning import presets
from flowrl.scripts.offline._imported import critic_model

Aggregate = Literal["mean", "min", "lower"]
CRITIC = "What critics are: scalar, histogram:LOW:HIGH over a range of returns, or MODULE:CLASS of your own."


def aggregate(name: Aggregate, members: int) -> AbstractAggregate:
    """Return the aggregate of a name on the command line, for so many critics.

    Raises:
        ValueError: it is one of several critics, and there is one.
    """
    if members == 1 and name != "mean":
        raise ValueError(f"--aggregate {name} is of several critics: give --members 2 or more, or leave it out.")
    return {"mean": Mean(), "min": Minimum(), "lower": LowerConfidence(1.0)}[name]


@dataclasses.dataclass(frozen=True)
class VGFOptions:
    """What VGF learns by."""

    batch_size: int = 256
    """Transitions per update (env)."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of all networks."""
    members: int = 2
    """Critics in the ensemble."""
    critic: str = "scalar"
    """What they are: scalar, histogram:LOW:HIGH over a range of returns, or MODULE:CLASS of your own."""
    aggregate: Aggregate | None = None
    """How critics become one number in target, improvement and selection: mean, minimum, or mean - std. Default: the
    minimum where returns are scored, the mean where success is."""
    learning_rate: float = 1e-3
    """Adam's rate for the critic."""
    polyak: float = 0.01
    """Rate at which the target network follows."""

    reference: Literal["flow", "gaussian"] = "flow"
    """The reference policy: a flow-matching model, or a normal distribution."""
    reference_updates: int = 8_000
    """Updates of the reference policy, before the critic."""
    reference_learning_rate: float = 1e-3
    """Adam's rate for the reference."""
    reference_hidden: tuple[int, ...] | None = None
    """Widths of its hidden layers; default: --hidden."""
    reference_steps: int = 5
    """Euler steps per sample of the flow-matching model."""
    reference_average: float = 0.0
    """Decay in [0, 1) of a moving average of its weights; 0 for none."""
    one_step: bool = False
    """Distil a sampler of one step from the reference, and sample by it."""
    frozen_reference: bool = True
    """Train the reference first and freeze it; otherwise it is trained along with the critic (then --no-relative)."""
    advantage_temperature: float | None = None
    """Fit a reference that is not frozen to the data weighted by exp(advantage / this); default: all alike."""
    samples: int | None = None
    """Samples of a frozen reference that are cached per state; default: as many as training or test needs."""

    train_particles: int = 4
    """Particles per state in the TD target."""
    particle_aggregate: Literal["mean", "max"] = "mean"
    """The TD target is the mean over particles, or their maximum."""
    amortized: Literal["data", "particles"] | None = None
    """Let particles follow a network fitted to the critic's gradient at the actions of the data or at the particles."""
    relative: bool = True
    """Measure budgets in units of the reference's within-state spread; otherwise in those of the action."""
    budget: Literal["given", "auto"] = "given"
    """auto: critics choose L and the step size on held-out data, for training after a pilot with L_train = 0 (a tenth
    of the updates), for test at the end, as one more policy; the report says why."""
    train_steps: int = 0
    """L_train: steps of the flow in the TD target; each costs a gradient of the critic per particle."""
    train_step_size: float = 0.1
    """Step size in training, in units of the reference's within-state spread."""
    temperature: float | None = None
    """α at which particles repel each other (SVGD), in the units of the value; default: each ascends alone."""

    def learner(self, candidates: int, *, dense: bool) -> VGF:
        """Make the algorithm, for N candidates in test; `dense`: returns are scored, not success."""
        if self.reference == "gaussian" and self.reference_steps != VGFOptions.reference_steps:
            raise ValueError("--reference-steps are of a flow, and --reference gaussian has none; leave them out.")
        if self.samples is not None and not self.frozen_reference:
            raise ValueError(
                "--samples are of a frozen reference, and --no-frozen-reference caches none; leave it out."
            )
        # --8<-- [start:algorithm]
        ensemble = aggregate(self.aggregate or ("min" if dense and self.members > 1 else "mean"), self.members)
        changes = {}
        if self.temperature is not None:
            changes["transport"] = Transport(SVGD(), Optax(), presets.default().transport.domain)
            changes["train_budget"] = Budget(self.train_steps, self.train_step_size, self.temperature)
        return presets.default(
            self.train_steps,
            self.train_step_size,
            particles=self.train_particles,
            samples=self.samples or max(candidates, self.train_particles),
            target=ensemble,
            improvement=ensemble,
            selection=ensemble,
            particle_aggregate=Maximum() if self.particle_aggregate == "max" else Mean(),
            amortized=self.amortized,
            relative=self.relative,
            reference=ReferenceLearner(
                model=Gaussian() if self.reference == "gaussian" else FlowMatching(self.reference_steps),
                hidden=self.reference_hidden or self.hidden,
                learning_rate=self.reference_learning_rate,
                updates=self.reference_updates,
                average=self.reference_average,
                one_step=self.one_step,
            ),
            frozen_reference=self.frozen_reference,
            advantage_temperature=self.advantage_temperature,
            hidden=self.hidden,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            members=self.members,
            critic=critic_model(self.critic),
            polyak=self.polyak,
            **changes,
        )
        # --8<-- [end:algorithm]
