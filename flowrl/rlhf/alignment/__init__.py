"""Test-time alignment: transport of samples toward higher reward, and the choice of how far."""

from flowrl.rlhf.alignment._align import (
    Aligned as Aligned,
    align as align,
    check_tokens as check_tokens,
    relaxed_reward as relaxed_reward,
    score as score,
    target as target,
)
from flowrl.rlhf.alignment._choose_steps import (
    ChosenSteps as ChosenSteps,
    Limits as Limits,
    TextStatistics as TextStatistics,
    choose_steps as choose_steps,
    hacking_starts as hacking_starts,
)
from flowrl.rlhf.alignment._costs import Costs as Costs, name_of as name_of
from flowrl.rlhf.alignment._noise_target import noise_target as noise_target
from flowrl.rlhf.alignment._standardised import Standardised as Standardised, standardised as standardised
