"""What a newcomer to offline RL writes by mistake is refused in one sentence, without annotations being checked."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, jax
from flowrl.rl import VGF, Buffer, Lanes, Policy, fit
from flowrl.rl.learning import presets

CALLS = {
    "a width": lambda: presets.default(hidden=256),
    "a word for a number": lambda: presets.default(particles="8"),
    "a word for a rate": lambda: presets.default(polyak="fast"),
    "a word for an aggregate": lambda: presets.default(target="min"),
    "a class": lambda: fit(VGF, None, updates=10, interval=10, key=jax.random.key(0)),
    "no replay": lambda: fit(presets.default(), {}, updates=10, interval=10, key=jax.random.key(0)),
    "candidates": lambda: Policy("a", "8"),
    "a protocol": lambda: Buffer(None, 7, "half"),
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
    "a protocol": "ValueError: protocol must be one of",
    "candidates": "ValueError: a: candidates must be a Python int >= 1, got '8'.",
    "lanes": "ValueError: size must be a Python int >= 1, got '2'.",
}


@pytest.fixture(scope="module")
def said():
    return json.loads(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_mistake_is_refused_in_a_sentence(said, name):
    assert EXPECTED[name] in said[name]
