"""Networks: critics and how their members become one number, actors, references."""

from flowrl.rl.networks._actor import DeterministicActor as DeterministicActor, GaussianActor as GaussianActor
from flowrl.rl.networks._critic import (
    AbstractAggregate as AbstractAggregate,
    Critic as Critic,
    LowerConfidence as LowerConfidence,
    Mean as Mean,
    Minimum as Minimum,
    aggregated_value as aggregated_value,
)
from flowrl.rl.networks._diffusion import DiffusionPolicy as DiffusionPolicy
from flowrl.rl.networks._reference import (
    AbstractReference as AbstractReference,
    FlowReference as FlowReference,
    GaussianReference as GaussianReference,
    OneStepReference as OneStepReference,
)
