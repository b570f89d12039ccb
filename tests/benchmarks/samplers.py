"""`flowrl.sample` as it comes beside other samplers as they come, on posteriors of inference-gym with known moments.

    python tests/benchmarks/samplers.py [--out docs/results/samplers] [--cases banana,...] [--methods sample,...]

Writes rows.csv, a row for each posterior, method and seed.

- Problems: those of inference-gym whose moments ship with it, in its own unconstrained coordinates, and mixtures
  written here. Nothing is tuned on any of them; all methods start uniformly between -2 and 2.
- Error b2: for the mean and the second moment of every coordinate in the units of the user, the squared error over
  the variance of x and of x², averaged over coordinates; the larger of the two. 0.01 is the error of a hundred
  independent draws.
- Budget: `--gradients` of the log density, tuning and warm-up included, by all chains together. `gradients_to` is the
- Budget: `--gradients` of the log density, tuning and warm-up included, by all chains; `gradients_to` is the
  that follow one another. NUTS runs its default thousand steps of warm-up and as many draws, whatever they take, and is
  charged what it took; what lies beyond the budget does not count.
- SVGD is given the best of four step sizes by the truth, which nobody knows.
- Seconds are those of a second run, without compilation; `first_seconds` has it.

Needs the extra `bayes`, blackjax, inference-gym and tfp-nightly.
"""

import argparse
import os
import pathlib
import time
import warnings
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import blackjax
import inference_gym.using_jax as gym
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from numpyro.infer import MCMC, NUTS

import flowrl
from flowrl.runs import to_csv

N = 100  # chains or particles of methods that have many
GYM = {
    "banana": "Banana",
    "ill-conditioned": "IllConditionedGaussian",
    "eight-schools": "EightSchools",
    "brownian": "BrownianMotionMissingMiddleObservations",
    "brownian-scales": "BrownianMotionUnknownScalesMissingMiddleObservations",
    "lorenz": "ConvectionLorenzBridge",
    "lorenz-scales": "ConvectionLorenzBridgeUnknownScales",
    "funnel": "NealsFunnel",
    "volatility": "StochasticVolatilitySP500Small",
    "cox-process": "SyntheticLogGaussianCoxProcess",
    "item-response": "SyntheticItemResponseTheory",
}


class Case(NamedTuple):
    """A posterior: log density of unconstrained coordinates, the user's own ones, and their moments."""

    log_prob: Any
    dimension: int
    transform: Any
    mean: np.ndarray
    variance: np.ndarray
    square_variance: np.ndarray


class Run(NamedTuple):
    """Draws (steps, chains, d), gradients spent by all chains at each step, and those in sequence at the end."""

    draws: np.ndarray
    gradients: np.ndarray
    depth: int
    verdict: str = ""
    words: str = ""


def posterior(name: str) -> Case:
    """Return a posterior of inference-gym."""
    model = gym.targets.VectorModel(getattr(gym.targets, GYM[name])(), flatten_sample_transformations=True)
    bijector, truth = model.default_event_space_bijector, model.sample_transformations["identity"]
    mean = np.asarray(truth.ground_truth_mean, float).ravel()
    variance = np.asarray(truth.ground_truth_standard_deviation, float).ravel() ** 2

    def log_prob(y):
        x = bijector(y)
        return model.unnormalized_log_prob(x) + bijector.forward_log_det_jacobian(y, event_ndims=1)

    square_variance = 2 * variance**2 + 4 * variance * mean**2  # that of a normal distribution
    truth_of = lambda y: truth(bijector(y)).reshape(y.shape[0], -1)
    if name == "banana":
        # x ~ N(0, 10²), y = N(0, 1) + 0.03 (x² − 100): a million exact draws.
        x, e = np.random.default_rng(0).normal(size=(2, 1_000_000))
        square_variance[1] = np.var((e + 3 * (x**2 - 1)) ** 2)
    if name == "funnel":
        # z ~ N(0, 3²), x ~ N(0, exp z): E x⁴ = 3 exp(2 · 9) is out of any sampler's reach; the moments of z count.
        keep = [0]
        transform = lambda y: bijector(y)[..., keep]
        return Case(log_prob, model.event_shape[0], transform, mean[keep], variance[keep], square_variance[keep])
    if name in ("eight-schools", "brownian-scales"):  # whose scales have heavy tails
        # The moments that ship with it do not say how x² varies: three thousand draws of NUTS, for this unit alone.
        run = nuts(Case(log_prob, model.event_shape[0], None, mean, variance, variance), 0, draws=3000)(jr.key(1234))
        square_variance = np.var(np.asarray(truth_of(jnp.asarray(run.draws[:, 0])), float) ** 2, axis=0)
    return Case(log_prob, model.event_shape[0], truth_of, mean, variance, square_variance)


