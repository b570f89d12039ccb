"""Alignment of language models by particle flows: models, spaces, learning from preferences, evaluation."""

from typing import TYPE_CHECKING

from flowrl._renamed import old_names as _old_names
from flowrl.rlhf import data as data, evaluation as evaluation
from flowrl.rlhf.alignment import (
    Aligned as Aligned,
    ChosenSteps as ChosenSteps,
    Limits as Limits,
    Standardised as Standardised,
    TextStatistics as TextStatistics,
    align as align,
    check_tokens as check_tokens,
    choose_steps as choose_steps,
    hacking_starts as hacking_starts,
    noise_target as noise_target,
    relaxed_reward as relaxed_reward,
    score as score,
    standardised as standardised,
    target as target,
)
from flowrl.rlhf.generation import (
    Answers as Answers,
    Conversation as Conversation,
    Memory as Memory,
    TextModel as TextModel,
    TextReward as TextReward,
    align_vocabulary as align_vocabulary,
    generate as generate,
)
from flowrl.rlhf.learning import (
    DPO as DPO,
    PPO as PPO,
    BradleyTerry as BradleyTerry,
    Fit as Fit,
    FitState as FitState,
    Pairs as Pairs,
    PPOState as PPOState,
    ReferencePairs as ReferencePairs,
    Texts as Texts,
    ValueModel as ValueModel,
    fit as fit,
    pack_pairs as pack_pairs,
    pack_prompts as pack_prompts,
    pack_texts as pack_texts,
    pair_log_probs as pair_log_probs,
    ppo_update as ppo_update,
    preference_accuracy as preference_accuracy,
    sft_loss as sft_loss,
    with_reference as with_reference,
)
from flowrl.rlhf.models import (
    AbstractReward as AbstractReward,
    Block as Block,
    Cache as Cache,
    Dense as Dense,
    Frame as Frame,
    LanguageModel as LanguageModel,
    Norm as Norm,
    Prompt as Prompt,
    Response as Response,
    RewardEnsemble as RewardEnsemble,
    RewardModel as RewardModel,
    Sampler as Sampler,
    Stop as Stop,
    Transformer as Transformer,
    TransformerConfig as TransformerConfig,
    load_language_model as load_language_model,
    load_reward_model as load_reward_model,
    log_probs as log_probs,
    response_logits as response_logits,
    sample as sample,
    smollm2 as smollm2,
)
from flowrl.rlhf.spaces import (
    AbstractSpace as AbstractSpace,
    LatentSpace as LatentSpace,
    LogitSpace as LogitSpace,
    ReferenceSpace as ReferenceSpace,
    TokenSpace as TokenSpace,
)

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these
    __getattr__ = _old_names("flowrl.rlhf")
