"""Densities in the plane that are hard in one way each, and their exact laws by quadrature on a grid."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LogProb = Callable[[Float[Array, "2"]], Float[Array, ""]]


# --8<-- [start:densities]
def mixture(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Log density of four equal normals of deviation 0.6 at (±2, ±2)."""
    centres = jnp.asarray([[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]], x.dtype)
    return jax.nn.logsumexp(-0.5 * jnp.sum((x[None] - centres) ** 2, axis=1) / 0.36)


def banana(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Log density of a normal bent along a parabola."""
    return -0.5 * (x[0] / 1.5) ** 2 - 0.5 * ((x[1] + 0.5 * x[0] ** 2 - 1) / 0.7) ** 2


def ring(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Log density of a ring of radius 2 and deviation 0.4."""
    return -0.5 * ((jnp.sqrt(jnp.sum(x**2) + 1e-12) - 2) / 0.4) ** 2


def double_banana(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Log density of two bananas: one noisy observation of the log of Rosenbrock's function, a normal prior."""
    rosenbrock = (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2
    return -0.5 * jnp.sum(x**2) - 0.5 * ((jnp.log(30.0) - jnp.log(rosenbrock + 1e-6)) / 0.5) ** 2


def funnel(x: Float[Array, "2"]) -> Float[Array, ""]:
    """Log density of a normal whose deviation is the exponential of another normal: Neal's funnel, lying down."""
    return -0.5 * x[0] ** 2 - 0.5 * x[0] - 0.5 * x[1] ** 2 * jnp.exp(-x[0])


DENSITIES: dict[str, LogProb] = {
    "mixture": mixture,
    "banana": banana,
    "ring": ring,
    "double banana": double_banana,
    "funnel": funnel,
}
# --8<-- [end:densities]


def grid(log_prob: LogProb, reach: float = 20.0, points: int = 801) -> tuple[np.ndarray, np.ndarray]:
    """Give the nodes of a square grid around the origin (points², 2), and the mass at each, in float64.

    Args:
        log_prob: log density up to a constant.
        reach: half the side of the square.
        points: nodes along a side.
    """
    axis = np.linspace(-reach, reach, points)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = np.asarray(jax.vmap(log_prob)(jnp.asarray(nodes, jnp.result_type(float))), np.float64)
    mass = np.exp(logs - logs.max())
    return nodes, mass / mass.sum()


def quadrature(log_prob: LogProb, reach: float = 20.0, points: int = 801) -> tuple[np.ndarray, np.ndarray]:
    """Give mean (2,) and covariance (2, 2) of a plane density, in float64; see `grid`."""
    nodes, mass = grid(log_prob, reach, points)
    mean = mass @ nodes
    return mean, (nodes - mean).T @ (mass[:, None] * (nodes - mean))


def sample(
    log_prob: LogProb, size: int, rng: np.random.Generator, reach: float = 20.0, points: int = 801
) -> np.ndarray:
    """Draw independent points of a plane density (size, 2): a node by its mass, and a place in the cell around it."""
    nodes, mass = grid(log_prob, reach, points)
    chosen = nodes[rng.choice(mass.size, size, p=mass)]
    return chosen + 2 * reach / (points - 1) * rng.uniform(-0.5, 0.5, (size, 2))
