"""The baselines of the paper's tables, each as a value that trains, resumes and is evaluated as VGF is.

They share data, critics, references, training and evaluation with VGF, so a comparison differs in the learning rule.
For that, all depart from their sources in the same points: critics (and V) have LayerNorm before each ReLU; weights are
Glorot-uniform; observations are standardised; returns are those of the `Replay`, n-step if it is made so; the TD loss
is summed over the members; networks are optimised by Adam without clipping or decay; and all losses of an update see
the networks as they were before it. What else differs stands with each algorithm.

Best-of-N is no algorithm: it is any of these, or VGF, acted by a `Policy` of N candidates and 0 steps. And with more
steps, a `Policy` transports the proposals of any of them along its own critic.
"""

from flowrl.rl.learning.baselines._actor_critic import AbstractActorCritic as AbstractActorCritic
from flowrl.rl.learning.baselines._bc import BC as BC, BCState as BCState
from flowrl.rl.learning.baselines._deterministic import DeterministicState as DeterministicState
from flowrl.rl.learning.baselines._diffusion_ql import DiffusionQL as DiffusionQL, DiffusionQLState as DiffusionQLState
from flowrl.rl.learning.baselines._flow_ql import FlowQL as FlowQL, FlowQLState as FlowQLState
from flowrl.rl.learning.baselines._fql import FQL as FQL, FQLState as FQLState
from flowrl.rl.learning.baselines._idql import IDQL as IDQL, IDQLState as IDQLState
from flowrl.rl.learning.baselines._iql import IQL as IQL, IQLState as IQLState
from flowrl.rl.learning.baselines._named import ALGORITHMS as ALGORITHMS, make as make
from flowrl.rl.learning.baselines._rebrac import ReBRAC as ReBRAC
from flowrl.rl.learning.baselines._td3_bc import TD3BC as TD3BC, First as First
from flowrl.rl.networks import (
    DeterministicActor as DeterministicActor,
    DiffusionPolicy as DiffusionPolicy,
    GaussianActor as GaussianActor,
)
