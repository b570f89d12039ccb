"""How far particles are from a long run of NUTS."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PRNGKeyArray, PyTree
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import log_likelihood

import flowrl
from flowrl import diagnostics
from flowrl.scripts.posterior._methods import nuts
from flowrl.scripts.posterior._models import Problem


def standard(problem: Problem, warmup: int, draws: int, key: PRNGKeyArray) -> tuple[PyTree, float, float]:
    """Draw four chains; return them, and the worst split R-hat and least effective sample size of what is compared."""
    model, convert = problem.standard or (problem.model, lambda particles: particles)
    chains = nuts(problem._replace(model=model), warmup, draws)(jr.split(key, 4))
    particles = convert(jax.tree.map(lambda x: x[:, warmup:], chains.particles))
    compared = np.asarray(jax.jit(jax.vmap(jax.vmap(problem.summary)))(particles), np.float64)
    merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), particles)
    return merged, float(np.max(split_gelman_rubin(compared))), float(np.min(effective_sample_size(compared)))


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
        """Compute what is compared, (n, coordinates)."""
        return np.asarray(self.summary(particles), np.float64)

    def errors(self, coordinates: np.ndarray) -> tuple[float, float]:
        """Compute the root mean square over coordinates of the error of the mean in sd, and of log(sd / true sd)."""
        mean, sd = moments(coordinates)
        off, ratio = (mean - self.mean) / self.sd, np.log(np.maximum(sd, 1e-30) / self.sd)
        return float(np.sqrt(np.mean(off**2))), float(np.sqrt(np.mean(ratio**2)))

    def row(self, particles: PyTree) -> dict[str, float | str]:
        """Compute all measures of a set of particles."""
        mean, sd = self.errors(self.coordinates(particles))
        scores = diagnostics.scores(self.posterior.target, particles)
        row = {"mean_error": mean, "log_sd_error": sd, "ksd": float(diagnostics.ksd(particles, scores, self.kernel))}
        return row | {"test_log_likelihood": self.test_log_likelihood(particles)}

    def test_log_likelihood(self, particles: PyTree) -> float | str:
        """Average over held-out data the log of the likelihood averaged over particles."""
        if not self.problem.test:
            return ""
        values = self.posterior.constrain(particles)
        each = log_likelihood(self.problem.model, values, **self.problem.test)["y"]  # pyright: ignore[reportArgumentType]
        return float(jnp.mean(jax.nn.logsumexp(each, axis=0) - jnp.log(each.shape[0])))


def moments(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each coordinate."""
    return coordinates.mean(axis=0), coordinates.std(axis=0, ddof=1)
