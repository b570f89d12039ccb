"""Offline training of any algorithm, with test budgets and their controls."""

from flowrl.scripts.offline._options import Config as Config, parse as parse
from flowrl.scripts.offline._program import main as main
