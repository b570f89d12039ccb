"""Reinforcement learning by value gradient flow: data, references, critics, training, evaluation."""

import sys as _sys
from typing import TYPE_CHECKING

from flowrl._renamed import old_names as _old_names
from flowrl.rl import data as data, report as report, tasks as tasks
from flowrl.rl.acting import (
    Agent as Agent,
    ChosenBudget as ChosenBudget,
    Collector as Collector,
    Decision as Decision,
    Evaluation as Evaluation,
    FinishedEpisode as FinishedEpisode,
    HalvingResult as HalvingResult,
    Lanes as Lanes,
    LanesError as LanesError,
    MeasuredBudget as MeasuredBudget,
    Online as Online,
    PendingActions as PendingActions,
    Plan as Plan,
    Policy as Policy,
    PolicyTable as PolicyTable,
    StepResult as StepResult,
    act as act,
    choose_budget as choose_budget,
    evaluate as evaluate,
    finetune as finetune,
    measure_budgets as measure_budgets,
    record_video as record_video,
    select_by_acting as select_by_acting,
)
from flowrl.rl.data.replay import (
    AbstractBatchSource as AbstractBatchSource,
    AbstractBuffer as AbstractBuffer,
    Batches as Batches,
    Buffer as Buffer,
    HostBuffer as HostBuffer,
    Replay as Replay,
    Rows as Rows,
    Standardizer as Standardizer,
    Windows as Windows,
    check_rows_agree as check_rows_agree,
    make_replay as make_replay,
)
from flowrl.rl.learning import (
    VGF as VGF,
    AbstractAlgorithm as AbstractAlgorithm,
    AbstractPretrained as AbstractPretrained,
    AbstractState as AbstractState,
    AbstractValueBased as AbstractValueBased,
    AuthorsSVGD as AuthorsSVGD,
    Progress as Progress,
    ReferenceLearner as ReferenceLearner,
    ReferenceState as ReferenceState,
    Trainable as Trainable,
    VGFState as VGFState,
    baselines as baselines,
    critic_loss as critic_loss,
    fit as fit,
    gradient_loss as gradient_loss,
    held_out as held_out,
    presets as presets,
    reference_loss as reference_loss,
    sample_rows as sample_rows,
    sample_sets as sample_sets,
    td_target as td_target,
    train as train,
    value as value,
)
from flowrl.rl.networks import (
    AbstractAggregate as AbstractAggregate,
    AbstractReference as AbstractReference,
    AbstractReferenceModel as AbstractReferenceModel,
    Critic as Critic,
    Denoising as Denoising,
    DiffusionPolicy as DiffusionPolicy,
    First as First,
    FlowMatching as FlowMatching,
    FlowReference as FlowReference,
    Gaussian as Gaussian,
    GaussianReference as GaussianReference,
    LowerConfidence as LowerConfidence,
    Maximum as Maximum,
    Mean as Mean,
    Minimum as Minimum,
    OneStepReference as OneStepReference,
)

# They live with what they are made of, and are imported by their public names.
_sys.modules |= {f"{__name__}.baselines": baselines, f"{__name__}.presets": presets}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rl")
