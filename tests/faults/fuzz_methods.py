"""Calls of methods that accept or reject, temper, pace themselves, carry weights or know no gradient, with odd values.

    python tests/faults/fuzz_methods.py [CALLS] [SEED]

As `fuzz.py`, with its values and its judge, for the parts that it does not hold: solvers that are Metropolis, Monotone,
Tempered, Nesterov, Coin and Adaptive, Hamiltonian and microcanonical proposals, weights, inverse problems, flows in
unit time, random batches and slices, and `flowrl.sample`. An error of a valid call must be of a class that its
docstring names, with words of flowrl's own.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fuzz import DOMAINS, D, N, Structure, judge, log_normal, magnitude, main, particles, target_of

import flowrl

PLAIN = flowrl.Langevin()
#: Flow, solver, and what it goes towards: "free" methods find their step size themselves.
METHODS: dict[str, tuple[Any, Any, str]] = {
    "MALA": (PLAIN, flowrl.Metropolis(), "free"),
    "MALA, given step": (PLAIN, flowrl.Metropolis(), "given"),
    "HMC": (PLAIN, flowrl.Metropolis(flowrl.Hamiltonian(3)), "free"),
    "HMC, friction": (PLAIN, flowrl.Metropolis(flowrl.Hamiltonian(2, friction=1.0, scale=None)), "free"),
    "MAMS": (PLAIN, flowrl.Metropolis(flowrl.Microcanonical(2)), "free"),
    "MAMS, covariance": (PLAIN, flowrl.Metropolis(flowrl.Microcanonical(2, scale=flowrl.LearnedCovariance())), "free"),
    "Hamiltonian": (PLAIN, flowrl.Hamiltonian(2), "given"),
    "Microcanonical": (PLAIN, flowrl.Microcanonical(2), "given"),
    "Monotone ascent": (flowrl.Ascent(), flowrl.Monotone(), "given"),
    "Monotone SVGD": (flowrl.SVGD(), flowrl.Monotone(), "given"),
    "Tempered": (PLAIN, flowrl.Tempered(moves=2), "tilted"),
    "Tempered HMC": (PLAIN, flowrl.Tempered(flowrl.Metropolis(flowrl.Hamiltonian(2)), moves=1), "tilted"),
    "Nesterov SVGD": (flowrl.SVGD(), flowrl.Nesterov(), "given"),
    "Nesterov ascent": (flowrl.Ascent(), flowrl.Nesterov(), "given"),
    "Coin SVGD": (flowrl.SVGD(), flowrl.Coin(), "free"),
    "Coin ascent": (flowrl.Ascent(), flowrl.Coin(), "free"),
    "Adaptive ALDI": (flowrl.ALDI(), flowrl.Adaptive(), "given"),
    "Adaptive Langevin": (PLAIN, flowrl.Adaptive(), "given"),
    "Batches of SVGD": (flowrl.RandomBatch(flowrl.SVGD(), N), flowrl.Euler(), "given"),
    "SlicedSVGD": (flowrl.SlicedSVGD(), flowrl.Euler(), "given"),
    "KFRFlow": (flowrl.KFRFlow(), flowrl.Euler(), "tilted"),
    "EKS": (flowrl.EKS(), flowrl.Euler(), "inverse"),
    "EKI": (flowrl.EKI(), flowrl.Euler(), "inverse"),
    "Weighted SVGD": (flowrl.SVGD(), flowrl.Euler(), "weighted"),
    "Weighted Blob": (flowrl.Blob(), flowrl.Euler(), "weighted"),
    "Weighted MMDFlow": (flowrl.MMDFlow(), flowrl.Euler(), "weighted"),
    "Weighted ascent": (flowrl.Ascent(), flowrl.Euler(), "weighted"),
}
STEPS = 3
#: What a run may end with; the words of `flowrl.RESULTS`, and of checks at run time.
KNOWN = (
    "non-finite at every particle",
    "A traced budget was invalid",
    "maximum number",
    "spent before the last temperature",
)


def forward(x):
    return jnp.stack([jnp.sum(x), jnp.sum(x**2)])


def target(kind, name, rng, dtype, x):
    """Draw a target of a kind; `name` is one of fuzz.py's."""
    if kind == "tilted":
        return target_of("Tilted", rng, dtype, x)
    if kind == "inverse":
        sizes = (jnp.asarray(magnitude(rng, -3, 3), dtype) for _ in range(2))
        return flowrl.InverseProblem(forward, jnp.asarray(rng.normal(size=2), dtype), next(sizes), x[0], next(sizes))
    return target_of(name, rng, dtype, x)


def structure(method, domain, name, dtype) -> Structure:
    """Make one compiled program of a method."""
    flow, solver, kind = METHODS[method]
    transport = flowrl.Transport(flow, solver, DOMAINS[domain])
    unit_time = method in ("KFRFlow", "EKI")

    def call(rng):
        x = particles(rng, domain, dtype)
        law = target(kind, name, rng, dtype, x)
        size = None if kind in ("free", "tilted") and not unit_time else np.asarray(magnitude(rng))
        size = None if unit_time else size
        hot = flow.traits.temperature != "none" and kind not in ("inverse",) and method != "KFRFlow"
        options = {"log_weights": weights(rng, dtype)} if kind == "weighted" else {}
        with np.errstate(all="ignore"):
            budget = flowrl.Budget(STEPS, size, magnitude(rng) if hot else None)
        try:
            solution = transport(law, x, budget, key=jr.key(int(rng.integers(2**31))), throw=bool(rng.random() < 0.2),
                                 **options)  # fmt: skip
        except RuntimeError as error:
            ours = any(words in str(error) for words in KNOWN)
            return [] if ours else [f"RuntimeError: {str(error)[:200]}"]
        return judge(transport, x, solution, STEPS) + finite(solution)

    return Structure(f"{method} | {domain} | {name} | {jnp.dtype(dtype).name}", call)


