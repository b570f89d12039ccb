"""Learning: algorithms, losses, the training loop. VGF is in `_vgf.py`, the baselines in `baselines/`."""

from flowrl.rl.learning._algorithm import (
    AbstractAlgorithm as AbstractAlgorithm,
    AbstractGenerative as AbstractGenerative,
    AbstractPretrained as AbstractPretrained,
    AbstractState as AbstractState,
    AbstractValueBased as AbstractValueBased,
)
from flowrl.rl.learning._authors_svgd import AuthorsSVGD as AuthorsSVGD
from flowrl.rl.learning._fit import (
    Progress as Progress,
    fit as fit,
    losses_of as losses_of,
    refuse_failures as refuse_failures,
)
from flowrl.rl.learning._losses import (
    critic_loss as critic_loss,
    gradient_loss as gradient_loss,
    td_target as td_target,
    value as value,
)
from flowrl.rl.learning._reference_learner import (
    ReferenceLearner as ReferenceLearner,
    ReferenceState as ReferenceState,
    reference_loss as reference_loss,
    sample_rows as sample_rows,
    sample_sets as sample_sets,
)
from flowrl.rl.learning._train import (
    Trainable as Trainable,
    copied as copied,
    held_out as held_out,
    polyak as polyak,
    train as train,
)
from flowrl.rl.learning._vgf import VGF as VGF, VGFState as VGFState
