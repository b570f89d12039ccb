"""One update of VGF beside the authors' agent, evaluation, and training with evaluation."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import theirs
from rounds import append, ratio, rounds, timing

from flowrl.rl import Agent, FlowMatching, Lanes, Policy, ReferenceLearner, Standardizer, evaluate, train
from flowrl.rl.learning import presets

ENVIRONMENT = "cube-single-play-singletask-task1-v0"
L_TEST = (0, 1, 2, 3)

# The paper's size, and two that are bound by dispatch: width, batch, updates per call.
CASES = {"paper": (512, 256, 5), "width 64": (64, 64, 20), "width 32": (32, 16, 50)}


def learner(hidden):
    """Return the reference of the authors' code, of these widths."""
    return ReferenceLearner(FlowMatching(10), hidden=hidden, learning_rate=3e-4)


def algorithms(width, batch, steps):
    """Return our algorithms: the same mathematics, and the options."""
    hidden = (width,) * 4
    sizes = {"hidden": hidden, "reference": learner(hidden), "batch_size": batch}
    cached = {"frozen_reference": True, "samples": 10}
    return {
        "flowrl": presets.authors(steps, 0.1, **sizes),
        "flowrl, cached reference samples": presets.authors(steps, 0.1, **sizes, **cached),
        "flowrl, amortized gradient": presets.amortized(steps, 0.1, particles=10, **sizes),
    }


def update(reference, packages, count, cases, lengths, together, seeds):
    """Measure one update; `together` updates per call instead of a case's own, and so many seeds at once beside it."""
    agents = theirs.load(reference, packages)
    from utils.datasets import Dataset

    replay, fields = theirs.data()
    cache = jr.uniform(jr.key(5), (theirs.ROWS, 10, theirs.ACTION), minval=-1, maxval=1)
    replay = eqx.tree_at(lambda r: r.particles, replay, cache, is_leaf=lambda x: x is None)
    data_set = Dataset.create(**fields)
    for case in cases:
        width, batch, updates = CASES[case]
        updates = together or updates
        for steps in lengths:
            states, calls = {}, {}

            def ours(name, algorithm, updates=updates, states=states):
                states[name], metrics = train(algorithm, states[name], replay, updates)
                return metrics

            def authors(name, updates=updates, batch=batch, states=states):
                for _ in range(updates):
                    # As in their loop: a batch is drawn on the host for every update.
                    states[name], info = states[name].update(data_set.sample(batch))
                return [states[name].rng, info]

            for name, algorithm in algorithms(width, batch, steps).items():
                states[name] = theirs.fresh(algorithm)
                calls[name] = lambda name=name, algorithm=algorithm, ours=ours: ours(name, algorithm)
            if seeds:
                name, algorithm = f"flowrl, {seeds} seeds at once", algorithms(width, batch, steps)["flowrl"]
                states[name] = eqx.filter_vmap(lambda key, algorithm=algorithm: theirs.fresh(algorithm, key))(
                    jr.split(jr.key(0), seeds)
                )

                def many(name=name, algorithm=algorithm, updates=updates, states=states):
                    one = lambda state: train(algorithm, state, replay, updates)
                    states[name], metrics = eqx.filter_vmap(one)(states[name])
                    return metrics

                calls[name] = many
            for name, kind in (("authors", "vgf"), ("authors, amortized", "avgf")):
                states[name] = theirs.agent(agents, kind, width, 4, steps, vgf_particles=10)
                calls[name] = lambda name=name, authors=authors: authors(name)
            measured = rounds(calls, count, 150)
            rows = []
            for name in calls:
                beside = "authors" if name.startswith("flowrl") else ""
                bars = ratio(measured[beside], measured[name]) if beside else {"ratio": "", "lower90": ""}
                row = {"case": case, "width": width, "batch": batch, "L": steps, "updates": updates, "method": name}
                at_once = seeds if "at once" in name else 1
                if at_once > 1:
                    # Times are of one seed.
                    bars = {key: value and round(value * at_once, 3) for key, value in bars.items()}
                rows.append(row | timing(measured[name], updates * at_once) | bars)
            append("vgf", rows)