def weights(rng, dtype):
    """Draw log weights over many orders of magnitude, some of them -inf, not all."""
    drawn = rng.normal(size=N) * magnitude(rng, -3, 4)
    drawn[1:][rng.random(N - 1) < 0.3] = -np.inf
    return jnp.asarray(drawn, dtype)


def finite(solution) -> list[str]:
    """Say what is NaN among what a method learned."""
    extras = dict(solution.extras)
    if len(set(np.asarray(extras.get("origin", [0, 1])).tolist())) == 1:
        del extras["log_evidence_error"]  # all descend from one particle, and the docstring says NaN
    found = [f"extras {name} are NaN" for name, value in extras.items() if _nan(value)]
    return found + (["log weights are NaN"] if _nan(solution.log_weights) else [])


def _nan(tree) -> bool:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return any(np.issubdtype(leaf.dtype, np.inexact) and np.isnan(leaf).any() for leaf in leaves)


def sampling(name, **options) -> Structure:
    """Make a program that samples."""

    def call(rng):
        law = target_of("Density", rng, jnp.float64, None)
        start = jnp.asarray(rng.normal(size=(6, D)) * magnitude(rng, -3, 3))
        samples = flowrl.sample(law, start, key=jr.key(int(rng.integers(2**31))), max_gradients=4000, **options)
        wrong = [] if np.isfinite(np.asarray(samples.draws)).all() else ["draws that are not finite"]
        return wrong + ([] if str(samples) else ["no verdict"])

    return Structure(f"sample: {name}", call)


def structures() -> list[Structure]:
    """Give every method on a set without bounds, and on another domain where it goes there."""
    rng, found = np.random.default_rng(2), []
    probe = jnp.asarray(np.full((N, D), 1 / D))
    for index, (method, (flow, solver, kind)) in enumerate(METHODS.items()):
        others = [str(x) for x in rng.permutation([d for d in DOMAINS if d != "Unbounded"])]
        for domains in (["Unbounded"], others):
            for domain in domains:
                name = str(rng.choice(["Boltzmann", "Density"]))
                law = target(kind, name, np.random.default_rng(0), jnp.float64, probe)
                if flowrl.supports(flow, solver, DOMAINS[domain], law):
                    dtype = (jnp.float32, jnp.float64)[(index + len(found)) % 2]
                    found.append(structure(method, domain, name, dtype))
                    break
    return [*found, sampling("default"), sampling("tempered", tempered=True)]


_X = np.random.default_rng(0).normal(size=(6, 2))
GOOD: dict[str, tuple[Any, dict[str, Any]]] = {
    "Metropolis": (flowrl.Metropolis, {"proposal": flowrl.Euler(), "acceptance": 0.5, "share": 0.5}),
    "Monotone": (flowrl.Monotone, {"inner": flowrl.Euler(), "acceptance": 0.5, "share": 0.5}),
    "Tempered": (flowrl.Tempered, {"inner": flowrl.Metropolis(), "ess": 0.9, "moves": 2}),
    "Adaptive": (flowrl.Adaptive, {"reach": 0.5}),
    "Hamiltonian": (flowrl.Hamiltonian, {"leaps": 2, "friction": 1.0, "scale": flowrl.LearnedScale()}),
    "Microcanonical": (flowrl.Microcanonical, {"leaps": 2, "length": 1.0, "scale": flowrl.LearnedScale()}),
    "LearnedScale": (flowrl.LearnedScale, {"share": 0.5}),
    "LearnedCovariance": (flowrl.LearnedCovariance, {"share": 0.5}),
    "InverseProblem": (flowrl.InverseProblem, {"forward_map": forward, "data": [1.0, 2.0], "noise": 0.1,
                                               "prior_mean": [0.0, 0.0], "prior_scale": 1.0}),
    "KFRFlow": (flowrl.KFRFlow, {"kernel": flowrl.RBF(), "regularisation": 1e-3}),
    "RandomBatch": (flowrl.RandomBatch, {"flow": flowrl.SVGD(), "size": 3}),
    "SlicedSVGD": (flowrl.SlicedSVGD, {"kernel": flowrl.RBF()}),
    "ramp": (flowrl.ramp, {"step_size": 0.1, "steps": 10, "start": 0.01, "share": 0.1}),
    "bridge": (flowrl.bridge, {"log_start": log_normal, "log_prob": log_normal}),
    "transport, weights": (flowrl.transport, {"target": flowrl.Density(log_normal), "particles": _X,
                                              "budget": flowrl.Budget(1, 0.1), "log_weights": np.zeros(6)}),
}  # fmt: skip

if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    found = main(*(numbers + [10_000, 0][len(numbers) :]), structures(), GOOD)
    print(json.dumps(found))
    sys.exit(bool(found["wrong"]))
