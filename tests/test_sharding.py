"""More than one device: eight devices that XLA makes of one CPU, and two processes that talk over loopback."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowrl
from flowrl import sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]

EIGHT = r"""
import json, re
import equinox as eqx
import jax, jax.numpy as jnp, jax.random as jr, numpy as np
import flowrl
from flowrl import sharding
from flowrl._validation import check_log_weights, resolve
from flowrl._transport import _run
from flowrl.rl import ReferenceLearner, Standardizer, make_replay, presets
from flowrl.rl.data import Transitions

report = {}
far = lambda a, b: max(
    float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max())
    for x, y in zip(*(jax.tree.leaves(eqx.filter(t, eqx.is_inexact_array)) for t in (a, b)))
)

# One set of particles over the devices, in a program of which every array is known.
target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
budget, kernel = flowrl.Budget(3, 0.5), flowrl.RBF()
x = 3 * jr.normal(jr.key(0), (1600, 5))
devices = sharding.mesh(particles=8)
over = flowrl.Transport(flowrl.SVGD(sharding.Sharded(kernel, devices)))
placed = sharding.split(x, devices)
alone = flowrl.transport(target, x, budget, flow=flowrl.SVGD(kernel))
divided = over(target, placed, budget, throw=False)
report["moved"] = far(alone.particles, x)
report["particles"] = far(alone.particles, divided.particles)
report["parts"] = [list(s.data.shape) for s in divided.particles.addressable_shards]
inside = lambda method, start, logs=None: (
    method, target, start, resolve(budget, start, unit_time=False), logs, None, None
)
program = _run.lower(*inside(over, placed)).compile().compiled.as_text()
report["gathered"] = [line for line in re.findall(r"(\S+) all-gather", program) if "1600" in line]
frozen = x.at[7].set(jnp.nan)
alone = _run(*inside(flowrl.Transport(flowrl.SVGD(kernel)), frozen))
divided = _run(*inside(over, sharding.split(frozen, devices)))
report["frozen"] = far(jnp.nan_to_num(alone.particles), jnp.nan_to_num(divided.particles))
logs = check_log_weights(2 * jr.normal(jr.key(1), (1600,)), flowrl.SVGD(), x)
alone = _run(*inside(flowrl.Transport(flowrl.SVGD(kernel)), x, logs))
divided = _run(*inside(over, placed, sharding.split(logs, devices)))
report["weighted"] = far(alone.particles, divided.particles)
report["weights matter"] = far(alone.particles, _run(*inside(over, placed)).particles)

# Bytes of a device for one step of a large set; nothing is run.
report["bytes"] = {}
for count in (2, 8):
    some = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("particles",))
    along = jax.sharding.NamedSharding(some, jax.sharding.PartitionSpec("particles"))
    large = jax.ShapeDtypeStruct((65536, 200), jnp.float32, sharding=along)
    everyone = jax.ShapeDtypeStruct((65536,), bool, sharding=along)
    fixed = sharding.Sharded(flowrl.RBF(flowrl.FixedBandwidth(1.0)), some)
    step = jax.jit(lambda x, alive: fixed.stein(x, -x, alive, jnp.ones(())))
    memory = step.lower(large, everyone).compile().memory_analysis()
    report["bytes"][count] = [memory.argument_size_in_bytes + memory.output_size_in_bytes, memory.temp_size_in_bytes]

# A batch of states over the devices: one update of VGF, and another.
rng = np.random.default_rng(0)
rows = lambda *shape: rng.normal(size=shape).astype(np.float32)
ends = (np.arange(400) % 100 == 99).astype(np.float32)
data = Transitions(rows(400, 5), rows(400, 2).clip(-1, 1), ends, rows(400, 5), np.ones_like(ends), ends)
replay = make_replay(data, Standardizer.fit(data.observations), discount=0.99)
cached = jnp.asarray(rows(400, 4, 2).clip(-1, 1))
replay = eqx.tree_at(lambda r: r.particles, replay, cached, is_leaf=lambda x: x is None)
small = {"particles": 4, "samples": 4, "hidden": (8,), "reference": ReferenceLearner(hidden=(8,))}
vgf = presets.default(1, 0.05, batch_size=32, learning_rate=0.01, **small)
batch, key = jnp.arange(32), jr.key(0)
learned = eqx.filter_jit(lambda state, replay, key: vgf.update(state, replay, batch, key)[0])

def twice(learned, state, replay):
    return learned(learned(state, replay, key), replay, key)

