"""The posterior of a numpyro model by particles, beside NUTS in the same call.

Four small data sets, five models. How flows, other libraries and NUTS compare over seeds and settings is measured by
tests/benchmarks/posteriors.py.

    python examples/posterior.py --model logistic --flow svgd
"""

import csv
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import tyro
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import NUTS, log_likelihood
from rich.console import Console
from rich.table import Table

import flowrl
from flowrl import diagnostics

CAVEATS = """Errors are root mean squares over the coordinates compared, which are unconstrained (logarithms of what is
positive); for the network they are its predictions at held-out inputs, since its weights can be permuted.
The standard of comparison is itself a sample, so errors of about 0.02 cannot be told from none."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample a posterior by particles and by NUTS. Writes results.csv, moments.csv and posterior.png."""

    model: Literal["logistic", "eight-schools", "eight-schools-centred", "baseball", "network"] = "logistic"
    """The model and its data; the last is a small Bayesian neural network."""
    flow: Literal["svgd", "preconditioned", "langevin", "aldi"] = "svgd"
    """The flow; `preconditioned` is SVGD in coordinates whitened by the particles' own covariance."""
    particles: int = 100
    """Number of particles. Langevin and ALDI want more: their error falls as one over the root of it."""
    start: Literal["prior", "zero"] = "prior"
    """Where particles start: draws from the prior, or numbers between -2 and 2 as numpyro's NUTS starts."""
    steps: int = 1000
    """Steps of the flow; each takes one gradient a particle."""
    step_size: float | None = None
    """Step size: Adagrad's rate for svgd, Euler's step for the others. None takes the flow's own default."""
    nuts_warmup: int = 500
    """Iterations in which each chain of NUTS adapts."""
    nuts_draws: int = 1000
    """Draws kept of the single chain that the particles are compared with."""
    reference_draws: int = 2500
    """Draws kept of each of the four chains that all are measured by."""
    seed: int = 0
    """Seed of the split into training and test data and of all randomness."""
    out: pathlib.Path = pathlib.Path("runs/posterior")
    """Folder for the files; made if missing."""


# --8<-- [start:models]
def logistic(x: Float[Array, "rows features"], y: Float[Array, " rows"]) -> None:
    """Logistic regression with standard normal priors."""
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=y)


def eight_schools(sigma: Float[Array, " schools"], y: Float[Array, " schools"]) -> None:
    """Effects of coaching in eight schools, non-centred (Rubin 1981; Bayesian Data Analysis, section 5.5)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def eight_schools_centred(sigma: Float[Array, " schools"], y: Float[Array, " schools"]) -> None:
    """The same law in coordinates in which it is a funnel: hard for every method here."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([8]).to_event(1))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def baseball(at_bats: Float[Array, " players"], y: Float[Array, " players"]) -> None:
    """Batting of 18 players with a common law of their abilities, on the scale of log odds."""
    mu = numpyro.sample("mu", dist.Normal(-1.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([18]).to_event(1))
    numpyro.sample("y", dist.Binomial(at_bats, logits=mu + sigma * z), obs=y)


def network(x: Float[Array, "rows features"], y: Float[Array, " rows"]) -> None:
    """A network of one hidden layer of five units, with standard normal priors."""
    weights: dict[str, Any] = {
        "inner": numpyro.sample("inner", dist.Normal(0.0, 1.0).expand([x.shape[1], 5]).to_event(2)),
        "inner_bias": numpyro.sample("inner_bias", dist.Normal(0.0, 1.0).expand([5]).to_event(1)),
        "outer": numpyro.sample("outer", dist.Normal(0.0, 1.0).expand([5]).to_event(1)),
        "outer_bias": numpyro.sample("outer_bias", dist.Normal(0.0, 1.0)),
    }
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(network_mean(weights, x), noise), obs=y)


def network_mean(weights: dict[str, Any], x: Float[Array, "rows features"]) -> Float[Array, " rows"]:
    """Give the network's output; it is scaled such that a wider one has the same prior variance."""
    hidden = jnp.tanh(x @ weights["inner"] / x.shape[1] ** 0.5 + weights["inner_bias"])
    return hidden @ weights["outer"] / 5**0.5 + weights["outer_bias"]


