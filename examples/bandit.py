"""The paper's bandit, reconstructed: the best action lies outside the data, so what does a transport budget buy?

For many seeds at once a reference is fitted to 400 logged actions, and an ensemble to their noisy rewards. Every method
acts with these two alone; what it chooses is judged by the true reward. Constants are read off the paper's figure.
"""

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import scipy.stats

import flowrl
from flowrl.nn import MLP
from flowrl.rl import Critic, FlowMatching
from flowrl.runs import to_csv

try:
    from matplotlib.figure import Figure
except ImportError as missing:
    raise SystemExit(f'{missing.name} is missing: pip install -e ".[examples]"') from missing

# --8<-- [start:problem]
BOX = 5.5  # actions live in [-1, 1]²; lengths are reported in the units of the figure, BOX times as long
CENTRES, WIDTHS = np.array([(2.8, -0.5), (-2.6, -0.2)], np.float32), np.array([1.0, 1.33], np.float32)
RING = (1.2, 2.4)  # radii around both centres between which the data lie
STEPS, STEP_SIZE = (0, 1, 2, 3, 5, 10), 0.25  # budgets L, all of one flow; by how much an Adam step moves a coordinate
WEIGHTS = (1.0, 10.0, 100.0)  # of FlowQL's regulariser, the mean square distance to the reference's action
N, DECISIONS, LOGGED, BATCH, UPDATES, RATE, HIDDEN = 10, 100, 400, 64, 1500, 1e-3, (64, 64)
FLOWS, NO_STATE = ("VGF", "VGF without kernel", "random direction"), jnp.zeros(0, jnp.float32)
# Half the sum of two normal densities, in units of its peak: the right one is the higher and narrower.
square = lambda action: jnp.sum((BOX * action[None] - CENTRES) ** 2, axis=1)
true_reward = lambda action: jnp.sum(jnp.exp(-square(action) / (2 * WIDTHS**2)) / WIDTHS**2)
learned_reward = lambda critic, action: jnp.mean(critic(NO_STATE, action))


def log_data(key, noise):
    """Draw actions uniformly from two annuli, which leave out the maxima, and their noisy rewards."""
    side_key, radius_key, angle_key, noise_key = jr.split(key, 4)
    centre = jnp.asarray(CENTRES)[jr.randint(side_key, (LOGGED,), 0, 2)]
    radius = jnp.sqrt(jr.uniform(radius_key, (LOGGED, 1), jnp.float32, RING[0] ** 2, RING[1] ** 2))
    angle = jr.uniform(angle_key, (LOGGED,), jnp.float32, 0, 2 * np.pi)
    actions = (centre + radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)) / BOX
    return actions, jax.vmap(true_reward)(actions) + noise * jr.normal(noise_key, (LOGGED,), jnp.float32)


# --8<-- [end:problem]
def fit(loss, model: Any, key) -> Any:
    """Minimise `loss(model, key)` by Adam, its rate falling to 0 as a cosine."""
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, UPDATES))

    def update(carry, key):
        change, state = optimiser.update(jax.grad(loss)(carry[0], key), carry[1])
        return (optax.apply_updates(carry[0], change), state), None

    return jax.lax.scan(update, (model, optimiser.init(model)), jr.split(key, UPDATES))[0][0]


