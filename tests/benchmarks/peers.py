"""What SVGD of three libraries does in the cases where they differ: a table, each cell the outcome of a run.

    python tests/benchmarks/peers.py

Every cell is one short run with the library's own defaults for kernel and bandwidth. An error is an outcome. Needs the
extra `bayes` and blackjax.
"""

import functools
import importlib.metadata

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowrl


def log_normal(x):
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(x**2)


def walled(x):
    """The same, with a score that is NaN where the first coordinate exceeds 5."""
    return log_normal(x) + 1e-3 * jnp.sqrt(5 - x[0])


def shifted(centre, x):
    """Log density of N(centre, I)."""
    return -0.5 * jnp.sum((x - centre) ** 2)


# One way to run each library: a log density with an argument, a start, steps of 0.1.


def ours(log_prob, argument, start, steps):
    """Move by flowrl."""
    target = flowrl.Density(log_prob) if argument is None else flowrl.Density(log_prob, argument)
    return flowrl.transport(target, start, flowrl.Budget(steps, 0.1), throw=False).particles


def blackjax(log_prob, argument, start, steps):
    """Move by blackjax."""
    import blackjax as library
    from blackjax.vi.svgd import rbf_kernel, update_median_heuristic

    log_prob = log_prob if argument is None else functools.partial(log_prob, argument)
    svgd = library.svgd(jax.grad(log_prob), optax.sgd(0.1), rbf_kernel, update_median_heuristic)
    state = update_median_heuristic(svgd.init(start, {"length_scale": jnp.ones(())}))
    return jax.jit(lambda s: jax.lax.fori_loop(0, steps, lambda _, s: svgd.step(s), s))(state).particles


def _numpyro(model, optimiser, start, n):
    """Return numpyro's SVGD for a model of one site, its state with the particles at `start`, and the site's name."""
    import numpyro as library
    from numpyro.contrib.einstein import SVGD, RBFKernel

    svgd = SVGD(model, optimiser(library.optim), RBFKernel(), num_stein_particles=n)
    state = svgd.init(jr.key(0))
    name = next(iter(svgd.get_params(state)))
    if start is not None:
        state = state._replace(optim_state=svgd.optim.init({name: start}))
    return svgd, state, name


def numpyro(log_prob, argument, start, steps):
    """Move by numpyro."""
    import numpyro as library

    log_prob = log_prob if argument is None else functools.partial(log_prob, argument)

    def model():
        flat = library.distributions.Normal(jnp.zeros(start.shape[1]), 1e4).to_event(1)
        library.factor("log density", log_prob(library.sample("x", flat)))

    svgd, state, name = _numpyro(model, lambda optim: optim.SGD(0.1), start, len(start))
    return svgd.get_params(_updated(svgd, state, steps))[name]


def _updated(svgd, state, steps):
    return jax.jit(lambda s: jax.lax.fori_loop(0, steps, lambda _, s: svgd.update(s)[0], s))(state)


# The cases. Each gives a word for what happened.


def finite(particles):
    """Count the particles that are finite."""
    particles = np.asarray(particles).reshape(len(particles), -1)
    return f"{np.isfinite(particles).all(axis=1).sum()} of {len(particles)} finite"


def one_particle(run):
    """One particle."""
    return finite(run(log_normal, None, jnp.ones((1, 2)), 2))


def coincident(run):
    """Five particles in one place."""
    return finite(run(log_normal, None, jnp.ones((5, 2)), 2))


def bad_score(run):
    """Ten particles, the score of one NaN; the position of that one is finite."""
    start = jr.normal(jr.key(0), (10, 2)).at[3, 0].set(6.0)
    return finite(run(walled, None, start, 1))


def gradient(run):
    """The derivative of the particles' mean after two steps by the centre of the target."""
    start = jr.normal(jr.key(0), (10, 2))
    slope = jax.grad(lambda centre: jnp.mean(run(shifted, centre, start, 2)))(jnp.zeros(2))
    return "finite" if np.isfinite(slope).all() else "NaN"


