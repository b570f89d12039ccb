"""Time and memory of VGF for one prompt, over the sizes of Pythia: random weights, a policy and a reward model alike.

    python tests/benchmarks/rlhf_scaling.py --out docs/results/rlhf/scaling.csv

Every size runs in a process of its own; peak memory is the system's count, or the accelerator's. What a model of
another size needs follows from the flops: time is flops over the measured rate, memory is weights twice plus what the
particles take.
"""

import csv
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import tyro

from flowrl import Budget, Euler, Monotone
from flowrl.rlhf import (
    LanguageModel,
    LogitSpace,
    Prompt,
    ReferenceSpace,
    RewardModel,
    Sampler,
    TransformerConfig,
    align,
    sample,
)
from flowrl.runs import to_csv

#: Layers, width, heads.
SIZES = {
    "14m": (6, 128, 4),
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
    "410m": (24, 1024, 16),
    "1b": (16, 2048, 8),
}
VOCABULARY = 50304


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure several sizes."""

    sizes: tuple[str, ...] = tuple(SIZES)
    """Names of Pythia models."""
    prompt: int = 32
    """Tokens of the prompt."""
    response: int = 16
    """Tokens of a response."""
    particles: int = 8
    """Particles N."""
    steps: int = 1
    """Steps L."""
    out: Path = Path("runs/rlhf_scaling.csv")
    """The table; sizes that stand there are replaced, others kept."""
    child: bool = False
    """Measure the first size in this process and print a line of JSON; what the command uses for each size."""


def shape(name: str) -> TransformerConfig:
    """The shape of a Pythia model."""
    layers, width, heads = SIZES[name]
    settings = {"rotary_fraction": 0.25, "parallel": True, "tied": False}
    return TransformerConfig(VOCABULARY, width, layers, heads, heads, width // heads, 4 * width, **settings)


def measure(options: Options) -> dict:
    """One size, in this process."""
    name, count, length = options.sizes[0], options.particles, options.response
    config = shape(name)
    model = LanguageModel(config, key=jr.key(0))
    reward = RewardModel(config, key=jr.key(1))
    jax.block_until_ready((model, reward))
    loaded = peak()
    tokens = jr.randint(jr.key(2), (1, options.prompt), 1, VOCABULARY, jnp.int32)
    prompts, sampler = Prompt(tokens, jnp.ones(tokens.shape, bool)), Sampler(length)
    draw = lambda: sample(sampler, model, prompts, count=count, key=jr.key(3))
    (drawn, keys), seconds = timed(draw)
    row = {"model": name, "parameters": sum(x.size for x in jax.tree.leaves(model) if hasattr(x, "size"))}
    row |= {"prompt": options.prompt, "response": length, "particles": count, "steps": options.steps}
    row |= {"sample_seconds": seconds, "loaded_gb": loaded}
    budget = Budget(options.steps, 1.0)
    reference, logits = ReferenceSpace(model, sampler), LogitSpace(model, sampler, by="reference")
    for label, space, solver in (("reference", reference, Monotone()), ("logit", logits, Euler())):
        run = lambda space=space, solver=solver: align(
            space, reward, prompts, drawn, keys, budget, solver=solver, save=(options.steps,)
        )
        _, row[f"{label}_seconds"] = timed(run)
    row["peak_gb"] = peak()
    weights = row["parameters"] - VOCABULARY * config.width  # the input table is looked up
    passes = options.prompt + count * length  # sampling: encoding, decoding
    texts = count * (options.prompt + length)
    table = 4 * count * options.steps * length * VOCABULARY * config.width
    # An encoding and a decoding; rewards of texts, and each step there and back.
    row["logit_tflop"] = (2 * weights * (2 * passes + (1 + 2 * options.steps) * texts) + table) / 1e12
    row["logit_gflops"] = 1e3 * row["logit_tflop"] / row["logit_seconds"]
    return row | {"device": jax.devices()[0].device_kind, "cores": len(os.sched_getaffinity(0)), "jax": jax.__version__}


def timed(run):
    """The second of two calls: the first one compiles."""
    jax.block_until_ready(run())
    begun = time.perf_counter()
    result = jax.block_until_ready(run())
    return result, time.perf_counter() - begun


def peak() -> float:
    """Peak memory in GB: of the accelerator, or of this process where there is none."""
    accelerator = jax.devices()[0].memory_stats()
    if accelerator:
        return accelerator["peak_bytes_in_use"] / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(options: Options) -> None:
    """Measure each size and write the table."""
    if options.child:
        print(json.dumps(measure(options)))
        return
    rows = list(csv.DictReader(options.out.open())) if options.out.exists() else []
    for name in options.sizes:
        words = ["--prompt", options.prompt, "--response", options.response, "--particles", options.particles]
        command = [sys.executable, __file__, "--child", "--sizes", name, "--steps", options.steps, *words]
        done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
        rows = [old for old in rows if old["model"] != name] + [row]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(to_csv(rows))


if __name__ == "__main__":
    main(tyro.cli(Options))