# --8<-- [end:models]
class Problem(NamedTuple):
    """A model with its data, and what of its posterior is compared."""

    model: Callable[..., None]
    data: dict[str, Array]
    test: dict[str, Array]  # held-out data in the same form; empty where there are none
    names: list[str]  # of the coordinates compared
    pair: tuple[str, str]  # the two of them that are drawn
    summary: Callable[[PyTree], Array] = lambda particle: ravel_pytree(particle)[0]  # these coordinates of one particle
    # The model whose NUTS run is the standard, and the map of its particles; None: the model itself.
    standard: tuple[Callable[..., None], Callable[[PyTree], PyTree]] | None = None


def load(name: str, seed: int) -> Problem:
    """Give the problem of this name; `seed` splits the data of scikit-learn into training and test."""
    if name in ("logistic", "network"):
        return _from_sklearn(name, seed)
    if name == "baseball":
        # Hits in the first 45 at bats of 1970, at bats and batting average in the rest of the season, from table 1 of
        # Efron and Morris, Data Analysis Using Stein's Estimator and Its Generalizations, JASA 70 (350), 1975.
        hits = [18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]
        later = [367, 426, 521, 275, 418, 466, 586, 138, 510, 200, 277, 270, 435, 538, 186, 558, 408, 70]
        average = [346, 298, 276, 222, 273, 270, 263, 210, 269, 230, 264, 256, 303, 264, 226, 285, 316, 200]
        later_hits = np.round(np.array(later) * np.array(average) / 1000)
        data = {"at_bats": jnp.full(18, 45.0), "y": jnp.asarray(hits, float)}
        test = {"at_bats": jnp.asarray(later, float), "y": jnp.asarray(later_hits)}
        names = ["mu", "log sigma", *(f"z[{i}]" for i in range(18))]
        return Problem(baseball, data, test, names, ("log sigma", "z[0]"))
    data = {"sigma": jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18]), "y": jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])}
    if name == "eight-schools":
        names = ["mu", "log tau", *(f"z[{i}]" for i in range(8))]
        return Problem(eight_schools, data, {}, names, ("log tau", "mu"))

    def centre(p: dict[str, Array]) -> dict[str, Array]:
        return {"mu": p["mu"], "tau": p["tau"], "theta": p["mu"][..., None] + jnp.exp(p["tau"])[..., None] * p["z"]}

    names = ["mu", "log tau", *(f"theta[{i}]" for i in range(8))]
    pair = ("log tau", "theta[0]")
    return Problem(eight_schools_centred, data, {}, names, pair, standard=(eight_schools, centre))


