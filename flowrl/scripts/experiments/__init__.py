"""A matrix of offline runs, and tables and plots from its rows."""

from flowrl.scripts.experiments._matrix import Matrix as Matrix, cells as cells
from flowrl.scripts.experiments._program import Config as Config, main as main, parse as parse
from flowrl.scripts.experiments._rows import options_of as options_of
from flowrl.scripts.experiments._run import run_matrix as run_matrix
