"""Data sets made on this machine, from behaviour policies that need no download."""

from flowrl.rl.data.generators._behaviour import make_mujoco as make_mujoco
from flowrl.rl.data.generators._local import describe as describe
from flowrl.rl.data.generators._locomotion import (
    LOCOMOTION as LOCOMOTION,
    generate_locomotion as generate_locomotion,
)
from flowrl.rl.data.generators._ogbench import generate_ogbench as generate_ogbench
from flowrl.rl.data.generators._ogbench_recipes import RECIPES as RECIPES
