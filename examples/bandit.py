"""A bandit with two-dimensional actions whose optimum no logged action comes near: what does a transport budget buy?

Our reconstruction of the toy problem in the paper on Value Gradient Flow (Xu et al., ICLR 2026). A flow-matching
reference is fitted to 400 logged actions and an ensemble of networks to their noisy rewards, for many seeds at once.
Every method acts with these two alone; what it chooses is judged by the true reward.

    python examples/bandit.py
"""

import csv
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import scipy.stats
import tyro
from jaxtyping import Array, Float, PRNGKeyArray
from rich.console import Console
from rich.table import Table

import flowrl
from flowrl.nn import MLP
from flowrl.rl import Critic, FlowReference
from flowrl.scripts._console import end_well

CAVEATS = """The best action lies outside the data by construction: no logged action comes nearer to it than 1.2.
Our reconstruction: its constants are read off the paper's figure; the authors' code for it was not found.
Not reproduced: the paper's reward noise, networks, FlowQL settings, and the exact points and paths of its figure."""

BOX = 5.5  # actions live in [-1, 1]²; lengths are reported in the units of the figure, BOX times as long
CENTRES, WIDTHS = np.array([(2.8, -0.5), (-2.6, -0.2)], np.float32), np.array([1.0, 1.33], np.float32)
RING = (1.2, 2.4)  # radii around both centres between which the data lie
LOGGED, BATCH = 400, 64
NO_STATE = jnp.zeros(0, jnp.float32)  # a bandit has no state, so networks of (state, action) get an empty one


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare ways to act on a bandit whose optimum lies outside the data. Writes results.csv and bandit.png."""

    seeds: int = 20
    """Repetitions, each with its own data, networks and decisions, all run at once. At least 2, for the intervals."""
    seed: int = 0
    """Seed from which all of them are made."""
    out: pathlib.Path = pathlib.Path("runs/bandit")
    """Folder for results.csv and bandit.png; made if missing."""
    steps: tuple[int, ...] = (0, 1, 2, 3, 5, 10)
    """Transport budgets L to report, increasing. One flow serves them all."""
    step_size: float = 0.25
    """How far one Adam step moves a coordinate of a particle, in the units of the figure."""
    candidates: int = 10
    """N, reference samples in a decision."""
    decisions: int = 100
    """Decisions a seed."""
    weights: tuple[float, ...] = (1.0, 10.0, 100.0)
    """Weights of FlowQL's regulariser to report. It is the mean square distance to the reference's action, in [-1, 1]²;
    the reward is in units of its peak."""
    noise: float = 0.125
    """Standard deviation of the noise on logged rewards, in units of the true peak."""
    updates: int = 1500
    """Gradient updates of the reference, of the learned reward, and of each FlowQL policy."""
    width: int = 64
    """Units in each of the two hidden layers of every network."""
    members: int = 2
    """Networks in the ensemble of learned rewards; their mean is used."""
    learning_rate: float = 1e-3
    """Adam's rate at the first update; it falls to 0 as a cosine."""


# --8<-- [start:problem]
def true_reward(action: Float[Array, "2"]) -> Float[Array, ""]:
    """Give half the sum of two normal densities, in units of its peak: the right one is the higher and narrower."""
    square = jnp.sum((BOX * action[None] - CENTRES) ** 2, axis=1)
    return jnp.sum(jnp.exp(-square / (2 * WIDTHS**2)) / WIDTHS**2)


def log_data(config: Config, key: PRNGKeyArray) -> tuple[Float[Array, "n 2"], Float[Array, " n"]]:
    """Draw actions uniformly from two annuli, which leave out the maxima, and their noisy rewards."""
    side_key, radius_key, angle_key, noise_key = jr.split(key, 4)
    centre = jnp.asarray(CENTRES)[jr.randint(side_key, (LOGGED,), 0, 2)]
    radius = jnp.sqrt(jr.uniform(radius_key, (LOGGED, 1), jnp.float32, RING[0] ** 2, RING[1] ** 2))
    angle = jr.uniform(angle_key, (LOGGED,), jnp.float32, 0, 2 * np.pi)
    actions = (centre + radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)) / BOX
    return actions, jax.vmap(true_reward)(actions) + config.noise * jr.normal(noise_key, (LOGGED,), jnp.float32)


