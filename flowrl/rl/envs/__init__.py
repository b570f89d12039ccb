"""Environments: one form for all of them, isolation, worker processes."""

from flowrl.rl.envs._environment import Environment as Environment
from flowrl.rl.envs._gym_env import (
    action_limits as action_limits,
    adapt as adapt,
    check_registered as check_registered,
    drawing as drawing,
    flat_size as flat_size,
    flatten_rows as flatten_rows,
    make as make,
    render_mode as render_mode,
    to_unit as to_unit,
)
from flowrl.rl.envs._isolation import (
    own_global_state as own_global_state,
    quiet as quiet,
    robotics as robotics,
    simulator_log_off as simulator_log_off,
)
from flowrl.rl.envs._ogbench_env import evaluation_env as evaluation_env
from flowrl.rl.envs._pool import Values as Values, Worker as Worker, run as run
