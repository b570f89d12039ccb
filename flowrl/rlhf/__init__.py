"""Alignment of language models by particle flows: models, spaces, learning from preferences, evaluation."""

from flowrl.rlhf import data as data, evaluation as evaluation
from flowrl.rlhf._align import (
    Aligned as Aligned,
    align as align,
    check_tokens as check_tokens,
    relaxed_reward as relaxed_reward,
    score as score,
    target as target,
)
from flowrl.rlhf._fit import Fit as Fit, FitState as FitState, fit as fit
from flowrl.rlhf._load import load_language_model as load_language_model, load_reward_model as load_reward_model
from flowrl.rlhf._losses import (
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
from flowrl.rlhf._model import (
    AbstractReward as AbstractReward,
    LanguageModel as LanguageModel,
    RewardEnsemble as RewardEnsemble,
    RewardModel as RewardModel,
)
from flowrl.rlhf._pack import pack_pairs as pack_pairs, pack_prompts as pack_prompts, pack_texts as pack_texts
from flowrl.rlhf._ppo import (
    PPO as PPO,
    PPOState as PPOState,
    ValueModel as ValueModel,
    optimise as optimise,
)
from flowrl.rlhf._sample import (
    Prompt as Prompt,
    Response as Response,
    Sampler as Sampler,
    log_probs as log_probs,
    response_logits as response_logits,
    sample as sample,
)
from flowrl.rlhf._smollm2 import smollm2 as smollm2
from flowrl.rlhf._space import (
    AbstractSpace as AbstractSpace,
    LatentSpace as LatentSpace,
    LogitSpace as LogitSpace,
    ReferenceSpace as ReferenceSpace,
    TokenSpace as TokenSpace,
)
from flowrl.rlhf._stopping import (
    ChosenSteps as ChosenSteps,
    Limits as Limits,
    TextStatistics as TextStatistics,
    choose_steps as choose_steps,
    hacking_starts as hacking_starts,
)
from flowrl.rlhf._transformer import (
    Block as Block,
    Cache as Cache,
    Dense as Dense,
    Norm as Norm,
    Transformer as Transformer,
    TransformerConfig as TransformerConfig,
)