# --8<-- [end:problem]
# --8<-- [start:learning]
def fit(config: Config, loss: Callable[[Any, PRNGKeyArray], Array], model: Any, key: PRNGKeyArray) -> Any:
    """Minimise `loss(model, key)` by Adam."""
    optimiser = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.updates))
    arrays, static = eqx.partition(model, eqx.is_array)

    def update(carry: tuple[Any, Any], key: PRNGKeyArray) -> tuple[tuple[Any, Any], None]:
        arrays, state = carry
        gradient = jax.grad(lambda a: loss(eqx.combine(a, static), key))(arrays)
        change, state = optimiser.update(gradient, state)
        return (optax.apply_updates(arrays, change), state), None

    (arrays, _), _ = jax.lax.scan(update, (arrays, optimiser.init(arrays)), jr.split(key, config.updates))
    return eqx.combine(arrays, static)


def learned_reward(critic: Critic, action: Float[Array, "2"]) -> Float[Array, ""]:
    """Give the mean of the ensemble."""
    return jnp.mean(critic(NO_STATE, action))


class Models(NamedTuple):
    """What is learned from the data."""

    reference: FlowReference
    critic: Critic
    policies: MLP  # one-step policies, a leading axis of weights


def learn(config: Config, actions: Float[Array, "n 2"], rewards: Float[Array, " n"], key: PRNGKeyArray) -> Models:
    """Fit the reference to the actions, the ensemble to the rewards, and FlowQL's policies to both."""
    init_keys, fit_keys = jr.split(key, (2, 3))
    hidden = (config.width, config.width)

    def reference_loss(reference: FlowReference, key: PRNGKeyArray) -> Array:
        row_key, noise_key, time_key = jr.split(key, 3)
        rows = jr.randint(row_key, (BATCH,), 0, LOGGED)
        noise, moment = jr.normal(noise_key, (BATCH, 2), jnp.float32), jr.uniform(time_key, (BATCH,), jnp.float32)
        return jnp.mean(jax.vmap(reference.loss, (None, 0, 0, 0))(NO_STATE, actions[rows], noise, moment))

    def reward_loss(critic: Critic, key: PRNGKeyArray) -> Array:
        rows = jr.randint(key, (BATCH,), 0, LOGGED)
        values = jax.vmap(critic, (None, 0))(NO_STATE, actions[rows])
        return jnp.mean(jnp.sum((values - rewards[rows][:, None]) ** 2, axis=1))

    reference = fit(config, reference_loss, FlowReference(0, 2, hidden, steps=10, key=init_keys[0]), fit_keys[0])
    critic = fit(config, reward_loss, Critic(0, 2, hidden, config.members, key=init_keys[1]), fit_keys[1])

    def flowql(weight: Array) -> MLP:
        def loss(policy: MLP, key: PRNGKeyArray) -> Array:
            noise = jr.normal(key, (BATCH, 2), jnp.float32)
            action, cloned = jax.vmap(policy)(noise), jax.vmap(reference.sample, (None, 0))(NO_STATE, noise)
            reward = jax.vmap(learned_reward, (None, 0))(critic, jnp.clip(action, -1, 1))
            return weight * jnp.mean((action - cloned) ** 2) - jnp.mean(reward)

        return fit(config, loss, MLP((2,), 2, hidden, key=init_keys[2]), fit_keys[2])

    return Models(reference, critic, eqx.filter_vmap(flowql)(jnp.asarray(config.weights, jnp.float32)))


# --8<-- [end:learning]
# --8<-- [start:acting]
def methods(config: Config) -> list[tuple[str, str]]:
    """Name every method, and its budget L or its weight, in the order of `candidates`."""
    flowql = [("FlowQL", f"weight {weight:g}") for weight in config.weights]
    flows = [(n, f"L = {s}") for n in ("VGF", "VGF without kernel", "random direction") for s in config.steps]
    return [("best logged action", ""), ("reference", "BC, best-of-N"), *flowql, *flows]


