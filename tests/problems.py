"""What several test files share: values, comparisons, measures. Module-level, so that programs are compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
from sample_density import DENSITIES

X64 = jax.config.jax_enable_x64
FLOAT = jnp.float64 if X64 else jnp.float32


def tolerance(double, single):
    """The tolerance for the precision of this run: double, or single with FLOWRL_TEST_X64=0."""
    return double if X64 else single


def log_normal(x):
    """Log density of the standard normal, up to a constant."""
    return -0.5 * jnp.sum(x**2)


def quadratic(centre, x):
    """Log density of a normal of unit variance around `centre`."""
    return -0.5 * jnp.sum((x - centre) ** 2)


def linear(slope, x):
    """A value with the constant gradient `slope`."""
    return jnp.sum(slope * x)


def walled(x):
    """A normal whose score is NaN wherever the first coordinate exceeds 5."""
    return -0.5 * jnp.sum(x**2) + 1e-3 * jnp.sqrt(5 - x[0])


def draw(seed, shape, dtype=None):
    """Standard normal numbers, the same in every precision."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype or FLOAT)


def rows(x):
    """One float64 NumPy row a particle."""
    x = np.asarray(x, np.float64)
    return x.reshape(x.shape[0], -1)


def distances(x, y, unit=1.0):
    """How far each particle of `y` is from its namesake in `x`, measured in float64."""
    return np.linalg.norm((rows(y) - rows(x)) / unit, axis=1)


def mmd_squared(x, y, sigma):
    """Squared maximum mean discrepancy of two empirical measures, the Gaussian kernel, in float64."""

    def mean_kernel(a, b):
        squared = np.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
        return np.mean(np.exp(-squared / (2 * sigma**2)))

    x, y = rows(x), rows(y)
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


def same_bits(got, want):
    """Whether two PyTrees of arrays are equal bit for bit: NaN equals NaN, and −0 differs from 0."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        return False
    pairs = zip(map(np.asarray, jax.tree.leaves(got)), map(np.asarray, jax.tree.leaves(want)), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


def assert_close(got, want, rtol=None, atol=0.0):
    """Compare two PyTrees to rounding."""
    rtol = tolerance(1e-10, 1e-4) if rtol is None else rtol
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def quadrature(log_prob, points=801):
    """Mean (2,) and covariance (2, 2) of a plane density, in float64, on a grid that reaches to 20."""
    axis = np.linspace(-20, 20, points)
    nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    logs = np.asarray(jax.vmap(log_prob)(jnp.asarray(nodes, jnp.result_type(float))), np.float64)
    mass = np.exp(logs - logs.max())
    mass /= mass.sum()
    mean = mass @ nodes
    return mean, (nodes - mean).T @ (mass[:, None] * (nodes - mean))


# Plane densities whose moments are taken by quadrature. From a wide start the neck of the funnel asks for steps that
# are too small for a test.
PLANE = {name: DENSITIES[name] for name in ("mixture", "banana", "ring", "double banana")}
