"""Does it pay to train several seeds in one process? Updates per second of a vmapped training and of one seed alone.

    python tests/benchmarks/seeds_vmapped.py --seeds 4
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python tests/benchmarks/seeds_vmapped.py   # one thread

The networks, batches and data have the sizes of HalfCheetah; the numbers in them are random, which costs the same.
"""

import argparse
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from flowrl.rl import Standardizer, make_replay
from flowrl.rl.data import Transitions
from flowrl.rl.learning import baselines, presets

ROWS, OBSERVATION, ACTION = 20_000, 17, 6


def data() -> Transitions:
    """Make random transitions."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(ROWS, OBSERVATION)).astype(np.float32)
    actions = rng.uniform(-1, 1, (ROWS, ACTION)).astype(np.float32)
    ends = (np.arange(ROWS) % 1000 == 999).astype(np.float32)
    return Transitions(observations, actions, ends, np.roll(observations, -1, 0), np.ones_like(ends), ends)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--updates", type=int, default=100)
    options = parser.parse_args()
    transitions = data()
    replay = make_replay(transitions, Standardizer.fit(transitions.observations), discount=0.99)
    algorithms = {
        "VGF, L_train = 0": presets.default(0, particles=4, samples=4),
        "VGF, L_train = 1": presets.default(1, particles=4, samples=4),
        "TD3+BC": baselines.td3_bc(),
        "FQL, two layers of 256": baselines.FQL(hidden=(256, 256)),
    }
    print(f"| algorithm | one seed, updates/s | {options.seeds} vmapped, updates/s of all | ratio |\n|---|---|---|---|")
    for name, algorithm in algorithms.items():

        @eqx.filter_jit
        def trained(state, replay, updates, algorithm=algorithm):
            dynamic, static = eqx.partition(state, eqx.is_array)

            def body(dynamic, key):
                state = eqx.combine(dynamic, static)
                rows = jr.randint(key, (algorithm.batch_size,), 0, ROWS)
                state, _ = algorithm.update(state, replay, rows, key)
                return eqx.filter(state, eqx.is_array), None

            return jax.lax.scan(body, dynamic, jr.split(jr.key(1), updates))[0]

        def start(key, algorithm=algorithm):
            return algorithm.init(OBSERVATION, ACTION, key=key)

        ready = replay
        if hasattr(algorithm, "prepare"):
            particles = jnp.zeros((ROWS, 4, ACTION), jnp.float32)
            ready = eqx.tree_at(lambda r: r.particles, replay, particles, is_leaf=lambda x: x is None)
        one = start(jr.key(0))
        many = eqx.filter_vmap(start)(jr.split(jr.key(0), options.seeds))
        calls = {
            "one": lambda one=one, ready=ready, trained=trained: trained(one, ready, options.updates),
            "many": lambda many=many, ready=ready, trained=trained: eqx.filter_vmap(
                lambda state: trained(state, ready, options.updates)
            )(many),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in calls}
        for repeat in range(4):  # interleaved; the first round compiles
            for kind, call in calls.items():
                begun = time.perf_counter()
                jax.block_until_ready(eqx.filter(call(), eqx.is_array))
                if repeat:
                    seconds[kind].append(time.perf_counter() - begun)
        rates = [
            options.updates * copies / statistics.median(seconds[kind])
            for kind, copies in (("one", 1), ("many", options.seeds))
        ]
        print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[1] / rates[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