def candidates(config: Config, logged: Array, models: Models, key: PRNGKeyArray) -> Float[Array, "methods n 2"]:
    """Give the N candidates of every method in one decision, all made from the same noise."""
    noise_key, direction_key = jr.split(key)
    noise = jr.normal(noise_key, (config.candidates, 2), jnp.float32)
    start = jax.vmap(models.reference.sample, (None, 0))(NO_STATE, noise)
    flowql = jnp.clip(eqx.filter_vmap(lambda policy: jax.vmap(policy)(noise))(models.policies), -1, 1)
    target, box = flowrl.Boltzmann(learned_reward, models.critic), flowrl.Box(-1.0, 1.0)

    def transported(flow: flowrl.AbstractFlow, temperature: float | None) -> Array:
        budget = flowrl.Budget(config.steps[-1], config.step_size, temperature, scale=1 / BOX)
        method = flowrl.Transport(flow, flowrl.Optax(), box)  # by Adam, as in the authors' code
        return jnp.asarray(method(target, start, budget, save=config.steps, throw=False).trajectory)

    vgf, without_kernel = transported(flowrl.SVGD(), 0.0), transported(flowrl.Ascent(), None)
    direction = jr.normal(direction_key, vgf.shape, jnp.float32)
    length = jnp.linalg.norm(vgf - start[None], axis=-1, keepdims=True)
    control = box.restrict(start[None] + length * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True))
    return jnp.concatenate([jnp.full_like(start, logged)[None], start[None], flowql, vgf, without_kernel, control])


class Outcome(NamedTuple):
    """How one seed went: means over its decisions, then its first decision, then the two rewards on the grid."""

    one: Float[Array, " methods"]  # true reward of the first candidate, which is a random one
    best: Float[Array, " methods"]  # true reward of the candidate of the highest learned reward
    distance: Float[Array, " methods"]  # of that candidate to the nearest logged action
    particles: Float[Array, "methods n 2"]
    chosen: Float[Array, "methods 2"]
    surfaces: Float[Array, "true_learned height width"]


def act(config: Config, actions: Array, rewards: Array, models: Models, key: PRNGKeyArray) -> Outcome:
    """Decide many times by every method, and look up the true rewards."""
    value = functools.partial(learned_reward, models.critic)

    def judge(particles: Float[Array, "n 2"]) -> tuple[Array, Array, Array, Array]:
        best = flowrl.best_of_n(particles, jax.vmap(value)(particles)).particle
        nearest = jnp.min(jnp.linalg.norm(actions - best[None], axis=1))
        return true_reward(particles[0]), true_reward(best), BOX * nearest, best

    offer = functools.partial(candidates, config, actions[jnp.argmax(rewards)], models)
    offered = jax.vmap(offer)(jr.split(key, config.decisions))
    one, best, distance, chosen = jax.vmap(jax.vmap(judge))(offered)
    surfaces = jnp.stack([jax.vmap(jax.vmap(reward))(jnp.asarray(grid())) for reward in (true_reward, value)])
    return Outcome(one.mean(0), best.mean(0), distance.mean(0), offered[0], chosen[0], surfaces)


# --8<-- [end:acting]
def grid() -> np.ndarray:
    """Give the points at which rewards are drawn, (height, width, 2), over the axes of the paper's figure."""
    points = np.stack(np.meshgrid(np.linspace(-5.5, 5.5, 89), np.linspace(-4, 4, 65)), axis=-1)
    return (points / BOX).astype(np.float32)


def tabulate(config: Config, outcome: Outcome) -> list[dict[str, Any]]:
    """Give a row for each method: means over seeds and half widths of their 95 % intervals, by Student's t."""
    one, best, distance = (np.asarray(x, np.float64) for x in outcome[:3])
    columns = {"one": one, "best": best, "best_minus_best_of_n": best - best[:, 1:2], "distance": distance}
    student, rows = scipy.stats.t.ppf(0.975, config.seeds - 1), []
    for i, (name, setting) in enumerate(methods(config)):
        row: dict[str, Any] = {"method": name, "setting": setting}
        for column, samples in columns.items():
            row |= {column: samples[:, i].mean(), f"{column}_ci95": student * scipy.stats.sem(samples[:, i])}
        rows.append(row)
    return rows


