"""Acting with a trained agent: policies, lanes of environments, evaluation, collection, chosen budgets, finetuning."""

from flowrl.rl.acting._agreement import CriticAgreement as CriticAgreement, compare_critics as compare_critics
from flowrl.rl.acting._budgets import (
    ChosenBudget as ChosenBudget,
    MeasuredBudget as MeasuredBudget,
    choose_budget as choose_budget,
    measure_budgets as measure_budgets,
)
from flowrl.rl.acting._choices import (
    Barycentre as Barycentre,
    Best as Best,
    EliteMean as EliteMean,
    EliteMedoid as EliteMedoid,
    Softmax as Softmax,
    Uniform as Uniform,
)
from flowrl.rl.acting._collect import (
    Collector as Collector,
    FinishedEpisode as FinishedEpisode,
    PendingActions as PendingActions,
)
from flowrl.rl.acting._evaluate import Evaluation as Evaluation, evaluate as evaluate
from flowrl.rl.acting._finetune import Online as Online, Plan as Plan, finetune as finetune
from flowrl.rl.acting._lanes import Lanes as Lanes, LanesError as LanesError, StepResult as StepResult
from flowrl.rl.acting._moves import (
    Cool as Cool,
    Improve as Improve,
    Move as Move,
    RandomDirections as RandomDirections,
)
from flowrl.rl.acting._policy import (
    Agent as Agent,
    Decision as Decision,
    Policy as Policy,
    PolicyTable as PolicyTable,
    act as act,
    default_policy as default_policy,
)
from flowrl.rl.acting._select_by_acting import HalvingResult as HalvingResult, select_by_acting as select_by_acting
from flowrl.rl.acting._spaces import AbstractSpace as AbstractSpace, Actions as Actions, Noise as Noise
from flowrl.rl.acting._stage import (
    AbstractStage as AbstractStage,
    Candidates as Candidates,
    Situation as Situation,
)
from flowrl.rl.acting._video import record_video as record_video
