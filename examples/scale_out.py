"""One set of particles over several devices and processes, and seeds of a training over devices: what each holds."""
# ruff: noqa: E402  (the number of devices is set before JAX is imported)

import argparse
import os
import pathlib
import sys
import timeit
from typing import Any

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--devices", type=int, default=8, help="at most; accelerators, or as many made of the CPU")
parser.add_argument("--particles", type=int, default=8192, help="a multiple of the devices")
parser.add_argument("--seeds", type=int, default=0, help="also train so many seeds of VGF, a multiple of the devices")
parser.add_argument("--processes", type=int, default=1, help="over which the devices and the set are divided")
parser.add_argument("--process", type=int, default=0, help="number of this process; start each of them yourself")
parser.add_argument("--address", help="HOST:PORT of process 0, if there are several")
parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/scale_out"), help="folder for results.csv")
options = parser.parse_args()
for name, parts in (("particles", "devices"), ("seeds", "devices"), ("devices", "processes")):
    whole, size = getattr(options, name), getattr(options, parts)
    if size < 1 or whole < (name != "seeds") or whole % size:
        sys.exit(f"--{name} must be a multiple of --{parts}, got {whole} and {size}.")
if options.process not in range(options.processes):
    sys.exit(f"--process must be one of 0 to {options.processes - 1}, got {options.process}.")
if (options.processes > 1) != (options.address is not None):
    sys.exit("--processes and --address go together: how many there are, and where process 0 is.")
# --8<-- [start:force]
forced = f"--xla_force_host_platform_device_count={options.devices // options.processes}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {forced}"  # the last value of a flag counts

import equinox as eqx
import jax

if options.processes > 1:  # before the first array, which settles what devices there are
    jax.distributed.initialize(options.address, options.processes, options.process, initialization_timeout=60)
# --8<-- [end:force]
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowrl
from flowrl import sharding
from flowrl.rl import ReferenceLearner, Standardizer, data, make_replay, presets, train
from flowrl.runs import to_csv


# --8<-- [start:move]
def move(devices):
    """Divide the set over a mesh and move it; on one device by the plain kernel, with which others are compared."""
    flow = flowrl.SVGD(flowrl.RBF() if devices.size == 1 else sharding.Sharded(flowrl.RBF(), devices))
    target, budget = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2)), flowrl.Budget(3, 0.5)
    moved = lambda x: flowrl.transport(target, x, budget, flow=flow, throw=False).particles
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
    rows = data.Transitions(states, actions, rewards, states, np.zeros_like(rewards), np.ones_like(rewards))
    replay = make_replay(rows, Standardizer.fit(states), discount=0.99)  # each decision is the last: no bootstrapping
    small = {"hidden": (64, 64), "batch_size": 64, "reference": ReferenceLearner(hidden=(64, 64))}
    vgf = presets.default(1, 0.1, frozen_reference=False, relative=False, **small)
    start = eqx.filter_vmap(lambda key: vgf.init(4, 2, key=key))(jr.split(jr.key(0), options.seeds))
    trained = eqx.filter_vmap(lambda state: train(vgf, state, replay, 100)[0])
    return measure(f"100 updates of {options.seeds} seeds", trained, sharding.split(start, devices, "seeds"), devices)


# --8<-- [end:seeds]
# --8<-- [start:measure]
def measure(what, function, placed, devices):
    """Compile for these devices and call; return the result, and a row of seconds and of bytes per device."""
    arrays, rest = eqx.partition(placed, eqx.is_array)  # whatever else a state holds is the same on all devices
    of_arrays = lambda arrays: eqx.filter(function(eqx.combine(arrays, rest)), eqx.is_array)
    compiled = jax.jit(of_arrays).lower(arrays).compile()
    memory: Any = compiled.memory_analysis()
    call = lambda: jax.block_until_ready(compiled(arrays))
    result = call()  # not timed: it opens connections between devices
    row = {"what": what, "devices": devices.size, "seconds": min(timeit.repeat(call, number=1, repeat=3))}
    row |= {"mb_in_and_out": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e6}
    return result, row | {"mb_else": memory.temp_size_in_bytes / 1e6}


def difference(divided, alone):
    """Return the largest difference to the result of one device, over the parts that this process holds."""
    pairs = zip(*(jax.tree.leaves(eqx.filter(x, eqx.is_inexact_array)) for x in (divided, alone)), strict=True)
    parts = [np.asarray(part.data) - np.asarray(b)[part.index] for a, b in pairs for part in a.addressable_shards]
    return float(np.max([np.abs(part).max() for part in parts]))


# --8<-- [end:measure]
# --8<-- [start:compare]
def compare(part, meshes):
    """Return a row per mesh; the first mesh has one device, to whose result the others are compared."""
    results, rows = zip(*map(part, meshes), strict=True)
    return [row | {"difference": difference(x, results[0])} for x, row in zip(results, rows, strict=True)]


some = lambda count, axis: jax.sharding.Mesh(np.array(jax.local_devices()[:count]), (axis,))
most = min(options.devices, jax.local_device_count())
meshes = [some(count, "particles") for count in range(1, most + 1) if most % count == 0]
if options.processes > 1:  # the result is on all devices of all processes; each compares its own part
    meshes = [some(1, "particles"), sharding.mesh(particles=jax.device_count())]
rows = compare(move, meshes)
if options.seeds:
    rows += compare(train_seeds, [some(count, "seeds") for count in sorted({1, most})])
# --8<-- [end:compare]
print("seconds, MB of a device in and out, MB of a device beside these, largest difference to one device")
line = "{what:26}{devices:3} devices{seconds:8.2f}{mb_in_and_out:8.1f}{mb_else:8.1f}{difference:9.0e}"
print(*(line.format(**row) for row in rows), sep="\n")
if jax.devices()[0].platform == "cpu":
    print(f"These devices are one CPU and share its {os.cpu_count()} cores: more of them are not faster.")
options.out.mkdir(parents=True, exist_ok=True)
(options.out / "results.csv").write_text(to_csv(rows))