def draw(config: Config, actions: Array, outcome: Outcome, rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw the first decision of the first seed, and the true reward against the budget over all seeds."""
    import matplotlib.pyplot as plt  # here, so that --help is quick

    figure, (true, learned, lines) = plt.subplots(1, 3, figsize=(14, 5), layout="constrained")
    for axis, surface in zip((true, learned), np.asarray(outcome.surfaces)[0], strict=True):
        axis.contourf(
            *np.moveaxis(BOX * grid(), -1, 0), surface, levels=np.linspace(-1, 1, 17), cmap="RdBu_r", extend="both"
        )
        axis.scatter(*BOX * np.asarray(actions[0]).T, s=3, color="grey")
        axis.set(xlabel="$a_1$", ylabel="$a_2$", aspect="equal")
    names = [row["method"] for row in rows]
    for number, name in enumerate(dict.fromkeys(names)):
        mine, color = [i for i, other in enumerate(names) if other == name], f"C{number}"
        if name.startswith("VGF"):
            paths = BOX * np.asarray(outcome.particles)[0, mine]
            true.plot(*paths.transpose(2, 0, 1), color=color)
            true.scatter(*paths[-1].T, s=15, color=color, label=f"{name}, ends at L = {config.steps[-1]}", zorder=3)
        chosen = np.asarray(outcome.chosen)[0, mine if name == "FlowQL" else mine[-1:]]
        learned.scatter(*BOX * chosen.T, color=color, edgecolor="black", label=name, zorder=3)
        for column, style in (("best", "-"), ("one", ":")):
            mean, ci = (np.array([rows[i][key] for i in mine]) for key in (column, f"{column}_ci95"))
            if len(mine) != len(config.steps) or name == "FlowQL":  # a level; of FlowQL the best weight, in hindsight
                mean, ci = (np.full(len(config.steps), values[mean.argmax()]) for values in (mean, ci))
            lines.plot(config.steps, mean, style, color=color, label=name if style == "-" else None)
            lines.fill_between(config.steps, mean - ci, mean + ci, color=color, alpha=0.2)
    lines.set(xlabel="L", ylabel="true reward / peak", ylim=(0, 1))
    titles = "true reward and logged actions", "learned reward and chosen actions", "solid: best of N; dotted: one of N"
    for axis, title in zip((true, learned, lines), titles, strict=True):
        axis.set_title(title)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(config: Config) -> list[dict[str, Any]]:
    """Run everything; returns the rows of results.csv."""
    if config.seeds < 2:
        raise SystemExit(f"--seeds must be at least 2, since an interval needs two repetitions; got {config.seeds}.")
    if not config.steps or list(config.steps) != sorted(set(config.steps)) or config.steps[0] < 0:
        raise SystemExit(f"--steps must be increasing and not negative, got {config.steps}.")
    config.out.mkdir(parents=True, exist_ok=True)
    data_keys, learn_keys, act_keys = jr.split(jr.key(config.seed), (3, config.seeds))
    each_seed = lambda f, *args: eqx.filter_jit(eqx.filter_vmap(functools.partial(f, config)))(*args)
    started = time.perf_counter()
    with Console(stderr=True).status(f"learning: reference, reward and FlowQL of {config.seeds} seeds") as status:
        actions, rewards = each_seed(log_data, data_keys)
        models = jax.block_until_ready(each_seed(learn, actions, rewards, learn_keys))
        status.update(f"learned in {time.perf_counter() - started:.0f} s, now acting by {len(methods(config))} methods")
        outcome = jax.block_until_ready(each_seed(act, actions, rewards, models, act_keys))
    rows = tabulate(config, outcome)
    with open(config.out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(config, actions, outcome, rows, config.out / "bandit.png")
    title = f"True reward of the action taken / peak; mean over {config.seeds} seeds ± 95 % interval"
    table = Table("method", "", "one of N", f"best of {config.candidates}", "− best-of-N", "to data", title=title)
    for row in rows:
        numbers = (f"{row[c]:.3f} ± {row[f'{c}_ci95']:.3f}" for c in row if f"{c}_ci95" in row)
        table.add_row(row["method"], row["setting"], *numbers)
    Console(width=120).print(table, CAVEATS, f"{time.perf_counter() - started:.0f} s; files in {config.out}", sep="\n")
    return rows


if __name__ == "__main__":
    config = tyro.cli(Config)
    end_well(lambda: main(config), verb="start again")