def _from_sklearn(name: str, seed: int) -> Problem:
    from sklearn import datasets  # here, so that --help is quick

    found: Any = datasets.load_breast_cancer() if name == "logistic" else datasets.load_diabetes()
    x, y = found.data, found.target.astype(float)
    rows = np.random.default_rng(seed).permutation(len(y))
    held_out, kept = rows[: len(y) // 5], rows[len(y) // 5 :]
    x = (x - x[kept].mean(axis=0)) / x[kept].std(axis=0)
    if name == "network":
        y = (y - y[kept].mean()) / y[kept].std()
    data, test = ({"x": jnp.asarray(x[part]), "y": jnp.asarray(y[part])} for part in (kept, held_out))
    if name == "logistic":
        return Problem(logistic, data, test, ["bias", *found.feature_names], ("mean area", "worst area"))
    names = [f"prediction {i}" for i in range(len(held_out))] + ["log noise"]
    summary = lambda particle: jnp.append(network_mean(particle, test["x"]), particle["noise"])
    return Problem(network, data, test, names, ("prediction 0", "prediction 1"), summary)


# --8<-- [start:methods]
DEFAULT_STEP = {"svgd": 3.0, "preconditioned": 0.3, "langevin": 0.002, "aldi": 0.01}


def method(flow: str) -> flowrl.Transport:
    """Give the flow of this name with its solver."""
    if flow == "svgd":
        # Adagrad's steps fall, so the particles come to rest; they begin large, since its sums begin at 0.1.
        return flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    euler = {
        "preconditioned": flowrl.SVGD(flowrl.Preconditioned()),
        "langevin": flowrl.Langevin(),
        "aldi": flowrl.ALDI(),
    }
    return flowrl.Transport(euler[flow])


def step_sizes(flow: str, steps: int, step_size: float) -> Float[Array, ""] | Float[Array, " steps"]:
    """Give Adagrad's rate, or Euler's steps: small at first, while the particles are too wide, in full after 60."""
    if flow == "svgd":
        return jnp.asarray(step_size)
    return step_size * jnp.minimum(1.0, 10.0 ** (jnp.arange(steps) / 20 - 3))


def starts(start: str, posterior: flowrl.NumpyroPosterior, n: int, key: PRNGKeyArray) -> PyTree:
    """Draw n particles from the prior, or each unconstrained coordinate between -2 and 2."""
    particles = posterior.initial(n, key)
    if start == "prior":
        return particles
    keys = jr.split(key, len(particles))
    return {
        name: jr.uniform(own, leaf.shape, leaf.dtype, -2.0, 2.0)
        for own, (name, leaf) in zip(keys, particles.items(), strict=True)
    }


# --8<-- [end:methods]
# --8<-- [start:nuts]
class Chains(NamedTuple):
    """What NUTS gave; iterations begin with those of the warm-up."""

    particles: PyTree  # unconstrained coordinates, leaves (chains, iterations, ...)
    leapfrogs: Float[Array, "chains iterations"]  # steps of the integrator, one gradient each

    def draws(self, warmup: int) -> PyTree:
        """Give all after the warm-up as one set."""
        return jax.tree.map(lambda x: x[:, warmup:].reshape(-1, *x.shape[2:]), self.particles)


def nuts(problem: Problem, warmup: int, draws: int) -> Callable[[PRNGKeyArray], Chains]:
    """Give numpyro's NUTS, all its settings at their defaults, as one compiled function of keys (chains,)."""
    kernel = NUTS(problem.model)

    def chain(key: PRNGKeyArray) -> Chains:
        state = kernel.init(key, warmup, None, (), problem.data)

        def step(state: Any, _: None) -> tuple[Any, Chains]:
            state = kernel.sample(state, (), problem.data)
            return state, Chains(state.z, state.num_steps)

        return jax.lax.scan(step, state, None, warmup + draws)[1]

    return jax.jit(lambda keys: jax.lax.map(chain, keys))


# --8<-- [end:nuts]
def standard(problem: Problem, warmup: int, draws: int, key: PRNGKeyArray) -> tuple[PyTree, float, float]:
    """Give the draws of four chains, the worst split R-hat and the least effective sample size of what is compared."""
    model, convert = problem.standard or (problem.model, lambda particles: particles)
    chains = nuts(problem._replace(model=model), warmup, draws)(jr.split(key, 4))
    particles = convert(jax.tree.map(lambda x: x[:, warmup:], chains.particles))
    compared = np.asarray(jax.jit(jax.vmap(jax.vmap(problem.summary)))(particles), np.float64)
    merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), particles)
    return merged, float(np.max(split_gelman_rubin(compared))), float(np.min(effective_sample_size(compared)))


# --8<-- [start:errors]
class Judge:
    """Compares particles with the draws of a long run of NUTS."""

    def __init__(self, problem: Problem, posterior: flowrl.NumpyroPosterior, draws: PyTree):
        """Take the moments of the draws."""
        self.problem, self.posterior, self.summary = problem, posterior, jax.jit(jax.vmap(problem.summary))
        self.mean, self.sd = moments(self.coordinates(draws))
        flat = jax.vmap(lambda particle: ravel_pytree(particle)[0])(draws)
        # In coordinates in which the posterior has the covariance I, so that no coordinate outweighs the others.
        imq = flowrl.IMQ(flowrl.FixedBandwidth(flat.shape[1] ** 0.5))
        self.kernel = flowrl.Preconditioned(imq, jnp.cov(flat, rowvar=False))

    def coordinates(self, particles: PyTree) -> np.ndarray:
        """Give what is compared, (n, coordinates)."""
        return np.asarray(self.summary(particles), np.float64)

    def errors(self, coordinates: np.ndarray) -> tuple[float, float]:
        """Give the root mean square over coordinates of the error of the mean in sd, and of log(sd / true sd)."""
        mean, sd = moments(coordinates)
        off, ratio = (mean - self.mean) / self.sd, np.log(np.maximum(sd, 1e-30) / self.sd)
        return float(np.sqrt(np.mean(off**2))), float(np.sqrt(np.mean(ratio**2)))

    def row(self, particles: PyTree) -> dict[str, float | str]:
        """Give all measures of a set of particles."""
        mean, sd = self.errors(self.coordinates(particles))
        scores = diagnostics.scores(self.posterior.target, particles)
        row = {"mean_error": mean, "log_sd_error": sd, "ksd": float(diagnostics.ksd(particles, scores, self.kernel))}
        return row | {"test_log_likelihood": self.test_log_likelihood(particles)}

    def test_log_likelihood(self, particles: PyTree) -> float | str:
        """Give the mean over held-out data of the log of the likelihood averaged over particles."""
        if not self.problem.test:
            return ""
        values = self.posterior.constrain(particles)
        each = log_likelihood(self.problem.model, values, **self.problem.test)["y"]  # pyright: ignore[reportArgumentType]
        return float(jnp.mean(jax.nn.logsumexp(each, axis=0) - jnp.log(each.shape[0])))


