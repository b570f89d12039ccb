"""The paper's bandit, reconstructed: the best action lies outside the data, so what does a transport budget buy?"""

import argparse
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

# --8<-- [start:problem]
BOX = 5.5  # actions live in [-1, 1]²; lengths are reported in the units of the figure, BOX times as long
CENTRES, WIDTHS = np.array([(2.8, -0.5), (-2.6, -0.2)], np.float32), np.array([1.0, 1.33], np.float32)
RING = (1.2, 2.4)  # radii around both centres between which the data lie
STEPS, STEP_SIZE = (0, 1, 2, 3, 5, 10), 0.25  # budgets L, all of one flow; by how much an Adam step moves a coordinate
WEIGHTS = (1.0, 10.0, 100.0)  # of FlowQL's regulariser, the mean square distance to the reference's action
N, DECISIONS, LOGGED, BATCH, UPDATES, RATE, HIDDEN = 10, 100, 400, 64, 1500, 1e-3, (64, 64)
FLOWS, NO_STATE = ("VGF", "VGF without kernel", "random direction"), jnp.zeros(0, jnp.float32)
square = lambda action: jnp.sum((BOX * action[None] - CENTRES) ** 2, axis=1)  # distances to both centres
true_reward = lambda action: jnp.sum(jnp.exp(-square(action) / (2 * WIDTHS**2)) / WIDTHS**2)  # in units of its peak
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
# --8<-- [start:learning]
def fit(losses, model, key) -> Any:
    """Minimise the mean of `losses(model, key)` by Adam, its rate falling to 0 as a cosine."""
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, UPDATES))

    def update(carry, key):
        change, state = optimiser.update(jax.grad(lambda m: jnp.mean(losses(m, key)))(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], change), state), None

    return jax.lax.scan(update, (model, optimiser.init(model)), jr.split(key, UPDATES))[0][0]


def learn(actions, rewards, key):
    """Fit the reference to the actions, the ensemble to the rewards, and FlowQL's one-step policies to both."""
    (a, b, c), fit_keys = jr.split(key, (2, 3))
    rows, draw = lambda k: jr.randint(k, (BATCH,), 0, LOGGED), lambda k: jr.normal(k, (BATCH, 2), jnp.float32)
    batch = lambda a, b, c: (actions[rows(a)], draw(b), jr.uniform(c, (BATCH,), jnp.float32))  # and noise and times
    flow_losses = lambda model, key: jax.vmap(model.loss, (None, 0, 0, 0))(NO_STATE, *batch(*jr.split(key, 3)))
    errors = lambda model, k: jax.vmap(model, (None, 0))(NO_STATE, actions[rows(k)]) - rewards[rows(k)][:, None]
    reference = fit(flow_losses, FlowMatching(10).init(0, 2, HIDDEN, key=a), fit_keys[0])
    critic = fit(lambda m, k: jnp.sum(errors(m, k) ** 2, axis=1), Critic(0, 2, HIDDEN, 2, key=b), fit_keys[1])
    pair = lambda policy, k: (jax.vmap(policy)(draw(k)), jax.vmap(reference.sample, (None, 0))(NO_STATE, draw(k)))
    reward = lambda action: jax.vmap(learned_reward, (None, 0))(critic, jnp.clip(action, -1, 1))
    loss = lambda weight, action, cloned: weight * jnp.mean((action - cloned) ** 2) - jnp.mean(reward(action))
    policy = lambda weight: fit(lambda p, k: loss(weight, *pair(p, k)), MLP((2,), 2, HIDDEN, key=c), fit_keys[2])
    return reference, critic, jax.vmap(policy)(jnp.asarray(WEIGHTS, jnp.float32))


