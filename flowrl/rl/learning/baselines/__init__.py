"""The baselines of the paper's tables, each as a value that trains, resumes and is evaluated as VGF is.

They share data, critics, references, training and evaluation with VGF, so a comparison differs in the learning rule.
For that, all depart from their sources in the same points: critics (and V) have LayerNorm before each ReLU; weights are
Glorot-uniform; observations are standardised; returns are those of the `Replay`, n-step if it is made so; the TD loss
is summed over the members; networks are optimised by Adam without clipping or decay; and all losses of an update see
the networks as they were before it. What else differs stands with each algorithm.

Best-of-N is no algorithm: it is any of these, or VGF, acted by a `Policy` of N candidates without a budget. With one, a
`Policy` transports the proposals of any of them along its own critic.
"""

from typing import TYPE_CHECKING

from flowrl._renamed import old_names as _old_names
from flowrl.rl.learning.baselines._actor_critic import (
    AbstractActorCritic as AbstractActorCritic,
    AbstractActorCriticState as AbstractActorCriticState,
    Batch as Batch,
    backup as backup,
    critic_step as critic_step,
    gather as gather,
)
from flowrl.rl.learning.baselines._bc import BC as BC, BCState as BCState
from flowrl.rl.learning.baselines._deterministic import DeterministicState as DeterministicState
from flowrl.rl.learning.baselines._dsrl import DSRL as DSRL, DSRLState as DSRLState
from flowrl.rl.learning.baselines._fql import FQL as FQL, FQLState as FQLState
from flowrl.rl.learning.baselines._generative_ql import (
    AbstractActorValue as AbstractActorValue,
    AggregatedValue as AggregatedValue,
    GenerativeQL as GenerativeQL,
    GenerativeQLState as GenerativeQLState,
    RandomMemberValue as RandomMemberValue,
    diffusion_ql as diffusion_ql,
    flow_ql as flow_ql,
)
from flowrl.rl.learning.baselines._idql import IDQL as IDQL, IDQLState as IDQLState
from flowrl.rl.learning.baselines._iql import IQL as IQL, IQLState as IQLState
from flowrl.rl.learning.baselines._named import ALGORITHMS as ALGORITHMS, make as make
from flowrl.rl.learning.baselines._qam import QAM as QAM, QAMState as QAMState
from flowrl.rl.learning.baselines._qc import QC as QC, QCState as QCState
from flowrl.rl.learning.baselines._rebrac import (
    ReBRAC as ReBRAC,
    mean_square as mean_square,
    squared_distance as squared_distance,
    td3_bc as td3_bc,
)
from flowrl.rl.networks import (
    DeterministicActor as DeterministicActor,
    GaussianActor as GaussianActor,
    SquashedGaussianActor as SquashedGaussianActor,
)

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rl.baselines")