start = vgf.init(5, 2, key=jr.key(1))
alone = twice(learned, start, replay)
devices = sharding.mesh(states=8)
with jax.set_mesh(devices):
    state, data = sharding.replicate(start, devices), sharding.replicate(replay, devices)
    compiled = learned.lower(state, data, key).compile()
    divided = twice(compiled, state, data)
    text = compiled.compiled.as_text()
report["update"] = far(alone.critic.network, divided.critic.network)
report["learned"] = far(alone.critic.network, start.critic.network)
report["states of a device"] = sorted({int(b) for b in re.findall(r"f32\[(\d+),4,2\]", text)})
report["summed gradients"] = "all-reduce" in text

# Seeds over the devices.
arrays, rest = eqx.partition(start, eqx.is_inexact_array)
seeds = [eqx.combine(jax.tree.map(lambda x: (1 + 0.1 * i) * x, arrays), rest) for i in range(8)]
alone = [learned(seed, replay, key) for seed in seeds]
together = lambda states: jax.tree.map(lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0], *states)
trained = eqx.filter_jit(eqx.filter_vmap(lambda state: vgf.update(state, replay, batch, key)[0]))
divided = trained(sharding.split(together(seeds), sharding.mesh(seeds=8), "seeds"))
alone = together(alone)
report["seeds"] = far(alone.critic.network, divided.critic.network)
weight = divided.critic.network.members.layers[0].weight
report["seeds of a device"] = [s.data.shape[0] for s in weight.addressable_shards]
print(json.dumps(report))
"""

TWO = r"""
import json, sys
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import flowrl
from flowrl import sharding

devices = sharding.mesh(particles=jax.device_count())
flow = flowrl.SVGD(sharding.Sharded(flowrl.RBF(), devices))
target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
x = sharding.split(np.linspace(-3, 3, 200, dtype=np.float32).reshape(100, 2), devices)
moved = jax.jit(lambda x: flowrl.transport(target, x, flowrl.Budget(5, 0.5), flow=flow, throw=False).particles)(x)
own = moved.addressable_shards[0]
report = {"devices": jax.device_count(), "first": own.index[0].start or 0, "rows": np.asarray(own.data).tolist()}
print(json.dumps(report))
"""


def _environment(devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0", "XLA_FLAGS": flags}


@pytest.fixture(scope="module")
def eight():
    command = [sys.executable, "-c", EIGHT]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, env=_environment(8))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.thorough
def test_one_set_over_eight_devices_is_the_set_of_one(eight):
    assert eight["moved"] > 0.1
    assert eight["particles"] < 2e-5
    assert eight["frozen"] < 2e-5
    assert eight["weighted"] < 2e-5
    assert eight["weights matter"] > 0.01
    assert eight["parts"] == [[200, 5]] * 8
    assert eight["gathered"] == []


@pytest.mark.thorough
def test_memory_of_a_device_falls_with_their_number(eight):
    held = {int(count): sum(pair) for count, pair in eight["bytes"].items()}
    tile = 8 * 2**20  # what does not shrink: two tiles of the kernel matrix
    # From two devices on, since one alone has no visitors.
    assert held[8] - tile < 1.05 * held[2] / 4, held
    assert eight["bytes"]["8"][0] * 4 == pytest.approx(eight["bytes"]["2"][0], rel=0.01)


@pytest.mark.thorough
def test_a_batch_over_eight_devices_learns_the_same(eight):
    assert eight["learned"] > 1e-3
    assert eight["update"] < 2e-5
    assert eight["states of a device"] == [4, 400]  # beside the data, 32 / 8
    assert eight["summed gradients"]


@pytest.mark.thorough
def test_seeds_over_eight_devices_learn_the_same(eight):
    assert eight["seeds"] < 2e-5
    assert eight["seeds of a device"] == [1] * 8


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="sockets of loopback")
def test_two_processes_move_one_set():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", TWO, address, str(i)] for i in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(c, cwd=ROOT, env=_environment(1), **pipes) for c in commands]
    try:
        answers = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], answers
    reports = sorted((json.loads(out.splitlines()[-1]) for out, _ in answers), key=lambda r: r["first"])
    assert [r["devices"] for r in reports] == [2, 2]
    assert [r["first"] for r in reports] == [0, 50]
    x = jnp.linspace(-3, 3, 200, dtype=jnp.float32).reshape(100, 2)
    target = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2))
    alone = flowrl.transport(target, x, flowrl.Budget(5, 0.5)).particles
    np.testing.assert_allclose(np.concatenate([r["rows"] for r in reports]), alone, atol=1e-5)


def test_what_cannot_be_divided_is_refused():
    one = sharding.mesh(particles=1)
    with pytest.raises(ValueError, match="does not fit"):
        sharding.mesh(particles=1000)
    with pytest.raises(ValueError, match="particles must be a Python int >= 1, got 0"):
        sharding.mesh(particles=0)
    assert sharding.replicate((2, "name"), one) == (2, "name")  # what is no array is left as it is
    with pytest.raises(ValueError, match="axes"):
        sharding.split(jnp.ones((4, 2)), one, "states")
    with pytest.raises(TypeError, match="kernel"):
        sharding.Sharded(flowrl.SVGD(), one)
    with pytest.raises(ValueError, match=r"make it by mesh\(particles"):
        sharding.Sharded(flowrl.RBF(), jax.make_mesh((1,), ("particles",)))
    with pytest.raises(ValueError, match="leading axis"):
        sharding.split(jnp.ones(()), one)


@pytest.mark.thorough
def test_on_one_device_it_is_the_kernel_itself():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    one, alive = sharding.mesh(particles=1), jnp.ones(6, bool)
    kernel = flowrl.RBF()
    sharded = sharding.Sharded(kernel, one)
    alpha = jnp.ones((), x.dtype)
    np.testing.assert_allclose(sharded.stein(x, -x, alive, alpha), kernel.stein(x, -x, alive, alpha))
    np.testing.assert_allclose(sharded.stein_gram(x, -x, x, -x), kernel.stein_gram(x, -x, x, -x))


SAVED = r"""
import json, pathlib, sys
import jax, jax.numpy as jnp, numpy as np
import flowrl
from flowrl import sharding
from flowrl.runs import load_checkpoint, save_checkpoint