def mixture(dimension: int, weights: tuple[float, ...] = (0.3, 0.7), apart: float = 6.0) -> Case:
    """Return two standard normal distributions apart along the first coordinate."""
    logits = jnp.log(jnp.asarray(weights))
    centres = jnp.zeros((2, dimension)).at[:, 0].set(jnp.array([-apart / 2, apart / 2]))

    def log_prob(y):
        return jax.nn.logsumexp(logits - 0.5 * jnp.sum((y - centres) ** 2, axis=1))

    rng, w = np.random.default_rng(0), np.asarray(weights)
    mean = (w[:, None] * np.asarray(centres)).sum(0)
    second = 1 + (w[:, None] * np.asarray(centres) ** 2).sum(0)
    x = rng.normal(size=(400_000, dimension)) + np.asarray(centres)[rng.choice(2, size=400_000, p=w)]
    return Case(log_prob, dimension, lambda y: y, mean, second - mean**2, np.var(x**2, axis=0))


CASES = {name: lambda name=name: posterior(name) for name in GYM}
CASES |= {"mixture-2d": lambda: mixture(2), "mixture-10d": lambda: mixture(10)}


def start(key, chains: int, dimension: int):
    """Return where chains start."""
    return jr.uniform(key, (chains, dimension), minval=-2.0, maxval=2.0)


def sample(case: Case, budget: int, **options):
    """`flowrl.sample` with nothing but the target, the number of particles and a key."""

    def run(key):
        samples = flowrl.sample(
            case.log_prob, N, like=jnp.zeros(case.dimension), max_gradients=budget, key=key, **options
        )
        draws = np.asarray(samples.draws)
        total, depth = int(samples.stats["gradients"]), int(samples.stats["depth"])
        last = samples.phases[-1][0].solver.proposal.gradients * N
        verdict = samples.verdict
        word = "arrived" if verdict.arrived else "not arrived" if verdict.wrong else "cannot tell"
        gradients = total - last * np.arange(draws.shape[0])[::-1]
        return Run(draws, gradients, depth, word, str(verdict))

    return run


def nuts(case: Case, budget: int, draws: int = 1000):
    """numpyro's NUTS at its defaults, one chain."""
    del budget
    kernel = NUTS(potential_fn=lambda y: -case.log_prob(y))
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=draws, progress_bar=False)

    def run(key):
        begin = start(jr.fold_in(key, 1), 1, case.dimension)[0]
        mcmc.warmup(key, init_params=begin, extra_fields=("num_steps",), collect_warmup=True)
        warm = int(np.sum(mcmc.get_extra_fields()["num_steps"]))
        mcmc.run(jr.fold_in(key, 2), extra_fields=("num_steps",))
        steps = np.cumsum(np.asarray(mcmc.get_extra_fields()["num_steps"]))
        return Run(np.asarray(mcmc.get_samples())[:, None], warm + steps, int(warm + steps[-1]))

    return run


def mclmc(case: Case, budget: int):
    """blackjax's MCLMC with its own tuning, one chain."""
    steps = int(budget / 2 / 1.3)  # two gradients a step; the tuning takes three tenths of them on top

    def run(key):
        init_key, tune_key, run_key, begin_key = jr.split(key, 4)
        begin = start(begin_key, 1, case.dimension)[0]
        state = blackjax.mclmc.init(position=begin, logdensity_fn=case.log_prob, rng_key=init_key)
        kernel = blackjax.mclmc.build_kernel(integrator=blackjax.mcmc.integrators.isokinetic_mclachlan)
        state, found, *_ = blackjax.mclmc_find_L_and_step_size(
            kernel, num_steps=steps, state=state, rng_key=tune_key, logdensity_fn=case.log_prob
        )
        algorithm = blackjax.mclmc(
            case.log_prob, L=found.L, step_size=found.step_size, inverse_mass_matrix=found.inverse_mass_matrix
        )
        return jax.lax.scan(
            lambda s, k: (lambda new: (new, new.position))(algorithm.step(k, s)[0]), state, jr.split(run_key, steps)
        )[1]

    compiled = jax.jit(run)

    def record(key):
        draws = np.asarray(compiled(key))
        gradients = int(0.6 * steps) + 2 * np.arange(1, steps + 1)
        return Run(draws[:, None], gradients, int(gradients[-1]))

    return record


