"""One set of particles over several devices and processes, and seeds of a training over devices: what each holds.

Without an accelerator the devices are made of the processor. They share its cores, so nothing is faster there.

    python examples/scale_out.py
    python examples/scale_out.py --processes 2 --seeds 8
"""
# ruff: noqa: E402  (the number of devices has to be said before JAX is there)

import csv
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Move one set of particles over 1, 2, 4, ... devices, and compare with one. Writes results.csv, scale_out.png."""

    devices: int = 8
    """Devices to use at most. Accelerators where there are any; else so many are made of the processor."""
    particles: int = 8192
    """Particles of the set, a multiple of the devices."""
    dimension: int = 256
    """Coordinates of a particle."""
    steps: int = 3
    """Steps of SVGD."""
    processes: int = 1
    """With 2 or more, also divide the set over that many processes. Without --process they are started here, talk over
    loopback and make their devices of the processor: with 8 devices and 2 processes, 4 each."""
    process: int | None = None
    """Number of this process, from 0: be one of several that shells or hosts start with the same options. It uses all
    accelerators that it sees, prints its row as JSON, and writes nothing."""
    address: str | None = None
    """HOST:PORT of process 0, with --process."""
    seeds: int = 0
    """Also train that many seeds of VGF on made-up data, a multiple of the devices. 0: none."""
    updates: int = 100
    """Updates of each seed."""
    out: pathlib.Path = pathlib.Path("runs/scale_out")
    """Folder for results.csv and scale_out.png; made if missing."""


def check(config: Config) -> None:
    """Refuse what cannot be divided."""
    for name in ("devices", "particles", "dimension", "steps", "processes", "updates"):
        if getattr(config, name) < 1:
            raise SystemExit(f"--{name} must be at least 1, got {getattr(config, name)}.")
    for name, parts in (("particles", "devices"), ("seeds", "devices"), ("devices", "processes")):
        whole, size = getattr(config, name), getattr(config, parts)
        if whole % size or whole < 0:
            raise SystemExit(f"--{name} must be a multiple of --{parts}, got {whole} and {size}.")
    if (config.process is None) != (config.address is None):
        raise SystemExit("--process and --address go together: the number of this process, and where process 0 is.")
    if config.process is not None and not 0 <= config.process < config.processes:
        raise SystemExit(f"--process must be one of 0 to {config.processes - 1}, got {config.process}.")


# --8<-- [start:force]
def begin() -> Config:
    """Read the options, and make devices of the processor. Where there is an accelerator, JAX takes that instead."""
    config = tyro.cli(Config)
    check(config)
    own = config.devices if config.process is None else config.devices // config.processes
    flags = os.environ.get("XLA_FLAGS", "")  # of two values of one flag the last one counts
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={own}"
    return config


CHOSEN = begin() if __name__ == "__main__" else Config()

import equinox as eqx
import jax

if CHOSEN.process is not None:  # before the first array, which settles what devices there are
    jax.distributed.initialize(CHOSEN.address, CHOSEN.processes, CHOSEN.process, initialization_timeout=60)
# --8<-- [end:force]
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

import flowrl
from flowrl import sharding
from flowrl.rl import ReferenceLearner, Standardizer, make_replay, train
from flowrl.rl.data import Transitions
from flowrl.rl.learning import presets
from flowrl.scripts._console import end_well


# --8<-- [start:move]
def move(config: Config, devices: Mesh) -> tuple[Any, dict[str, Any]]:
    """Divide the set over a mesh and move it; on one device by the plain kernel, with which others are compared."""
    kernel = flowrl.RBF() if devices.size == 1 else sharding.Sharded(flowrl.RBF(), devices)
    flow = flowrl.SVGD(kernel)
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    budget = flowrl.Budget(config.steps, 0.5)

    def moved(particles: Float[Array, "n d"]) -> Float[Array, "n d"]:
        return flowrl.transport(target, particles, budget, flow=flow, throw=False).particles

    # Every process makes the whole set, the same one, and keeps its own part on its own devices.
    start = 3 * np.random.default_rng(0).standard_normal((config.particles, config.dimension), np.float32)
    name = f"{config.steps} steps of {config.particles} particles"
    return measure(name, moved, sharding.split(start, devices), devices)


# --8<-- [end:move]
# --8<-- [start:measure]
def measure(name: str, function: Callable[[Any], Any], placed: Any, devices: Mesh) -> tuple[Any, dict[str, Any]]:
    """Compile for these devices and call; give the result, and a row of seconds and bytes of one device."""
    compiled = jax.jit(function).lower(placed).compile()
    memory: Any = compiled.memory_analysis()
    result, seconds = jax.block_until_ready(compiled(placed)), []  # not timed: it opens connections between devices
    for _ in range(3):
        begun = time.perf_counter()
        jax.block_until_ready(compiled(placed))
        seconds.append(time.perf_counter() - begun)
    row = {
        "what": name,
        "devices": devices.size,
        "seconds": min(seconds),  # what other programs of the machine take only adds
        "mb_in_and_out": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / 1e6,
        "mb_else": memory.temp_size_in_bytes / 1e6,
    }
    return result, row


def difference(divided: Any, alone: Any) -> float:
    """Give the largest difference to the result of one device, over the parts that this process holds."""
    pairs = zip(jax.tree.leaves(divided), jax.tree.leaves(alone), strict=True)
    pairs = [(a, np.asarray(b)) for a, b in pairs if jnp.issubdtype(a.dtype, jnp.floating)]
    parts = [(part.data, b[part.index]) for a, b in pairs for part in a.addressable_shards]
    return float(np.max([np.abs(np.asarray(a) - b).max() for a, b in parts]))


# --8<-- [end:measure]
# --8<-- [start:processes]
def join(config: Config) -> dict[str, Any]:
    """Move the set as one of several processes, whose devices are one mesh; compare the own part with one device's."""
    alone, _ = move(config, some(1, "particles"))
    divided, row = move(config, sharding.mesh(particles=jax.device_count()))
    what = f"{row['what']}, process {config.process}"
    return row | {"what": what, "difference": difference(divided, alone)}


