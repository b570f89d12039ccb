"""What a newcomer to offline RL writes by mistake is refused in one sentence, without annotations being checked."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import json, jax
import numpy as np
import flowrl
from flowrl.rl import VGF, Buffer, Lanes, Policy, Standardizer, data, fit, make_replay
from flowrl.rl.learning import presets

arrays = {"observations": np.ones((6, 3)), "actions": np.zeros((6, 1)), "rewards": np.ones(6), "dones": np.ones(6)}
dataset = data.from_arrays(arrays | {"next_observations": np.ones((6, 3))}, validation=0)
standardizer = Standardizer.fit(dataset.train.observations)

CALLS = {
    "a width": lambda: presets.default(hidden=256),
    "a word for a number": lambda: presets.default(particles="8"),
    "a word for a rate": lambda: presets.default(polyak="fast"),
    "a word for an aggregate": lambda: presets.default(target="min"),
    "a class": lambda: fit(VGF, None, updates=10, interval=10, key=jax.random.key(0)),
    "no replay": lambda: fit(presets.default(), {}, updates=10, interval=10, key=jax.random.key(0)),
    "candidates": lambda: Policy("a", "8"),
    "no replay in a ring": lambda: Buffer(None, 7, "rlpd"),
    "a data set": lambda: make_replay(dataset, standardizer, discount=0.9),
    "a protocol": lambda: Buffer(make_replay(dataset.train, standardizer, discount=0.9), 7, "half"),
    "nowhere": lambda: Lanes("gym:Nope-v1", 2),
    "no mesh": lambda: flowrl.sharding.split(np.zeros((4, 2)), jax.devices()),
    "no mesh to copy to": lambda: flowrl.sharding.replicate(np.zeros((4, 2)), "all"),
    "a size in words": lambda: flowrl.sharding.mesh(particles="all"),
    "lanes": lambda: Lanes("gym:Pendulum-v1", "2"),
}
said = {}
for name, call in CALLS.items():
    try:
        call()
    except (TypeError, ValueError) as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
EXPECTED = {
    "a width": "ValueError: VGF: hidden must be widths >= 1, such as (256, 256), got 256.",
    "a word for a number": "ValueError: VGF: particles must be a Python int >= 1, got '8'.",
    "a word for a rate": "ValueError: VGF: polyak must be in (0, 1], got 'fast'.",
    "a word for an aggregate": "TypeError: VGF: target must be an instance of AbstractAggregate, got 'min'.",
    "a class": "did you mean VGF(...)?",
    "no replay": "TypeError: replay must be a Replay, got dict: make one of a data set by make_replay.",
    "no replay in a ring": "TypeError: replay must be of the kind Replay, got NoneType: make_replay makes one of the",
    "a data set": "TypeError: data must be of the kind Transitions, got OfflineDataset: a split of a data set is one",
    "a protocol": "ValueError: protocol must be one of",
    "nowhere": "ValueError: gymnasium cannot make 'Nope-v1'",
    "no mesh": "TypeError: devices must be of the kind Mesh, got list: mesh(particles=jax.device_count()) makes one.",
    "no mesh to copy to": "TypeError: devices must be of the kind Mesh, got str",
    "a size in words": "ValueError: particles must be a Python int >= 1, got 'all'.",
    "candidates": "ValueError: a: candidates must be a Python int >= 1, got '8'.",
    "lanes": "ValueError: size must be a Python int >= 1, got '2'.",
}


@pytest.fixture(scope="module")
def said():
    return json.loads(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_mistake_is_refused_in_a_sentence(said, name):
    assert EXPECTED[name] in said[name]


@pytest.mark.thorough
def test_no_argument_of_a_wrong_kind_is_refused_in_the_words_of_python_or_of_a_package():
    script = pathlib.Path(__file__).with_name("wrong_kinds.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["calls"] > 1500
    assert found["leaks"] == []