def meads(case: Case, budget: int):
    """blackjax's MEADS: generalised HMC of a hundred chains, half of the budget its adaptation."""
    steps = budget // N // 2

    def run(key):
        adapt_key, run_key, begin_key = jr.split(key, 3)
        begin = start(begin_key, N, case.dimension)
        adapted, _ = blackjax.meads_adaptation(case.log_prob, N).run(adapt_key, begin, steps)
        kernel = jax.vmap(blackjax.ghmc(case.log_prob, **adapted.parameters).step)

        def advance(states, key):
            states, _ = kernel(jr.split(key, N), states)
            return states, states.position

        return jax.lax.scan(advance, adapted.state, jr.split(run_key, steps))[1]

    compiled = jax.jit(run)

    def record(key):
        draws = np.asarray(compiled(key))
        return Run(draws, N * (steps + np.arange(1, steps + 1)), 2 * steps)

    return record


def pathfinder(case: Case, budget: int):
    """blackjax's Pathfinder, a thousand draws of the one approximation."""
    del budget

    def run(key):
        begin_key, fit_key, draw_key = jr.split(key, 3)
        begin = start(begin_key, 1, case.dimension)[0]
        state, info = blackjax.vi.pathfinder.approximate(fit_key, case.log_prob, begin)
        draws, _ = blackjax.vi.pathfinder.sample(draw_key, state, 1000)
        return draws, jnp.sum(jnp.isfinite(info.path.elbo))

    compiled = jax.jit(run)

    def record(key):
        draws, count = compiled(key)
        draws = np.asarray(draws)
        return Run(draws[:, None], np.full(draws.shape[0], int(count)), int(count))

    return record


def svgd(case: Case, budget: int):
    """SVGD by Adagrad, a hundred particles, with the best of four step sizes by the truth."""
    steps = budget // N
    target, saved = flowrl.Density(case.log_prob), tuple(np.unique(np.geomspace(10, steps, 30).astype(int)).tolist())

    solver = flowrl.Optax(optax.adagrad(1.0))

    def record(key):
        begin = start(key, N, case.dimension)
        runs = []
        for rate in (0.03, 0.1, 0.3, 1.0):
            solution = flowrl.transport(
                target, begin, flowrl.Budget(steps, rate), solver=solver, save=saved, throw=False
            )
            runs.append(np.asarray(solution.trajectory))
        errors = [error(case, draws[-1]) for draws in runs]
        best = runs[int(np.nanargmin([e if np.isfinite(e) else np.inf for e in errors]))]
        return Run(best, N * np.asarray(saved), steps)

    return record


METHODS = {"sample": sample, "nuts": nuts, "mclmc": mclmc, "meads": meads, "pathfinder": pathfinder, "svgd": svgd}


def error(case: Case, rows: np.ndarray) -> float:
    """Return b2 of draws (m, d) in unconstrained coordinates."""
    x = np.asarray(case.transform(jnp.asarray(rows)), float)
    first = (x.mean(0) - case.mean) ** 2 / case.variance
    second = ((x**2).mean(0) - case.variance - case.mean**2) ** 2 / case.square_variance
    return float(max(first.mean(), second.mean()))


def curve(case: Case, run: Run, budget: int, pooled: bool) -> tuple[float, float]:
    """Return b2 at the budget, and the gradients from which on it stays below 0.01 (infinite if it does not)."""
    within = int(np.sum(run.gradients <= budget))
    if within == 0:
        return np.inf, np.inf
    points = np.unique(np.geomspace(1, within, 25).astype(int))
    errors = [error(case, run.draws[(0 if pooled else p - 1) : p].reshape(-1, case.dimension)) for p in points]
    errors = np.where(np.isfinite(errors), errors, np.inf)
    wrong = np.flatnonzero(errors >= 0.01)
    first = 0 if not wrong.size else wrong[-1] + 1
    return float(errors[-1]), float(run.gradients[points[first] - 1]) if first < len(points) else np.inf


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results/samplers"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--first-seed", type=int, default=0, help="seeds 0 to 4 are reported; choose settings on others"
    )
    parser.add_argument("--gradients", type=int, default=100_000)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # inference-gym's, of NumPy
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in options.cases.split(","):
        case = CASES[name]()
        for method in options.methods.split(","):
            run = METHODS[method](case, options.gradients)
            for seed in range(options.first_seed, options.first_seed + options.seeds):
                began = time.perf_counter()
                done = run(jr.key(seed))
                seconds = time.perf_counter() - began
                first = seed == options.first_seed
                at_end, to = curve(case, done, options.gradients, pooled=method != "svgd")
                row = {
                    "case": name, "dimension": case.dimension, "method": method, "seed": seed, "b2": f"{at_end:.3g}",
                    "gradients_to": f"{to:.4g}", "gradients": int(done.gradients[-1]), "depth": done.depth,
                    "verdict": done.verdict, "first_seconds" if first else "seconds": f"{seconds:.2f}",
                }  # fmt: skip
                print(*row.values(), done.words, flush=True)
                rows.append({"first_seconds": "", "seconds": ""} | row)
        jax.clear_caches()
        (options.out / "rows.csv").write_text(to_csv(rows))


if __name__ == "__main__":
    main()
