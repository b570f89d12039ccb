"""A numpyro model in, particles out, beside NUTS: logistic regression on the breast cancer data of scikit-learn.

Both are measured against four long chains of NUTS. `flowrl posterior` has more models, flows and measures.
"""

import argparse
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowrl
from flowrl.runs import to_csv

try:
    import numpyro
    import numpyro.distributions as dist
    from matplotlib.figure import Figure
    from numpyro.infer import MCMC, NUTS
    from sklearn.datasets import load_breast_cancer
except ImportError as missing:
    raise SystemExit(f'{missing.name} is missing: pip install -e ".[bayes,examples]"') from missing


# --8<-- [start:model]
def model(x, y):
    """Logistic regression with standard normal priors."""
    bias = numpyro.sample("bias", dist.Normal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=bias + x @ weights), obs=y)


# --8<-- [end:model]
# --8<-- [start:methods]
def transported(data, particles, steps, key):
    """Move draws from the prior to the posterior by SVGD; return them and the gradients spent."""
    posterior = flowrl.from_numpyro(model, key=key, **data)
    start_key, flow_key = jr.split(key)
    # Adagrad's steps fall, so the particles come to rest; they begin large, since its sums begin at 0.1.
    method = flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    budget = flowrl.Budget(steps, step_size=3.0)
    solution = method(posterior.target, posterior.initial(particles, start_key), budget, key=flow_key)
    return solution.particles, steps * particles


def nuts(data, warmup, draws, chains, key):
    """Run numpyro's NUTS, all its settings at their defaults; return the draws and the gradients spent."""
    settings: Any = {"num_chains": chains, "chain_method": "sequential", "progress_bar": False}
    sampler = MCMC(NUTS(model), num_warmup=warmup, num_samples=draws, **settings)
    warmup_key, run_key = jr.split(key)
    sampler.warmup(warmup_key, extra_fields=("num_steps",), collect_warmup=True, **data)
    spent = int(jnp.sum(sampler.get_extra_fields()["num_steps"]))
    sampler.run(run_key, extra_fields=("num_steps",), **data)
    return sampler.get_samples(), spent + int(jnp.sum(sampler.get_extra_fields()["num_steps"]))


# --8<-- [end:methods]
# --8<-- [start:errors]
def moments(particles):
    """Return the mean and the standard deviation of each coordinate, in float64."""
    rows = np.column_stack([particles["bias"], particles["weights"]]).astype(float)
    return rows.mean(axis=0), rows.std(axis=0, ddof=1)


def errors(particles, reference):
    """Return the root mean square error of the mean, in sd, and of the log of the sd, over coordinates."""
    (mean, sd), (true_mean, true_sd) = moments(particles), reference
    squares = ((mean - true_mean) / true_sd) ** 2, np.log(sd / true_sd) ** 2
    return tuple(float(np.sqrt(np.mean(square))) for square in squares)


# --8<-- [end:errors]
def main(words=None):
    """Compare particles with NUTS: a table, results.csv and posterior.png; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="of SVGD; each takes one gradient per particle")
    parser.add_argument("--draws", type=int, default=1000, help="of NUTS, after half as many iterations of warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/posterior"), help="folder for the files")
    options = parser.parse_args(words)
    if min(options.particles, options.steps) < 2 or options.draws < options.particles:
        raise SystemExit("--particles and --steps must be at least 2, --draws at least --particles.")
    options.out.mkdir(parents=True, exist_ok=True)
    x, y = load_breast_cancer(return_X_y=True)
    data = {"x": jnp.asarray((x - x.mean(axis=0)) / x.std(axis=0)), "y": jnp.asarray(y, float)}
    flow_key, nuts_key, reference_key = jr.split(jr.key(options.seed), 3)

    sets, rows = {}, []
    for name, run in (
        (f"SVGD, {options.particles} particles", lambda: transported(data, options.particles, options.steps, flow_key)),
        (f"NUTS, {options.draws} draws", lambda: nuts(data, options.draws // 2, options.draws, 1, nuts_key)),
    ):
        started = time.perf_counter()
        sets[name], spent = jax.block_until_ready(run())
        rows.append({"method": name, "gradients": spent, "seconds": time.perf_counter() - started})
    thinned = np.linspace(0, options.draws - 1, options.particles).round().astype(int)
    *_, chain = sets.values()
    sets[f"NUTS thinned to {options.particles}"] = jax.tree.map(lambda x: x[thinned], chain)
    rows.append(rows[-1] | {"method": list(sets)[-1]})
    reference = moments(nuts(data, 500, max(options.draws, 1000), 4, reference_key)[0])
    print("errors over coordinates: of the mean in sd, of log sd; seconds include compilation")
    for row, particles in zip(rows, sets.values(), strict=True):
        row["mean_error"], row["log_sd_error"] = errors(particles, reference)
        print(f"{row['method']:22}{row['mean_error']:7.3f}{row['log_sd_error']:7.3f}", end="")
        print(f"{row['gradients']:9,} gradients{row['seconds']:6.1f} s")
    (options.out / "results.csv").write_text(to_csv(rows))

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, particles in sets.items():
        mean, sd = moments(particles)
        ax.scatter((mean - reference[0]) / reference[1], sd / reference[1], s=14, label=name)
    ax.set(xlabel="error of the mean / sd", ylabel="sd / sd of the long run", title="one point per coordinate")
    ax.legend()
    figure.savefig(options.out / "posterior.png")
    return rows


if __name__ == "__main__":
    main()
