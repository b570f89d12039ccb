"""Gradient evaluations and seconds to equal accuracy on four posteriors: flows, SVGD of two other libraries, NUTS.

    python tests/benchmarks/posteriors.py [--out docs/results]

Writes posteriors.csv, a row for each posterior, method and seed, and posteriors_standard.csv, the long NUTS runs that
all are measured by. The models and measures are those of `flowrl posterior`.

- Accuracy: both errors of the moments (root mean squares over coordinates of the error of the mean in standard
  deviations, and of the log of the ratio of standard deviations) below `--accuracy`, at a checkpoint and at all later
  ones. Checkpoints lie in geometric progression.
- Budget: `--gradients` evaluations of the gradient, by one particle or one leapfrog step each, for every method.
- Tuning: every method has four settings (a step size; for NUTS the length of the warm-up) and keeps the one that is
  accurate after the fewest evaluations on a seed of its own, or ends nearest to it if none is.
- Cost: a method is charged the part of its time in which it spent the evaluations. Warm-up of NUTS is included and also
  stands apart; compilation and tuning are not included. Seeds are rounds, in which the methods take turns.
- All particle methods start from the same draws of the prior; on eight schools also, in a second series, from numbers
  between -2 and 2 in unconstrained coordinates, which is how numpyro's NUTS and SVGD start by default.

Needs the extras `bayes` and `examples`, and blackjax.
"""

import argparse
import importlib.metadata
import os
import pathlib
import time
from typing import Any, NamedTuple

# The threads of a small QR, of which ALDI takes one per step, wait for each other where another process has a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import blackjax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import optax
from blackjax.vi.svgd import rbf_kernel, update_median_heuristic
from jax.flatten_util import ravel_pytree
from numpyro.contrib.einstein import SVGD, RBFKernel

import flowrl
from flowrl.runs import to_csv
from flowrl.scripts.posterior._measures import Judge, standard
from flowrl.scripts.posterior._methods import nuts, starts, step_sizes, transport_of
from flowrl.scripts.posterior._models import load
from flowrl.scripts.posterior._program import at

# Where particles start matters most where the prior has heavy tails, as that of tau in eight schools.
CASES = (
    ("logistic", "prior"),
    ("eight-schools", "prior"),
    ("eight-schools", "zero"),
    ("baseball", "prior"),
    ("network", "prior"),
)
FEW, MANY = 100, 200  # particles of SVGD; of the stochastic flows, whose error is that of independent draws
DRAWS = 1000  # of NUTS after the warm-up, cut off at the budget
ADAGRAD = (0.3, 1.0, 3.0, 10.0)  # numpyro recommends Adagrad over Adam
SETTINGS = {
    "flowrl SVGD": ADAGRAD,
    "flowrl SVGD(Preconditioned)": (0.03, 0.1, 0.3, 1.0),
    "flowrl Langevin": (0.001, 0.005, 0.02, 0.1),
    "flowrl ALDI": (0.003, 0.01, 0.03, 0.1),
    "blackjax SVGD": ADAGRAD,
    "numpyro SVGD": ADAGRAD,
    "numpyro NUTS": (50, 100, 300, 1000),
}
FLOWS = {
    "flowrl SVGD": "svgd",
    "flowrl SVGD(Preconditioned)": "preconditioned",
    "flowrl Langevin": "langevin",
    "flowrl ALDI": "aldi",
}


def checkpoints(stop):
    """Return about thirty increasing counts up to `stop`."""
    return np.unique(np.geomspace(10, stop, 30).round().astype(int))


def flow_run(name, posterior, saved):
    """Return a function of start, key and step size: the particles at the checkpoints."""
    transport = transport_of(FLOWS[name])

    def run(start, key, setting):
        budget = flowrl.Budget(int(saved[-1]), step_sizes(FLOWS[name], int(saved[-1]), setting))
        return transport(posterior.target, start, budget, key=key, save=saved, throw=False).trajectory

    return run


def blackjax_run(posterior, saved):
    """Return the same for blackjax, its bandwidth updated at every step as in its documentation."""

    def run(start, key, setting):
        del key
        points, log_prob, unravel = flat(posterior, start)
        svgd = blackjax.svgd(jax.grad(log_prob), optax.adagrad(setting), rbf_kernel, update_median_heuristic)
        state = update_median_heuristic(svgd.init(points, {"length_scale": jnp.ones(())}))
        return collect(svgd.step, lambda state: state.particles, state, saved, unravel)

    return jax.jit(run)


