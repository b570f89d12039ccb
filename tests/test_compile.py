"""What compiles again and what does not, and in which precision it runs. A trace is seen by a Python counter."""

import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FLOAT, X64, draw

import flowrl

FIXED = flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(1.0)))


class Counted(eqx.Module):
    """A log density with weights, whose Python body counts how often it is traced."""

    weight: jax.Array
    count: list = eqx.field(static=True)

    def __call__(self, shift, x):
        self.count[0] += 1
        return -0.5 * jnp.sum(self.weight * (x - shift) ** 2)


class _Hashable(list):
    __hash__ = object.__hash__  # pyright: ignore
    __eq__ = object.__eq__


def _counted(weight=1.0, count=None):
    return Counted(jnp.asarray(weight, FLOAT), _Hashable([0]) if count is None else count)


def _retraces(count, call):
    """Whether `call` traces the density again."""
    before = count[0]
    jax.block_until_ready(call().particles)
    return count[0] > before


@pytest.mark.thorough
def test_new_numbers_never_retrace_and_new_structure_does():
    count, x, zero = _Hashable([0]), draw(0, (8, 2)), jnp.zeros(2, FLOAT)

    def call(x=x, budget=None, weight=1.0, shift=zero, flow=FIXED, **options):
        target = flowrl.Density(_counted(weight, count), shift)
        budget = flowrl.Budget(3, 0.1, 1.0, max_displacement=1.0, scale=1.0) if budget is None else budget
        return lambda: flowrl.transport(target, x, budget, flow=flow, **options)

    def budget(steps=3, step_size=0.1, temperature=1.0, cap=1.0, scale=1.0):
        return flowrl.Budget(steps, step_size, temperature, max_displacement=cap, scale=scale)

    assert _retraces(count, call())
    same = {
        "again": call(),
        "particles": call(x=x + 1),
        "NumPy particles": call(x=np.asarray(x)),
        "weights": call(weight=2.0),
        "arguments": call(shift=zero + 3),
        "NumPy arguments": call(shift=np.ones(2, FLOAT)),
        "step size": call(budget=budget(step_size=0.2)),
        "integer step size": call(budget=budget(step_size=1)),
        "array step size": call(budget=budget(step_size=np.float32(0.3))),
        "temperature": call(budget=budget(temperature=0.5)),
        "default temperature": call(budget=budget(temperature=None)),
        "cap": call(budget=budget(cap=0.2)),
        "scale": call(budget=budget(scale=2.0)),
        "scale of another shape": call(budget=budget(scale=np.array([1.0, 2.0]))),
        "bandwidth": call(flow=flowrl.SVGD(flowrl.RBF(flowrl.FixedBandwidth(2.0)))),
        "saying the defaults": call(solver=flowrl.Euler(), domain=flowrl.Unbounded()),
        "throw": call(throw=False),
    }
    assert [name for name, thunk in same.items() if _retraces(count, thunk)] == []
    different = {
        "static steps": call(budget=budget(steps=4)),
        "number of particles": call(x=x[:7]),
        "no cap": call(budget=budget(cap=None)),
        "schedule": call(budget=budget(step_size=np.array([0.1, 0.2, 0.3]))),
        "save": call(save=(1,)),
        "solver": call(solver=flowrl.Optax()),
    }
    assert [name for name, thunk in different.items() if not _retraces(count, thunk)] == []
    # And each of them once.
    assert [name for name, thunk in different.items() if _retraces(count, thunk)] == []


def test_traced_steps_share_one_program():
    count, x = _Hashable([0]), draw(0, (8, 2))

    def call(steps):
        target = flowrl.Density(_counted(1.0, count), jnp.zeros(2, FLOAT))
        return lambda: flowrl.transport(target, x, flowrl.Budget(jnp.asarray(steps), 0.1, max_steps=6), flow=FIXED)

    assert _retraces(count, call(1))
    assert not any(_retraces(count, call(steps)) for steps in (0, 2, 6))