def start_processes(config: Config) -> list[dict[str, Any]]:
    """Start this program once for each process, on one machine; give their rows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = [sys.executable, __file__, "--address", f"127.0.0.1:{free.getsockname()[1]}"]
    for name in ("devices", "particles", "dimension", "steps", "processes"):
        words += [f"--{name}", str(getattr(config, name))]
    # Host devices, since two processes cannot share a GPU. Sessions of their own, so that Ctrl-C comes here alone.
    apart: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    commands = [[*words, "--process", str(number)] for number in range(config.processes)]
    running = [subprocess.Popen(words, env=os.environ | {"JAX_PLATFORMS": "cpu"}, **apart) for words in commands]
    rows = []
    try:
        for number, process in enumerate(running):
            out, error = process.communicate()
            if process.returncode:
                reason = (error.strip().splitlines() or [f"status {process.returncode}"])[-1]
                raise RuntimeError(f"process {number} failed: {reason}")
            rows.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
            process.communicate()
    return rows


# --8<-- [end:processes]
# --8<-- [start:seeds]
def train_seeds(config: Config, devices: Mesh) -> tuple[Any, dict[str, Any]]:
    """Train seeds of VGF, divided over a mesh. They share nothing but the data, so devices exchange nothing."""
    rng = np.random.default_rng(0)
    states, actions = rng.normal(size=(2000, 4)).astype(np.float32), rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    rewards = -np.sum((actions - np.tanh(states[:, :2])) ** 2, axis=1)
    ends = np.ones_like(rewards)  # every decision is the last one: no bootstrapping
    data = Transitions(states, actions, rewards, states, 1 - ends, ends)
    replay = make_replay(data, Standardizer.fit(states), discount=0.99)
    small: dict[str, Any] = {"hidden": (64, 64), "reference": ReferenceLearner(hidden=(64, 64)), "batch_size": 64}
    vgf = presets.default(1, 0.1, frozen_reference=False, relative=False, **small)

    start = eqx.filter_vmap(lambda key: vgf.init(4, 2, key=key))(jr.split(jr.key(0), config.seeds))
    arrays, rest = eqx.partition(start, eqx.is_array)

    def trained(arrays: Any) -> Any:
        state = eqx.combine(arrays, rest)
        state = eqx.filter_vmap(lambda state: train(vgf, state, replay, config.updates)[0])(state)
        return eqx.filter(state, eqx.is_array)

    name = f"{config.updates} updates of {config.seeds} seeds"
    return measure(name, trained, sharding.split(arrays, devices, "seeds"), devices)


# --8<-- [end:seeds]
def some(count: int, axis: str) -> Mesh:
    """Make a mesh of some devices of this process, for the table; `sharding.mesh` always takes all of them."""
    return Mesh(np.array(jax.local_devices()[:count]), (axis,))


def measurements(config: Config) -> Iterator[dict[str, Any]]:
    """Give a row for each number of devices, then one for each process."""
    most = min(config.devices, jax.local_device_count())
    sizes = [count for count in range(1, most + 1) if most % count == 0]
    ends = sorted({1, most}) if config.seeds else []
    for part, axis, counts in ((move, "particles", sizes), (train_seeds, "seeds", ends)):
        alone = None
        for count in counts:
            result, row = part(config, some(count, axis))
            alone = result if alone is None else alone
            yield row | {"difference": difference(result, alone)}
    if config.processes > 1:
        yield from start_processes(config)


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw bytes and seconds against the number of devices."""
    from matplotlib.figure import Figure  # here, so that --help is quick

    rows = [row for row in rows if row["what"] == rows[0]["what"]]
    devices = [row["devices"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    held, spent = figure.subplots(1, 2)
    held.plot(devices, [row["mb_in_and_out"] + row["mb_else"] for row in rows], "o-")
    spent.plot(devices, [row["seconds"] for row in rows], "o-")
    for ax, label in ((held, "MB of a device"), (spent, "seconds")):
        ax.set(xlabel="devices", ylabel=label, xticks=devices, ylim=(0, None))
    figure.savefig(path, dpi=100)


def main(config: Config) -> list[dict[str, Any]]:
    """Run everything; returns the rows of results.csv."""
    if config.process is not None:
        print(json.dumps(join(config)))
        return []
    config.out.mkdir(parents=True, exist_ok=True)
    rows, device = [], jax.devices()[0]
    table = Table("what", title=f"{device.device_kind}: seconds, MB of each device, largest difference to one device")
    for head in ("devices", "seconds", "in and out", "everything else", "difference"):
        table.add_column(head, justify="right")
    with Console(stderr=True).status("compiling and running") as status:
        for row in measurements(config):
            rows.append(row)
            sizes = (f"{row[name]:.1f}" for name in ("mb_in_and_out", "mb_else"))
            table.add_row(row["what"], f"{row['devices']}", f"{row['seconds']:.2f}", *sizes, f"{row['difference']:.0e}")
            status.update(f"measured: {row['what']} on {row['devices']} devices")
    with open(config.out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, config.out / "scale_out.png")
    honest = f"These devices are one processor and share its {os.cpu_count()} cores: more of them are not faster."
    Console(width=120).print(table, *[honest] * (device.platform == "cpu"), f"files in {config.out}", sep="\n")
    return rows


if __name__ == "__main__":
    end_well(lambda: main(CHOSEN), verb="start again")
