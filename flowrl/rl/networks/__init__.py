"""Networks: critics and how their members become one number, actors, references."""

from flowrl.rl.networks._actor import (
    DeterministicActor as DeterministicActor,
    GaussianActor as GaussianActor,
    SquashedGaussianActor as SquashedGaussianActor,
)
from flowrl.rl.networks._critic import (
    AbstractAggregate as AbstractAggregate,
    AbstractCritic as AbstractCritic,
    AbstractCriticModel as AbstractCriticModel,
    Critic as Critic,
    First as First,
    Histogram as Histogram,
    HistogramCritic as HistogramCritic,
    LowerConfidence as LowerConfidence,
    Maximum as Maximum,
    Mean as Mean,
    Minimum as Minimum,
    ScalarCritic as ScalarCritic,
    aggregated_value as aggregated_value,
)
from flowrl.rl.networks._diffusion import Denoising as Denoising, DiffusionPolicy as DiffusionPolicy
from flowrl.rl.networks._reference import (
    AbstractReference as AbstractReference,
    AbstractReferenceModel as AbstractReferenceModel,
    FlowMatching as FlowMatching,
    FlowReference as FlowReference,
    Gaussian as Gaussian,
    GaussianReference as GaussianReference,
    OneStepReference as OneStepReference,
)
