"""What a user waits for and pays before the first result: imports, compilation, memory; each in a new process."""

import json
import pathlib
import subprocess
import sys

from rounds import append

FOLDER = pathlib.Path(__file__).resolve().parent

IMPORTS = r"""
import json, time
begun = time.perf_counter()
import jax
jax.devices()
jax_seconds = time.perf_counter() - begun
import {module}
print(json.dumps({{"jax": jax_seconds, "more": time.perf_counter() - begun - jax_seconds}}))
"""

PROGRAM = r"""
import json, re, sys, time
sys.path.insert(0, {folder!r})
import theirs, jax, jax.numpy as jnp, jax.random as jr
peak = lambda: int(re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read()).group(1)) // 1024
agents = theirs.load({reference!r}, {packages!r}) if {who!r} == "authors" else None
whose = "theirs" if {who!r} == "authors" else "ours"
replay, fields = theirs.data(1_000_000 if {updates} else 20_000, whose)
before = peak()
if {who!r} == "authors":
    from utils.datasets import Dataset
    agent, data = theirs.agent(agents, "vgf", 512, 4, {steps}, vgf_particles=10), Dataset.create(**fields)
    batch = data.sample(256)
    begun = time.perf_counter()
    traced = type(agent).update.lower(agent, batch)
    middle = time.perf_counter()
    traced.compile()
    end = time.perf_counter()
    for _ in range({updates}):
        agent, info = agent.update(data.sample(256))
    jax.block_until_ready(info) if {updates} else None
else:
    from flowrl.rl import presets
    from flowrl.rl.learning._train import _interval
    from flowrl.rl import train
    algorithm = presets.authors({steps}, 0.1)
    state = theirs.fresh(algorithm)
    begun = time.perf_counter()
    traced = _interval.lower((algorithm, replay, 100, "main"), state)
    middle = time.perf_counter()
    traced.compile()
    end = time.perf_counter()
    if {updates}:
        jax.block_until_ready(train(algorithm, state, replay, {updates})[1])
print(json.dumps({{"trace": middle - begun, "compile": end - middle, "before": before, "peak": peak()}}))
"""


def _answer(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _row(what, name, answers):
    median = {key: sorted(a[key] for a in answers)[len(answers) // 2] for key in answers[0]}
    if what == "import":
        row = {"seconds": round(median["more"], 2), "note": f"on top of jax, {median['jax']:.2f} s"}
    elif what == "compile":
        row = {"seconds": round(median["trace"] + median["compile"], 2), "note": f"tracing {median['trace']:.1f} s"}
    else:
        row = {"seconds": "", "note": f"{median['peak']} MB at the peak, {median['before']} MB before the first"}
    return {"what": what, "method": name, "rounds": len(answers)} | row


def waiting(reference, packages, count, kinds):
    """Measure imports, compilation at L = 1 and 5, and the memory of a run; rounds are interleaved."""
    options = {"folder": str(FOLDER), "reference": str(reference), "packages": str(packages)}
    programs = {"import": {}, "compile": {}, "memory": {}}
    for module in ("flowrl", "flowrl.rl", "flowrl.rlhf"):
        programs["import"][module] = IMPORTS.format(module=module)
    for who in ("flowrl", "authors"):
        for steps in (1, 5):
            name = f"{who}, L = {steps}"
            programs["compile"][name] = PROGRAM.format(who=who, steps=steps, updates=0, **options)
        programs["memory"][who] = PROGRAM.format(who=who, steps=1, updates=2, **options)
    for kind in kinds:
        found = {name: [] for name in programs[kind]}
        for _ in range(1 if kind == "memory" else count):
            for name, program in programs[kind].items():
                found[name].append(_answer(program))
        append("waiting", [_row(kind, name, answers) for name, answers in found.items()])