# --8<-- [end:learning]
# --8<-- [start:acting]
def decide(data, models, key):
    """Let every method offer N candidates made from the same noise; return measures, candidates and choices."""
    (actions, rewards), (reference, critic, policies), (noise_key, direction_key) = data, models, jr.split(key)
    logged, noise = actions[jnp.argmax(rewards)], jr.normal(noise_key, (N, 2), jnp.float32)
    start = jax.vmap(reference.sample, (None, 0))(NO_STATE, noise)
    flowql = jnp.clip(jax.vmap(lambda policy: jax.vmap(policy)(noise))(policies), -1, 1)
    target, box = flowrl.Boltzmann(learned_reward, critic), flowrl.Box(-1.0, 1.0)
    budget = lambda alpha: flowrl.Budget(STEPS[-1], STEP_SIZE, alpha, scale=1 / BOX)
    method = lambda flow: flowrl.Transport(flow, flowrl.Optax(), box)  # by Adam, as in the authors' code
    moved = lambda flow, alpha: method(flow)(target, start, budget(alpha), save=STEPS, throw=False)
    vgf, plain = (jnp.asarray(moved(*how).trajectory) for how in ((flowrl.SVGD(), 0.0), (flowrl.Ascent(), None)))
    # The control moves each candidate as far as VGF does, in a random direction.
    direction = jr.normal(direction_key, vgf.shape, jnp.float32)
    length = jnp.linalg.norm(vgf - start[None], axis=-1, keepdims=True)
    control = box.restrict(start[None] + length * direction / jnp.linalg.norm(direction, axis=-1, keepdims=True))
    offered = jnp.concatenate([jnp.full_like(start, logged)[None], start[None], flowql, vgf, plain, control])
    best = jax.vmap(lambda x: flowrl.best_of_n(x, jax.vmap(learned_reward, (None, 0))(critic, x)).particle)(offered)
    distance = BOX * jax.vmap(lambda action: jnp.min(jnp.linalg.norm(actions - action[None], axis=1)))(best)
    return (jax.vmap(true_reward)(offered[:, 0]), jax.vmap(true_reward)(best), distance), offered, best


# --8<-- [end:acting]
def main(words=None):
    """Compare all methods over seeds and print a table; return its rows, and data, models, candidates and choices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="repetitions, each with its own data and networks")
    parser.add_argument("--seed", type=int, default=0, help="seed from which all of them are made")
    parser.add_argument("--noise", type=float, default=0.125, help="deviation of the noise on rewards / true peak")
    options = parser.parse_args(words)
    if options.seeds < 2:
        raise SystemExit(f"--seeds must be at least 2, since an interval needs two repetitions; got {options.seeds}.")
    data_keys, learn_keys, act_keys = jr.split(jr.key(options.seed), (3, options.seeds))
    data = jax.jit(jax.vmap(lambda key: log_data(key, options.noise)))(data_keys)
    models = jax.jit(jax.vmap(learn))(*data, learn_keys)
    act = lambda data, models, key: jax.vmap(lambda key: decide(data, models, key))(jr.split(key, DECISIONS))
    measures, offered, chosen = jax.jit(jax.vmap(act))(data, models, act_keys)
    methods = [("best logged action", ""), ("reference", "BC, best-of-N")]
    methods += [("FlowQL", f"weight {w:g}") for w in WEIGHTS] + [(flow, f"L = {n}") for flow in FLOWS for n in STEPS]
    one, best, distance = (np.asarray(x, np.float64).mean(axis=1) for x in measures)  # (seeds, methods)
    columns = {"one": one, "best": best, "best_minus_best_of_n": best - best[:, 1:2], "distance": distance}
    student, rows = scipy.stats.t.ppf(0.975, options.seeds - 1), {}
    print(f"mean over {options.seeds} seeds ± 95 % interval:", *columns, sep="; ")
    for i, method in enumerate(methods):
        rows[method] = {name: (x[:, i].mean(), student * scipy.stats.sem(x[:, i])) for name, x in columns.items()}
        print("{:19}{:14}".format(*method), *(f"{mean:7.3f} ± {half:.3f}" for mean, half in rows[method].values()))
    return rows, (data, models, offered, chosen)


if __name__ == "__main__":
    main()