# --8<-- [start:learning]
def learn(actions, rewards, key):
    """Fit the reference to the actions, the ensemble to the rewards, and FlowQL's one-step policies to both."""
    (a, b, c), fit_keys = jr.split(key, (2, 3))
    draw, rows = lambda k: jr.normal(k, (BATCH, 2), jnp.float32), lambda k: jr.randint(k, (BATCH,), 0, LOGGED)

    def reference_loss(reference, key):
        row_key, noise_key, time_key = jr.split(key, 3)
        batch = actions[rows(row_key)], draw(noise_key), jr.uniform(time_key, (BATCH,), jnp.float32)
        return jnp.mean(jax.vmap(reference.loss, (None, 0, 0, 0))(NO_STATE, *batch))

    def reward_loss(critic, key):
        values = jax.vmap(critic, (None, 0))(NO_STATE, actions[rows(key)])
        return jnp.mean(jnp.sum((values - rewards[rows(key)][:, None]) ** 2, axis=1))

    def policy_loss(policy, key, weight):
        action, cloned = jax.vmap(policy)(draw(key)), jax.vmap(reference.sample, (None, 0))(NO_STATE, draw(key))
        reward = jax.vmap(learned_reward, (None, 0))(critic, jnp.clip(action, -1, 1))
        return weight * jnp.mean((action - cloned) ** 2) - jnp.mean(reward)

    reference = fit(reference_loss, FlowMatching(10).init(0, 2, HIDDEN, key=a), fit_keys[0])
    critic = fit(reward_loss, Critic(0, 2, HIDDEN, 2, key=b), fit_keys[1])
    policy = lambda weight: fit(lambda p, k: policy_loss(p, k, weight), MLP((2,), 2, HIDDEN, key=c), fit_keys[2])
    return reference, critic, jax.vmap(policy)(jnp.asarray(WEIGHTS, jnp.float32))


# --8<-- [end:learning]
# --8<-- [start:acting]
def decide(actions, logged, models, key):
    """Let every method offer N candidates made from the same noise; return measures, candidates and choices."""
    (reference, critic, policies), (noise_key, direction_key) = models, jr.split(key)
    noise = jr.normal(noise_key, (N, 2), jnp.float32)
    start = jax.vmap(reference.sample, (None, 0))(NO_STATE, noise)
    flowql = jnp.clip(jax.vmap(lambda policy: jax.vmap(policy)(noise))(policies), -1, 1)
    target, box = flowrl.Boltzmann(learned_reward, critic), flowrl.Box(-1.0, 1.0)

    def transported(flow, temperature):
        budget = flowrl.Budget(STEPS[-1], STEP_SIZE, temperature, scale=1 / BOX)
        method = flowrl.Transport(flow, flowrl.Optax(), box)  # by Adam, as in the authors' code
        return jnp.asarray(method(target, start, budget, save=STEPS, throw=False).trajectory)

    vgf, plain = transported(flowrl.SVGD(), 0.0), transported(flowrl.Ascent(), None)
    # The control moves each candidate as far as VGF does, in a random direction.
    direction = jr.normal(direction_key, vgf.shape, jnp.float32)
    length = jnp.linalg.norm(vgf - start[None], axis=-1, keepdims=True)
    control = box.restrict(start[None] + length * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True))
    offered = jnp.concatenate([jnp.full_like(start, logged)[None], start[None], flowql, vgf, plain, control])
    value = jax.vmap(lambda action: learned_reward(critic, action))
    best = jax.vmap(lambda particles: flowrl.best_of_n(particles, value(particles)).particle)(offered)
    distance = BOX * jax.vmap(lambda action: jnp.min(jnp.linalg.norm(actions - action[None], axis=1)))(best)
    return (jax.vmap(true_reward)(offered[:, 0]), jax.vmap(true_reward)(best), distance), offered, best


def act(actions, rewards, models, key):
    """Decide many times."""
    logged = actions[jnp.argmax(rewards)]
    return jax.vmap(lambda key: decide(actions, logged, models, key))(jr.split(key, DECISIONS))