def moments(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the mean and the standard deviation of each coordinate."""
    return coordinates.mean(axis=0), coordinates.std(axis=0, ddof=1)


# --8<-- [end:errors]
def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """Give the result, the seconds of a second run, and how many more the first took: compilation."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    between = time.perf_counter()
    result = jax.block_until_ready(run())
    seconds = time.perf_counter() - between
    return result, seconds, max(between - started - seconds, 0.0)


def at(sets: PyTree, index: Any) -> PyTree:
    """Give the entries of the leading axis."""
    return jax.tree.map(lambda x: x[index], sets)


def checkpoints(start: int, stop: int) -> list[int]:
    """Give at most 20 increasing counts in geometric progression."""
    return sorted({int(x) for x in np.geomspace(start, stop, 20).round()})


def draw(config: Config, judge: Judge, sets: dict[str, np.ndarray], curves: dict[str, list[Any]]) -> None:
    """Draw two coordinates of the first two sets, the moments of all, and the errors against the gradients spent."""
    import matplotlib.pyplot as plt  # here, so that --help is quick

    figure, (pair, spread, lines) = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
    x, y = (judge.problem.names.index(name) for name in judge.problem.pair)
    (cloud, shown), (flow, compared), _ = sets.items()
    pair.scatter(shown[::3, x], shown[::3, y], s=2, color="silver", label=cloud, rasterized=True)
    pair.scatter(compared[:, x], compared[:, y], s=14, label=flow)
    low, high = np.quantile(shown[:, (x, y)], (0.001, 0.999), axis=0)
    limits = np.stack([low - 0.3 * (high - low), high + 0.3 * (high - low)])  # a lost particle must not hide the others
    pair.set(xlabel=judge.problem.pair[0], ylabel=judge.problem.pair[1], xlim=limits[:, 0], ylim=limits[:, 1])
    for name, coordinates in list(sets.items())[1:]:
        mean, sd = moments(coordinates)
        spread.scatter((mean - judge.mean) / judge.sd, sd / judge.sd, s=14, label=name)
    spread.axhline(1, color="silver", zorder=0)
    spread.axvline(0, color="silver", zorder=0)
    spread.set(xlabel="error of the mean / sd", ylabel="sd / sd of NUTS", title="one point a coordinate")
    for number, (name, curve) in enumerate(curves.items()):
        spent, mean, sd = zip(*curve, strict=True)
        lines.loglog(spent, mean, "-", color=f"C{number}", label=f"{name}: mean")
        lines.loglog(spent, sd, "--", color=f"C{number}", label=f"{name}: log sd")
    lines.set(xlabel="gradient evaluations, warm-up included", ylabel="error")
    for axis in (pair, spread, lines):
        axis.legend(fontsize=8)
    figure.savefig(config.out / "posterior.png", dpi=90)
    plt.close(figure)


def refuse(config: Config) -> None:
    """End with a message if an option makes no sense."""
    least = {"particles": 2, "steps": 1, "nuts_warmup": 20, "nuts_draws": 20, "reference_draws": 20}
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise SystemExit(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(config, name)}.")
    if config.step_size is not None and not 0 < config.step_size < float("inf"):
        raise SystemExit(f"--step-size must be a finite number above 0, got {config.step_size}.")
    if config.nuts_draws < config.particles:
        raise SystemExit(f"--nuts-draws must be at least --particles = {config.particles}, got {config.nuts_draws}.")


def write(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main(config: Config) -> list[dict[str, Any]]:
    """Run everything; returns the rows of results.csv."""
    refuse(config)
    started, problem = time.perf_counter(), load(config.model, config.seed)
    start_key, flow_key, chain_key, standard_key = jr.split(jr.key(config.seed), 4)
    # --8<-- [start:transport]
    posterior = flowrl.from_numpyro(problem.model, key=jr.key(config.seed), **problem.data)
    start = starts(config.start, posterior, config.particles, start_key)
    dimension = ravel_pytree(start)[0].size // config.particles
    if config.flow == "aldi" and config.particles <= dimension + 1:
        raise SystemExit(f"--flow aldi needs more than d + 1 = {dimension + 1} particles, got {config.particles}.")
    size = config.step_size or DEFAULT_STEP[config.flow]
    budget = flowrl.Budget(config.steps, step_sizes(config.flow, config.steps, size))
    transport, saved = method(config.flow), checkpoints(1, config.steps)
    run = lambda: transport(posterior.target, start, budget, key=flow_key, save=saved, throw=False)
    solution, seconds, compilation = timed(run)
    # --8<-- [end:transport]
    if lost := int(solution.stats["nonfinite"]):
        raise SystemExit(
            f"{lost} of {config.particles} particles went where the density has no finite score, with --step-size "
            f"{size:g}; take a smaller one."
        )
    chain = nuts(problem, config.nuts_warmup, config.nuts_draws)
    chains, nuts_seconds, nuts_compilation = timed(lambda: chain(chain_key[None]))
    draws, r_hat, effective = standard(problem, config.nuts_warmup, config.reference_draws, standard_key)
    judge, kept, spent = Judge(problem, posterior, draws), chains.draws(config.nuts_warmup), np.cumsum(chains.leapfrogs)
    evenly = np.linspace(0, config.nuts_draws - 1, config.particles).round().astype(int)
    thinned = at(kept, evenly)

    flow, thin = f"{config.flow}, n = {config.particles}", f"NUTS thinned to {config.particles}"
    costs = {"gradients": config.steps * config.particles, "seconds": seconds, "compilation": compilation}
    nuts_costs = {"gradients": int(spent[-1]), "seconds": nuts_seconds, "compilation": nuts_compilation}
    rows = [
        {"method": flow} | judge.row(solution.particles) | costs,
        {"method": f"NUTS, {config.nuts_draws} draws"} | judge.row(kept) | nuts_costs,
        {"method": thin} | judge.row(thinned) | nuts_costs,
    ]
    config.out.mkdir(parents=True, exist_ok=True)
    write(config.out / "results.csv", rows)
    ends, chosen, every = (judge.coordinates(particles) for particles in (solution.particles, thinned, kept))
    table = zip(problem.names, judge.mean, judge.sd, *moments(ends), strict=True)
    head = ("coordinate", "nuts_mean", "nuts_sd", "mean", "sd")
    write(config.out / "moments.csv", [dict(zip(head, row, strict=True)) for row in table])
    on_the_way = (judge.coordinates(at(solution.trajectory, i)) for i in range(len(saved)))
    after = spent[config.nuts_warmup :]
    curves = {
        flow: [(k * config.particles, *judge.errors(set)) for k, set in zip(saved, on_the_way, strict=True)],
        "NUTS": [(after[k - 1], *judge.errors(every[:k])) for k in checkpoints(5, config.nuts_draws)],
    }
    draw(config, judge, {"NUTS, the standard": judge.coordinates(draws), flow: ends, thin: chosen}, curves)
    tabulate(config, rows, f"standard: 4 chains of NUTS, R-hat {r_hat:.3f}, effective sample size {effective:.0f}")
    Console(width=120).print(CAVEATS, f"{time.perf_counter() - started:.0f} s; files in {config.out}", sep="\n")
    return rows


def tabulate(config: Config, rows: list[dict[str, Any]], caption: str) -> None:
    """Print the rows."""
    head = ("method", "mean / sd", "log sd", "KSD", "test log-lik.", "gradients", "seconds", "+ compilation")
    table = Table(*head, title=f"{config.model}: errors and costs", caption=caption)
    for row in rows:
        numbers = (f"{row[name]:.3f}" for name in ("mean_error", "log_sd_error", "ksd"))
        test = row["test_log_likelihood"]
        costs = (f"{row['gradients']:,}", f"{row['seconds']:.2f}", f"{row['compilation']:.1f}")
        table.add_row(row["method"], *numbers, f"{test:.4f}" if isinstance(test, float) else "–", *costs)
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
