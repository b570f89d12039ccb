"""From offline to online: what was learned from data goes on learning by acting."""

from flowrl.scripts.online._options import Config as Config, make_config as make_config, parse as parse
from flowrl.scripts.online._program import main as main
