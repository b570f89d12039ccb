"""The picture of the home page: the same particles, the same flow, three budgets.

python docs/snippets/figures/budget.py docs/img/budget.gif
"""

import pathlib
import sys

import jax.numpy as jnp
import jax.random as jr

import flowrl

STEPS = 120


def log_prob(x):
    """Return the log density of a banana, up to a constant."""
    return -0.5 * x[0] ** 2 - 3 * (x[1] - x[0] ** 2 + 1) ** 2


def main(path, particles=60, frames=18):
    """Move the particles three times, and draw the three trajectories side by side."""
    start = jnp.asarray([[0.0, 2.0]]) + 0.4 * jr.normal(jr.key(1), (particles, 2))
    grown = 0.1 * jnp.minimum(1, jnp.arange(1, STEPS + 1) / 30)  # where particles start, the score is steep
    saved = tuple(frame + round((STEPS - frames + 1) * (frame / (frames - 1)) ** 2) for frame in range(frames))
    target, solutions = flowrl.Density(log_prob), {}
    for name, cap in (("cap 1", 1.0), ("cap 2", 2.0), ("no cap", None)):
        budget = flowrl.Budget(STEPS, grown, max_displacement=cap)
        solutions[name] = flowrl.transport(target, start, budget, save=saved)
    flowrl.plot.animate(solutions, path, target, limits=((-2.6, 2.6), (-1.8, 3.4)), tail=3, fps=6)
    return solutions


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