def _moments(x):
    return f"mean {np.mean(x):.2f}, variance {np.var(x):.2f}"


def our_gamma():
    """Run Gamma(3, 1) as a model of numpyro, by flowrl."""
    import numpyro as library

    def model():
        library.sample("x", library.distributions.Gamma(3.0, 1.0))

    posterior = flowrl.from_numpyro(model, key=jr.key(0))
    solver, budget = flowrl.Optax(optax.adagrad(1.0)), flowrl.Budget(1500, 0.1)
    moved = flowrl.transport(posterior.target, posterior.initial(100, jr.key(1)), budget, solver=solver)
    return _moments(posterior.constrain(moved.particles)["x"])


def numpyro_gamma():
    """Run Gamma(3, 1) by numpyro."""
    import numpyro as library

    def model():
        library.sample("x", library.distributions.Gamma(3.0, 1.0))

    svgd, state, name = _numpyro(model, lambda optim: optim.Adagrad(0.1), None, 100)
    return _moments(svgd.get_params(_updated(svgd, state, 1500))[name])


def our_second_half():
    """Go on by flowrl where two steps ended."""
    whole, half = (ours(log_normal, None, jr.normal(jr.key(0), (10, 2)), steps) for steps in (4, 2))
    return "the same bits" if (ours(log_normal, None, half, 2) == whole).all() else "other numbers"


def blackjax_second_half():
    """Go on by blackjax where two steps ended."""
    whole, half = (blackjax(log_normal, None, jr.normal(jr.key(0), (10, 2)), steps) for steps in (4, 2))
    return "the same bits" if (blackjax(log_normal, None, half, 2) == whole).all() else "other numbers"


def numpyro_second_half():
    """Go on by numpyro from the state that its `run` gave."""
    import numpyro as library

    def model():
        library.sample("x", library.distributions.Normal(0.0, 1.0))

    svgd, _, _ = _numpyro(model, lambda optim: optim.SGD(0.1), None, 10)
    first = svgd.run(jr.key(0), 2, progress_bar=False)
    svgd.run(jr.key(1), 2, progress_bar=False, init_state=first.state)
    return "runs"


def _driven(algorithm):
    from blackjax.util import run_inference_algorithm

    start = jr.normal(jr.key(0), (10, 2))
    run_inference_algorithm(jr.key(1), algorithm, 2, initial_position=start)
    return "runs"


def our_driver():
    """Run flowrl's stepper in blackjax's driver."""
    return _driven(flowrl.Stepper(flowrl.Density(log_normal), flowrl.Budget(2, 0.1)))


def blackjax_driver():
    """Run blackjax's SVGD in blackjax's driver."""
    import blackjax as library

    return _driven(library.svgd(jax.grad(log_normal), optax.sgd(0.1)))


def outcome(case, *arguments):
    """Return the result of a case, or the error it raised."""
    try:
        return case(*arguments)
    except Exception as error:
        return type(error).__name__


def main():
    """Run all cases and print them as a table."""
    libraries = {"flowrl-transport": ours, "blackjax": blackjax, "numpyro": numpyro}
    alike = {
        "one particle": one_particle,
        "five particles in one place": coincident,
        "one NaN score of ten": bad_score,
        "gradient through two steps": gradient,
    }
    rows = {name: [outcome(case, run) for run in libraries.values()] for name, case in alike.items()}
    rows["Gamma(3, 1): mean 3, variance 3"] = [outcome(our_gamma), "–", outcome(numpyro_gamma)]
    halves = our_second_half, blackjax_second_half, numpyro_second_half
    rows["going on from an earlier result"] = [outcome(half) for half in halves]
    rows["blackjax's run_inference_algorithm"] = [outcome(our_driver), outcome(blackjax_driver), "–"]
    heads = [f"{name} {importlib.metadata.version(name)}" for name in libraries]
    print(f"jax {importlib.metadata.version('jax')}, float32\n")
    for row in (["case", *heads], ["---"] * 4, *([name, *cells] for name, cells in rows.items())):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