# --8<-- [end:acting]
def draw(rows, actions, critic, offered, chosen):
    """Draw the first decision of the first seed, and the true reward against the budget over all seeds."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    true, learned, lines = figure.subplots(1, 3)
    grid = np.stack(np.meshgrid(np.linspace(-5.5, 5.5, 89), np.linspace(-4, 4, 65)), axis=-1).astype(np.float32)
    for ax, reward in ((true, true_reward), (learned, lambda action: learned_reward(critic, action))):
        surface, levels = jax.vmap(jax.vmap(reward))(grid / BOX), np.linspace(-1, 1, 17)
        ax.contourf(*np.moveaxis(grid, -1, 0), surface, levels=levels, cmap="RdBu_r", extend="both")
        ax.scatter(*BOX * actions.T, s=3, color="grey")
        ax.set(xlabel="$a_1$", ylabel="$a_2$", aspect="equal")
    names = [row["method"] for row in rows]
    for number, name in enumerate(dict.fromkeys(names)):
        mine, color = [i for i, other in enumerate(names) if other == name], f"C{number}"
        if name.startswith("VGF"):
            true.plot(*BOX * offered[mine].transpose(2, 0, 1), color=color)
            label = f"{name}, ends at L = {STEPS[-1]}"
            true.scatter(*BOX * offered[mine[-1]].T, s=15, color=color, label=label, zorder=3)
        shown = BOX * chosen[mine if name == "FlowQL" else mine[-1:]]
        learned.scatter(*shown.T, color=color, edgecolor="black", label=name, zorder=3)
        for column, style in (("best", "-"), ("one", ":")):
            mean, ci = (np.array([rows[i][key] for i in mine]) for key in (column, f"{column}_ci95"))
            if name not in FLOWS:  # a level; of FlowQL the best weight, in hindsight
                mean, ci = (np.full(len(STEPS), values[mean.argmax()]) for values in (mean, ci))
            lines.plot(STEPS, mean, style, color=color, label=name if style == "-" else None)
            lines.fill_between(STEPS, mean - ci, mean + ci, color=color, alpha=0.2)
    lines.set(xlabel="L", ylabel="true reward / peak", ylim=(0, 1))
    titles = "true reward and logged actions", "learned reward and chosen actions", "solid: best of N; dotted: one of N"
    for ax, title in zip((true, learned, lines), titles, strict=True):
        ax.set_title(title)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def main(words=None):
    """Compare all methods over seeds: a table, results.csv and bandit.png; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="repetitions, each with its own data and networks")
    parser.add_argument("--seed", type=int, default=0, help="seed from which all of them are made")
    parser.add_argument("--noise", type=float, default=0.125, help="deviation of the noise on rewards / true peak")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/bandit"), help="folder for the files")
    options = parser.parse_args(words)
    if options.seeds < 2:
        raise SystemExit(f"--seeds must be at least 2, since an interval needs two repetitions; got {options.seeds}.")
    data_keys, learn_keys, act_keys = jr.split(jr.key(options.seed), (3, options.seeds))
    actions, rewards = jax.jit(jax.vmap(lambda key: log_data(key, options.noise)))(data_keys)
    models = jax.jit(jax.vmap(learn))(actions, rewards, learn_keys)
    measures, offered, chosen = jax.jit(jax.vmap(act))(actions, rewards, models, act_keys)

    methods = [
        ("best logged action", ""),
        ("reference", "BC, best-of-N"),
        *(("FlowQL", f"weight {w:g}") for w in WEIGHTS),
    ]
    methods += [(name, f"L = {steps}") for name in FLOWS for steps in STEPS]
    one, best, distance = (np.asarray(x, np.float64).mean(axis=1) for x in measures)  # (seeds, methods)
    columns = {"one": one, "best": best, "best_minus_best_of_n": best - best[:, 1:2], "distance": distance}
    student, rows = scipy.stats.t.ppf(0.975, options.seeds - 1), []
    print(f"mean over {options.seeds} seeds ± 95 % interval:", *columns, sep="; ")
    for i, (name, setting) in enumerate(methods):
        row: dict[str, Any] = {"method": name, "setting": setting}
        for column, x in columns.items():
            row |= {column: x[:, i].mean(), f"{column}_ci95": student * scipy.stats.sem(x[:, i])}
        rows.append(row)
        print(f"{name:19}{setting:14}", *(f"{row[c]:7.3f} ± {row[f'{c}_ci95']:.3f}" for c in columns))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.csv").write_text(to_csv(rows))
    first = jax.tree.map(lambda x: np.asarray(x[0]), (actions, models[1], offered[:, 0], chosen[:, 0]))
    draw(rows, *first).savefig(options.out / "bandit.png", dpi=90)
    return rows


if __name__ == "__main__":
    main()
