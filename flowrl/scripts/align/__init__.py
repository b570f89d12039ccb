"""Align a language model at test time, beside best-of-N, DPO and PPO."""

from flowrl.scripts.align._options import Config as Config
from flowrl.scripts.align._program import main as main
