"""From offline to online: what was learned from data goes on learning by acting."""

from flowrl.scripts.online._options import (
    Config as Config,
    check as check,
    make_config as make_config,
    parse as parse,
)
from flowrl.scripts.online._program import check_plan as check_plan, main as main
