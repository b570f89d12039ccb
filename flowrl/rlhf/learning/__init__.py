"""Learning from texts and preferences: losses, the loop, PPO."""

from flowrl.rlhf.learning._fit import Fit as Fit, FitState as FitState, fit as fit
from flowrl.rlhf.learning._losses import (
    DPO as DPO,
    BradleyTerry as BradleyTerry,
    Pairs as Pairs,
    ReferencePairs as ReferencePairs,
    Texts as Texts,
    pair_log_probs as pair_log_probs,
    preference_accuracy as preference_accuracy,
    sft_loss as sft_loss,
    with_reference as with_reference,
)
from flowrl.rlhf.learning._pack import pack_pairs as pack_pairs, pack_prompts as pack_prompts, pack_texts as pack_texts
from flowrl.rlhf.learning._ppo import (
    PPO as PPO,
    PPOState as PPOState,
    ValueModel as ValueModel,
    ppo_update as ppo_update,
)
