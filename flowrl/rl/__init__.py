"""Reinforcement learning by value gradient flow: data, references, critics, training, evaluation."""

from flowrl.rl import (
    baselines as baselines,
    data as data,
    presets as presets,
    report as report,
    tasks as tasks,
)
from flowrl.rl._algorithm import (
    AbstractAlgorithm as AbstractAlgorithm,
    AbstractPretrained as AbstractPretrained,
    AbstractState as AbstractState,
)
from flowrl.rl._authors import AuthorsSVGD as AuthorsSVGD
from flowrl.rl._auto_budget import (
    ChosenBudget as ChosenBudget,
    MeasuredBudget as MeasuredBudget,
    choose_budget as choose_budget,
    measure_budgets as measure_budgets,
)
from flowrl.rl._buffer import Buffer as Buffer
from flowrl.rl._collect import Asked as Asked, Collector as Collector, Finished as Finished
from flowrl.rl._critic import (
    AbstractAggregate as AbstractAggregate,
    Critic as Critic,
    LowerConfidence as LowerConfidence,
    Mean as Mean,
    Minimum as Minimum,
)
from flowrl.rl._evaluate import Evaluation as Evaluation, evaluate as evaluate
from flowrl.rl._finetune import Online as Online, Plan as Plan, finetune as finetune
from flowrl.rl._fit import Progress as Progress, fit as fit
from flowrl.rl._halving import Halved as Halved, select_by_acting as select_by_acting
from flowrl.rl._host_buffer import HostBuffer as HostBuffer
from flowrl.rl._lanes import Lanes as Lanes, LanesError as LanesError, Stepped as Stepped
from flowrl.rl._losses import (
    critic_loss as critic_loss,
    gradient_loss as gradient_loss,
    td_target as td_target,
    value as value,
)
from flowrl.rl._policy import Acted as Acted, Agent as Agent, Policy as Policy, PolicyTable as PolicyTable, act as act
from flowrl.rl._reference import (
    AbstractReference as AbstractReference,
    FlowReference as FlowReference,
    GaussianReference as GaussianReference,
    OneStepReference as OneStepReference,
)
from flowrl.rl._reference_learner import (
    ReferenceLearner as ReferenceLearner,
    ReferenceState as ReferenceState,
    reference_loss as reference_loss,
    sample_rows as sample_rows,
    sample_sets as sample_sets,
)
from flowrl.rl._replay import Replay as Replay, Standardizer as Standardizer, make_replay as make_replay
from flowrl.rl._trackers import Tracker as Tracker
from flowrl.rl._train import Trainable as Trainable, held_out as held_out, train as train
from flowrl.rl._vgf import VGF as VGF, VGFState as VGFState
from flowrl.rl._video import record_video as record_video
from flowrl.rl._windows import Rows as Rows, Windows as Windows, check_rows_agree as check_rows_agree
