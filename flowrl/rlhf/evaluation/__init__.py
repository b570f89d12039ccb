"""Evaluation by what the method has not seen: ratings, fluency, judges; with intervals."""

from flowrl.rlhf.evaluation._gold import Gold as Gold
from flowrl.rlhf.evaluation._judge import (
    AbstractJudge as AbstractJudge,
    CommandJudge as CommandJudge,
    ScoreJudge as ScoreJudge,
    judged_win_rate as judged_win_rate,
)
from flowrl.rlhf.evaluation._regression import RatingRegression as RatingRegression
from flowrl.rlhf.evaluation._texts import (
    distinct_n as distinct_n,
    fraction_changed as fraction_changed,
    vader_scores as vader_scores,
)
from flowrl.rlhf.evaluation._win_rate import mean_interval as mean_interval, win_rate as win_rate
