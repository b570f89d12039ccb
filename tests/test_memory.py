"""Memory grows with blocks of rows, not with the square of the number of particles: seen in a process of its own."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

PROGRAM = r"""
import json, re, sys
import jax, jax.numpy as jnp, jax.random as jr
import flowrl

def log_normal(x):
    return -0.5 * jnp.sum(x**2)

particles = jr.normal(jr.key(0), (20_000, 10))
moved = flowrl.transport(flowrl.Density(log_normal), particles, flowrl.Budget(2, 0.1), flow=eval(sys.argv[1]))
jax.block_until_ready(moved.particles)
# Not getrusage: its peak is inherited from the process that forked this one.
peak = int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read()).group(1)) / 1024
print(json.dumps({"peak": peak, "dtype": str(particles.dtype)}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.thorough
def test_twenty_thousand_particles_stay_below_450_megabytes():
    command = [sys.executable, "-c", PROGRAM, "flowrl.SVGD()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    report = json.loads(done.stdout)
    assert report["dtype"] == "float32"
    assert report["peak"] < 450, report
