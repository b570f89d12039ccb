"""One set of particles over several devices and processes, and seeds of a training over devices: what each holds.

Without an accelerator the devices are made of the CPU. They share its cores, so nothing is faster there.
"""
# ruff: noqa: E402  (the number of devices is set before JAX is imported)

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=8, help="at most; accelerators, or as many made of the CPU")
parser.add_argument("--particles", type=int, default=8192, help="a multiple of the devices")
parser.add_argument("--seeds", type=int, default=0, help="also train so many seeds of VGF, a multiple of the devices")
parser.add_argument("--processes", type=int, default=1, help="also divide the set over so many processes on this host")
parser.add_argument("--process", type=int, help="be the process of this number, as on hosts of your own")
parser.add_argument("--address", help="with --process: HOST:PORT of process 0")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/scale_out"), help="folder for results.csv")
options = parser.parse_args()
for name, parts in (("particles", "devices"), ("seeds", "devices"), ("devices", "processes")):
    whole, size = getattr(options, name), getattr(options, parts)
    if size < 1 or whole < (name != "seeds") or whole % size:
        sys.exit(f"--{name} must be a multiple of --{parts}, got {whole} and {size}.")
if options.process is not None and options.process not in range(options.processes):
    sys.exit(f"--process must be one of 0 to {options.processes - 1}, got {options.process}.")
if (options.process is None) != (options.address is None):
    sys.exit("--process and --address go together: the number of this process, and where process 0 is.")
# --8<-- [start:force]
own = options.devices if options.process is None else options.devices // options.processes
flags = os.environ.get("XLA_FLAGS", "")  # of two values of one flag the last one counts
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={own}"

import equinox as eqx
import jax

if options.process is not None:  # before the first array, which settles what devices there are
    jax.distributed.initialize(options.address, options.processes, options.process, initialization_timeout=60)
# --8<-- [end:force]
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh

import flowrl
from flowrl import sharding
from flowrl.rl import ReferenceLearner, Standardizer, data, make_replay, presets, train
from flowrl.runs import to_csv


# --8<-- [start:move]
def move(devices):
    """Divide the set over a mesh and move it; on one device by the plain kernel, with which others are compared."""
    flow = flowrl.SVGD(flowrl.RBF() if devices.size == 1 else sharding.Sharded(flowrl.RBF(), devices))
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    moved = lambda x: flowrl.transport(target, x, flowrl.Budget(3, 0.5), flow=flow, throw=False).particles
    # Every process makes the whole set, the same one, and keeps its own part on its own devices.
    start = 3 * np.random.default_rng(0).standard_normal((options.particles, 256), np.float32)
    return measure(f"3 steps of {options.particles} particles", moved, sharding.split(start, devices), devices)


# --8<-- [end:move]
# --8<-- [start:seeds]
def train_seeds(devices):
    """Train seeds of VGF, divided over a mesh. They share nothing but the data, so devices exchange nothing."""
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(2000, 4)).astype(np.float32), rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    rewards = -np.sum((actions - np.tanh(states[:, :2])) ** 2, axis=1)
    ends = np.ones_like(rewards)  # every decision is the last one: no bootstrapping
    rows = data.Transitions(states, actions, rewards, states, 1 - ends, ends)
    replay = make_replay(rows, Standardizer.fit(states), discount=0.99)
    small = {"hidden": (64, 64), "batch_size": 64, "reference": ReferenceLearner(hidden=(64, 64))}
    vgf = presets.default(1, 0.1, frozen_reference=False, relative=False, **small)
    start = eqx.filter_vmap(lambda key: vgf.init(4, 2, key=key))(jr.split(jr.key(0), options.seeds))
    arrays, rest = eqx.partition(start, eqx.is_array)

    def trained(arrays):
        state = eqx.filter_vmap(lambda state: train(vgf, state, replay, 100)[0])(eqx.combine(arrays, rest))
        return eqx.filter(state, eqx.is_array)

    name = f"100 updates of {options.seeds} seeds"
    return measure(name, trained, sharding.split(arrays, devices, "seeds"), devices)


# --8<-- [end:seeds]
# --8<-- [start:measure]
def measure(what, function, placed, devices):
    """Compile for these devices and call; return the result, and a row of seconds and of bytes per device."""
    compiled = jax.jit(function).lower(placed).compile()
    memory: Any = compiled.memory_analysis()
    seconds = []
    result = jax.block_until_ready(compiled(placed))  # not timed: it opens connections between devices
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(placed))
        seconds.append(time.perf_counter() - begun)
    row = {"what": what, "devices": devices.size, "seconds": min(seconds)}  # other programs only add to them
    row |= {"mb_in_and_out": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e6}
    return result, row | {"mb_else": memory.temp_size_in_bytes / 1e6}


def difference(divided, alone):
    """Return the largest difference to the result of one device, over the parts that this process holds."""
    pairs = zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True)
    pairs = [(a, np.asarray(b)) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
    parts = [np.abs(np.asarray(part.data) - b[part.index]).max() for a, b in pairs for part in a.addressable_shards]
    return float(np.max(parts))


# --8<-- [end:measure]
# --8<-- [start:processes]
def start_processes():
    """Start this program once per process, on the CPU, since two processes cannot share a GPU; return their rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = [sys.executable, __file__, *sys.argv[1:], "--address", f"127.0.0.1:{free.getsockname()[1]}"]
    settings: Any = {"env": os.environ | {"JAX_PLATFORMS": "cpu"}, "capture_output": True, "text": True}
    start = lambda number: subprocess.run([*words, "--process", str(number)], check=False, **settings)
    with ThreadPoolExecutor(options.processes) as pool:
        for number, done in enumerate(pool.map(start, range(options.processes))):
            if done.returncode:
                sys.exit(f"process {number} failed: {(done.stderr.strip().splitlines() or [done.returncode])[-1]}")
            yield json.loads(done.stdout.splitlines()[-1])


some = lambda count, axis: Mesh(np.array(jax.local_devices()[:count]), (axis,))  # `sharding.mesh` takes all of them
if options.process is not None:  # the result is on all devices of all processes; each compares its own part
    alone, (divided, row) = move(some(1, "particles"))[0], move(sharding.mesh(particles=jax.device_count()))
    row["what"] += f", process {options.process}"
    sys.exit(print(json.dumps(row | {"difference": difference(divided, alone)})))
# --8<-- [end:processes]
most, rows = min(options.devices, jax.local_device_count()), []
sizes = [count for count in range(1, most + 1) if most % count == 0]
for part, axis, counts in ((move, "particles", sizes), (train_seeds, "seeds", sorted({1, most}))):
    if part is move or options.seeds:
        results, measured = zip(*(part(some(count, axis)) for count in counts), strict=True)
        rows += [row | {"difference": difference(x, results[0])} for row, x in zip(measured, results, strict=True)]
rows += start_processes() if options.processes > 1 else []
print("seconds, MB of a device in and out, MB of a device beside these, largest difference to one device")
for row in rows:
    numbers = f"{row['seconds']:8.2f}{row['mb_in_and_out']:8.1f}{row['mb_else']:8.1f}{row['difference']:9.0e}"
    print(f"{row['what']:36}{row['devices']:3} devices{numbers}")
if jax.devices()[0].platform == "cpu":
    print(f"These devices are one CPU and share its {os.cpu_count()} cores: more of them are not faster.")
options.out.mkdir(parents=True, exist_ok=True)
(options.out / "results.csv").write_text(to_csv(rows))
