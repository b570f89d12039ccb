"""A numpyro model in, particles out, beside NUTS: logistic regression, both measured against eight longer chains."""

import argparse
import pathlib
import time

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
    from numpyro.infer import NUTS
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
    posterior, (start_key, flow_key) = flowrl.from_numpyro(model, key=key, **data), jr.split(key)
    # Adagrad's steps fall, so the particles come to rest; they begin large, since its sums begin at 0.1.
    method = flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    start, budget = posterior.initial(particles, start_key), flowrl.Budget(steps, step_size=3.0)
    return method(posterior.target, start, budget, key=flow_key).particles, steps * particles


def nuts(data, warmup, draws):
    """Compile one chain of numpyro's NUTS, its settings at their defaults: a function of the key to draws and cost."""
    kernel = NUTS(model)

    def chain(key):
        def step(state, _):
            state = kernel.sample(state, (), data)
            return state, (state.z, state.num_steps)  # unconstrained coordinates; leapfrog steps, one gradient each

        iterations = jax.lax.scan(step, kernel.init(key, warmup, None, (), data), None, warmup + draws)[1]
        return jax.tree.map(lambda x: x[warmup:], iterations[0]), jnp.sum(iterations[1])

    return jax.jit(chain)


# --8<-- [end:methods]
# --8<-- [start:errors]
def moments(particles):
    """Return the mean and the standard deviation of each coordinate, in float64."""
    rows = np.column_stack([particles["bias"], particles["weights"]]).astype(float)
    return rows.mean(axis=0), rows.std(axis=0, ddof=1)


def errors(particles, reference):
    """Return the root mean square error of the mean, in sd, and of the log of the sd, over coordinates."""
    (mean, sd), (true_mean, true_sd) = moments(particles), reference
    return tuple(float(np.sqrt(np.mean(x**2))) for x in ((mean - true_mean) / true_sd, np.log(sd / true_sd)))


# --8<-- [end:errors]
def timed(method, run):
    """Run a method; return its draws, and a row of what they cost."""
    started = time.perf_counter()
    draws, spent = jax.block_until_ready(run())
    return draws, {"method": method, "gradients": int(spent), "seconds": time.perf_counter() - started}


def main(words=None):
    """Compare particles with NUTS: a table, results.csv and posterior.png; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="of SVGD; each takes one gradient per particle")
    parser.add_argument("--draws", type=int, default=1000, help="of NUTS, after half as many iterations of warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/posterior"), help="folder for the files")
    options = parser.parse_args(words)
    n, steps, length = options.particles, options.steps, options.draws
    if min(n, steps) < 2 or length < n:
        raise SystemExit("--particles and --steps must be at least 2, --draws at least --particles.")
    options.out.mkdir(parents=True, exist_ok=True)
    x, y = load_breast_cancer(return_X_y=True)
    data = {"x": jnp.asarray((x - x.mean(axis=0)) / x.std(axis=0)), "y": jnp.asarray(y, float)}
    flow_key, nuts_key, reference_key = jr.split(jr.key(options.seed), 3)
    chain = nuts(data, length // 2, length)
    particles, cost = timed(f"SVGD, {n} particles", lambda: transported(data, n, steps, flow_key))
    draws, chain_cost = timed(f"NUTS, {length} draws", lambda: chain(nuts_key))
    thinned = jax.tree.map(lambda x: x[np.linspace(0, length - 1, n).round().astype(int)], draws)
    long_run = [chain(key)[0] for key in jr.split(reference_key, 8)]
    reference = moments(jax.tree.map(lambda *chains: jnp.concatenate(chains), *long_run))
    print("errors over coordinates: of the mean in sd, of log sd; seconds include compilation")
    rows = [cost, chain_cost, chain_cost | {"method": f"NUTS thinned to {n}"}]
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    ax = figure.subplots()
    for row, points in zip(rows, (particles, draws, thinned), strict=True):
        (mean, sd), (row["mean_error"], row["log_sd_error"]) = moments(points), errors(points, reference)
        print("{method:22}{mean_error:7.3f}{log_sd_error:7.3f}{gradients:9,} gradients{seconds:6.1f} s".format(**row))
        ax.scatter((mean - reference[0]) / reference[1], sd / reference[1], s=14, label=row["method"])
    ax.set(xlabel="error of the mean / sd", ylabel="sd / sd of the long run", title="one point per coordinate")
    ax.legend()
    figure.savefig(options.out / "posterior.png")
    (options.out / "results.csv").write_text(to_csv(rows))
    return rows


if __name__ == "__main__":
    main()