def pieces(count):
    """Measure where one update spends its time, and how many of its operations per second that is."""
    width, batch, particles = 512, 256, 10
    algorithm = algorithms(width, batch, 1)["flowrl"]
    state, (replay, _) = theirs.fresh(algorithm), theirs.data()
    rows_, key = jnp.arange(batch), jr.key(0)
    states = replay.observations[rows_]
    noise = jr.normal(key, (batch, particles, theirs.ACTION))
    start = jnp.clip(noise, -1, 1)
    critic = state.critic.network
    value = lambda s, a: jnp.mean(critic(s, a))  # noqa: E731
    parts = {
        "reference samples, 10 Euler steps": (
            eqx.filter_jit(
                lambda s, z: jax.vmap(lambda s, z: jax.vmap(lambda x: state.reference.sample(s, x))(z))(s, z)
            ),
            (states, noise),
            batch * particles * 10,
            1,
        ),
        "value gradient, one step": (
            eqx.filter_jit(jax.vmap(lambda s, a: jax.vmap(lambda x: jax.grad(value, 1)(s, x))(a))),
            (states, start),
            batch * particles * 2,
            2,
        ),
        "target critic": (
            eqx.filter_jit(jax.vmap(lambda s, a: jax.vmap(lambda x: state.target_critic(s, x))(a))),
            (states, start),
            batch * particles * 2,
            1,
        ),
        "reference update": (
            eqx.filter_jit(lambda s, k: algorithm._reference_update(s, replay, rows_, k, None)[0]),
            (state, key),
            batch,
            3,
        ),
        "critic update with everything before it": (
            eqx.filter_jit(lambda s, x: algorithm._critic_update(s, replay, rows_, x)[0]),
            (state, start),
            batch * (particles * 2 * 3 + 2 * 3),
            1,
        ),
        "whole update": (
            eqx.filter_jit(lambda s, k: algorithm.update(s, replay, rows_, k)[0]),
            (state, key),
            batch * (particles * 10 + 3 + particles * 2 * 3 + 2 * 3),
            1,
        ),
    }
    square = jr.normal(key, (2560, 512)), jr.normal(key, (512, 512))
    parts["a product of 2560 × 512 by 512 × 512"] = (jax.jit(jnp.matmul), square, None, 1)
    # What a product is worth where it stands in a loop, as in an update, and fills the same memory again.
    tower = jax.jit(lambda a, b: jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(x[:1]) + (x @ b) * 0.04, a))
    parts["30 such products in a loop"] = (tower, square, None, 30)
    calls = {name: lambda f=f, a=a: theirs.arrays(f(*a)) for name, (f, a, *_) in parts.items()}
    measured = rounds(calls, count, 120)
    # Multiplications and additions of one point through one network of four hidden layers.
    network = 2 * ((theirs.OBSERVATION + theirs.ACTION) * width + 3 * width * width + width)
    rows = []
    for name, (function, arguments, points, passes) in parts.items():
        flops = 2 * 2560 * 512 * 512 * passes if points is None else points * passes * network
        row = timing(measured[name])
        lowered = function.lower(*arguments).compile()
        counted = getattr(lowered, "compiled", lowered).cost_analysis()["flops"]
        share = measured[name][1], measured["whole update"][1]
        row |= {"share": round(float(np.median(share[0]) / np.median(share[1])), 3), "gflop": round(flops / 1e9, 2)}
        row |= {"xla_gflop": round(counted / 1e9, 2), "gflops": round(flops / 1e6 / row["median_ms"], 1)}
        rows.append({"piece": name} | row)
    append("pieces", rows)


def _policies(algorithm):
    budgets = {steps: algorithm.train_budget.with_steps(steps) if steps else None for steps in L_TEST}
    return tuple(Policy(f"L = {steps}", 10, budget) for steps, budget in budgets.items())


def _agent(algorithm, state):
    return Agent(algorithm, state, Standardizer(jnp.zeros(28), jnp.ones(28)))


def _theirs_evaluated(agent, environment, episodes):
    from utils.evaluation import evaluate_vgf_multiple

    with theirs.quiet():
        return evaluate_vgf_multiple(agent, environment, list(L_TEST), None, episodes)