def numpyro_run(posterior, saved):
    """Return the same for numpyro. Its SVGD leaves out Jacobians, so the model that it is given is unconstrained."""

    def run(start, key, setting):
        points, log_prob, unravel = flat(posterior, start)

        def model():
            with numpyro.handlers.mask(mask=False):  # a site to move; its own distribution does not count
                site = numpyro.distributions.Normal(0.0, 1.0).expand([points.shape[1]]).to_event(1)
                x = numpyro.sample("x", site)
            with numpyro.handlers.block():
                value = log_prob(x)
            numpyro.factor("log_prob", value)

        svgd = SVGD(model, numpyro.optim.Adagrad(setting), RBFKernel(), num_stein_particles=points.shape[0])
        state = svgd.init(key)
        (name,) = svgd.get_params(state)
        state = state._replace(optim_state=svgd.optim.init({name: points}))
        particles = lambda state: svgd.get_params(state)[name]
        return collect(lambda state: svgd.update(state)[0], particles, state, saved, unravel)

    return jax.jit(run)


def flat(posterior, start):
    """Return the particles as a matrix, the log density of a row, and the way back."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], start))
    points = jax.vmap(lambda particle: ravel_pytree(particle)[0])(start)
    return points, lambda x: posterior.target.function(unravel(x)), unravel


def collect(step, particles, state, saved, unravel):
    """Step on and give the particles at the checkpoints."""

    def advance(state, _):
        state = step(state)
        return state, particles(state)

    trajectory = jax.lax.scan(advance, state, None, int(saved[-1]))[1]
    return jax.vmap(jax.vmap(unravel))(trajectory[saved - 1])


COMPILATION = {"seconds": 0.0}


def count_compilation(event, seconds, **_):
    """Add up what JAX reports of lowering and compilation; tracing, which nests, is left out."""
    if event in ("/jax/core/compile/jaxpr_to_mlir_module_duration", "/jax/core/compile/backend_compile_duration"):
        COMPILATION["seconds"] += seconds


def clocked(function, *arguments):
    """Return the result, the seconds it took, and those of compilation among them."""
    before, began = COMPILATION["seconds"], time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - began, COMPILATION["seconds"] - before


class Run(NamedTuple):
    """What one run gave."""

    compared: list[np.ndarray]  # the coordinates compared at each checkpoint, (n, coordinates)
    spent: np.ndarray  # evaluations up to each checkpoint
    seconds: np.ndarray  # the share of the run's time up to each checkpoint
    kept: Any  # the particles at the end
    warmup: tuple[int, float]  # evaluations and seconds of the warm-up
    compilation: float  # seconds, where the program was new


def particles_method(name, posterior, start, judge, gradients):
    """Return a function of seed and setting that runs a particle method."""
    n = MANY if name in ("flowrl Langevin", "flowrl ALDI") else FEW
    saved = checkpoints(gradients // n)
    make = {"blackjax SVGD": blackjax_run, "numpyro SVGD": numpyro_run}.get(name)
    moved = make(posterior, saved) if make else flow_run(name, posterior, tuple(saved.tolist()))

    def run(seed, setting):
        start_key, key = jr.split(jr.key(seed))
        particles = jax.block_until_ready(starts(start, posterior, n, start_key))
        setting = jnp.asarray(setting)
        trajectory, seconds, compilation = clocked(moved, particles, key, setting)
        every = judge.coordinates(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trajectory))
        sets = list(every.reshape(len(saved), n, -1))
        return Run(sets, saved * n, seconds * saved / saved[-1], at(trajectory, -1), (0, 0.0), compilation)

    return run


def nuts_method(problem, judge, gradients):
    """Return a function of seed and length of the warm-up that runs one chain."""
    chains_of = {warmup: nuts(problem, warmup, DRAWS) for warmup in SETTINGS["numpyro NUTS"]}

    def run(seed, warmup):
        chains, seconds, compilation = clocked(chains_of[warmup], jr.key(seed)[None])
        spent = np.cumsum(np.asarray(chains.leapfrogs[0], int))
        share, spent, early = seconds * spent / spent[-1], spent[warmup:], spent[warmup - 1]
        counts = checkpoints(max(int(np.sum(spent <= gradients)), 10))
        draws = chains.draws(warmup)
        every, last = judge.coordinates(draws), counts - 1
        kept = at(draws, slice(int(counts[-1])))
        sets, share, early = [every[:count] for count in counts], share[warmup:], (int(early), float(share[warmup - 1]))
        return Run(sets, spent[last], share[last], kept, early, compilation)

    return run


def accurate_from(run, judge, accuracy):
    """Return the checkpoint from which on both errors are below `accuracy`, or None, and the larger error at each."""
    with np.errstate(all="ignore"):  # of particles that have exploded
        errors = np.array([max(judge.errors(compared)) for compared in run.compared])
    errors = np.where(np.isfinite(errors), errors, np.inf)
    late = np.flatnonzero(errors >= accuracy)
    first = 0 if late.size == 0 else late[-1] + 1
    return (int(first) if first < len(errors) else None), errors


def tune(method, judge, settings, accuracy):
    """Return the best setting on seed 0, and the seconds of compilation of its program."""
    ranks, compilations = [], []
    for setting in settings:
        run = method(0, setting)
        compilations.append(run.compilation)
        first, errors = accurate_from(run, judge, accuracy)
        ranks.append((np.inf if first is None else run.spent[first], errors[-1]))
    best = min(range(len(settings)), key=ranks.__getitem__)
    # A new step size needs no new program, a new length of the warm-up does.
    return settings[best], compilations[best] if isinstance(settings[best], int) else compilations[0]


def rows_of(run, judge, accuracy):
    """Return the measures of a run."""
    first, errors = accurate_from(run, judge, accuracy)
    row = {
        "gradients_to_accuracy": "" if first is None else int(run.spent[first]),
        "seconds_to_accuracy": "" if first is None else float(run.seconds[first]),
        "warmup_gradients": run.warmup[0],
        "warmup_seconds": run.warmup[1],
        "best_error": float(errors.min()),
        "gradients": int(run.spent[-1]),
        "seconds": float(run.seconds[-1]),
    }
    with np.errstate(all="ignore"):
        return row | judge.row(run.kept)


def rounded(row):
    """Round each number to four figures."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}


