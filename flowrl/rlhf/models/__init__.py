"""Language and reward models, their weights, and sampling from them."""

from flowrl.rlhf.models._load import (
    load_language_model as load_language_model,
    load_reward_model as load_reward_model,
    model_files as model_files,
    read_json as read_json,
)
from flowrl.rlhf.models._model import (
    AbstractReward as AbstractReward,
    LanguageModel as LanguageModel,
    RewardEnsemble as RewardEnsemble,
    RewardModel as RewardModel,
)
from flowrl.rlhf.models._prompt import Frame as Frame, Prompt as Prompt
from flowrl.rlhf.models._sample import (
    Response as Response,
    Sampler as Sampler,
    log_probs as log_probs,
    response_logits as response_logits,
    sample as sample,
)
from flowrl.rlhf.models._smollm2 import smollm2 as smollm2
from flowrl.rlhf.models._stop import Stop as Stop
from flowrl.rlhf.models._transformer import (
    Block as Block,
    Cache as Cache,
    Dense as Dense,
    Norm as Norm,
    Transformer as Transformer,
    TransformerConfig as TransformerConfig,
)
