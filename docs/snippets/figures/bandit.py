"""The picture of the page on the bandit: its rewards, one decision, and the true reward against the budget.

python docs/snippets/figures/bandit.py docs/img/bandit.png
"""

import pathlib
import runpy
import sys

import jax
import numpy as np
from matplotlib.figure import Figure


def draw(lesson, rows, results):
    """Draw the first decision of the first seed, and the true reward against the budget over all seeds."""
    (actions, _), (_, critic, _), offered, chosen = jax.tree.map(lambda x: np.asarray(x[0]), results)
    offered, chosen, box, steps = offered[0], chosen[0], lesson["BOX"], lesson["STEPS"]
    figure = Figure(figsize=(14, 5), layout="constrained")
    true, learned, lines = figure.subplots(1, 3)
    grid = np.stack(np.meshgrid(np.linspace(-5.5, 5.5, 89), np.linspace(-4, 4, 65)), axis=-1).astype(np.float32)
    learned_reward = lambda action: lesson["learned_reward"](critic, action)
    for ax, reward in ((true, lesson["true_reward"]), (learned, learned_reward)):
        surface, levels = jax.vmap(jax.vmap(reward))(grid / box), np.linspace(-1, 1, 17)
        ax.contourf(*np.moveaxis(grid, -1, 0), surface, levels=levels, cmap="RdBu_r", extend="both")
        ax.scatter(*box * actions.T, s=3, color="grey")
        ax.set(xlabel="$a_1$", ylabel="$a_2$", aspect="equal")
    names = [name for name, _ in rows]
    for number, name in enumerate(dict.fromkeys(names)):
        mine, color = [i for i, other in enumerate(names) if other == name], f"C{number}"
        if name.startswith("VGF"):
            true.plot(*box * offered[mine].transpose(2, 0, 1), color=color)
            label = f"{name}, ends at L = {steps[-1]}"
            true.scatter(*box * offered[mine[-1]].T, s=15, color=color, label=label, zorder=3)
        shown = box * chosen[mine if name == "FlowQL" else mine[-1:]]
        learned.scatter(*shown.T, color=color, edgecolor="black", label=name, zorder=3)
        for column, style in (("best", "-"), ("one", ":")):
            mean, ci = np.array([row[column] for (other, _), row in rows.items() if other == name]).T
            if name not in lesson["FLOWS"]:  # a level; of FlowQL the best weight, in hindsight
                mean, ci = (np.full(len(steps), values[mean.argmax()]) for values in (mean, ci))
            lines.plot(steps, mean, style, color=color, label=name if style == "-" else None)
            lines.fill_between(steps, mean - ci, mean + ci, color=color, alpha=0.2)
    lines.set(xlabel="L", ylabel="true reward / peak", ylim=(0, 1))
    titles = "true reward and logged actions", "learned reward and chosen actions", "solid: best of N; dotted: one of N"
    for ax, title in zip((true, learned, lines), titles, strict=True):
        ax.set_title(title)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


if __name__ == "__main__":
    lesson = runpy.run_path(str(pathlib.Path(__file__).resolve().parents[3] / "examples" / "bandit.py"))
    draw(lesson, *lesson["main"]([])).savefig(sys.argv[1], dpi=90)