def long_run(model, problem, posterior):
    """Return the judge of all runs, and the row that describes it."""
    length, began = 3000 if model == "network" else 10_000, time.perf_counter()
    draws, r_hat, effective = standard(problem, 1000, length, jr.key(100))
    seconds = time.perf_counter() - began
    judge = Judge(problem, posterior, draws)
    dimension = ravel_pytree(draws)[0].size // (4 * length)
    row = {"posterior": model, "d": dimension, "compared": len(problem.names), "chains": 4, "warmup": 1000}
    row |= {"draws": length, "max_r_hat": r_hat, "min_ess": effective, "seconds_with_compilation": seconds}
    return judge, row | {"test_log_likelihood": judge.test_log_likelihood(at(draws, slice(None, None, 10)))}


def compare(start, problem, posterior, judge, arguments):
    """Tune all methods on one posterior and run them over the seeds; give the rows."""
    methods = {
        name: particles_method(name, posterior, start, judge, arguments.gradients)
        for name in SETTINGS
        if name != "numpyro NUTS"
    }
    methods["numpyro NUTS"] = nuts_method(problem, judge, arguments.gradients)
    tuned = {name: tune(method, judge, SETTINGS[name], arguments.accuracy) for name, method in methods.items()}
    rows = []
    for seed in range(1, arguments.rounds + 1):
        for name, method in methods.items():
            setting, compilation = tuned[name]
            run, load = method(seed, setting), os.getloadavg()[0]
            head = {"method": name, "setting": setting, "seed": seed, "kept": len(run.compared[-1])}
            rows.append(head | rows_of(run, judge, arguments.accuracy) | {"compilation": compilation, "load": load})
            if name == "numpyro NUTS":
                evenly = np.linspace(0, head["kept"] - 1, FEW).round().astype(int)
                void = {"gradients_to_accuracy": "", "seconds_to_accuracy": "", "best_error": ""}
                thinned = {"method": f"NUTS thinned to {FEW}", "kept": FEW}
                rows.append(rows[-1] | thinned | void | judge.row(at(run.kept, evenly)))
    return rows


def main():
    """Run all methods on all posteriors and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=sorted({model for model, _ in CASES}), help="only these")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--gradients", type=int, default=100_000)
    parser.add_argument("--accuracy", type=float, default=0.1)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results"))
    arguments = parser.parse_args()
    packages = ("jax", "numpyro", "blackjax", "optax", "scikit-learn")
    machine = {"cores": os.cpu_count()} | {name: importlib.metadata.version(name) for name in packages}
    jax.monitoring.register_event_duration_secs_listener(count_compilation)
    began, rows, judges, standards = time.perf_counter(), [], {}, []
    for model, start in CASES:
        if model not in arguments.models:
            continue
        problem = load(model, seed=0)
        posterior = flowrl.from_numpyro(problem.model, key=jr.key(0), **problem.data)
        if model not in judges:
            judges[model], described = long_run(model, problem, posterior)
            standards.append(rounded(described | machine))
        print(f"{model} from {start}", flush=True)
        for row in compare(start, problem, posterior, judges[model], arguments):
            rows.append(rounded({"posterior": model, "start": start} | row | machine))
            names = ("method", "setting", "gradients_to_accuracy", "seconds_to_accuracy", "mean_error", "log_sd_error")
            print("  ", *(f"{name} {rows[-1][name]!s:8}" for name in names), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "posteriors.csv").write_text(to_csv(rows))
    (arguments.out / "posteriors_standard.csv").write_text(to_csv(standards))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