x = np.linspace(-3, 3, 320, dtype=np.float32).reshape(160, 2)
target, budget = flowrl.Density(lambda x: -0.5 * jnp.sum((x - 1) ** 2)), flowrl.Budget(3, 0.5)

def moved(x, count):
    devices = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("particles",))
    flow = flowrl.SVGD(sharding.Sharded(flowrl.RBF(), devices))
    return flowrl.transport(target, sharding.split(x, devices), budget, flow=flow, throw=False).particles

path = pathlib.Path(sys.argv[1]) / "particles.npz"
halfway = moved(x, 8)
save_checkpoint(path, {"particles": halfway}, {"steps": 3})
back, meta = load_checkpoint(path, {"particles": jnp.zeros_like(x)})
ends = {count: np.asarray(moved(back["particles"], count)) for count in (8, 4, 2)}
report = {"same": bool((np.asarray(back["particles"]) == np.asarray(halfway)).all()), "steps": meta["steps"]}
report["parts"] = len({s.device for s in halfway.addressable_shards})
report["whole"] = float(np.abs(np.asarray(moved(halfway, 8)) - ends[8]).max())
report["fewer"] = max(float(np.abs(ends[count] - ends[8]).max()) for count in (4, 2))
print(json.dumps(report))
"""


@pytest.mark.thorough
def test_particles_of_eight_devices_are_saved_whole_and_go_on_over_any_number(tmp_path):
    command = [sys.executable, "-c", SAVED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=_environment(8), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["same"], report["steps"], report["parts"], report["whole"]) == (True, 3, 8, 0.0)
    assert report["fewer"] < 1e-5


SAVED_BY_TWO = r"""
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
from flowrl import sharding
from flowrl.runs import load_checkpoint, save_checkpoint

path = pathlib.Path(sys.argv[3]) / "state.npz"
whole = np.arange(12, dtype=np.float32).reshape(6, 2)
state = {"particles": sharding.split(whole, sharding.mesh(particles=2))}
try:
    save_checkpoint(path, state, {})
except ValueError as error:
    print(error)
gathered = jax.tree.map(jnp.asarray, multihost_utils.process_allgather(state, tiled=True))
if jax.process_index() == 0:
    save_checkpoint(path, gathered, {})
    assert (load_checkpoint(path, {"particles": jnp.zeros((6, 2))})[0]["particles"] == whole).all()
multihost_utils.sync_global_devices("saved")
"""


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="sockets of loopback")
def test_particles_of_two_processes_are_saved_as_the_error_says(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    commands = [[sys.executable, "-c", SAVED_BY_TWO, address, str(i), str(tmp_path)] for i in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(c, cwd=ROOT, env=_environment(1), **pipes) for c in commands]
    try:
        answers = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], answers
    assert all("['particles'] is divided over processes" in out for out, _ in answers)
    assert (tmp_path / "state.npz").exists()