def evaluation(reference, packages, episodes, width, lanes):
    """Measure an evaluation of all budgets on cube-single, with the same networks; once each, after a warm-up."""
    from flowrl.rl.data import make_env

    agents = theirs.load(reference, packages)
    environment = make_env(ENVIRONMENT, seed=0)
    theirs.OBSERVATION, theirs.ACTION = environment.observation_space.shape[0], environment.action_space.shape[0]
    theirs_agent = theirs.agent(agents, "vgf", width, 4, 1, vgf_particles=10)
    hidden = (width,) * 4
    algorithm = presets.authors(1, 0.1, hidden=hidden, reference=learner(hidden))
    state = theirs.same_networks(theirs.fresh(algorithm), theirs_agent)
    rows = []
    with Lanes(ENVIRONMENT, lanes) as used:
        ours = _agent(algorithm, state)
        evaluate(ours, _policies(algorithm), used, episodes=1, seed=1)
        for steps in L_TEST:  # compiles theirs
            theirs_agent.sample_actions(np.zeros(theirs.OBSERVATION), jr.PRNGKey(0), steps).block_until_ready()
        begun = time.perf_counter()
        result = evaluate(ours, _policies(algorithm), used, episodes=episodes, seed=0)
        own = time.perf_counter() - begun
    begun = time.perf_counter()
    _theirs_evaluated(theirs_agent, environment, episodes)
    seconds = time.perf_counter() - begun
    for method, time_ in (("flowrl", own), ("authors", seconds)):
        row = {"episodes": episodes, "width": width, "method": method, "lanes": lanes if method == "flowrl" else 1}
        # Theirs says no lengths.
        length = round(float(result.lengths.mean()), 1) if method == "flowrl" else ""
        row |= {"seconds": round(time_, 1), "mean_length": length}
        rows.append(row | {"ratio": round(seconds / own, 2) if method == "flowrl" else ""})
    append("evaluation", rows)


def train_and_evaluate(reference, packages, updates, episodes, width, lanes):
    """Measure updates and one evaluation of all budgets, compilation included, as a user waits for it."""
    from flowrl.rl.data import make_env

    agents = theirs.load(reference, packages)
    from utils.datasets import Dataset

    environment = make_env(ENVIRONMENT, seed=0)
    theirs.OBSERVATION, theirs.ACTION = environment.observation_space.shape[0], environment.action_space.shape[0]
    replay, fields = theirs.data()
    hidden, seconds = (width,) * 4, {}
    algorithm = presets.authors(1, 0.1, hidden=hidden, reference=learner(hidden))
    with Lanes(ENVIRONMENT, lanes) as used:
        used.reset({0: 0})  # both have their environments made before
        begun = time.perf_counter()
        state = theirs.fresh(algorithm)
        for done in range(0, updates, 100):
            state, metrics = train(algorithm, state, replay, min(100, updates - done))
        jax.block_until_ready(metrics)
        seconds["flowrl", "training"] = time.perf_counter() - begun
        result = evaluate(_agent(algorithm, state), _policies(algorithm), used, episodes=episodes, seed=0)
    seconds["flowrl", "all"] = time.perf_counter() - begun
    begun = time.perf_counter()
    theirs_agent, data_set = theirs.agent(agents, "vgf", width, 4, 1, vgf_particles=10), Dataset.create(**fields)
    for _ in range(updates):
        theirs_agent, info = theirs_agent.update(data_set.sample(256))
    jax.block_until_ready(info)
    seconds["authors", "training"] = time.perf_counter() - begun
    _theirs_evaluated(theirs_agent, environment, episodes)
    seconds["authors", "all"] = time.perf_counter() - begun
    rows = []
    for method in ("flowrl", "authors"):
        row = {"episodes": episodes, "width": width, "updates": updates, "method": method}
        row["lanes"] = lanes if method == "flowrl" else 1
        row |= {what: round(seconds[method, what], 1) for what in ("training", "all")}
        row |= {"mean_length": round(float(result.lengths.mean()), 1) if method == "flowrl" else ""}
        rows.append(row | {"ratio": round(seconds["authors", "all"] / seconds["flowrl", "all"], 2)})
    append("train", rows)