def test_one_step_of_the_flow_is_traced_whatever_the_number_of_steps():
    counts = []
    for steps in (2, 50):
        target = flowrl.Density(_counted(), jnp.zeros(2, FLOAT))
        flowrl.transport(target, draw(0, (8, 2)), flowrl.Budget(steps, 0.1), flow=FIXED)
        counts.append(target.function.count[0])
    assert counts[0] == counts[1] <= 3


def test_boxes_and_optimisers_do_not_retrace_either():
    count, x = _Hashable([0]), draw(0, (8, 2)).clip(-1, 1)

    def call(high):
        target = flowrl.Density(_counted(1.0, count), jnp.zeros(2, FLOAT))
        method = flowrl.Transport(FIXED, flowrl.Optax(), flowrl.Box(-1.0, high))
        return lambda: method(target, x, flowrl.Budget(2, 0.1))

    assert _retraces(count, call(1.0))
    assert not _retraces(count, call(2.0))


# Precision

COMBINATIONS = """
import equinox as eqx, flowrl, jax, jax.numpy as jnp, numpy as np

def value(weights, x):
    return jnp.sum(weights * jnp.cos(x))

def move(x, solver):
    budget = flowrl.Budget(3, lambda l: 0.1 / (l + 1), 0.5, max_displacement=0.5, scale=np.array([1.0, 2.0]))
    target, box = flowrl.Boltzmann(value, jnp.ones(2, x.dtype)), flowrl.Box(-1, 1)
    return flowrl.transport(target, x, budget, solver=solver, domain=box, save=(1,), throw=False)

def dtypes(dtype):
    found = {}
    for solver in (flowrl.Euler(), flowrl.Optax()):
        # Abstract evaluation: the dtypes without the wait for a program.
        solution = eqx.filter_eval_shape(move, jnp.zeros((6, 2), dtype), solver)
        floats = {name: s for name, s in solution.stats.items() if name not in ("steps", "nonfinite")}
        leaves = jax.tree.leaves((solution.particles, solution.values, solution.trajectory, floats))
        found[type(solver).__name__] = sorted({str(leaf.dtype) for leaf in leaves})
    return found
"""


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.skipif(not X64, reason="needs x64"))]
)
def test_everything_comes_back_in_the_precision_of_the_particles(dtype):
    space = {}
    exec(COMBINATIONS, space)
    assert space["dtypes"](dtype) == {"Euler": [dtype], "Optax": [dtype]}


@pytest.mark.thorough
def test_single_precision_in_a_process_without_64_bit_types():
    run = "x = move(jnp.ones((6, 2)), flowrl.Optax()).particles; assert str(x.dtype) == 'float32' and x.max() < 1"
    code = COMBINATIONS + run + "; import json; print(json.dumps(dtypes('float32')))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"Euler": ["float32"], "Optax": ["float32"]}


def test_half_precision_runs():
    solution = flowrl.transport(
        flowrl.Density(lambda x: -0.5 * jnp.sum(x**2)), draw(1, (6, 2), jnp.bfloat16), flowrl.Budget(3, 0.1), flow=FIXED
    )
    assert solution.particles.dtype == jnp.bfloat16
    assert bool(jnp.all(jnp.isfinite(solution.particles)))


def test_new_python_floats_among_the_arguments_do_not_retrace():
    count = []

    def value(centre, x):
        count.append(1)
        return -jnp.sum((x - centre) ** 2)

    particles = jnp.zeros((3, 2), jnp.float32)
    first = flowrl.transport(flowrl.Boltzmann(value, 0.5), particles, flowrl.Budget(2, 0.1), flow=flowrl.Ascent())
    traced = len(count)
    second = flowrl.transport(flowrl.Boltzmann(value, 0.7), particles, flowrl.Budget(2, 0.1), flow=flowrl.Ascent())
    assert len(count) == traced
    assert second.particles.dtype == jnp.float32
    assert (second.particles > first.particles).all()
