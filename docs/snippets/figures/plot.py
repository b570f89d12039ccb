"""The pictures of the page on plots: particles and their paths, and the value against the displacement.

python docs/snippets/figures/plot.py docs/img
"""

import pathlib
import runpy
import sys

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.figure import Figure

import flowrl

LESSON = runpy.run_path(str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "sample_density.py"))


def move(flow, density, n, frames):
    """Move n particles by a flow of the lesson, and save ever more rarely; return the target and the solution."""
    steps, frame = LESSON["FLOWS"][flow][1], np.arange(frames)
    saved = (frame + (steps - frames + 1) * (frame / (frames - 1)) ** 2).astype(int).tolist()
    start_key, noise_key = jr.split(jr.key(0))
    start = jnp.asarray([(-1.0, 1.0)], jnp.float32) + 1.5 * jr.normal(start_key, (n, 2), jnp.float32)
    target = flowrl.Boltzmann(LESSON["any_density"], jnp.asarray(list(LESSON["DENSITIES"]).index(density)))
    return target, LESSON["move"](flow, target, start, noise_key, tuple(saved))


def main(folder, particles=(60, 80), frames=41, densities=("mixture", "banana", "double banana")):
    """Draw paths under SVGD on some densities, and the value under three flows on the last of them."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for density, ax in zip(densities, figure.subplots(1, len(densities)), strict=True):
        target, solution = move("SVGD", density, particles[0], frames)
        truth = LESSON["judge"](density, 2, np.random.default_rng(0))[0]
        edges = np.quantile(truth, (0.001, 0.999), axis=0)
        across, upward = (edges + 0.1 * np.diff(edges, axis=0) * [[-1], [1]]).T.tolist()
        flowrl.plot.particles(solution, target, limits=(tuple(across), tuple(upward)), paths=True, ax=ax)
        ax.set(title=density, xticks=[], yticks=[], xlabel="", ylabel="")
    figure.savefig(folder / "plot_particles.png", dpi=100)
    moved = {flow: move(flow, densities[-1], particles[1], frames) for flow in ("SVGD", "Langevin", "Ascent")}
    solutions = {flow: solution for flow, (_, solution) in moved.items()}
    flowrl.plot.value(solutions, moved["SVGD"][0]).figure.savefig(folder / "plot_value.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
