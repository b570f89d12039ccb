"""A numpyro model in, particles out, beside NUTS: logistic regression on the breast cancer data of scikit-learn.

Both are measured against eight more chains of NUTS. `flowrl posterior` has more models, flows and measures.
"""

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
    posterior = flowrl.from_numpyro(model, key=key, **data)
    start_key, flow_key = jr.split(key)
    # Adagrad's steps fall, so the particles come to rest; they begin large, since its sums begin at 0.1.
    method = flowrl.Transport(flowrl.SVGD(), flowrl.Optax(optax.adagrad(1.0)))
    budget = flowrl.Budget(steps, step_size=3.0)
    solution = method(posterior.target, posterior.initial(particles, start_key), budget, key=flow_key)
    return solution.particles, steps * particles


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

    chain, sets, rows = nuts(data, options.draws // 2, options.draws), {}, []
    for name, run in (
        (f"SVGD, {options.particles} particles", lambda: transported(data, options.particles, options.steps, flow_key)),
        (f"NUTS, {options.draws} draws", lambda: chain(nuts_key)),
    ):
        started = time.perf_counter()
        sets[name], spent = jax.block_until_ready(run())
        rows.append({"method": name, "gradients": int(spent), "seconds": time.perf_counter() - started})
    thinned = np.linspace(0, options.draws - 1, options.particles).round().astype(int)
    *_, draws = sets.values()
    sets[f"NUTS thinned to {options.particles}"] = jax.tree.map(lambda x: x[thinned], draws)
    rows.append(rows[-1] | {"method": list(sets)[-1]})
    long_run = [chain(key)[0] for key in jr.split(reference_key, 8)]
    reference = moments(jax.tree.map(lambda *chains: jnp.concatenate(chains), *long_run))
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
