"""A matrix of offline runs, and tables and plots from its rows."""

from flowrl.scripts.experiments._program import Config as Config, main as main, parse as parse
