"""Data sets made on this machine, from behaviour policies that need no download."""

from flowrl.rl.data.generators._local import describe as describe
from flowrl.rl.data.generators._ogbench import generate as generate
from flowrl.rl.data.generators._ogbench_recipes import RECIPES as RECIPES
